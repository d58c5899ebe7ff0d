//! One simulated history.

mod sets;
mod users;

use std::{fmt, sync::Arc, time::Duration};

use check::{Actor, Violation};
use controller::{host::Host, nodes::silent, observed::SetKey, step::StatusPolicy};
use pb::objects::*;
use store::{Guard, Key, MemStore, Op, Prefix, Txn, TxnOutcome, objects};

use crate::{
    chance::Chance,
    nodes::Nodes,
    ports::{self, SimHost},
    process::{Process, Turn},
    storage,
    wire::{Authors, Crash, When},
    witness::Witness,
};
use sets::{NAMES, NAMESPACE, set_version};

/// The nodes.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Pods that a node has room for.
const ROOM: usize = 5;
/// Turns that a process gets in a row when nothing disturbs it. More means that it never ends.
const TURNS: usize = 3000;
/// Rounds in which the system must settle.
const ROUNDS: usize = 200;
/// Time that passes in a round.
const ROUND: Duration = Duration::from_secs(10);
/// Revisions that are kept when the store forgets older ones.
const KEPT: i64 = 10;

/// What a history is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Choices made while faults happen.
    pub steps: usize,
    /// Controllers that act at the same time.
    pub controllers: usize,
    /// Only these of the choices, by number: for a history that was made shorter.
    pub only: Option<Arc<[usize]>>,
    /// Keeps what was chosen, for people.
    pub trail: bool,
    /// A crash at a chosen call of the first controller, instead of faults by chance: for tests of every call.
    pub crash: Option<Crash>,
    /// A mistake that the simulation must find: controllers leave out guards on these keys.
    pub blind_to: Option<Prefix>,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 300, controllers: 2, only: None, trail: false, crash: None, blind_to: None }
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
    /// The number of the choice at which it happened; None after the last one.
    pub at: Option<usize>,
    /// After how many commits.
    pub commits: usize,
    /// The first invariant that was found broken.
    pub invariant: String,
    /// What.
    pub what: Vec<String>,
    /// The choices that led here, the latest last; empty unless they were to be kept.
    pub trail: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed after {} commits:", self.seed, self.commits)?;
        self.what.iter().try_for_each(|what| writeln!(f, "  {what}"))?;
        self.trail.iter().try_for_each(|choice| writeln!(f, "{choice}"))?;
        write!(f, "again: cargo run --release -p sim -- --first {} --seeds 1", self.seed)
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
        Err(what) => {
            let first = what.first().map_or("", String::as_str);
            let invariant = first.split_once(' ').map_or(first, |(id, _)| id).to_owned();
            let (at, commits) = (sim.at, sim.witness.commits);
            Err(Failure { seed, at, commits, invariant, what, trail: sim.trail.unwrap_or_default() })
        }
    }
}

/// What is chosen in the history of a seed, whether or not it ends well, in words.
pub fn tell(seed: u64, options: &Options) -> Vec<String> {
    let options = Options { trail: true, ..options.clone() };
    let mut sim = Simulation::new(seed, &options);
    if let Err(what) = sim.play(&options) {
        what.into_iter().for_each(|what| sim.say(|| what));
    }
    sim.trail.unwrap_or_default()
}

/// What may be chosen, each as often as it stands here.
const CHOICES: [Choice; 56] = {
    use Choice::*;
    [
        Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn, Turn,
        Look, Look, Look, Tend, Tend, Tend, Tend, Tend, Tend, Tend, Tend, Deliver, Deliver, Deliver, Deliver, Deliver,
        Lose, Repeat, Disturb, User, User, User, Crash, LoseAnswer, Elect, Time, Time, Time, Bind, Bind, Cordon,
        CutOff, Compact, Disturb, Storage, Storage, Storage, Storage,
    ]
};

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// A controller makes some calls, or starts a piece of work.
    Turn,
    /// A cache sees more.
    Look,
    /// A node looks after a pod.
    Tend,
    /// A node's report arrives.
    Deliver,
    /// A node's report does not.
    Lose,
    /// A node's report will arrive twice.
    Repeat,
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
    /// The scheduler binds pods that wait.
    Bind,
    /// A node is cordoned, or no longer.
    Cordon,
    /// A node is cut off, or back.
    CutOff,
    /// The volume manager goes on with one of the things that it does.
    Storage,
    /// The store forgets old revisions: whoever watches from there has to list again.
    Compact,
}

