//! One controller process: caches that lag, a clock of its own, the real planner and apply step and the real collector
//! of garbage, one call at a time.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use check::{Actor, Violation, World};
use controller::{
    gc,
    host::Host,
    observed::{Observed, SetKey},
    step::{self, Done, StatusPolicy, Surroundings},
    write::Wrote,
};
use jiff::{SignedDuration, Timestamp};
use pb::ObjectExt;
use plan::statefulset::{Op, Plan, stamp};
use store::{Guard, MemStore};

use crate::{
    chance::Chance,
    eyes::Eyes,
    ports::{Services, SimHost},
    wire::{Authors, Wire},
};

/// A clock that goes as the true one, and shows something else.
#[derive(Clone)]
struct Clock {
    host: SimHost,
    ahead: Arc<AtomicI64>,
}

impl Host for Clock {
    fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        self.host.now().checked_add(ahead).unwrap_or(Timestamp::MAX)
    }

    fn uid(&self) -> String {
        self.host.uid()
    }
}

/// What a process works on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Set(SetKey),
    Garbage,
}

/// How a piece of work ended.
enum End {
    Stepped(Done),
    Collected,
}

/// Work that goes on beside other work of the process.
struct Task {
    what: What,
    wire: Wire,
    around: Surroundings,
    /// What the caches must show before the next step.
    wrote: Wrote,
    running: Option<Pin<Box<dyn Future<Output = End> + Send>>>,
}

/// A controller.
pub struct Process {
    /// Its calls.
    pub wire: Wire,
    clock: Clock,
    eyes: Eyes,
    tasks: Vec<Task>,
}

/// What a turn of a process came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing to do as far as it sees, or it waits for its caches.
    Idle,
    /// It is in the middle of its work.
    Working,
    /// A piece of work ended.
    Done,
    /// It crashed and starts again.
    Crashed,
    /// It decided what it must not.
    Wrong(Vec<Violation>),
}

impl Process {
    /// A process that has just started. `number` tells it from others.
    pub fn new(number: usize, store: &MemStore, host: &SimHost, authors: &Authors, sets: &[SetKey]) -> Self {
        let wire = Wire::new(store.clone(), Arc::clone(authors));
        let clock = Clock { host: host.clone(), ahead: Arc::default() };
        let task = |what: What| {
            let by = if what == What::Garbage { Actor::Collector } else { Actor::SetController };
            let wire = wire.for_work(by, number);
            let services = || Services { store: store.clone(), wire: wire.clone(), host: host.clone() };
            let around = Surroundings {
                store: Arc::new(wire.clone()),
                placer: Arc::new(services()),
                volumes: Arc::new(services()),
                priorities: Default::default(),
                host: Arc::new(clock.clone()),
                fence: None,
                tried: Default::default(),
            };
            Task { what, wire, around, wrote: Wrote::default(), running: None }
        };
        let tasks = sets.iter().cloned().map(What::Set).chain([What::Garbage]).map(task).collect();
        Self { wire, clock, eyes: Eyes::open(store), tasks }
    }

    /// How many things it works on at the same time.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// How much garbage there is to look at, as it sees it.
    pub fn garbage(&self) -> usize {
        gc::jobs(&self.eyes.caches).len()
    }

    /// Makes it the leader. What it began under an earlier fence goes on under that one. Its clock may show another time
    /// than it did.
    pub fn lead(&mut self, fence: &Guard, seconds_ahead: i64) {
        self.clock.ahead.store(seconds_ahead, Ordering::Relaxed);
        for task in &mut self.tasks {
            task.around.fence = Some(fence.clone());
        }
    }

    /// Lets one cache see more, perhaps all.
    pub fn look(&mut self, chance: &mut Chance) {
        self.eyes.look(chance);
    }

    /// Lets all caches see everything.
    pub fn look_at_all(&mut self) {
        self.eyes.look_at_all();
    }

    /// Starts again: what it knew is gone, its caches list anew.
    pub fn restart(&mut self) {
        for task in &mut self.tasks {
            task.running = None;
            task.wrote = Wrote::default();
            task.wire.forget();
        }
        self.eyes.open_anew();
    }

