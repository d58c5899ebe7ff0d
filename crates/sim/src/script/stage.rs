//! Where a story plays: a store, the hands that act for the system, nodes, and the user.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use check::{Actor, Violation};
use controller::{host::Host, object, observed::SetKey};
use pb::{Object, ObjectExt, objects::*};
use plan::{gc::Propagation, statefulset::stamp};
use store::{Guard, Key, MemStore, Op, Prefix, Txn, TxnOutcome, objects};

use super::{
    Case, Mishap, Play, Who,
    hands::{Came, Hands},
    image, is_ready,
    kubelet::{Kubelet, report},
    law::Laws,
    phase, print, version,
};
use crate::{
    ports::{self, SimHost},
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

    // What users do.

    /// Creates the set: three pods of version 1 and a claim each, changed as wanted.
    pub fn create(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        let mut set = new_set(self.case, &self.host);
        change(set.spec.get_or_insert_default());
        self.put(&set);
    }

    /// Changes the set's spec.
    pub fn change(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        let Some(mut set) = self.set() else { return };
        let before = set.spec.clone();
        change(set.spec.get_or_insert_default());
        if set.spec != before {
            set.meta_mut().generation += 1;
            self.put(&set);
        }
    }

    /// Deletes the set, as the front door does.
    pub fn delete_set(&mut self, propagation: Propagation) {
        let Some(mut set) = self.set() else { return };
        let now = Time::from(self.host.now());
        let ordered = set.spec.as_ref().is_some_and(|spec| spec.deletion_order == "Ordered");
        let meta = set.meta_mut();
        meta.deletion_timestamp = Some(now);
        meta.finalizers.extend(propagation.finalizer().map(str::to_owned));
        if ordered && propagation != Propagation::Orphan {
            meta.finalizers.push(stamp::ORDERED_DELETION.to_owned());
        }
        if meta.finalizers.is_empty() {
            self.commit(Vec::new(), vec![Op::Delete(Key::of(&set))], Actor::User);
        } else {
            self.put(&set);
        }
    }

    /// Deletes a pod, as the front door does.
    pub fn delete_pod(&mut self, name: &str) {
        let Some(pod) = self.pod(name).filter(|pod| !pod.is_terminating()) else { return };
        let op = if object::may_vanish(&pod) {
            Op::Delete(Key::of(&pod))
        } else {
            objects::put(&object::terminating(pod.clone(), Time::from(self.host.now())))
        };
        self.commit(vec![objects::unchanged(&pod)], vec![op], Actor::User);
    }

    /// Deletes a claim, as the front door does.
    pub fn delete_claim(&mut self, name: &str) {
        let now = Time::from(self.host.now());
        self.edit::<PersistentVolumeClaim>(name, |claim| claim.meta_mut().deletion_timestamp = Some(now));
    }

    /// Changes any object.
    pub fn edit<T: Object>(&mut self, name: &str, change: impl FnOnce(&mut T)) {
        let Some(mut object) = self.get::<T>(name) else { return };
        change(&mut object);
        self.put(&object);
    }

    /// Writes any object.
    pub fn put<T: Object>(&mut self, object: &T) {
        self.commit(Vec::new(), vec![objects::put(object)], Actor::User);
    }

    /// Takes any object away, whatever holds it.
    pub fn remove<T: Object>(&mut self, name: &str) {
        let namespace = self.namespace();
        self.commit(Vec::new(), vec![Op::Delete(Key::object(T::KIND, namespace, name))], Actor::User);
    }

    /// No node takes pods any more, or all do again.
    pub fn cordon(&mut self, cordoned: bool) {
        for mut node in ports::list::<Node>(&self.store) {
            node.spec.get_or_insert_default().unschedulable = cordoned;
            self.commit(Vec::new(), vec![objects::put(&node)], Actor::User);
        }
    }

    /// An identity that nothing else has.
    pub fn uid(&self) -> String {
        self.host.uid()
    }

    // What nodes tell.

    /// The containers of a pod end.
    pub fn end(&mut self, name: &str, phase: &str) {
        let Some(mut pod) = self.pod(name) else { return };
        report(&mut pod, phase, false, Time::from(self.host.now()));
        self.commit(Vec::new(), vec![objects::put(&pod)], Actor::Other);
    }

    /// A pod is no longer ready, until it is said to be.
    pub fn unready(&mut self, name: &str) {
        let Some(mut pod) = self.pod(name) else { return };
        self.kubelet.unready.insert(pod.uid().to_owned());
        report(&mut pod, "Running", false, Time::from(self.host.now()));
        self.commit(Vec::new(), vec![objects::put(&pod)], Actor::Other);
    }

    /// All pods are ready that can be.
    pub fn ready(&mut self) {
        self.kubelet.unready.clear();
    }

    /// Containers of a version never become ready, or do again.
    pub fn broken(&mut self, version: &str, broken: bool) {
        let image = format!("app:{version}");
        if broken {
            self.kubelet.broken.insert(image);
        } else {
            self.kubelet.broken.remove(&image);
        }
    }

    /// Pods of a name do not stop, or do again.
    pub fn stubborn(&mut self, name: &str, stubborn: bool) {
        if stubborn {
            self.kubelet.stubborn.insert(name.to_owned());
        } else {
            self.kubelet.stubborn.remove(name);
        }
    }

    // What there is.

    /// The namespace of everything.
    pub fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// The set.
    pub fn set(&self) -> Option<StatefulSet> {
        self.get(SET)
    }

    /// The status of the set.
    pub fn status(&self) -> StatefulSetStatus {
        self.set().and_then(|set| set.status).unwrap_or_default()
    }

    /// One pod.
    pub fn pod(&self, name: &str) -> Option<Pod> {
        self.get(name)
    }

    /// Any object.
    pub fn get<T: Object>(&self, name: &str) -> Option<T> {
        ports::get(&self.store, NAMESPACE, name)
    }

    /// All objects of a kind.
    pub fn all<T: Object>(&self) -> Vec<T> {
        ports::list(&self.store)
    }

    /// All pods as name:version, with what is special about them: `!` not ready, `~` to go.
    pub fn pods(&self) -> String {
        let tell = |pod: &Pod| {
            let ready = if is_ready(pod) { "" } else { "!" };
            let going = if pod.is_terminating() { "~" } else { "" };
            let ended = if matches!(phase(pod), "Failed" | "Succeeded") { "x" } else { "" };
            format!("{}:{}{ready}{ended}{going}", pod.name(), version(image(pod)))
        };
        words(self.all::<Pod>().iter().map(tell))
    }

    /// The names of all claims, `~` if they are to go.
    pub fn claims(&self) -> String {
        let tell = |claim: &PersistentVolumeClaim| {
            format!("{}{}", claim.name(), if claim.is_terminating() { "~" } else { "" })
        };
        words(self.all::<PersistentVolumeClaim>().iter().map(tell))
    }

    /// All revisions as number:version, in order of their numbers.
    pub fn revisions(&self) -> String {
        let mut all = self.all::<ControllerRevision>();
        all.sort_by_key(|revision| revision.revision);
        words(all.iter().map(|revision| {
            let template = revision.data.clone().and_then(|data| data.spec).unwrap_or_default();
            let image = template.containers.first().map_or("", |container| container.image.as_str());
            format!("{}:{}", revision.revision, version(image))
        }))
    }

    /// Remembers which pods there are.
    pub fn mark(&mut self) {
        self.marked = self.all::<Pod>().iter().map(|pod| (pod.name().to_owned(), pod.uid().to_owned())).collect();
    }

    /// The pods that are still those that were remembered.
    pub fn kept(&self) -> String {
        let same = |pod: &&Pod| self.marked.get(pod.name()).is_some_and(|uid| uid == pod.uid());
        words(self.all::<Pod>().iter().filter(same).map(|pod| pod.name().to_owned()))
    }

    /// The name of the revision that the controller would make now.
    pub fn revision_due(&mut self) -> Option<String> {
        self.controller.as_mut().and_then(|controller| controller.revision_due(&set_key()))
    }

    /// What the set waits for, as people are told.
    pub fn waits(&mut self) -> Vec<String> {
        self.controller.as_mut().map(|controller| controller.waits(&set_key())).unwrap_or_default()
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

fn words(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(" ")
}

fn new_set(case: Case, host: &SimHost) -> StatefulSet {
    let labels = BTreeMap::from([("app".to_owned(), SET.to_owned())]);
    let claim = PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "data".to_owned(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeClaimSpec {
            storage_class_name: Some(ports::class().name().to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    let word = |delete: bool| if delete { "Delete" } else { "Retain" }.to_owned();
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels.clone(), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "app".to_owned(), image: "app:1".to_owned(), ..Container::default() }],
            ..PodSpec::default()
        }),
    };
    let spec = StatefulSetSpec {
        replicas: Some(3),
        selector: Some(LabelSelector { match_labels: labels, ..LabelSelector::default() }),
        template: Some(template),
        volume_claim_templates: vec![claim],
        service_name: "web-svc".to_owned(),
        pod_management_policy: if case.parallel { "Parallel" } else { "OrderedReady" }.to_owned(),
        update_strategy: Some(StatefulSetUpdateStrategy {
            r#type: "RollingUpdate".to_owned(),
            rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(0), max_unavailable: None }),
        }),
        persistent_volume_claim_retention_policy: Some(PersistentVolumeClaimRetentionPolicy {
            when_deleted: word(case.delete_with_set),
            when_scaled: word(case.delete_when_scaled),
        }),
        ..StatefulSetSpec::default()
    };
    StatefulSet {
        metadata: Some(ObjectMeta {
            name: SET.to_owned(),
            namespace: NAMESPACE.to_owned(),
            uid: host.uid(),
            generation: 1,
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
        ..StatefulSet::default()
    }
}
