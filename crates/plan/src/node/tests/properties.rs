//! Random pods in a world of random faults.
//!
//! Whatever happens, the asserts of [`World::act`] hold, the pod comes up when the faults stop, and it goes down when it
//! shall.

use pb::objects::{ContainerStatus, Lifecycle, LifecycleHandler};
use proptest::prelude::*;

use super::*;

/// What happens between two decisions.
#[derive(Clone, Debug)]
enum Event {
    /// The newest run of a container ends.
    Exit(usize, i32),
    /// The runtime loses track of a run.
    Lost(usize),
    /// The sandbox ends.
    NoSandbox,
    /// All hooks that run end, in this way.
    Hooks(bool),
    /// Startup and readiness probes succeed.
    Probes,
    /// A liveness probe fails for good.
    Fatal(usize),
    /// The agent starts anew: what it had under way is forgotten.
    NewAgent,
    /// A step fails.
    Fail(usize),
    /// Time passes.
    Pass(i64),
    /// All stops that are under way come to their end.
    Ended,
}

fn container_spec(name: String) -> impl Strategy<Value = ContainerSpec> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(startup, liveness, post, pre)| {
        let hook = |wanted: bool| wanted.then(LifecycleHandler::default);
        ContainerSpec {
            startup_probe: startup.then(Probe::default),
            liveness_probe: liveness.then(Probe::default),
            lifecycle: Some(Lifecycle { post_start: hook(post), pre_stop: hook(pre) }),
            ..container(&name)
        }
    })
}

fn pod_spec() -> impl Strategy<Value = PodSpec> {
    let inits = prop::collection::vec(any::<bool>(), 0..4).prop_flat_map(|sidecars| {
        let each = sidecars.into_iter().enumerate().map(|(index, sidecar)| {
            container_spec(format!("i{index}")).prop_map(move |spec| match sidecar {
                true => ContainerSpec { restart_policy: "Always".into(), ..spec },
                false => container(&spec.name),
            })
        });
        each.collect::<Vec<_>>()
    });
    let mains = (1..3_usize).prop_flat_map(|n| (0..n).map(|i| container_spec(format!("m{i}"))).collect::<Vec<_>>());
    let policies = prop::sample::select(vec!["Always", "OnFailure", "Never"]);
    (inits, mains, policies).prop_map(|(init_containers, containers, policy)| PodSpec {
        init_containers,
        containers,
        restart_policy: policy.into(),
        ..Default::default()
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..6_usize, prop::sample::select(vec![0, 1, 137])).prop_map(|(which, code)| Event::Exit(which, code)),
        1 => (0..6_usize).prop_map(Event::Lost),
        1 => Just(Event::NoSandbox),
        4 => any::<bool>().prop_map(Event::Hooks),
        3 => Just(Event::Probes),
        1 => (0..6_usize).prop_map(Event::Fatal),
        1 => Just(Event::NewAgent),
        1 => (0..4_usize).prop_map(Event::Fail),
        3 => (1..400_i64).prop_map(Event::Pass),
        3 => Just(Event::Ended),
    ]
}

