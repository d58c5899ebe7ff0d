//! The life of the controller: campaign, and while leading, step wherever something changed.
//!
//! Caches are kept warm while standing by. Work queues hold keys; a set is worked on by one worker at a time, from
//! caches that show the controller's own last write about it (I17, STALE-2).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use model::identity::ClaimName;
use parking_lot::Mutex;
use pb::{Kind, Object};
use plan::statefulset::Plan;
use runtime::{
    leader::{self, Leadership},
    queue::{Queue, Work},
    tasks::Tasks,
};
use store::{Key, Store};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    budgets,
    caches::Caches,
    events::{self, Recorder},
    gc,
    host::Host,
    metrics, nodes,
    observed::{Observed, SetKey},
    ports::{Placer, Volumes},
    priorities::Priorities,
    step::{self, Done, StatusOutcome, StatusPolicy, Surroundings},
    stranded, tainted, tell, triggers,
    write::{Fault, Wrote},
};

/// The role that leaders campaign for.
pub const ROLE: &str = "controller";
/// Sets that are worked on at the same time.
const WORKERS: usize = 8;
/// For how long changes of a set's status are gathered.
const STATUS_GATHERED: Duration = Duration::from_millis(100);
/// How long background tasks may take to end.
const DRAIN: Duration = Duration::from_secs(2);

/// What a controller is made of.
pub struct Parts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Chooses nodes.
    pub placer: Arc<dyn Placer>,
    /// Finds and makes volumes.
    pub volumes: Arc<dyn Volumes>,
    /// Time and identities.
    pub host: Arc<dyn Host>,
}

/// Runs a controller until shutdown. `identity` names the one place that can hold one living process of the role.
pub async fn run(parts: Parts, identity: &str, shutdown: &CancellationToken) {
    let tasks = Tasks::new(shutdown);
    let caches = Caches::start(&parts.store, &tasks);
    let priorities = Priorities::start(&parts.store, &tasks);
    let store = Arc::clone(&parts.store);
    let led = |leadership| lead(&parts, &caches, &priorities, leadership);
    leader::lead(store, ROLE, identity, shutdown, led).await;
    tasks.finish(DRAIN).await;
}

/// Works while leading.
async fn lead(parts: &Parts, caches: &Caches, priorities: &Priorities, leadership: Leadership) {
    let Leadership { guard, lost } = leadership;
    let tasks = Tasks::new(&lost);
    caches.synced().await;
    priorities.synced().await;
    let around = Surroundings {
        store: Arc::clone(&parts.store),
        placer: Arc::clone(&parts.placer),
        volumes: Arc::clone(&parts.volumes),
        priorities: priorities.clone(),
        host: Arc::clone(&parts.host),
        fence: Some(guard.clone()),
        tried: Default::default(),
    };
    let (recorder, writer) = events::recorder(Arc::clone(&parts.store), Arc::clone(&parts.host), Some(guard));
    tasks.spawn("events", writer.run());
    let sets = Arc::new(Sets {
        around: around.clone(),
        caches: caches.clone(),
        recorder,
        queue: Queue::new(),
        memory: Mutex::default(),
    });
    for _ in 0..WORKERS {
        tasks.spawn("sets", Arc::clone(&sets).work());
    }
    let (all, queue) = (caches.clone(), sets.queue.clone());
    tasks.spawn("triggers", async move { triggers::run(&all, &queue).await });
    let (all, queue, priorities) = (caches.clone(), sets.queue.clone(), priorities.clone());
    tasks.spawn("priorities", async move { priorities.wake(&all, &queue).await });
    tasks.spawn("nodes", nodes::run(caches.clone(), around.clone()));
    tasks.spawn("budgets", budgets::status::run(caches.clone(), around.clone()));
    tasks.spawn("stranded", stranded::run(caches.clone(), around.clone(), sets.recorder.clone()));
    tasks.spawn("tainted", tainted::run(caches.clone(), around.clone(), sets.recorder.clone()));
    tasks.spawn("garbage", gc::run(caches.clone(), around));
    lost.cancelled().await;
    sets.queue.close();
    tasks.finish(DRAIN).await;
    metrics::get().sets.clear();
}

/// The work on sets.
struct Sets {
    around: Surroundings,
    caches: Caches,
    recorder: Recorder,
    queue: Queue<SetKey>,
    memory: Mutex<BTreeMap<SetKey, Memory>>,
}

