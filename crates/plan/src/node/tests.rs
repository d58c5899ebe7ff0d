//! Stories of one pod: a small world does what the plan says, and the plan looks again.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use pb::objects::{Container as ContainerSpec, ObjectMeta, Pod, PodSpec, PodStatus, Probe};

use super::*;

struct World {
    now: Timestamp,
    pod: Pod,
    wanted: Wanted,
    runtime: Runtime,
    volumes: Volumes,
    verdicts: BTreeMap<String, Verdicts>,
    failures: BTreeMap<Step, Failure>,
    efforts: BTreeMap<String, Effort>,
    leaving_since: Option<Timestamp>,
    before: PodStatus,
    made: u32,
}

impl World {
    fn new(spec: PodSpec) -> Self {
        Self {
            now: Timestamp::UNIX_EPOCH,
            pod: Pod {
                metadata: Some(ObjectMeta { name: "web-0".into(), uid: "u".into(), ..Default::default() }),
                spec: Some(spec),
                ..Default::default()
            },
            wanted: Wanted::Run,
            runtime: Runtime::default(),
            volumes: Volumes::Unknown,
            verdicts: BTreeMap::new(),
            failures: BTreeMap::new(),
            efforts: BTreeMap::new(),
            leaving_since: None,
            before: PodStatus::default(),
            made: 0,
        }
    }

    fn decide(&mut self) -> Plan {
        let plan = decide(&Snapshot {
            now: self.now,
            pod: &self.pod,
            wanted: self.wanted,
            runtime: &self.runtime,
            volumes: self.volumes,
            verdicts: &self.verdicts,
            failures: &self.failures,
            efforts: &self.efforts,
            leaving_since: self.leaving_since,
            before: &self.before,
            host_ip: "10.0.0.1",
        });
        self.leaving_since = plan.leaving.then(|| self.leaving_since.unwrap_or(self.now));
        self.before = plan.status.clone();
        plan
    }

    /// Decides and acts until nothing is due; returns the names of what was done, in order.
    fn settle(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..50 {
            let plan = self.decide();
            if plan.actions.is_empty() {
                return done;
            }
            for action in plan.actions {
                done.push(self.act(&action));
            }
        }
        panic!("does not settle: {done:?}");
    }

    fn act(&mut self, action: &Action) -> String {
        match action {
            Action::MountVolumes => {
                self.volumes = Volumes::Mounted;
                "mount".into()
            }
            Action::UnmountVolumes => {
                assert!(!self.runtime.containers.iter().any(Container::may_run), "unmounted under a running container");
                self.volumes = Volumes::Absent;
                "unmount".into()
            }
            Action::RunSandbox { attempt } => {
                assert!(!self.runtime.sandboxes.iter().any(|s| s.ready), "two sandboxes");
                self.made += 1;
                self.runtime.sandboxes.push(Sandbox {
                    id: format!("s{}", self.made),
                    attempt: *attempt,
                    ready: true,
                    ip: Some(format!("10.77.0.{}", self.made)),
                });
                "sandbox".into()
            }
            Action::StopSandbox { id } => {
                self.runtime.sandboxes.iter_mut().find(|s| s.id == *id).unwrap().ready = false;
                "stop sandbox".into()
            }
            Action::DiscardSandbox { id } => {
                self.runtime.sandboxes.retain(|s| s.id != *id);
                assert!(!self.runtime.containers.iter().any(|c| c.sandbox == *id && c.may_run()));
                self.runtime.containers.retain(|c| c.sandbox != *id);
                "discard sandbox".into()
            }
            Action::StartContainer { name, attempt, crashes, sandbox } => {
                assert_eq!(self.volumes, Volumes::Mounted, "started without volumes");
                assert!(self.runtime.sandboxes.iter().any(|s| s.id == *sandbox && s.ready));
                assert!(!self.runtime.containers.iter().any(|c| c.name == *name && c.may_run()), "{name} twice");
                self.made += 1;
                self.runtime.containers.push(Container {
                    id: format!("c{}", self.made),
                    name: name.clone(),
                    attempt: *attempt,
                    sandbox: sandbox.clone(),
                    crashes: *crashes,
                    image: String::new(),
                    image_id: String::new(),
                    state: ContainerState::Running { started_at: self.now },
                });
                format!("start {name} #{attempt}")
            }
            Action::RunPostStart { id, name } => {
                let effort = self.efforts.entry(id.clone()).or_default();
                assert_eq!(effort.post_start, Hook::Idle, "the hook of {name} twice");
                effort.post_start = Hook::Running { since: self.now };
                format!("postStart {name}")
            }
            Action::RunPreStop { id, name, .. } => {
                let effort = self.efforts.entry(id.clone()).or_default();
                assert_eq!(effort.pre_stop, Hook::Idle, "the hook of {name} twice");
                effort.pre_stop = Hook::Running { since: self.now };
                format!("preStop {name}")
            }
            Action::StopContainer { id, name, .. } => {
                self.end_run(id, 143);
                format!("stop {name}")
            }
            Action::RemoveContainer { id, name } => {
                self.runtime.containers.retain(|c| c.id != *id);
                format!("remove {name}")
            }
        }
    }

    fn end_run(&mut self, id: &str, code: i32) {
        let run = self.runtime.containers.iter_mut().find(|c| c.id == id).unwrap();
        let started_at = match run.state {
            ContainerState::Running { started_at } => started_at,
            _ => self.now,
        };
        run.state = ContainerState::Exited {
            started_at,
            finished_at: self.now,
            code,
            reason: String::new(),
            message: String::new(),
        };
    }

    /// The newest run of a container ends by itself.
    fn exits(&mut self, name: &str, code: i32) {
        let id = self.runtime.runs(name)[0].id.clone();
        self.end_run(&id, code);
    }

    fn passes(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn condition(&self, name: &str) -> &str {
        &self.before.conditions.iter().find(|c| c.r#type == name).unwrap().status
    }

    fn waiting(&self, index: usize) -> String {
        let state = self.before.container_statuses[index].state.as_ref().unwrap();
        state.waiting.as_ref().map(|w| w.reason.clone()).unwrap_or_default()
    }
}

fn container(name: &str) -> ContainerSpec {
    ContainerSpec { name: name.into(), ..Default::default() }
}

fn one() -> PodSpec {
    PodSpec { containers: vec![container("main")], restart_policy: "Always".into(), ..Default::default() }
}

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
