//! Where a story plays: a store, the hands that act for the system, nodes, and the user.

mod acts;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use check::{Actor, Violation};
use controller::{host::Host, object, observed::SetKey};
use pb::{ObjectExt, objects::*};
use store::{Guard, MemStore, Op, Prefix, Txn, TxnOutcome, objects};

use super::{
    Case, Mishap, Play, Who,
    hands::{Came, Hands},
    kubelet::Kubelet,
    law::Laws,
    print,
};
use crate::{
    ports::{self, SimHost},
    storage,
    wire::{Authors, Wire},
    witness::Witness,
};

const NAMESPACE: &str = "default";
const SET: &str = "web";
/// Rounds in which the system must come to rest.
const ROUNDS: usize = 200;
/// Pieces of work in a row before nodes get their turn. More means that it never ends.
const TURNS: usize = 500;

/// What a step of a story comes to: nothing, or what is wrong.
pub type Told = Result<(), Vec<String>>;

/// Where a story plays.
pub struct Stage {
    /// The policies of the set.
    pub case: Case,
    store: MemStore,
    host: SimHost,
    authors: Authors,
    witness: Witness,
    kubelet: Kubelet,
    wires: Wires,
    /// The controller leaves out guards on these keys, as one with a mistake would.
    blind_to: Option<Prefix>,
    /// None while it works.
    controller: Option<Hands>,
    collector: Hands,
    /// What happens in the middle of the controller's work: after so many of its calls.
    meanwhile: Option<(u64, Play)>,
    pub(super) laws: Laws,
    /// Uids of pods, as they were when the story said so.
    marked: BTreeMap<String, String>,
    /// After how many calls of the controller happens what happens meanwhile.
    interrupted: u64,
    /// This is not the history that nothing disturbs.
    disturbed: bool,
    /// What happened, if it is to be told.
    pub(super) history: Option<Vec<String>>,
    /// Commits that were looked at.
    pub(super) commits: usize,
}

/// The calls of both hands.
#[derive(Clone)]
struct Wires {
    controller: Wire,
    collector: Wire,
}

impl Wires {
    fn new(store: &MemStore, authors: &Authors) -> Self {
        let of = |by| Wire::new(store.clone(), Arc::clone(authors)).of(by);
        Self { controller: of(Actor::SetController), collector: of(Actor::Collector) }
    }

    /// The set controller and the collector, which know nothing yet.
    fn hands(&self, store: &MemStore, host: &SimHost) -> (Option<Hands>, Hands) {
        let of = |wire: &Wire| Hands::new(store, host, wire.clone());
        (Some(of(&self.controller)), of(&self.collector))
    }
}

impl Stage {
    pub(super) fn new(case: Case, blind_to: Option<Prefix>) -> Self {
        let (store, host, authors) = (MemStore::new(), SimHost::default(), Authors::default());
        let wires = Wires::new(&store, &authors);
        let (controller, collector) = wires.hands(&store, &host);
        let witness = Witness::new(&store, &authors);
        let mut stage = Self {
            case,
            witness,
            kubelet: Kubelet::default(),
            wires,
            blind_to: None,
            controller,
            collector,
            meanwhile: None,
            laws: Laws { orderly: false, steady_claims: true },
            marked: BTreeMap::new(),
            interrupted: 0,
            disturbed: false,
            history: None,
            commits: 0,
            store,
            host,
            authors,
        };
        for name in ["n1", "n2", "n3"] {
            stage.commit(Vec::new(), vec![objects::put(&ports::node(name, 8))], Actor::User);
        }
        stage.blind_to = blind_to;
        let looked = stage.watch();
        debug_assert!(looked.is_ok());
        stage
    }

    /// Another stage that goes on from here, with hands that have just started.
    pub(super) fn fork(&self) -> Self {
        // Nobody looks back: what was before need not be copied.
        let now = self.store.revision();
        if self.store.inspect(|model| model.compacted()) < now {
            let forgotten = self.store.compact(now);
            debug_assert!(forgotten.is_ok());
        }
        let (store, host) = (self.store.fork(), self.host.fork());
        let authors: Authors = Arc::new(parking_lot::Mutex::new(self.authors.lock().clone()));
        let wires = Wires::new(&store, &authors);
        self.blind_to.iter().for_each(|prefix| wires.controller.blind_to(prefix.clone()));
        let (controller, collector) = wires.hands(&store, &host);
        Self {
            case: self.case,
            witness: self.witness.fork(&store, &authors),
            kubelet: self.kubelet.clone(),
            wires,
            blind_to: self.blind_to.clone(),
            controller,
            collector,
            meanwhile: None,
            laws: self.laws,
            marked: self.marked.clone(),
            interrupted: 0,
            disturbed: false,
            history: self.history.clone(),
            commits: 0,
            store,
            host,
            authors,
        }
    }

    pub(super) fn wire(&self, who: Who) -> &Wire {
        match who {
            Who::Controller => &self.wires.controller,
            Who::Collector => &self.wires.collector,
        }
    }

    /// Something will be otherwise than in the history that nothing disturbs.
    pub(super) fn meet(&mut self, mishap: Mishap) {
        self.disturbed = true;
        match mishap {
            Mishap::Call(who, call, trouble) => self.wire(who).fail_at(call, trouble),
            Mishap::Interrupted(calls) => self.interrupted = calls,
        }
    }

