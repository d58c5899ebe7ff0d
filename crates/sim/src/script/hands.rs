//! What acts for the system in a script: the real controller's step and the real collector of garbage, each with caches
//! that show the present and a wire on which any call can go wrong.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
};

use controller::{
    caches::{Caches, Source},
    gc,
    observed::SetKey,
    step::{self, StatusPolicy, Surroundings},
};
use runtime::{Cache, cache::by_hand, feed::Sink};
use store::{Kv, MemStore, PageRequest, Prefix, Revision, objects::Undecodable};

use crate::{
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
    /// It was done, or ended with an error.
    Worked,
    /// Its process crashed in the middle, and starts again.
    Crashed,
}

/// One process: its calls, and what it sees.
pub(super) struct Hands {
    /// Its calls.
    pub wire: Wire,
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
            host: Arc::new(host.clone()),
            fence: None,
        };
        Self { wire, around, eyes: Eyes::new(store) }
    }

    /// One step about a set. `between` is asked after every call.
    pub fn step(&mut self, set: &SetKey, between: &mut Between<'_>) -> Result<Came, Vec<String>> {
        self.eyes.open();
        let observed = match self.eyes.caches.observe(set) {
            Ok(Some(observed)) => observed,
            Ok(None) => return Ok(Came::Idle),
            Err(unknown) => return Err(vec![unknown.to_string()]),
        };
        let plan = step::plan(&observed, self.around.host.as_ref());
        if plan.actions.is_empty() {
            return Ok(Came::Idle);
        }
        drive(&self.wire, step::act(&observed, &plan, StatusPolicy::Now, &self.around), between)
    }

    /// What the set waits for, as people are told.
    pub fn waits(&mut self, set: &SetKey) -> Vec<String> {
        self.eyes.open();
        let observed = self.eyes.caches.observe(set).ok().flatten();
        let plan = observed.map(|observed| step::plan(&observed, self.around.host.as_ref()));
        plan.into_iter().flat_map(|plan| plan.waits).map(|wait| wait.to_string()).collect()
    }

    /// One sweep of the garbage collector.
    pub fn sweep(&mut self, between: &mut Between<'_>) -> Result<Came, Vec<String>> {
        self.eyes.open();
        if gc::jobs(&self.eyes.caches).is_empty() {
            return Ok(Came::Idle);
        }
        drive(&self.wire, gc::sweep(&self.eyes.caches, &self.around), between)
    }
}

/// Looks at what was written.
pub(super) type Between<'a> = dyn FnMut() -> Result<(), Vec<String>> + 'a;

/// Polls until the work is done or its process crashes.
fn drive(wire: &Wire, work: impl Future, between: &mut Between<'_>) -> Result<Came, Vec<String>> {
    let mut work = pin!(work);
    for _ in 0..CALLS {
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        between()?;
        if wire.take_crashed() {
            return Ok(Came::Crashed);
        }
        if polled.is_ready() {
            return Ok(Came::Worked);
        }
    }
    Err(vec![format!("did not end in {CALLS} calls")])
}

/// Caches that see what there is whenever they are opened.
struct Eyes {
    store: MemStore,
    seen: Revision,
    feeds: Vec<(Prefix, Box<dyn Sink>)>,
    caches: Caches,
}

impl Eyes {
    fn new(store: &MemStore) -> Self {
        let mut feeder = Feeder { store, feeds: Vec::new() };
        let caches = Caches::of(&mut feeder);
        let feeds = feeder.feeds;
        Self { store: store.clone(), seen: store.revision(), feeds, caches }
    }

    fn open(&mut self) {
        let now = self.store.revision();
        for (prefix, sink) in &self.feeds {
            // Scripts compact nothing.
            let changes = self.store.inspect(|model| model.changes(prefix, self.seen)).unwrap_or_default();
            changes.into_iter().for_each(|(revision, events)| sink.apply(revision, events));
            sink.progress(now);
        }
        self.seen = now;
    }
}

struct Feeder<'a> {
    store: &'a MemStore,
    feeds: Vec<(Prefix, Box<dyn Sink>)>,
}

impl Source for Feeder<'_> {
    fn reflect<V, F>(&mut self, prefix: Prefix, decode: F) -> Cache<V>
    where
        V: Send + Sync + 'static,
        F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
    {
        let (cache, sink) = by_hand(decode);
        let (mut items, mut request) = (Vec::new(), PageRequest::default());
        while let Ok(page) = self.store.inspect(|model| model.list(&prefix, &request)) {
            request.after = page.items.last().map(|kv| kv.key.clone());
            items.extend(page.items);
            if !page.more {
                break;
            }
        }
        sink.reset(self.store.revision(), items);
        self.feeds.push((prefix, Box::new(sink)));
        cache
    }
}
