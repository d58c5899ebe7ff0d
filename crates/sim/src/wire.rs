//! What lies between a simulated process and everything that it calls: each call is a place where the process can be
//! made to wait, crash, or lose the answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use check::Actor;
use controller::write::Wrote;
use jiff::Timestamp;
use parking_lot::Mutex;
use pb::Kind;
use store::{
    Error, Guard, Key, Kv, LeaseId, MemStore, Page, PageRequest, Prefix, Result, Revision, Store, Txn, TxnOutcome,
    WatchStream,
};

/// Which side of a call something happens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing was done.
    Before,
    /// It was done, and nobody learns of it.
    After,
}

/// A crash to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Calls that are still answered.
    pub after_calls: u64,
    /// Where in the next one.
    pub when: When,
}

/// What goes wrong at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The caller gets an error and does not know on which side of the call it happened.
    Error(When),
    /// The caller crashes.
    Crash(When),
}

/// Who wrote which revision.
pub type Authors = Arc<Mutex<BTreeMap<Revision, Author>>>;

/// Who wrote something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The part of Berth.
    pub by: Actor,
    /// The process, where there are several.
    pub process: Option<usize>,
    /// What the time was, by its own clock, when it decided; None: just now.
    pub decided: Option<Timestamp>,
}

impl From<Actor> for Author {
    fn from(by: Actor) -> Self {
        Self { by, process: None, decided: None }
    }
}

/// A process's calls. Clones share its fate.
#[derive(Clone)]
pub struct Wire {
    store: MemStore,
    authors: Authors,
    author: Author,
    work: Arc<Mutex<Work>>,
    state: Arc<Mutex<State>>,
}

/// What is known of the work that calls are made for.
#[derive(Default)]
struct Work {
    decided: Option<Timestamp>,
    answered: Wrote,
}

#[derive(Default)]
struct State {
    calls: u64,
    /// Which of the calls were writes.
    writes: BTreeSet<u64>,
    crash: Option<(u64, When)>,
    crashed: bool,
    lose_next: Option<When>,
    error: Option<(u64, When)>,
    blind_to: Option<Prefix>,
}

/// What a call meets.
enum Fate {
    Answered,
    Lost(When),
    Crash(When),
}

impl Wire {
    /// The set controller's wire to the store.
    pub fn new(store: MemStore, authors: Authors) -> Self {
        Self { store, authors, author: Actor::SetController.into(), work: Arc::default(), state: Arc::default() }
    }

    /// The wire of somebody else.
    pub fn of(self, by: Actor) -> Self {
        Self { author: Author { by, ..self.author }, ..self }
    }

    /// The wire for other work of the same process: one fate, another author.
    pub fn for_work(&self, by: Actor, process: usize) -> Self {
        let author = Author { by, process: Some(process), decided: None };
        Self { author, work: Arc::default(), ..self.clone() }
    }

    /// What is written from now on was decided at this time.
    pub fn decided(&self, at: Timestamp) {
        self.work.lock().decided = Some(at);
    }

    /// The last writes of this work that were answered.
    pub fn answered(&self) -> Wrote {
        self.work.lock().answered
    }

    /// The work starts anew and remembers nothing.
    pub fn forget(&self) {
        *self.work.lock() = Work::default();
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Whether a call was a write.
    pub fn was_write(&self, call: u64) -> bool {
        self.state.lock().writes.contains(&call)
    }

    /// Makes the process crash.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state.lock();
        state.crash = Some((state.calls + crash.after_calls, crash.when));
    }

    /// Makes one call, counted from the first one ever, go wrong.
    pub fn fail_at(&self, call: u64, trouble: Trouble) {
        let mut state = self.state.lock();
        match trouble {
            Trouble::Error(when) => state.error = Some((call, when)),
            Trouble::Crash(when) => state.crash = Some((call, when)),
        }
    }

    /// Makes the next write's answer get lost.
    pub fn lose_next(&self, when: When) {
        self.state.lock().lose_next = Some(when);
    }

    /// Leaves out guards on keys under a prefix, as a controller with a mistake would.
    pub fn blind_to(&self, prefix: Prefix) {
        self.state.lock().blind_to = Some(prefix);
    }