impl World {
    fn happens(&mut self, event: &Event) {
        let count = self.runtime.containers.len().max(1);
        match event {
            Event::Exit(which, code) => {
                if let Some(id) = self.living(*which % count) {
                    self.end_run(&id, *code);
                }
            }
            Event::Lost(which) => {
                if let Some(id) = self.living(*which % count) {
                    self.runtime.containers.iter_mut().find(|run| run.id == id).unwrap().state =
                        ContainerState::Unknown;
                }
            }
            Event::NoSandbox => self.runtime.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false),
            Event::Hooks(fine) => self.all_hooks_end(*fine),
            Event::Probes => self.all_probes_succeed(),
            Event::Fatal(which) => {
                if let Some(id) = self.living(*which % count) {
                    let fatal = Some(Fatal { probe: probe::Kind::Liveness, message: String::new() });
                    self.verdicts.insert(id, Verdicts { started: true, ready: true, fatal });
                }
            }
            Event::NewAgent => {
                self.efforts.clear();
                self.failures.clear();
                self.leaving_since = None;
                if self.volumes == Volumes::Mounted {
                    self.volumes = Volumes::Unknown;
                }
            }
            Event::Fail(which) => {
                let names = ["m0", "i0"].map(|name| Step::Container(name.into()));
                let steps = [Step::Volumes, Step::Sandbox].into_iter().chain(names);
                let failure = Failure {
                    reason: "Failed".into(),
                    message: String::new(),
                    retry_at: self.now + SignedDuration::from_secs(5),
                };
                self.failures.extend(steps.skip(*which).take(1).map(|step| (step, failure.clone())));
            }
            Event::Pass(seconds) => self.passes(*seconds),
            Event::Ended => self.stops_end(),
        }
    }

    fn living(&self, at: usize) -> Option<String> {
        self.runtime.containers.get(at).filter(|run| run.may_run()).map(|run| run.id.clone())
    }

    fn all_hooks_end(&mut self, fine: bool) {
        let failure = (!fine).then(|| "it failed".to_owned());
        for effort in self.efforts.values_mut() {
            for hook in [&mut effort.post_start, &mut effort.pre_stop] {
                if let Hook::Running { since } = *hook {
                    *hook = Hook::Ended { since, failure: failure.clone() };
                }
            }
        }
    }

    fn all_probes_succeed(&mut self) {
        for run in self.runtime.containers.iter().filter(|run| run.may_run()) {
            let said = self.verdicts.entry(run.id.clone()).or_default();
            (said.started, said.ready) = (true, true);
        }
    }

    fn stops_end(&mut self) {
        let ending: Vec<_> =
            self.efforts.iter().filter(|(_, e)| e.kill_at.is_some()).map(|(id, _)| id.clone()).collect();
        for id in ending {
            if self.runtime.containers.iter().any(|run| run.id == id && run.may_run()) {
                self.end_run(&id, 143);
            }
        }
    }

    /// Nothing goes wrong any more, until `done`.
    fn recovers(&mut self, done: impl Fn(&World, &Plan) -> bool) {
        let sidecars: Vec<_> = self.pod.spec.iter().flat_map(|spec| &spec.init_containers).cloned().collect();
        for _ in 0..400 {
            let plan = self.decide();
            if done(self, &plan) {
                return;
            }
            for action in &plan.actions {
                self.act(action);
            }
            self.all_hooks_end(true);
            self.all_probes_succeed();
            self.stops_end();
            let runs_on = |name: &str| !sidecars.iter().any(|c| c.name == name && !progress::is_sidecar(c));
            let through: Vec<_> =
                self.runtime.containers.iter().filter(|run| run.may_run() && !runs_on(&run.name)).collect();
            for id in through.into_iter().map(|run| run.id.clone()).collect::<Vec<_>>() {
                self.end_run(&id, 0);
            }
            self.now = plan.wake.unwrap_or(self.now).max(self.now + SignedDuration::from_secs(1));
        }
        panic!("it does not recover: {self:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_pod_comes_up_or_ends_and_goes_down_whatever_happens(
        spec in pod_spec(),
        events in prop::collection::vec(event(), 0..60),
        ending in prop::collection::vec(event(), 0..20),
        grace in prop::sample::select(vec![0_u64, 1, 10, 30]),
    ) {
        let mut world = World::new(spec);
        world.slow = true;
        for event in &events {
            for action in world.decide().actions {
                world.act(&action);
            }
            world.happens(event);
        }
        world.failures.clear();
        // A pod that restarts its containers becomes ready; of any other, each container is ready or has ended.
        let always = world.pod.spec.as_ref().unwrap().restart_policy == "Always";
        world.verdicts.values_mut().for_each(|said| said.fatal = None);
        world.recovers(|world, plan| {
            let over = |one: &ContainerStatus| one.ready || one.state.as_ref().is_some_and(|s| s.terminated.is_some());
            let settled = plan.actions.is_empty() && world.before.container_statuses.iter().all(over);
            let ended = matches!(world.before.phase.as_str(), "Succeeded" | "Failed");
            world.condition("Ready") == "True" || (!always && (settled || ended))
        });
        let before = world.before.phase.clone();
        world.wanted = Wanted::Stop { grace: Duration::from_secs(grace) };
        for event in &ending {
            for action in world.decide().actions {
                world.act(&action);
            }
            world.happens(event);
        }
        world.failures.clear();
        world.recovers(|_, plan| plan.stopped);
        prop_assert!(world.runtime.is_empty() && world.volumes == Volumes::Absent);
        prop_assert!(before != "Failed" || world.before.phase == "Failed", "what has failed stays so");
    }
}
