//! Containers come, end and come again.

use super::*;

#[test]
fn a_pod_comes_up_and_goes_down() {
    let mut world = World::new(one());
    assert_eq!(world.settle(), ["mount", "sandbox", "start main #0"]);
    assert_eq!(world.before.phase, "Running");
    assert_eq!(world.before.pod_ip, "10.77.0.1");
    assert_eq!(world.condition("Ready"), "True", "without a probe a running container is ready");

    world.wanted = Wanted::Stop { grace: Duration::from_secs(5) };
    assert_eq!(world.settle(), ["stop main", "discard sandbox", "unmount"]);
    assert!(world.decide().stopped);
    assert_eq!(world.condition("Ready"), "False");
    assert_eq!(world.before.pod_ip, "10.77.0.1", "the address by which it was known");
    let end = world.before.container_statuses[0].state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((end.exit_code, end.signal), (143, 15));
}

#[test]
fn a_pod_that_is_deleted_before_it_came_up_starts_nothing() {
    let mut world = World::new(one());
    world.wanted = Wanted::Stop { grace: Duration::ZERO };
    assert_eq!(world.settle(), ["unmount"]);
    assert!(world.decide().stopped);
}

#[test]
fn a_container_that_keeps_ending_waits_longer_each_time() {
    let mut world = World::new(one());
    world.settle();
    let mut waits = Vec::new();
    for attempt in 1..=8 {
        world.exits("main", 1);
        let from = world.now;
        let plan = world.decide();
        if let Some(wake) = plan.wake {
            assert_eq!(world.waiting(0), "CrashLoopBackOff");
            world.now = wake;
        }
        waits.push((world.now - from).get_seconds());
        let done = world.settle();
        assert!(done.contains(&format!("start main #{attempt}")), "{done:?}");
        assert_eq!(world.before.container_statuses[0].restart_count, attempt);
        assert!(world.before.container_statuses[0].last_state.is_some());
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(world.runtime.containers.len(), 2, "old runs are removed");

    world.passes(600);
    world.exits("main", 1);
    assert_eq!(world.settle()[0], "start main #9", "after a long run at once");
}

#[test]
fn pods_that_do_not_restart_end_for_good() {
    for (policy, code, phase) in [("Never", 1, "Failed"), ("Never", 0, "Succeeded"), ("OnFailure", 0, "Succeeded")] {
        let mut world = World::new(PodSpec { restart_policy: policy.into(), ..one() });
        world.settle();
        world.exits("main", code);
        assert_eq!(world.settle(), ["stop sandbox", "unmount"], "{policy}");
        assert_eq!(world.before.phase, phase);
        // Also if the runtime forgets everything.
        world.runtime = Runtime::default();
        assert!(world.settle().is_empty());
        assert_eq!(world.before.phase, phase);
        assert_eq!(world.before.container_statuses[0].restart_count, 0);
    }
}

#[test]
fn init_containers_run_in_order_before_the_others() {
    let spec = PodSpec { init_containers: vec![container("a"), container("b")], ..one() };
    let mut world = World::new(spec);
    assert_eq!(world.settle(), ["mount", "sandbox", "start a #0"]);
    assert_eq!((world.before.phase.as_str(), world.waiting(0).as_str()), ("Pending", "PodInitializing"));
    world.exits("a", 0);
    assert_eq!(world.settle(), ["start b #0"]);
    world.exits("b", 1);
    assert_eq!(world.settle(), ["start b #1"], "tried again");
    world.exits("b", 0);
    assert_eq!(world.condition("Initialized"), "False");
    assert_eq!(world.settle(), ["start main #0"]);
    assert_eq!(world.condition("Initialized"), "True");
    world.exits("main", 0);
    assert_eq!(world.settle(), ["start main #1"], "init containers are not repeated");
}

#[test]
fn a_lost_sandbox_is_replaced_and_counts_go_on() {
    let mut world = World::new(one());
    world.settle();
    world.exits("main", 137);
    world.runtime.sandboxes[0].ready = false;
    world.passes(30);
    assert_eq!(
        world.settle(),
        ["discard sandbox", "mount", "sandbox", "start main #1"]
            .map(String::from)
            .into_iter()
            .filter(|step| step != "mount")
            .collect::<Vec<_>>()
    );
    assert_eq!(world.before.container_statuses[0].restart_count, 1);
    let last = world.before.container_statuses[0].last_state.as_ref().unwrap();
    assert_eq!(last.terminated.as_ref().unwrap().exit_code, 137);
}

#[test]
fn an_agent_that_starts_anew_touches_nothing_that_runs() {
    let mut world = World::new(one());
    world.settle();
    world.volumes = Volumes::Unknown;
    world.failures.clear();
    assert!(world.settle().is_empty());
    world.exits("main", 0);
    assert_eq!(world.settle(), ["mount", "start main #1"], "volumes are looked at before the next start");
}

#[test]
fn a_failed_step_waits_and_says_why() {
    let mut world = World::new(one());
    let failure = Failure {
        reason: "FailedMount".into(),
        message: "no volume".into(),
        retry_at: world.now + SignedDuration::from_secs(2),
    };
    world.failures.insert(Step::Volumes, failure);
    assert_eq!(world.settle(), ["sandbox"]);
    assert_eq!(world.waiting(0), "FailedMount");
    assert_eq!(world.before.phase, "Pending");
    assert_eq!(world.decide().wake.unwrap().as_second(), 2);
    world.passes(2);
    assert_eq!(world.settle(), ["mount", "start main #0"]);
}

#[test]
fn what_an_agent_left_half_made_is_made_anew() {
    let mut world = World::new(one());
    world.settle();
    world.runtime.containers[0].state = ContainerState::Created;
    assert_eq!(world.settle(), ["remove main", "start main #1"]);
    world.runtime.containers[0].state = ContainerState::Unknown;
    assert_eq!(world.settle(), ["stop main", "start main #2"]);
}

#[test]
fn a_pod_whose_time_is_over_has_failed() {
    let mut world = World::new(PodSpec { active_deadline_seconds: Some(60), ..one() });
    world.settle();
    assert_eq!(world.decide().wake.unwrap().as_second(), 60);
    world.passes(60);
    assert_eq!(world.settle(), ["stop main", "stop sandbox", "unmount"]);
    assert_eq!((world.before.phase.as_str(), world.before.reason.as_str()), ("Failed", "DeadlineExceeded"));
    assert!(world.settle().is_empty());
    assert_eq!(world.before.reason, "DeadlineExceeded", "for ever");
}

#[test]
fn what_ended_in_time_has_not_failed_for_its_deadline() {
    let spec = PodSpec { restart_policy: "Never".into(), active_deadline_seconds: Some(60), ..one() };
    let mut world = World::new(spec);
    world.settle();
    world.exits("main", 0);
    world.passes(90);
    world.settle();
    assert_eq!((world.before.phase.as_str(), world.before.reason.as_str()), ("Succeeded", ""));
}

#[test]
fn a_run_that_the_runtime_lost_has_ended_for_unknown_reasons() {
    let mut world = World::new(one());
    world.settle();
    world.runtime = Runtime::default();
    world.settle();
    let status = &world.before.container_statuses[0];
    let end = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((end.reason.as_str(), end.exit_code, status.restart_count), ("ContainerStatusUnknown", 137, 1));
}