    /// Whether the process has crashed; it is well again afterwards.
    pub fn take_crashed(&self) -> bool {
        let mut state = self.state.lock();
        if state.crashed {
            state.crash = None;
        }
        std::mem::take(&mut state.crashed)
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.crash = None;
        state.lose_next = None;
        state.error = None;
    }

    /// A call that writes nothing. Others may act before it is answered.
    ///
    /// # Errors
    /// It was not answered.
    pub async fn call(&self) -> Result<()> {
        yield_once().await;
        match self.fate(false) {
            Fate::Answered => Ok(()),
            Fate::Lost(_) => Err(Error::Unavailable("the simulation dropped the request".to_owned())),
            Fate::Crash(_) => {
                self.die().await;
                Ok(())
            }
        }
    }

    fn fate(&self, write: bool) -> Fate {
        let mut state = self.state.lock();
        if state.crashed {
            return Fate::Crash(When::Before);
        }
        let at = state.calls;
        state.calls += 1;
        if write {
            state.writes.insert(at);
        }
        match state.crash {
            Some((due, when)) if at >= due => Fate::Crash(when),
            _ if state.error.is_some_and(|(due, _)| due == at) => {
                state.error.take().map_or(Fate::Answered, |(_, when)| Fate::Lost(when))
            }
            _ if write => state.lose_next.take().map_or(Fate::Answered, Fate::Lost),
            _ => Fate::Answered,
        }
    }

    async fn die(&self) {
        self.state.lock().crashed = true;
        std::future::pending::<()>().await;
    }

    fn commit(&self, mut txn: Txn) -> Result<TxnOutcome> {
        if let Some(blind) = &self.state.lock().blind_to {
            txn.guards.retain(|guard| !touches(guard, blind));
        }
        let outcome = self.store.commit(&txn)?;
        if let TxnOutcome::Committed(revision) = outcome {
            let decided = self.work.lock().decided;
            self.authors.lock().insert(revision, Author { decided, ..self.author });
        }
        Ok(outcome)
    }

    /// Remembers what was written and answered.
    fn learn(&self, written: &[Key], outcome: &TxnOutcome) {
        let TxnOutcome::Committed(revision) = outcome else { return };
        let answered = &mut self.work.lock().answered;
        let slots = [
            (Kind::StatefulSet, &mut answered.sets),
            (Kind::Pod, &mut answered.pods),
            (Kind::PersistentVolumeClaim, &mut answered.claims),
            (Kind::ControllerRevision, &mut answered.revisions),
            (Kind::Service, &mut answered.services),
        ];
        for (kind, slot) in slots {
            let prefix = Prefix::kind(kind);
            if written.iter().any(|key| prefix.contains(key)) {
                *slot = *revision;
            }
        }
    }
}

fn touches(guard: &Guard, prefix: &Prefix) -> bool {
    match guard {
        Guard::Absent(key) | Guard::ModRevision(key, _) | Guard::CreateRevision(key, _) => prefix.contains(key),
        Guard::PrefixNotNewer(range, _) => range.as_str().starts_with(prefix.as_str()),
    }
}

/// Lets others act once.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[async_trait]
impl Store for Wire {
    async fn get(&self, key: &Key) -> Result<Option<Kv>> {
        self.call().await?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: PageRequest) -> Result<Page> {
        self.call().await?;
        self.store.list(prefix, page).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        yield_once().await;
        match self.fate(true) {
            Fate::Answered => {
                let written: Vec<_> = txn.ops.iter().map(|op| op.key().clone()).collect();
                let outcome = self.commit(txn)?;
                self.learn(&written, &outcome);
                Ok(outcome)
            }
            Fate::Crash(When::Before) => {
                self.die().await;
                Err(Error::Unavailable("crashed".to_owned()))
            }
            Fate::Crash(When::After) => {
                self.commit(txn)?;
                self.die().await;
                Err(Error::Unavailable("crashed".to_owned()))
            }
            Fate::Lost(When::Before) => Err(Error::Unknown("the simulation dropped the request".to_owned())),
            Fate::Lost(When::After) => {
                self.commit(txn)?;
                Err(Error::Unknown("the simulation dropped the answer".to_owned()))
            }
        }
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<WatchStream> {
        self.store.watch(prefix, after).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId> {
        self.store.grant_lease(ttl).await
    }

    async fn renew_lease(&self, lease: LeaseId) -> Result<Duration> {
        self.store.renew_lease(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<()> {
        self.store.revoke_lease(lease).await
    }
}
