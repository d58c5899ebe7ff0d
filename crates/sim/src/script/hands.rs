//! What acts for the system in a script: the real controller's step and the real collector of garbage, each with caches
//! that show the present and a wire on which any call can go wrong.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use controller::{
    gc,
    observed::SetKey,
    step::{self, StatusPolicy, Surroundings},
};
use plan::statefulset::{Op, Plan};
use store::MemStore;

use crate::{
    eyes::Eyes,
    ports::{Services, SimHost},
    wire::Wire,
};

/// Calls that one piece of work may make. More means that it never ends.
const CALLS: usize = 10_000;

/// What a piece of work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// There was nothing to do.
    Idle,
    /// Something was done.
    Worked,
    /// Some of it was not done, and is to be tried again.
    Failed,
    /// Its process crashed in the middle, and starts again.
    Crashed,
}

/// One process: its calls, and what it sees.
pub(super) struct Hands {
    wire: Wire,
    /// After how long to look at the set again although nothing happens, as the last step says.
    pub again_after: Option<Duration>,
    around: Surroundings,
    eyes: Eyes,
}

impl Hands {
    /// A process that has just started.
    pub fn new(store: &MemStore, host: &SimHost, wire: Wire) -> Self {
        let services = || Services { store: store.clone(), wire: wire.clone(), host: host.clone() };
        let around = Surroundings {
            store: Arc::new(wire.clone()),
            placer: Arc::new(services()),
            volumes: Arc::new(services()),
            priorities: Default::default(),
            host: Arc::new(host.clone()),
            fence: None,
            tried: Default::default(),
        };
        Self { wire, again_after: None, around, eyes: Eyes::open(store) }
    }

    /// One step about a set. `between` is asked after every call.
    pub fn step(&mut self, set: &SetKey, between: &mut Between<'_>) -> Result<Came, Vec<String>> {
        self.eyes.look_at_all();
        let observed = match self.eyes.caches.observe(set) {
            Ok(Some(observed)) => observed,
            Ok(None) => return Ok(Came::Idle),
            Err(unknown) => return Err(vec![unknown.to_string()]),
        };
        let plan = step::plan(&observed, self.around.host.as_ref());
        self.again_after = plan.requeue_after;
        if plan.actions.is_empty() {
            return Ok(Came::Idle);
        }
        let done = drive(&self.wire, step::act(&observed, &plan, StatusPolicy::Now, &self.around), between)?;
        Ok(done.map_or(Came::Crashed, |_| Came::Worked))
    }

    /// What the controller would do now.
    fn plan(&mut self, set: &SetKey) -> Option<Plan> {
        self.eyes.look_at_all();
        let observed = self.eyes.caches.observe(set).ok().flatten()?;
        Some(step::plan(&observed, self.around.host.as_ref()))
    }

    /// What the set waits for, as people are told.
    pub fn waits(&mut self, set: &SetKey) -> Vec<String> {
        self.plan(set).into_iter().flat_map(|plan| plan.waits).map(|wait| wait.to_string()).collect()
    }

    /// The revision that would be made now.
    pub fn revision_due(&mut self, set: &SetKey) -> Option<String> {
        self.plan(set)?.actions.into_iter().find_map(|action| match action.op {
            Op::CreateRevision { name, .. } => Some(name.to_string()),
            _ => None,
        })
    }

    /// One sweep of the garbage collector.
    pub fn sweep(&mut self, between: &mut Between<'_>) -> Result<Came, Vec<String>> {
        self.eyes.look_at_all();
        if gc::jobs(&self.eyes.caches).is_empty() {
            return Ok(Came::Idle);
        }
        match drive(&self.wire, gc::sweep(&self.eyes.caches, &self.around), between)? {
            None => Ok(Came::Crashed),
            Some(Err(_)) => Ok(Came::Failed),
            Some(Ok(())) => Ok(Came::Worked),
        }
    }
}

/// Looks at what was written.
pub(super) type Between<'a> = dyn FnMut() -> Result<(), Vec<String>> + 'a;

/// Polls until the work is done; None if its process crashes before.
fn drive<F: Future>(wire: &Wire, work: F, between: &mut Between<'_>) -> Result<Option<F::Output>, Vec<String>> {
    let mut work = pin!(work);
    for _ in 0..CALLS {
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        between()?;
        if wire.take_crashed() {
            return Ok(None);
        }
        if let Poll::Ready(done) = polled {
            return Ok(Some(done));
        }
    }
    Err(vec![format!("did not end in {CALLS} calls")])
}