type Step<T = ()> = Result<T, Vec<String>>;

struct Simulation {
    seed: u64,
    store: MemStore,
    host: SimHost,
    authors: Authors,
    witness: Witness,
    nodes: Nodes,
    processes: Vec<Process>,
    leader: usize,
    at: Option<usize>,
    trail: Option<Vec<String>>,
}

impl Simulation {
    fn new(seed: u64, options: &Options) -> Self {
        let (store, host, authors) = (MemStore::new(), SimHost::default(), Authors::default());
        let sets = NAMES.map(|name| SetKey { namespace: NAMESPACE.to_owned(), name: name.to_owned() });
        let process = |number| Process::new(number, &store, &host, &authors, &sets);
        Self {
            seed,
            witness: Witness::new(&store, &authors),
            nodes: Nodes::new(&store, &host),
            processes: (0..options.controllers.max(1)).map(process).collect(),
            leader: 0,
            at: None,
            trail: options.trail.then(Vec::new),
            store,
            host,
            authors,
        }
    }

    fn play(&mut self, options: &Options) -> Step {
        for name in NODES {
            self.commit(Vec::new(), vec![objects::put(&ports::node(name, ROOM))], Actor::User);
        }
        // The first numbers are those of the choices.
        let mut chance = Chance::of(self.seed, usize::MAX);
        self.create_set(NAMES[0], &mut chance, options.crash.is_some());
        if options.crash.is_none() && chance.one_in(2) {
            self.create_set(NAMES[1], &mut chance, false);
        }
        self.elect(0, 0);
        for (process, prefix) in self.processes.iter().zip(options.blind_to.iter().cycle()) {
            process.wire.blind_to(prefix.clone());
        }
        match options.crash {
            Some(crash) => self.script(crash)?,
            None => {
                let all = || (0..options.steps).collect();
                for number in options.only.clone().unwrap_or_else(all).iter() {
                    self.at = Some(*number);
                    self.choose(*number)?;
                }
            }
        }
        self.at = None;
        self.settle()
    }

    /// Fixed events with one crash somewhere: up, a failed pod, a new template, down, up again.
    fn script(&mut self, crash: Crash) -> Step {
        if let Some(process) = self.processes.first() {
            process.wire.crash(crash);
        }
        let set = NAMES[0];
        self.settle_once()?;
        self.delete_pod("web-1");
        self.settle_once()?;
        self.change_set(set, |spec| set_version(spec, "2"));
        self.settle_once()?;
        self.change_set(set, |spec| spec.replicas = Some(1));
        self.settle_once()?;
        self.change_set(set, |spec| spec.replicas = Some(3));
        self.settle_once()
    }

