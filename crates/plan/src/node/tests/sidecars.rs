//! Sidecars: init containers that run on.

use super::{
    hooks::{hooked, post_start, pre_stop},
    *,
};

fn sidecar(name: &str) -> ContainerSpec {
    ContainerSpec { restart_policy: "Always".into(), ..container(name) }
}

fn with(init: Vec<ContainerSpec>) -> PodSpec {
    PodSpec { init_containers: init, ..one() }
}

#[test]
fn what_follows_a_sidecar_waits_until_it_has_started() {
    let probed = ContainerSpec { startup_probe: Some(Probe::default()), ..sidecar("a") };
    let also = ContainerSpec { restart_policy: "Always".into(), ..hooked("b", true, false) };
    let mut world = World::new(with(vec![probed, container("init"), also]));
    assert_eq!(world.settle(), ["mount", "sandbox", "start a #0"]);
    let id = world.runtime.containers[0].id.clone();
    world.verdicts.insert(id, Verdicts { started: true, ready: true, fatal: None });
    assert_eq!(world.settle(), ["start init #0"]);
    world.exits("init", 0);
    assert_eq!(world.settle(), ["start b #0", "postStart b"]);
    assert_eq!((world.condition("Initialized"), world.before.phase.as_str()), ("False", "Pending"));
    world.hook_ends("b", post_start, None);
    assert_eq!(world.settle(), ["start main #0"]);
    assert_eq!((world.condition("Initialized"), world.condition("Ready")), ("True", "True"));
}

#[test]
fn a_sidecar_is_started_again_whatever_the_pod_s_policy_and_counts_for_readiness() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut world = World::new(PodSpec { restart_policy: policy.into(), ..with(vec![sidecar("side")]) });
        assert_eq!(world.settle(), ["mount", "sandbox", "start side #0", "start main #0"]);
        world.exits("side", 0);
        world.decide();
        assert_eq!(world.condition("Ready"), "False");
        assert_eq!(world.settle(), ["start side #1"], "{policy}");
        assert_eq!(world.condition("Ready"), "True");
        world.exits("side", 1);
        assert_eq!(world.settle(), [""; 0], "{policy}: it waits");
        let state = world.before.init_container_statuses[0].state.as_ref().unwrap();
        assert_eq!(state.waiting.as_ref().unwrap().reason, "CrashLoopBackOff");
        assert_eq!(world.before.phase, "Running");
    }
}

#[test]
fn a_sidecar_does_not_keep_a_pod_from_ending() {
    let spec = PodSpec { restart_policy: "Never".into(), ..with(vec![sidecar("a"), sidecar("b")]) };
    let mut world = World::new(spec);
    world.settle();
    world.slow = true;
    world.exits("main", 0);
    assert_eq!(world.settle(), ["stop b"], "the last one first");
    assert_eq!(world.before.phase, "Running", "a process of it runs");
    world.exits("b", 143);
    assert_eq!(world.settle(), ["stop a"]);
    world.exits("a", 143);
    assert_eq!(world.settle(), ["stop sandbox", "unmount"]);
    assert_eq!(world.before.phase, "Succeeded", "what sidecars end with does not count");
}

#[test]
fn sidecars_end_after_the_others_and_in_reverse_order() {
    let also = ContainerSpec { restart_policy: "Always".into(), ..hooked("b", false, true) };
    let mut world = World::new(with(vec![sidecar("a"), also]));
    world.settle();
    world.slow = true;
    world.wanted = Wanted::Stop { grace: Duration::from_secs(10) };
    assert_eq!(world.settle(), ["preStop b", "stop main"], "hooks of all begin at once");
    world.hook_ends("b", pre_stop, None);
    assert_eq!(world.settle(), [""; 0], "its signal waits");
    world.exits("main", 0);
    assert_eq!(world.settle(), ["stop b"]);
    world.passes(10);
    assert_eq!(world.settle(), ["stop a"], "nobody waits longer than the grace period");
}

#[test]
fn a_new_sandbox_begins_with_the_sidecars() {
    let mut world = World::new(with(vec![container("init"), sidecar("side")]));
    world.settle();
    world.exits("init", 0);
    world.settle();
    for run in ["side", "main"] {
        world.exits(run, 255);
    }
    world.runtime.sandboxes[0].ready = false;
    world.passes(30);
    let done = world.settle();
    assert_eq!(done[..3], ["discard sandbox", "sandbox", "start init #1"], "{done:?}");
    world.exits("init", 0);
    assert_eq!(world.settle(), ["start side #1", "start main #1"]);
    assert_eq!(world.condition("Ready"), "True");
}
