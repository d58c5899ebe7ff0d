//! Stories of one pod: a small world does what the plan says, and the plan looks again.
//!
//! The world refuses what must never happen: two runs of a container at once, a main container before the init containers
//! are done, a stop signal before the hook has ended, a start while the pod is being stopped, and the rest of the
//! asserts in [`World::act`]. [`properties`] lets it run into random faults.

mod containers;
mod hooks;
mod properties;
mod readiness;
mod sidecars;

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use pb::objects::{Container as ContainerSpec, ObjectMeta, Pod, PodSpec, PodStatus, Probe};

use super::*;

#[derive(Debug)]
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
    /// Containers take their time to end: somebody else says when they do.
    slow: bool,
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
            slow: false,
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
                self.assert_may_start(name, sandbox);
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
            Action::StopContainer { id, name, grace, .. } => {
                self.assert_may_signal(id, name);
                if self.slow {
                    self.efforts.entry(id.clone()).or_default().kill_at = self.now.checked_add(*grace).ok();
                } else {
                    self.end_run(id, 143);
                }
                format!("stop {name}")
            }
            Action::RemoveContainer { id, name } => {
                self.runtime.containers.retain(|c| c.id != *id);
                format!("remove {name}")
            }
        }
    }

    /// No pod starts anything on its way out, nor a container whose turn has not come.
    fn assert_may_start(&self, name: &str, sandbox: &str) {
        assert_eq!(self.wanted, Wanted::Run, "{name} was started while the pod is being stopped");
        let spec = self.pod.spec.as_ref().unwrap();
        let position = spec.init_containers.iter().position(|c| c.name == name).unwrap_or(spec.init_containers.len());
        let mut later = spec.init_containers.iter().skip(position).chain(&spec.containers);
        if later.any(|c| self.runtime.containers.iter().any(|run| run.name == c.name && run.sandbox == sandbox)) {
            return; // It was passed before.
        }
        // Of those before, the last one proves what it waited for itself: a sidecar may have ended again meanwhile.
        for (at, before) in spec.init_containers.iter().take(position).enumerate() {
            let runs = self.runtime.runs(&before.name);
            let run = runs.first().filter(|run| run.sandbox == sandbox);
            let run = run.unwrap_or_else(|| panic!("{name} was started before {}", before.name));
            match progress::is_sidecar(before) {
                true if at + 1 < position => {}
                true => {
                    assert!(run.may_run() && self.has_started(before, run), "{name} before {} had started", run.name)
                }
                false => assert!(matches!(run.state, ContainerState::Exited { code: 0, .. }), "{name} too early"),
            }
        }
    }

    fn has_started(&self, spec: &ContainerSpec, run: &Container) -> bool {
        let hook = spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let done = |effort: &Effort| matches!(effort.post_start, Hook::Ended { failure: None, .. });
        (!hook || self.efforts.get(&run.id).is_some_and(done))
            && (spec.startup_probe.is_none() || self.verdicts.get(&run.id).is_some_and(|said| said.started))
    }

    /// The hook comes first, unless its time is over; so do the containers that a sidecar serves.
    fn assert_may_signal(&self, id: &str, name: &str) {
        if self.efforts.get(id).is_some_and(|effort| effort.kill_at.is_some()) {
            return; // It has its signal already, and gets less time now.
        }
        let (Wanted::Stop { grace }, Some(since)) = (self.wanted, self.leaving_since) else { return };
        if self.now >= since.checked_add(grace).unwrap() {
            return;
        }
        let spec = self.pod.spec.as_ref().unwrap();
        let mut all = spec.init_containers.iter().chain(&spec.containers);
        let Some(container) = all.find(|c| c.name == name) else { return };
        let run = self.runtime.containers.iter().find(|run| run.id == id).unwrap();
        let hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
        if hook && matches!(run.state, ContainerState::Running { .. }) {
            let effort = self.efforts.get(id).map(|effort| &effort.pre_stop);
            assert!(matches!(effort, Some(Hook::Ended { .. })), "{name} was signalled before its hook: {effort:?}");
        }
        if let Some(at) = spec.init_containers.iter().position(|c| c.name == name && progress::is_sidecar(c)) {
            for later in spec.init_containers.iter().skip(at + 1).chain(&spec.containers) {
                let lives = self.runtime.containers.iter().any(|run| run.name == later.name && run.may_run());
                assert!(!lives, "sidecar {name} was signalled before {}", later.name);
            }
        }
    }

    /// A hook of the newest run ends.
    fn hook_ends(&mut self, name: &str, which: fn(&mut Effort) -> &mut Hook, failure: Option<&str>) {
        let id = self.runtime.runs(name)[0].id.clone();
        let hook = which(self.efforts.get_mut(&id).unwrap());
        let Hook::Running { since } = *hook else { panic!("no hook of {name} runs") };
        *hook = Hook::Ended { since, failure: failure.map(str::to_owned) };
    }

    fn end_run(&mut self, id: &str, code: i32) {
        self.efforts.remove(id);
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