/// What is remembered of a set between steps: nothing that a decision depends on.
#[derive(Clone, Default)]
struct Memory {
    /// What the caches must show before the next step.
    wrote: Wrote,
    /// Since when the stored status is known to differ.
    status_differs_since: Option<Instant>,
    /// Claims that people know to be another controller's.
    disputed: BTreeSet<ClaimName>,
}

impl Sets {
    async fn work(self: Arc<Self>) {
        while let Some(work) = self.queue.take().await {
            metrics::get().queue.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
            let span = tracing::info_span!("reconcile", set = %*work);
            // What is done about a set belongs to the trace of its last change.
            let key = Key::object(Kind::StatefulSet, &work.namespace, &work.name);
            if let Some(set) = self.caches.sets.get(&key) {
                runtime::trace::follow(&span, &set.meta().annotations);
            }
            self.step(work).instrument(span).await;
        }
    }

    async fn step(&self, work: Work<SetKey>) {
        let started = Instant::now();
        let key = SetKey::clone(&work);
        let memory = self.memory.lock().get(&key).cloned().unwrap_or_default();
        if !self.caches.show(&memory.wrote).await {
            metrics::get().stale_skips.inc();
            tracing::warn!("the caches do not show the last write yet; is the store's watch delayed?");
            return work.retry();
        }
        let observed = match self.caches.observe(&key) {
            Ok(Some(observed)) => observed,
            Ok(None) => {
                self.memory.lock().remove(&key);
                metrics::get().sets.forget(&key);
                return work.forget();
            }
            Err(unknown) => {
                metrics::get().failures.inc();
                tracing::warn!(error = %unknown, "nothing is decided about the set");
                return work.retry();
            }
        };
        let plan = step::plan(&observed, self.around.host.as_ref());
        metrics::get().plan.observe(started.elapsed().as_secs_f64());
        metrics::get().sets.show(&observed.set, &plan.status);
        self.tell_disputes(&key, &observed, &plan);
        let gathered = memory.status_differs_since.map(|since| since.elapsed());
        let status = match gathered {
            Some(gathered) if gathered >= STATUS_GATHERED => StatusPolicy::Now,
            _ => StatusPolicy::WhenSettled,
        };
        let done = step::act(&observed, &plan, status, &self.around).await;
        metrics::get().step.observe(started.elapsed().as_secs_f64());
        self.finish(work, &key, done);
    }

    /// Tells of each claim once that it is left alone.
    fn tell_disputes(&self, key: &SetKey, observed: &Observed, plan: &Plan) {
        let disputed: BTreeSet<_> = plan.disputed.iter().cloned().collect();
        let mut memory = self.memory.lock();
        let known = &mut memory.entry(key.clone()).or_default().disputed;
        for claim in disputed.difference(known) {
            self.recorder.note(tell::dispute(observed, claim.as_str()));
        }
        *known = disputed;
    }

    fn finish(&self, work: Work<SetKey>, key: &SetKey, done: Done) {
        let Done { wrote, status, notes, again_after, obstructed, fault } = done;
        notes.into_iter().for_each(|note| self.recorder.note(note));
        {
            let mut memory = self.memory.lock();
            let memory = memory.entry(key.clone()).or_default();
            memory.wrote.merge(&wrote);
            memory.status_differs_since = match status {
                StatusOutcome::Deferred => Some(memory.status_differs_since.unwrap_or_else(Instant::now)),
                StatusOutcome::Right | StatusOutcome::Written => None,
            };
            if let Some(since) = memory.status_differs_since {
                self.queue.add_after(key.clone(), STATUS_GATHERED.saturating_sub(since.elapsed()));
            }
        }
        if let Some(after) = again_after {
            self.queue.add_after(key.clone(), after);
        }
        match fault {
            // A watch brings what is new, most likely before the delay has passed.
            Some(Fault::Conflict) => {
                metrics::get().conflicts.inc();
                tracing::debug!("something changed in the meantime");
                work.retry();
            }
            Some(fault) => {
                metrics::get().failures.inc();
                tracing::warn!(error = %fault, "the step ended early");
                work.retry();
            }
            None if obstructed => work.retry(),
            None => work.forget(),
        }
    }
}
