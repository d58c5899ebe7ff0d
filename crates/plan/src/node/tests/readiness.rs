//! What makes a pod ready.

use pb::objects::{Condition, PodReadinessGate};

use super::*;

#[test]
fn probes_decide_readiness_and_restart() {
    let probed = ContainerSpec {
        readiness_probe: Some(Probe::default()),
        startup_probe: Some(Probe::default()),
        ..container("main")
    };
    let mut world = World::new(PodSpec { containers: vec![probed], ..one() });
    world.settle();
    assert_eq!((world.before.phase.as_str(), world.condition("Ready")), ("Running", "False"));
    let id = world.runtime.containers[0].id.clone();
    world.verdicts.insert(id.clone(), Verdicts { started: true, ready: true, fatal: None });
    world.passes(3);
    world.settle();
    assert_eq!(world.condition("Ready"), "True");
    let since = world.before.conditions.iter().find(|c| c.r#type == "Ready").unwrap().last_transition_time;
    assert_eq!(since.unwrap().seconds, 3);

    world.passes(3);
    world.verdicts.insert(
        id,
        Verdicts {
            started: true,
            ready: true,
            fatal: Some(Fatal { probe: probe::Kind::Liveness, message: "500".into() }),
        },
    );
    assert_eq!(world.settle(), ["stop main", "start main #1"]);
    assert_eq!(world.condition("Ready"), "False", "the new run has to prove itself");
}

#[test]
fn gates_are_opened_by_conditions_that_others_write() {
    let gate = PodReadinessGate { condition_type: "example.com/leader".into() };
    let mut world = World::new(PodSpec { readiness_gates: vec![gate], ..one() });
    world.settle();
    assert_eq!((world.condition("ContainersReady"), world.condition("Ready")), ("True", "False"));
    let ready = |world: &World| world.before.conditions.iter().find(|c| c.r#type == "Ready").cloned().unwrap();
    assert_eq!(ready(&world).reason, "ReadinessGatesNotReady");
    let mut write = |status: &str| {
        let condition = Condition { r#type: "example.com/leader".into(), status: status.into(), ..Default::default() };
        world.pod.status = Some(PodStatus { conditions: vec![condition], ..Default::default() });
        world.settle();
        assert!(
            world.before.conditions.iter().all(|c| CONDITIONS.contains(&c.r#type.as_str())),
            "others' are not told"
        );
        ready(&world).status
    };
    assert_eq!((write("False"), write("True")), ("False".into(), "True".into()));
}

#[test]
fn a_probe_may_bring_its_own_grace() {
    let probe = Probe { termination_grace_period_seconds: Some(3), ..Default::default() };
    let main = ContainerSpec { liveness_probe: Some(probe), ..container("main") };
    let mut world = World::new(PodSpec { containers: vec![main], ..one() });
    world.settle();
    let fatal = Some(Fatal { probe: probe::Kind::Liveness, message: "500".into() });
    world.verdicts.insert(world.runtime.containers[0].id.clone(), Verdicts { started: true, ready: true, fatal });
    let plan = world.decide();
    let Action::StopContainer { grace, .. } = &plan.actions[0] else { panic!("{plan:?}") };
    assert_eq!(grace.as_secs(), 3);
}

#[test]
fn the_network_shows_when_the_sandbox_is_there() {
    let mut world = World::new(one());
    world.decide();
    assert_eq!(world.condition("PodReadyToStartContainers"), "False");
    world.settle();
    assert_eq!(world.condition("PodReadyToStartContainers"), "True");
    assert_eq!(world.before.qos_class, "BestEffort");
}