    /// Starts a piece of work if none of this task is running; else lets the running one make one call.
    /// `pick` chooses what garbage is looked at.
    pub fn turn(&mut self, task: usize, pick: usize, status: StatusPolicy) -> Turn {
        let Self { wire, clock, eyes, tasks } = self;
        let Some(task) = tasks.get_mut(task) else { return Turn::Idle };
        if task.running.is_none() {
            task.running = match task.begin(eyes, clock, pick, status) {
                Ok(running) => running,
                Err(wrong) => return Turn::Wrong(wrong),
            };
        }
        let Some(running) = &mut task.running else { return Turn::Idle };
        let polled = running.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if wire.take_crashed() {
            self.restart();
            return Turn::Crashed;
        }
        match polled {
            Poll::Pending => Turn::Working,
            Poll::Ready(end) => {
                if let End::Stepped(done) = end {
                    task.wrote.merge(&done.wrote);
                }
                task.running = None;
                Turn::Done
            }
        }
    }

    /// What the sets wait for, as the process sees it.
    pub fn waits(&self) -> Vec<String> {
        let sets = self.tasks.iter().filter_map(|task| match &task.what {
            What::Set(set) => self.eyes.caches.observe(set).ok().flatten(),
            What::Garbage => None,
        });
        let plans = sets.map(|observed| step::plan(&observed, &self.clock));
        plans.flat_map(|plan| plan.waits).map(|wait| format!("waits: {wait}")).collect()
    }
}

type Running = Pin<Box<dyn Future<Output = End> + Send>>;

impl Task {
    /// The next piece of work, if the caches show any.
    fn begin(
        &mut self,
        eyes: &Eyes,
        clock: &Clock,
        pick: usize,
        status: StatusPolicy,
    ) -> Result<Option<Running>, Vec<Violation>> {
        // Only leaders work.
        if self.around.fence.is_none() {
            return Ok(None);
        }
        let (around, caches) = (self.around.clone(), eyes.caches.clone());
        match &self.what {
            What::Garbage => {
                let jobs: Vec<_> = gc::jobs(&caches).into_iter().collect();
                let Some(job) = jobs.get(pick % jobs.len().max(1)).cloned() else { return Ok(None) };
                Ok(Some(Box::pin(async move {
                    // A job that fails is looked at again in another turn.
                    drop(gc::collect(&caches, &around, &job).await);
                    End::Collected
                })))
            }
            What::Set(set) => {
                if !shows(eyes, &self.wrote) {
                    return Ok(None);
                }
                let Some(observed) = caches.observe(set).ok().flatten() else { return Ok(None) };
                let now = clock.now();
                let plan = step::plan(&observed, clock);
                let wrong = self.witness(eyes, &observed, &plan, now);
                if !wrong.is_empty() {
                    return Err(wrong);
                }
                if plan.actions.is_empty() {
                    return Ok(None);
                }
                self.wire.decided(now);
                Ok(Some(Box::pin(async move { End::Stepped(step::act(&observed, &plan, status, &around).await) })))
            }
        }
    }

    /// What can be seen of a decision only where it is made.
    fn witness(&self, eyes: &Eyes, observed: &Observed, plan: &Plan, now: Timestamp) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let answered = self.wire.answered();
        if !shows(eyes, &answered) {
            let what = format!("is decided about from caches older than the last write {answered:?}");
            wrong.push(check::witnessed("I17", title(observed), what));
        }
        let changes_members = |op: &Op| matches!(op, Op::AdoptPod { .. } | Op::ReleasePod { .. });
        let writes_status = plan.actions.iter().any(|action| matches!(action.op, Op::UpdateStatus(_)));
        if writes_status && !plan.actions.iter().any(|action| changes_members(&action.op)) {
            let mut set = observed.set.as_ref().clone();
            stamp::status(&plan.status, set.status.get_or_insert_default());
            let seen = World {
                now,
                sets: by_key([&observed.set]),
                pods: by_key(observed.pods.values()),
                revisions: by_key(observed.revisions.values()),
                ..World::default()
            };
            wrong.extend(check::counted(&seen, &set));
        }
        wrong
    }
}

fn title(observed: &Observed) -> String {
    format!("StatefulSet {}/{}", observed.set.namespace(), observed.set.name())
}

fn by_key<'a, T: ObjectExt + 'a>(objects: impl IntoIterator<Item = &'a Arc<T>>) -> check::Objects<T> {
    let objects = objects.into_iter();
    objects.map(|object| ((object.namespace().to_owned(), object.name().to_owned()), Arc::clone(object))).collect()
}

/// Whether the caches show what was written.
fn shows(eyes: &Eyes, wrote: &Wrote) -> bool {
    let caches = &eyes.caches;
    caches.sets.revision() >= wrote.sets
        && caches.pods.revision() >= wrote.pods
        && caches.claims.revision() >= wrote.claims
        && caches.revisions.revision() >= wrote.revisions
        && caches.services.revision() >= wrote.services
}