    /// Keeps a line for people.
    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trail) = &mut self.trail {
            trail.push(line());
        }
    }

    fn choose(&mut self, number: usize) -> Step {
        let mut chance = Chance::of(self.seed, number);
        let choice = CHOICES[chance.below(CHOICES.len())];
        // Mostly the leader: others only believe that they lead.
        let other = chance.below(self.processes.len());
        let which = if chance.one_in(4) { other } else { self.leader };
        self.witness.note(&[choice as u8, which.to_le_bytes()[0]]);
        self.say(|| format!("{number}: {choice:?} {which}"));
        let when = if chance.one_in(2) { When::Before } else { When::After };
        match choice {
            Choice::Turn => self.turn(which, &mut chance)?,
            Choice::Look => self.processes[which].look(&mut chance),
            Choice::Tend => {
                for _ in 0..=chance.below(3) {
                    self.nodes.tend(&mut chance).map_err(|what| broken("I1/process", &what))?;
                }
            }
            Choice::Deliver => (0..=chance.below(3)).for_each(|_| self.nodes.deliver()),
            Choice::Lose => self.nodes.lose(),
            Choice::Repeat => self.nodes.repeat(),
            Choice::Disturb => self.nodes.disturb(&mut chance),
            Choice::User => self.user(&mut chance),
            Choice::Crash => {
                let after_calls = u64::try_from(chance.below(6)).unwrap_or(0);
                self.processes[which].wire.crash(Crash { after_calls, when });
            }
            Choice::LoseAnswer => self.processes[which].wire.lose_next(when),
            Choice::Elect => {
                let ahead = chance.one_of(&[0, 0, 7, -7, 30]);
                self.say(|| format!("  {ahead} s ahead"));
                self.elect(other, ahead);
            }
            Choice::Time => self.pass(Duration::from_secs(1 + chance.below(10) as u64)),
            Choice::Bind => self.bind(),
            Choice::Storage => {
                let next = storage::tend(&self.store, &mut chance);
                self.commit_all(next);
            }
            Choice::Cordon => {
                let cordoned = chance.one_in(2);
                self.node(chance.one_of(&NODES), |node| node.spec.get_or_insert_default().unschedulable = cordoned);
            }
            Choice::CutOff => {
                let (node, lost) = (chance.one_of(&NODES), chance.one_in(2));
                self.cut_off(node, lost);
                if !lost || chance.one_in(2) {
                    self.lose_volumes(node, lost);
                }
            }
            Choice::Compact => drop(self.store.compact(self.store.revision().saturating_sub(KEPT))),
        }
        self.watch()
    }

    /// A controller makes some calls in a row, or none: work of one kind, from caches that may be old.
    fn turn(&mut self, which: usize, chance: &mut Chance) -> Step {
        let status = if chance.one_in(3) { StatusPolicy::Now } else { StatusPolicy::WhenSettled };
        let process = &mut self.processes[which];
        if chance.one_in(2) {
            process.look_at_all();
        }
        let (task, pick) = (chance.below(process.tasks()), chance.below(1000));
        let mut last = Turn::Idle;
        for _ in 0..=chance.below(10) {
            last = self.processes[which].turn(task, pick, status);
            if let Turn::Wrong(violations) = &last {
                return fail_on(violations);
            }
            self.watch()?;
            if last != Turn::Working {
                break;
            }
        }
        self.say(|| format!("  task {task}: {last:?}"));
        Ok(())
    }

    fn watch(&mut self) -> Step {
        self.witness.leader = Some(self.leader);
        let violations = self.witness.look(self.host.now());
        fail_on(&violations)
    }

    /// The faults end: the system settles by itself, is complete, and then writes nothing.
    fn settle(&mut self) -> Step {
        self.say(|| "the faults end".to_owned());
        self.processes.iter().for_each(|process| process.wire.heal());
        for name in NODES {
            self.cut_off(name, false);
            self.lose_volumes(name, false);
            self.node(name, |node| *node = ports::node(name, 100));
        }
        self.be_reasonable();
        self.elect(0, 0);
        self.settle_once()?;
        if let Err(mut what) = fail_on(&self.witness.settled(self.host.now())) {
            what.extend(self.processes.iter().take(1).flat_map(Process::waits));
            return Err(what);
        }
        // Time alone changes nothing any more.
        self.pass(Duration::from_secs(3600));
        self.writes_nothing("I24")?;
        self.processes.iter_mut().for_each(Process::restart);
        self.writes_nothing("I12")?;
        self.watch()
    }

    /// No process, made the leader, finds anything to write.
    fn writes_nothing(&mut self, invariant: &'static str) -> Step {
        for which in 0..self.processes.len() {
            self.elect(which, 0);
            let elected = self.store.revision();
            self.run_process(which)?;
            if self.store.revision() != elected {
                let written = self.store.inspect(|model| model.changes(&Prefix::all(), elected)).unwrap_or_default();
                let written = written.first().and_then(|(_, events)| events.first().map(|event| format!("{event:?}")));
                return Err(broken(invariant, &format!("a settled system was written to: {written:?}")));
            }
        }
        Ok(())
    }

    fn settle_once(&mut self) -> Step {
        let mut quiet = 0;
        for _ in 0..ROUNDS {
            let before = self.store.revision();
            self.run_process(0)?;
            self.nodes.heal();
            self.nodes.settle().map_err(|what| broken("I1/process", &what))?;
            self.bind();
            self.commit_all(storage::settle(&self.store));
            self.watch()?;
            self.pass(ROUND);
            quiet = if self.store.revision() == before { quiet + 1 } else { 0 };
            // What was waiting for time alone goes on in the round after.
            if quiet == 3 {
                return Ok(());
            }
        }
        let pods = self.witness.world().pods.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
        let mut what = broken("I24", &format!("did not settle in {ROUNDS} rounds; pods: {pods}"));
        what.extend(self.processes.iter().take(1).flat_map(Process::waits));
        Err(what)
    }

    /// Lets a process work, with fresh caches, until it has nothing to do.
    fn run_process(&mut self, which: usize) -> Step {
        let Some(tasks) = self.processes.get(which).map(Process::tasks) else { return Ok(()) };
        let mut idle = 0;
        for turn in 0..TURNS {
            let before = self.store.revision();
            let Some(process) = self.processes.get_mut(which) else { return Ok(()) };
            process.look_at_all();
            let turn = process.turn(turn % tasks, turn / tasks, StatusPolicy::Now);
            if let Turn::Wrong(violations) = turn {
                return fail_on(&violations);
            }
            self.watch()?;
            // Garbage may be looked at again and again without anything to do about it.
            let still = matches!(turn, Turn::Idle | Turn::Done) && self.store.revision() == before;
            idle = if still { idle + 1 } else { 0 };
            // Each task was asked, and about each piece of garbage.
            let asked = |process: &Process| idle > tasks * (process.garbage() + 1);
            if idle > tasks && self.processes.get(which).is_some_and(asked) {
                return Ok(());
            }
        }
        Err(broken("I24", &format!("controller {which} still works after {TURNS} turns")))
    }

    /// Makes a process the leader; the one before goes on believing that it is.
    fn elect(&mut self, which: usize, seconds_ahead: i64) {
        let key = Key::leader("controller");
        self.commit(Vec::new(), vec![Op::Delete(key.clone())], Actor::Other);
        let won = self.commit(Vec::new(), vec![Op::Put(key.clone(), which.to_string().into(), None)], Actor::Other);
        if let (Some(revision), Some(process)) = (won, self.processes.get_mut(which)) {
            process.lead(&Guard::CreateRevision(key, revision), seconds_ahead);
            self.leader = which;
        }
    }

    fn pass(&mut self, time: Duration) {
        self.host.advance(time);
    }

    /// A node falls silent, with all that runs there, or is back.
    fn cut_off(&mut self, name: &str, lost: bool) {
        self.nodes.cut_off(name, lost);
        let now = Time::from(self.host.now());
        self.say(|| format!("  {name} {}", if lost { "is lost" } else { "is there" }));
        self.node(name, |node| {
            let changed = if lost { silent(node, now) } else { None };
            let ready = node.status.get_or_insert_default().conditions.iter_mut();
            ready
                .filter(|condition| !lost && condition.r#type == "Ready")
                .for_each(|ready| ready.status = "True".into());
            if let Some(changed) = changed {
                *node = changed;
            }
        });
    }

    fn node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let Some(before) = ports::get::<Node>(&self.store, "", name) else { return };
        let mut node = before.clone();
        change(&mut node);
        if node != before {
            self.commit(vec![objects::unchanged(&before)], vec![objects::put(&node)], Actor::User);
        }
    }

    /// What was on a node is lost for good, as far as anybody knows, or back.
    fn lose_volumes(&mut self, node: &str, lost: bool) {
        self.say(|| format!("  volumes on {node} {}", if lost { "are lost" } else { "are there" }));
        self.commit_all(storage::lose(&self.store, node, lost, Time::from(self.host.now())));
    }

    fn commit_all(&mut self, all: impl IntoIterator<Item = Txn>) {
        for Txn { guards, ops } in all {
            self.commit(guards, ops, Actor::Other);
        }
    }

    /// The scheduler's own loop.
    fn bind(&mut self) {
        for pod in ports::waiting(&self.store) {
            if storage::waits_for_data(&self.store, &pod) {
                continue;
            }
            if let Some(Txn { guards, ops }) = ports::bind(&self.store, &self.host, pod) {
                self.commit(guards, ops, Actor::Other);
            }
        }
    }

    fn commit(&mut self, guards: Vec<Guard>, ops: Vec<Op>, by: Actor) -> Option<i64> {
        match self.store.commit(&Txn { guards, ops }) {
            Ok(TxnOutcome::Committed(revision)) => {
                // A transaction that deletes what is not there makes no revision of its own.
                self.authors.lock().entry(revision).or_insert(by.into());
                Some(revision)
            }
            Ok(TxnOutcome::Conflict) | Err(_) => None,
        }
    }
}

fn broken(id: &'static str, what: &str) -> Vec<String> {
    vec![check::witnessed(id, "the system", what).to_string()]
}

fn fail_on(violations: &[Violation]) -> Step {
    if violations.is_empty() { Ok(()) } else { Err(violations.iter().map(ToString::to_string).collect()) }
}
