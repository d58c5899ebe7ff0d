//! One simulated history.

use std::{collections::BTreeMap, fmt, time::Duration};

use check::{Actor, Violation};
use controller::{host::Host, object, observed::SetKey, step::StatusPolicy};
use pb::{Object, ObjectExt, objects::*};
use store::{Guard, Key, MemStore, Op, Prefix, Txn, TxnOutcome, objects};

use crate::{
    chance::Chance,
    nodes::Nodes,
    ports::{self, SimHost},
    process::{Process, Turn},
    wire::{Authors, Crash, When},
    witness::Witness,
};

const NAMESPACE: &str = "default";
const SET: &str = "web";
/// Turns that a process gets in a row when nothing disturbs it. More means that it never ends.
const TURNS: usize = 2000;
/// Rounds in which the system must settle.
const ROUNDS: usize = 200;

/// What a history is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Choices made while faults happen.
    pub steps: usize,
    /// Controllers that act at the same time.
    pub controllers: usize,
    /// A crash at a chosen call of the first controller, instead of faults by chance: for tests of every call.
    pub crash: Option<Crash>,
    /// A mistake that the simulation must find: controllers leave out guards on these keys.
    pub blind_to: Option<Prefix>,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 400, controllers: 2, crash: None, blind_to: None }
    }
}

/// A history that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Over every commit and every choice.
    pub hash: u64,
    /// Commits made.
    pub commits: usize,
    /// Calls that the first controller made.
    pub calls: u64,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that does it again.
    pub seed: u64,
    /// After how many commits.
    pub commits: usize,
    /// What.
    pub what: Vec<String>,
    /// The choices that led here, the latest last.
    pub trail: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed after {} commits:", self.seed, self.commits)?;
        for what in &self.what {
            writeln!(f, "  {what}")?;
        }
        writeln!(f, "the last choices:")?;
        for choice in self.trail.iter().rev().take(40).rev() {
            writeln!(f, "  {choice}")?;
        }
        write!(f, "again: cargo run -p sim -- --first {} --seeds 1", self.seed)
    }
}

impl std::error::Error for Failure {}

/// Runs the history of a seed.
///
/// # Errors
/// What went wrong, with the seed and the choices that led to it.
pub fn run(seed: u64, options: &Options) -> Result<Outcome, Failure> {
    let mut sim = Simulation::new(seed, options);
    match sim.play(options) {
        Ok(()) => {
            let calls = sim.processes.first().map_or(0, |process| process.wire.calls());
            Ok(Outcome { hash: sim.witness.hash(), commits: sim.witness.commits, calls })
        }
        Err(what) => Err(Failure { seed, commits: sim.witness.commits, what, trail: sim.trail }),
    }
}

/// What may be chosen, each as often as it stands here.
const CHOICES: [Choice; 34] = {
    use Choice::*;
    [
        Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Look, Look, Look, Look, Look, Tend,
        Tend, Tend, Tend, Deliver, Deliver, Deliver, Lose, Disturb, User, User, Crash, LoseAnswer, Elect, Time, Bind,
        Room,
    ]
};

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// A controller makes a call, or starts a step.
    Turn,
    /// A cache sees more.
    Look,
    /// A node looks after a pod.
    Tend,
    /// A node's report arrives.
    Deliver,
    /// A node's report does not.
    Lose,
    /// A process ends or changes its readiness.
    Disturb,
    /// A user wants something.
    User,
    /// A controller will crash.
    Crash,
    /// A controller's next write is not answered.
    LoseAnswer,
    /// Another controller becomes the leader, and the old one does not know.
    Elect,
    /// Time passes.
    Time,
    /// The scheduler binds a pod that waits.
    Bind,
    /// A node is cordoned, or no longer.
    Room,
}

type Step<T = ()> = Result<T, Vec<String>>;