    pub(super) fn portrait(&self) -> Vec<String> {
        print::portrait(self.witness.world())
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            history.push(line());
        }
    }

    // What the system does.

    /// One step of the controller.
    pub fn sync(&mut self) -> Told {
        self.step().map(drop)
    }

    /// One round of the nodes.
    pub fn nodes(&mut self) -> Told {
        self.watch()?;
        let told = self.kubelet.tend(self.witness.world(), &self.host).map_err(|what| vec![what])?;
        for Txn { guards, ops } in told {
            self.commit(guards, ops, Actor::Other);
        }
        self.watch()
    }

    /// Garbage is collected until there is none.
    pub fn collect(&mut self) -> Told {
        for _ in 0..TURNS {
            let before = self.store.revision();
            let Self { collector, witness, host, laws, history, commits, .. } = self;
            let came = collector.sweep(&mut || look(witness, host, *laws, history, commits))?;
            if matches!(came, Came::Idle | Came::Worked) && self.store.revision() == before {
                return Ok(());
            }
        }
        Err(vec![format!("2.4/10 garbage is still collected after {TURNS} sweeps")])
    }

    fn step(&mut self) -> Result<Came, Vec<String>> {
        let Some(mut controller) = self.controller.take() else {
            return Err(vec!["the controller works already".to_owned()]);
        };
        let came = controller.step(&set_key(), &mut || self.between());
        self.controller = Some(controller);
        came
    }

    /// Between two calls of the controller others act.
    fn between(&mut self) -> Told {
        self.watch()?;
        let calls = self.wires.controller.calls();
        match self.meanwhile.take_if(|(due, _)| calls >= *due) {
            Some((_, act)) => self.interrupt(&act),
            None => Ok(()),
        }
    }

    fn interrupt(&mut self, act: &Play) -> Told {
        self.note(|| "> (it happens now)".to_owned());
        act(self)?;
        self.watch()
    }

    /// Something happens in the middle of the controller's work, or when it has none left to do.
    pub(super) fn meanwhile(&mut self, act: Play) {
        self.meanwhile = Some((self.wires.controller.calls() + self.interrupted, act));
    }

    /// The controller works until it has nothing to do.
    fn work(&mut self) -> Told {
        for _ in 0..TURNS {
            if self.step()? == Came::Idle {
                return Ok(());
            }
        }
        Err(vec![format!("2.4/10 the controller still works after {TURNS} steps")])
    }

    /// Everybody works until nothing happens any more and nobody waits for time to pass.
    pub fn rest(&mut self) -> Told {
        for _ in 0..ROUNDS {
            let before = self.store.revision();
            self.work()?;
            self.collect()?;
            self.nodes()?;
            self.schedule();
            for Txn { guards, ops } in storage::settle(&self.store) {
                self.commit(guards, ops, Actor::Other);
            }
            self.watch()?;
            let quiet = self.store.revision() == before;
            if !quiet {
                self.pass(1);
            } else if let Some((_, act)) = self.meanwhile.take() {
                self.interrupt(&act)?;
            } else {
                match self.controller.as_ref().and_then(|controller| controller.again_after) {
                    Some(after) => self.host.advance(after),
                    None => return Ok(()),
                }
            }
        }
        Err(vec![format!("2.4/9 did not come to rest in {ROUNDS} rounds")])
    }

    /// Pods that wait get a node if one takes them.
    fn schedule(&mut self) {
        let unbound = |pod: &&Arc<Pod>| object::may_vanish(pod) && !pod.is_terminating();
        if !self.witness.world().pods.values().any(|pod| unbound(&pod)) {
            return;
        }
        for pod in ports::waiting(&self.store) {
            if let Some(Txn { guards, ops }) = ports::bind(&self.store, &self.host, pod) {
                self.commit(guards, ops, Actor::Other);
            }
        }
    }

    /// Everybody works until nothing happens any more, and then all is as it should be (9), and processes that start
    /// anew write nothing (10).
    pub fn settle(&mut self) -> Told {
        self.rest()?;
        let mut wrong = self.witness.settled(self.host.now());
        wrong.extend(self.laws.settled(self.witness.world()));
        if !wrong.is_empty() {
            let waits = self.waits().into_iter().map(|wait| format!("waits: {wait}"));
            return Err(lines(&wrong).into_iter().chain(waits).collect());
        }
        if self.disturbed {
            // It is compared with what is there without the fault, and there this was asked.
            return Ok(());
        }
        let settled = self.store.revision();
        (self.controller, self.collector) = self.wires.hands(&self.store, &self.host);
        self.work()?;
        self.collect()?;
        if self.store.revision() != settled {
            return Err(vec!["2.4/10 a settled system was written to".to_owned()]);
        }
        Ok(())
    }

    pub(super) fn watch(&mut self) -> Told {
        let Self { witness, host, laws, history, commits, .. } = self;
        look(witness, host, *laws, history, commits)
    }

    /// Time passes.
    pub fn pass(&mut self, seconds: u64) {
        self.host.advance(Duration::from_secs(seconds));
    }

    fn commit(&mut self, guards: Vec<Guard>, ops: Vec<Op>, by: Actor) {
        if let Ok(TxnOutcome::Committed(revision)) = self.store.commit(&Txn { guards, ops }) {
            // A transaction that deletes what is not there makes no revision of its own.
            self.authors.lock().entry(revision).or_insert(by.into());
        }
    }
}

fn set_key() -> SetKey {
    SetKey { namespace: NAMESPACE.to_owned(), name: SET.to_owned() }
}

/// Looks at what was written since the last time.
fn look(
    witness: &mut Witness,
    host: &SimHost,
    laws: Laws,
    history: &mut Option<Vec<String>>,
    commits: &mut usize,
) -> Told {
    let wrong = witness.look_also(host.now(), |step| {
        *commits += 1;
        history.iter_mut().for_each(|history| history.extend(print::commit(step)));
        laws.step(step)
    });
    if wrong.is_empty() { Ok(()) } else { Err(lines(&wrong)) }
}

fn lines(wrong: &[Violation]) -> Vec<String> {
    wrong.iter().map(ToString::to_string).collect()
}
