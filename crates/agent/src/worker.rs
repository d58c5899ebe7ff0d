//! The worker of one pod: observes, decides, acts, reports; then waits until something happens.
//!
//! It acts serially on its pod, and does at one moment what one plan names. It starts nothing before the API service has
//! named the pod since the agent started, nor while another pod of the same name is still on the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    agent::v1::{PodBundle, PodRef, PodReport},
    objects::{ObjectMeta, Pod, PodStatus},
};
use plan::node::{Action, Failure, Plan, Runtime, Snapshot, Step, Volumes, Wanted, decide, is_urgent};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    act::{self, Failed},
    cgroup,
    cri::Cri,
    hooks::{Hooks, Place},
    images::{self, BACK_OFF, Images, PULLING},
    metrics::Metrics,
    probe::Probers,
    report::Reporter,
    spec::{NodeSettings, reference},
    volumes::{LOST, VolumeManager},
};

/// The first wait after a failed step, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How long a change of status that nobody acts on may wait for company.
const REPORT_DELAY: Duration = Duration::from_millis(200);

/// The same for a pod that is being stopped, whose last report is near.
const STOPPING_REPORT_DELAY: Duration = Duration::from_secs(2);

/// Without any news, look again after this time.
const RELIST: Duration = Duration::from_secs(30);

/// The same while containerd's events cannot be had: for pods at rest, and for pods in transition.
const RELIST_DEAF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// The first wait for the runtime to know an end that it has told of; doubled each time.
const SETTLE: Duration = Duration::from_millis(5);

/// What all workers of a node share.
#[derive(Debug)]
pub struct Shared {
    /// The container runtime.
    pub cri: Cri,
    /// The images.
    pub images: Images,
    /// The volumes.
    pub volumes: Arc<VolumeManager>,
    /// What is the same for all pods.
    pub settings: NodeSettings,
    /// Takes the statuses.
    pub reporter: Reporter,
    /// Bounds the work that is done at the same moment.
    pub gate: Semaphore,
    /// Which pod a container or sandbox belongs to, by the runtime's id.
    pub index: Mutex<BTreeMap<String, String>>,
    /// Whether containerd's events arrive.
    pub listening: AtomicBool,
    /// Counts.
    pub metrics: Metrics,
}

/// What the API service says of a pod.
#[derive(Clone, Debug)]
pub enum Desired {
    /// Nothing yet: the agent has just started and found the pod.
    Unknown,
    /// The pod, wanted or to be stopped.
    Known(Arc<PodBundle>),
    /// There is no such pod: it must not run.
    Gone,
}

/// Wakes a worker.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Something happened.
    pub woken: Arc<Notify>,
    /// Containers that have ended, as containerd tells; CRI may lag behind.
    pub ended: Mutex<BTreeSet<String>>,
    /// What keeps volumes from being mounted or unmounted may have changed: no waiting for the next try.
    pub retry_volumes: AtomicBool,
    /// The same for images.
    pub retry_images: AtomicBool,
}

/// The worker of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    reference: PodRef,
    desired: watch::Receiver<Desired>,
    mailbox: Arc<Mailbox>,
    /// Ends of the workers of pods that had the same name before.
    predecessors: Vec<CancellationToken>,
    /// For a pod that the API no longer knows.
    found_grace: Option<Duration>,
    /// The pod as it was last known.
    last: Option<Arc<PodBundle>>,
    probers: Probers,
    hooks: Hooks,
    leaving_since: Option<Timestamp>,
    failures: BTreeMap<Step, (u32, Failure)>,
    before: Option<PodStatus>,
    told: Option<PodStatus>,
    untold_since: Option<Instant>,
    volumes: Volumes,
    settling: u32,
    remembered: bool,
    /// What the files of mounted volumes were last made from.
    shown: Option<Arc<PodBundle>>,
}

impl Worker {
    /// A worker that has not looked yet.
    pub fn new(
        shared: Arc<Shared>,
        reference: PodRef,
        desired: watch::Receiver<Desired>,
        mailbox: Arc<Mailbox>,
        predecessors: Vec<CancellationToken>,
        found_grace: Option<Duration>,
    ) -> Self {
        let probers = Probers::new(shared.cri.clone(), mailbox.woken.clone());
        let folder = shared.settings.pod_dir(&reference.uid);
        let hooks = Hooks::new(shared.cri.clone(), mailbox.woken.clone(), folder);
        Self {
            shared,
            reference,
            desired,
            mailbox,
            predecessors,
            found_grace,
            last: None,
            probers,
            hooks,
            leaving_since: None,
            failures: BTreeMap::new(),
            before: None,
            told: None,
            untold_since: None,
            volumes: Volumes::Unknown,
            settling: 0,
            remembered: false,
            shown: None,
        }
    }