struct Simulation {
    store: MemStore,
    host: SimHost,
    authors: Authors,
    chance: Chance,
    witness: Witness,
    nodes: Nodes,
    processes: Vec<Process>,
    leader: usize,
    set: SetKey,
    trail: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, options: &Options) -> Self {
        let (store, host, authors) = (MemStore::new(), SimHost::default(), Authors::default());
        let process = |_| Process::new(&store, &host, &authors);
        Self {
            witness: Witness::new(&store, &authors),
            nodes: Nodes::new(&store, &host),
            processes: (0..options.controllers.max(1)).map(process).collect(),
            chance: Chance::new(seed),
            leader: 0,
            set: SetKey { namespace: NAMESPACE.to_owned(), name: SET.to_owned() },
            trail: Vec::new(),
            store,
            host,
            authors,
        }
    }

    fn play(&mut self, options: &Options) -> Step {
        for name in ["n1", "n2", "n3"] {
            self.commit(Vec::new(), vec![objects::put(&ports::node(name, 4))], Actor::User);
        }
        let set = self.new_set(options.crash.is_some());
        self.commit(Vec::new(), vec![objects::put(&set)], Actor::User);
        self.elect(0);
        for (process, prefix) in self.processes.iter().zip(options.blind_to.iter().cycle()) {
            process.wire.blind_to(prefix.clone());
        }
        match options.crash {
            Some(crash) => self.script(crash)?,
            None => {
                for _ in 0..options.steps {
                    self.choose()?;
                }
            }
        }
        self.settle()
    }

    /// Fixed events with one crash somewhere: up, a failed pod, a new template, down, up again.
    fn script(&mut self, crash: Crash) -> Step {
        if let Some(process) = self.processes.first() {
            process.wire.crash(crash);
        }
        self.settle_once()?;
        self.user_deletes("web-1");
        self.settle_once()?;
        self.change_set(|spec| set_version(spec, "2"));
        self.settle_once()?;
        self.change_set(|spec| spec.replicas = Some(1));
        self.settle_once()?;
        self.change_set(|spec| spec.replicas = Some(3));
        self.settle_once()
    }

    fn choose(&mut self) -> Step {
        let choice = CHOICES[self.chance.below(CHOICES.len())];
        let which = self.chance.below(self.processes.len());
        self.witness.note(&[choice as u8, which.to_le_bytes()[0]]);
        self.trail.push(format!("{choice:?} {which}"));
        let when = if self.chance.one_in(2) { When::Before } else { When::After };
        match choice {
            Choice::Turn => {
                let status = if self.chance.one_in(3) { StatusPolicy::Now } else { StatusPolicy::WhenSettled };
                let set = self.set.clone();
                let turn = self.processes[which].turn(&set, status);
                self.trail.push(format!("  {turn:?}"));
            }
            Choice::Look => self.processes[which].look(&mut self.chance),
            Choice::Tend => self.nodes.tend(&mut self.chance).map_err(|what| vec![format!("I1 {what}")])?,
            Choice::Deliver => self.nodes.deliver(),
            Choice::Lose => self.nodes.lose(),
            Choice::Disturb => {
                if self.chance.one_in(3) {
                    self.nodes.disturb(&mut self.chance);
                }
            }
            Choice::User => self.user(),
            Choice::Crash => {
                let after_calls = u64::try_from(self.chance.below(6)).unwrap_or(0);
                self.processes[which].wire.crash(Crash { after_calls, when });
            }
            Choice::LoseAnswer => self.processes[which].wire.lose_next(when),
            Choice::Elect => self.elect(which),
            Choice::Time => self.host.advance(Duration::from_secs(1 + self.chance.below(10) as u64)),
            Choice::Bind => self.bind(),
            Choice::Room => self.cordon(which, self.chance.clone().one_in(2)),
        }
        self.watch()
    }

    fn watch(&mut self) -> Step {
        let violations = self.witness.look(self.host.now());
        fail_on(&violations)
    }

    /// The faults end: the system settles by itself, is complete, and then writes nothing.
    fn settle(&mut self) -> Step {
        self.trail.push("the faults end".to_owned());
        self.processes.iter().for_each(|process| process.wire.heal());
        for node in 0..3 {
            self.cordon(node, false);
        }
        self.elect(0);
        self.settle_once()?;
        if let Err(mut what) = fail_on(&self.witness.settled(self.host.now())) {
            what.extend(self.processes.iter().take(1).flat_map(|process| process.waits(&self.set)));
            return Err(what);
        }
        let settled = self.store.revision();
        for which in 0..self.processes.len() {
            self.elect(which);
            let elections = self.store.revision();
            self.run_process(which)?;
            if self.store.revision() != elections {
                return Err(vec![format!("I24 a settled system was written to after revision {settled}")]);
            }
        }
        self.watch()
    }

    fn settle_once(&mut self) -> Step {
        let mut quiet = 0;
        for _ in 0..ROUNDS {
            let before = self.store.revision();
            self.run_process(0)?;
            self.nodes.heal();
            self.nodes.settle().map_err(|what| vec![format!("I1 {what}")])?;
            self.bind();
            self.watch()?;
            self.host.advance(Duration::from_secs(10));
            quiet = if self.store.revision() == before { quiet + 1 } else { 0 };
            // What was waiting for time alone goes on in the round after.
            if quiet == 2 {
                return Ok(());
            }
        }
        let pods = self.witness.world().pods.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
        Err(vec![format!("I24 did not settle in {ROUNDS} rounds; pods: {pods}")])
    }

    /// Lets a process work, with fresh caches, until it has nothing to do.
    fn run_process(&mut self, which: usize) -> Step {
        let set = self.set.clone();
        for _ in 0..TURNS {
            let Some(process) = self.processes.get_mut(which) else { return Ok(()) };
            process.look_at_all();
            let turn = process.turn(&set, StatusPolicy::Now);
            self.watch()?;
            if turn == Turn::Idle {
                return Ok(());
            }
        }
        Err(vec![format!("I24 controller {which} still works after {TURNS} turns")])
    }

    /// Makes a process the leader; the one before goes on believing that it is.
    fn elect(&mut self, which: usize) {
        let key = Key::leader("controller");
        self.commit(Vec::new(), vec![Op::Delete(key.clone())], Actor::Other);
        let name = which.to_string();
        let won = self.commit(Vec::new(), vec![Op::Put(key.clone(), name.into(), None)], Actor::Other);
        if let (Some(revision), Some(process)) = (won, self.processes.get_mut(which)) {
            process.lead(Guard::CreateRevision(key, revision));
            self.leader = which;
        }
    }

    fn user(&mut self) {
        match self.chance.below(8) {
            0..=3 => {
                let replicas = i32::try_from(self.chance.below(6)).unwrap_or(0);
                self.trail.push(format!("  scale to {replicas}"));
                self.change_set(|spec| spec.replicas = Some(replicas));
            }
            4 => {
                let version = self.chance.below(3).to_string();
                self.trail.push(format!("  template {version}"));
                self.change_set(|spec| set_version(spec, &version));
            }
            _ => {
                let pods = ports::list::<Pod>(&self.store);
                if let Some(pod) = self.chance.pick(&pods) {
                    self.trail.push(format!("  delete {}", pod.name()));
                    self.user_deletes(pod.name());
                }
            }
        }
    }

    fn user_deletes(&mut self, name: &str) {
        let Some(pod) = ports::get::<Pod>(&self.store, NAMESPACE, name) else { return };
        if pod.is_terminating() {
            return;
        }
        let op = if object::may_vanish(&pod) {
            Op::Delete(Key::of(&pod))
        } else {
            objects::put(&object::terminating(pod.clone(), Time::from(self.host.now())))
        };
        self.commit(vec![objects::unchanged(&pod)], vec![op], Actor::User);
    }

    fn change_set(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        let Some(mut set) = ports::get::<StatefulSet>(&self.store, NAMESPACE, SET) else { return };
        let guards = vec![objects::unchanged(&set)];
        let before = set.spec.clone();
        change(set.spec.get_or_insert_default());
        if set.spec != before {
            set.meta_mut().generation += 1;
            self.commit(guards, vec![objects::put(&set)], Actor::User);
        }
    }

    fn cordon(&mut self, which: usize, cordoned: bool) {
        let Some(mut node) = ports::get::<Node>(&self.store, "", &format!("n{}", which % 3 + 1)) else { return };
        let guards = vec![objects::unchanged(&node)];
        let spec = node.spec.get_or_insert_default();
        if spec.unschedulable != cordoned {
            spec.unschedulable = cordoned;
            self.commit(guards, vec![objects::put(&node)], Actor::User);
        }
    }

    /// The scheduler's own loop.
    fn bind(&mut self) {
        for pod in ports::waiting(&self.store) {
            if let Some(Txn { guards, ops }) = ports::bind(&self.store, &self.host, pod) {
                self.commit(guards, ops, Actor::Other);
            }
        }
    }

    fn commit(&mut self, guards: Vec<Guard>, ops: Vec<Op>, by: Actor) -> Option<i64> {
        match self.store.commit(&Txn { guards, ops }) {
            Ok(TxnOutcome::Committed(revision)) => {
                // A transaction that deletes what is not there makes no revision of its own.
                self.authors.lock().entry(revision).or_insert(by);
                Some(revision)
            }
            Ok(TxnOutcome::Conflict) | Err(_) => None,
        }
    }

    fn new_set(&mut self, plain: bool) -> StatefulSet {
        let labels = BTreeMap::from([("app".to_owned(), SET.to_owned())]);
        let claim = PersistentVolumeClaim {
            metadata: Some(ObjectMeta { name: "www".to_owned(), ..ObjectMeta::default() }),
            ..PersistentVolumeClaim::default()
        };
        let parallel = !plain && self.chance.one_in(4);
        let min_ready = if !plain && self.chance.one_in(3) { 5 } else { 0 };
        let mut spec = StatefulSetSpec {
            replicas: Some(if plain { 3 } else { i32::try_from(self.chance.below(5)).unwrap_or(3) }),
            selector: Some(LabelSelector { match_labels: labels.clone(), ..LabelSelector::default() }),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    containers: vec![Container { name: "c".to_owned(), ..Container::default() }],
                    ..PodSpec::default()
                }),
            }),
            volume_claim_templates: vec![claim],
            service_name: "web-svc".to_owned(),
            pod_management_policy: if parallel { "Parallel" } else { "OrderedReady" }.to_owned(),
            update_strategy: Some(StatefulSetUpdateStrategy {
                r#type: "RollingUpdate".to_owned(),
                rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(0), max_unavailable: None }),
            }),
            min_ready_seconds: min_ready,
            ..StatefulSetSpec::default()
        };
        set_version(&mut spec, "1");
        StatefulSet {
            metadata: Some(ObjectMeta {
                name: SET.to_owned(),
                namespace: NAMESPACE.to_owned(),
                uid: self.host.uid(),
                generation: 1,
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
            ..StatefulSet::default()
        }
    }
}

fn set_version(spec: &mut StatefulSetSpec, version: &str) {
    let template = spec.template.get_or_insert_default();
    if let Some(container) = template.spec.get_or_insert_default().containers.first_mut() {
        container.image = format!("app:{version}");
    }
}

fn fail_on(violations: &[Violation]) -> Step {
    if violations.is_empty() { Ok(()) } else { Err(violations.iter().map(ToString::to_string).collect()) }
}
