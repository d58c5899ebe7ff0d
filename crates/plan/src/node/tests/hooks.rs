//! Hooks: what is done after the start and before the stop.

use pb::objects::{Lifecycle, LifecycleHandler};

use super::*;

pub(super) fn hooked(name: &str, post_start: bool, pre_stop: bool) -> ContainerSpec {
    let hook = |wanted: bool| wanted.then(LifecycleHandler::default);
    let lifecycle = Some(Lifecycle { post_start: hook(post_start), pre_stop: hook(pre_stop) });
    ContainerSpec { lifecycle, ..container(name) }
}

pub(super) fn post_start(effort: &mut Effort) -> &mut Hook {
    &mut effort.post_start
}

pub(super) fn pre_stop(effort: &mut Effort) -> &mut Hook {
    &mut effort.pre_stop
}

#[test]
fn a_container_counts_as_started_when_its_hook_is_done() {
    let mut world = World::new(PodSpec { containers: vec![hooked("main", true, false)], ..one() });
    assert_eq!(world.settle(), ["mount", "sandbox", "start main #0", "postStart main"]);
    let started = |world: &World| world.before.container_statuses[0].started;
    assert_eq!((world.condition("Ready"), started(&world)), ("False", Some(false)));
    world.hook_ends("main", post_start, None);
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!((world.condition("Ready"), started(&world)), ("True", Some(true)));
}

#[test]
fn a_hook_that_fails_after_the_start_ends_the_container() {
    let mut world = World::new(PodSpec { containers: vec![hooked("main", true, false)], ..one() });
    world.settle();
    world.hook_ends("main", post_start, Some("exit code 1"));
    let plan = world.decide();
    let Action::StopContainer { why, .. } = &plan.actions[0] else { panic!("{plan:?}") };
    assert!(why.starts_with("FailedPostStartHook"), "{why}");
    assert_eq!(world.settle(), ["stop main", "start main #1", "postStart main"]);
}

#[test]
fn the_hook_before_the_stop_takes_its_time_from_the_grace_period() {
    for (takes, left) in [(3, 7), (9, 2), (10, 2)] {
        let mut world = World::new(PodSpec { containers: vec![hooked("main", false, true)], ..one() });
        world.settle();
        world.wanted = Wanted::Stop { grace: Duration::from_secs(10) };
        assert_eq!(world.settle(), ["preStop main"]);
        assert_eq!(world.decide().wake.unwrap().as_second(), 10, "its time ends with the grace period");
        world.passes(takes);
        if takes < 10 {
            world.hook_ends("main", pre_stop, None);
        }
        let plan = world.decide();
        let Action::StopContainer { grace, .. } = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(grace.as_secs(), left, "after {takes} seconds");
    }
}

#[test]
fn without_grace_there_is_no_hook() {
    let mut world = World::new(PodSpec { containers: vec![hooked("main", false, true)], ..one() });
    world.settle();
    world.wanted = Wanted::Stop { grace: Duration::ZERO };
    assert_eq!(world.settle(), ["stop main", "discard sandbox", "unmount"]);
}

#[test]
fn a_second_deletion_with_less_grace_shortens_what_is_under_way() {
    let mut world = World::new(PodSpec { containers: vec![hooked("main", false, true), container("other")], ..one() });
    world.slow = true;
    world.settle();
    world.wanted = Wanted::Stop { grace: Duration::from_secs(30) };
    assert_eq!(world.settle(), ["preStop main", "stop other"]);
    world.passes(4);
    world.wanted = Wanted::Stop { grace: Duration::from_secs(10) };
    let plan = world.decide();
    let graces: Vec<_> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::StopContainer { name, grace, .. } => (name.as_str(), grace.as_secs()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(graces, [("other", 6)], "the hook may go on until then");
    world.settle();
    world.wanted = Wanted::Stop { grace: Duration::ZERO };
    let plan = world.decide();
    let at_once = |action: &Action| matches!(action, Action::StopContainer { grace: Duration::ZERO, .. });
    assert!(plan.actions.len() == 2 && plan.actions.iter().all(at_once), "{:?}", plan.actions);
}

#[test]
fn an_agent_that_starts_anew_while_a_hook_runs_runs_it_again() {
    let mut world = World::new(PodSpec { containers: vec![hooked("main", false, true)], ..one() });
    world.settle();
    world.wanted = Wanted::Stop { grace: Duration::from_secs(10) };
    world.settle();
    (world.efforts, world.leaving_since) = (BTreeMap::new(), None);
    assert_eq!(world.settle(), ["preStop main"]);
    world.hook_ends("main", pre_stop, None);
    assert_eq!(world.settle(), ["stop main", "discard sandbox", "unmount"]);
}