    /// Works until nothing of the pod is left.
    pub async fn run(mut self) {
        if self.desired.wait_for(|desired| !matches!(desired, Desired::Unknown)).await.is_err() {
            return;
        }
        for before in std::mem::take(&mut self.predecessors) {
            before.cancelled().await;
        }
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let (bundle, wanted) = self.wanted(&desired);
            if let Desired::Known(bundle) = &desired {
                self.know(bundle);
            }
            if self.mailbox.retry_images.swap(false, Ordering::Relaxed) {
                self.failures.retain(|_, (_, failure)| !images::waits_for_pull(&failure.reason));
            }
            if self.mailbox.retry_volumes.swap(false, Ordering::Relaxed) {
                self.failures.retain(|step, _| !matches!(step, Step::Volumes | Step::TearDown));
            }
            let runtime = match self.shared.cri.observe(&self.reference.uid).await {
                Ok(runtime) => runtime,
                Err(status) => {
                    tracing::warn!(%status, "cannot look at the pod; trying again");
                    self.wait(Some(Instant::now() + Duration::from_secs(1))).await;
                    continue;
                }
            };
            if let (Desired::Known(bundle), Wanted::Run) = (&desired, wanted) {
                self.refresh(bundle);
            }
            self.index(&runtime);
            self.hooks.sync(&runtime);
            for (action, result) in self.hooks.ended() {
                self.took(action, result);
            }
            let plan = self.decide(&bundle, wanted, &runtime);
            if plan.stopped {
                return self.stopped(&desired, plan, &runtime);
            }
            self.offer(&desired, &plan.status, wanted);
            if plan.actions.is_empty() {
                let deadline = self.deadline(&plan, &runtime, wanted);
                self.wait(Some(deadline)).await;
            } else {
                if wanted == Wanted::Run {
                    self.remember();
                }
                let actions = self.begin(&bundle, &runtime, plan.actions);
                self.act(&desired, &bundle, wanted, &runtime, actions).await;
            }
            self.flush_if_due(&desired);
        }
    }

    /// The pod as far as it is known, and what it is to do.
    fn wanted(&self, desired: &Desired) -> (Arc<PodBundle>, Wanted) {
        match (desired, &self.last) {
            (Desired::Known(bundle), _) => {
                let wanted = bundle.pod.as_ref().map_or(Wanted::Run, Wanted::of);
                (bundle.clone(), wanted)
            }
            (Desired::Unknown | Desired::Gone, Some(last)) => {
                let grace = last.pod.as_ref().map(plan::node::grace).or(self.found_grace).unwrap_or_default();
                (last.clone(), Wanted::Stop { grace })
            }
            (Desired::Unknown | Desired::Gone, None) => {
                let PodRef { namespace, name, uid } = self.reference.clone();
                let metadata = Some(ObjectMeta { namespace, name, uid, ..Default::default() });
                let pod = Pod { metadata, ..Default::default() };
                let grace = self.found_grace.unwrap_or_else(|| plan::node::grace(&pod));
                (Arc::new(PodBundle { pod: Some(pod), ..Default::default() }), Wanted::Stop { grace })
            }
        }
    }

    /// What is new may be what a failed step was waiting for.
    fn know(&mut self, bundle: &Arc<PodBundle>) {
        let spec = |bundle: &PodBundle| bundle.pod.as_ref().and_then(|pod| pod.spec.clone());
        let same = |last: &Arc<PodBundle>| {
            (&last.volumes, &last.config_maps, &last.secrets) == (&bundle.volumes, &bundle.config_maps, &bundle.secrets)
                && spec(last) == spec(bundle)
        };
        if !self.last.as_ref().is_some_and(same) {
            self.failures.clear();
        }
        if let Some(pod) = &bundle.pod {
            self.reference = reference(pod);
        }
        self.last = Some(bundle.clone());
    }

    /// Lets mounted files follow what they come from. A failure is tried again with the next look.
    fn refresh(&mut self, bundle: &Arc<PodBundle>) {
        fn sources(bundle: &PodBundle) -> impl PartialEq + '_ {
            let meta = bundle.pod.as_ref().and_then(|pod| pod.metadata.as_ref());
            (&bundle.config_maps, &bundle.secrets, meta.map(|meta| (&meta.labels, &meta.annotations)))
        }
        if self.shown.as_ref().is_some_and(|shown| sources(shown) == sources(bundle)) {
            return;
        }
        let host_ip = self.shared.settings.node_ip.to_string();
        match self.shared.volumes.refresh(bundle, self.shared.settings.place(&host_ip, "")) {
            Ok(changed) => {
                if !changed.is_empty() {
                    tracing::info!(volumes = ?changed, "the files of mounted volumes follow what they come from");
                }
                self.shown = Some(bundle.clone());
            }
            Err(error) => tracing::warn!(%error, "the files of mounted volumes are not up to date; trying again"),
        }
    }

    /// Leaves the pod's name on the node before anything else of it.
    fn remember(&mut self) {
        if !self.remembered {
            match self.shared.volumes.remember(&self.reference) {
                Ok(()) => self.remembered = true,
                Err(error) => tracing::warn!(%error, "cannot write down the pod's name"),
            }
        }
    }

    fn index(&self, runtime: &Runtime) {
        let mut index = self.shared.index.lock();
        let ids = runtime.sandboxes.iter().map(|s| &s.id).chain(runtime.containers.iter().map(|c| &c.id));
        for id in ids {
            if !index.contains_key(id) {
                index.insert(id.clone(), self.reference.uid.clone());
            }
        }
    }

    fn decide(&mut self, bundle: &PodBundle, wanted: Wanted, runtime: &Runtime) -> Plan {
        let none = Pod::default();
        let pod = bundle.pod.as_ref().unwrap_or(&none);
        let told_by_api = || pod.status.clone().unwrap_or_default();
        let before = self.before.get_or_insert_with(told_by_api).clone();
        if self.told.is_none() {
            self.told = pod.status.clone();
        }
        let efforts = self.hooks.efforts();
        if wanted == Wanted::Run {
            self.probers.sync(pod, runtime, &efforts, &before);
        } else {
            self.probers.stop();
        }
        if self.volumes != Volumes::Mounted && self.shared.volumes.is_absent(&self.reference.uid) {
            self.volumes = Volumes::Absent;
        }
        let failures = self.failures.iter().map(|(step, (_, failure))| (step.clone(), failure.clone())).collect();
        let host_ip = self.shared.settings.node_ip.to_string();
        let plan = decide(&Snapshot {
            now: Timestamp::now(),
            pod,
            wanted,
            runtime,
            volumes: self.volumes,
            verdicts: &self.probers.verdicts(),
            failures: &failures,
            efforts: &efforts,
            leaving_since: self.leaving_since,
            before: &before,
            host_ip: &host_ip,
        });
        self.leaving_since = plan.leaving.then(|| self.leaving_since.unwrap_or_else(Timestamp::now));
        self.before = Some(plan.status.clone());
        plan
    }

    // --- reporting

    /// Reports a status if it is new: at once if others act on it, else a little later.
    fn offer(&mut self, desired: &Desired, status: &PodStatus, wanted: Wanted) {
        if !matches!(desired, Desired::Known(_)) || self.told.as_ref() == Some(status) {
            self.untold_since = None;
            return;
        }
        let none = PodStatus::default();
        let urgent = wanted == Wanted::Run && is_urgent(self.told.as_ref().unwrap_or(&none), status);
        let since = *self.untold_since.get_or_insert_with(Instant::now);
        let delay = if wanted == Wanted::Run { REPORT_DELAY } else { STOPPING_REPORT_DELAY };
        if urgent || since.elapsed() >= delay {
            self.report(status.clone(), false);
        }
    }

    fn flush_if_due(&mut self, desired: &Desired) {
        if let (Some(status), Desired::Known(bundle)) = (self.before.clone(), desired) {
            let wanted = bundle.pod.as_ref().map_or(Wanted::Run, Wanted::of);
            self.offer(desired, &status, wanted);
        }
    }

    fn report(&mut self, status: PodStatus, stopped: bool) {
        self.told = Some(status.clone());
        self.untold_since = None;
        let pod = Some(self.reference.clone());
        self.shared.reporter.report(PodReport { pod, status: Some(status), stopped });
    }

    /// When an untold status is due.
    fn report_due(&self, wanted: Wanted) -> Option<Instant> {
        let delay = if wanted == Wanted::Run { REPORT_DELAY } else { STOPPING_REPORT_DELAY };
        self.untold_since.map(|since| since + delay)
    }

    /// Nothing of the pod is left: the last report, and the last traces.
    fn stopped(mut self, desired: &Desired, plan: Plan, runtime: &Runtime) {
        self.shared.cri.forget(runtime);
        self.shared.images.forget(&self.reference.uid);
        self.shared.index.lock().retain(|_, uid| *uid != self.reference.uid);
        if let Err(error) = self.shared.volumes.remove_folder(&self.reference.uid) {
            tracing::warn!(%error, "cannot remove the pod's folder");
        }
        cgroup::remove(&self.shared.settings.cgroup(&self.reference.uid));
        match fs::remove_dir_all(self.shared.settings.log_dir(&self.reference)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove the pod's logs");
            }
            _ => {}
        }
        tracing::info!("pod stopped");
        if matches!(desired, Desired::Known(_)) {
            self.report(plan.status, true);
        }
    }

    // --- waiting

    /// When to look again if nothing happens.
    fn deadline(&mut self, plan: &Plan, runtime: &Runtime, wanted: Wanted) -> Instant {
        let ready = |status: &PodStatus| status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
        let relist = match (self.shared.listening.load(Ordering::Relaxed), ready(&plan.status)) {
            (true, _) => RELIST,
            (false, true) => RELIST_DEAF.0,
            (false, false) => RELIST_DEAF.1,
        };
        let now = Instant::now();
        let mut deadline = now + relist;
        if let Some(wake) = plan.wake {
            let wait = Duration::try_from(wake.duration_since(Timestamp::now())).unwrap_or_default();
            deadline = deadline.min(now + wait);
        }
        if let Some(due) = self.report_due(wanted) {
            deadline = deadline.min(due);
        }
        deadline.min(now + self.settle(runtime).unwrap_or(relist))
    }

    /// Time to wait for the runtime to know of ends that were told; None if it knows all.
    fn settle(&mut self, runtime: &Runtime) -> Option<Duration> {
        let mut ended = self.mailbox.ended.lock();
        ended.retain(|id| runtime.containers.iter().any(|run| run.id == *id && run.may_run()));
        if ended.is_empty() {
            self.settling = 0;
            return None;
        }
        self.settling += 1;
        Some(SETTLE.saturating_mul(1 << self.settling.min(10)))
    }

    async fn wait(&mut self, deadline: Option<Instant>) {
        let deadline = deadline.unwrap_or_else(|| Instant::now() + RELIST);
        tokio::select! {
            () = self.mailbox.woken.notified() => {}
            changed = self.desired.changed() => {
                if changed.is_err() {
                    // The owner is gone: the agent ends.
                    std::future::pending::<()>().await;
                }
            }
            () = tokio::time::sleep_until(deadline) => {}
        }
    }

    // --- acting

    /// Begins what goes on by itself; gives back the rest.
    fn begin(&mut self, bundle: &PodBundle, runtime: &Runtime, actions: Vec<Action>) -> Vec<Action> {
        let spec = bundle.pod.as_ref().and_then(|pod| pod.spec.as_ref());
        let ip = runtime.current().and_then(|sandbox| sandbox.ip.clone()).unwrap_or_default();
        let place = |name: &str| {
            let mut all = spec.iter().flat_map(|spec| spec.init_containers.iter().chain(&spec.containers));
            all.find(|container| container.name == name).map(|spec| Place { spec: spec.clone(), ip: ip.clone() })
        };
        actions.into_iter().filter_map(|action| self.hooks.begin(action, place)).collect()
    }

    /// Does all actions.
    async fn act(
        &mut self,
        desired: &Desired,
        bundle: &Arc<PodBundle>,
        wanted: Wanted,
        runtime: &Runtime,
        actions: Vec<Action>,
    ) {
        if actions.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        // What is done for a pod belongs to the trace of the request that wanted it.
        let span = tracing::info_span!("act", steps = ?actions.iter().map(Action::step).collect::<Vec<_>>());
        if let Some(meta) = bundle.pod.as_ref().and_then(|pod| pod.metadata.as_ref()) {
            runtime::trace::follow(&span, &meta.annotations);
        }
        let acts = actions
            .iter()
            .map(|action| act::perform(&shared, bundle, runtime, action).map(move |result| (action.clone(), result)));
        let mut all = std::pin::pin!(join_all(acts).instrument(span));
        let results = loop {
            let report_due = self.report_due(wanted);
            tokio::select! {
                results = &mut all => break results,
                () = sleep_until(report_due) => self.flush_if_due(desired),
            }
        };
        for (action, result) in results {
            self.took(action, result);
        }
    }

    fn took(&mut self, action: Action, result: Result<(), Failed>) {
        let step = action.step();
        match result {
            Ok(()) => {
                match action {
                    Action::MountVolumes => self.volumes = Volumes::Mounted,
                    Action::UnmountVolumes => self.volumes = Volumes::Absent,
                    Action::RemoveContainer { id, .. } => self.hooks.forget(&id),
                    _ => {}
                }
                self.failures.remove(&step);
            }
            Err(failed) => {
                if !matches!(failed.reason, PULLING | BACK_OFF) {
                    let Failed { reason, message } = &failed;
                    tracing::warn!(?step, reason, problem = message, "step failed; trying again");
                    self.shared.metrics.failed_steps.inc();
                }
                if failed.reason == LOST {
                    // What counted as mounted is not: mounted anew before anything starts.
                    self.volumes = Volumes::Unknown;
                }
                let tries = self.failures.get(&step).map_or(0, |(tries, _)| *tries);
                let wait = RETRY.0.saturating_mul(1 << tries.min(10)).min(RETRY.1);
                let failure = Failure {
                    reason: failed.reason.to_owned(),
                    message: failed.message,
                    retry_at: Timestamp::now() + wait,
                };
                self.failures.insert(step, (tries + 1, failure));
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
