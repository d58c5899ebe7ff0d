//! What must never be otherwise, as data.
//!
//! One list of invariants for tests, the simulator and `berth doctor`. Each is a function over stored objects that
//! knows nothing of how decisions are made: it shares no code with the planners, so that one mistake is not made twice.
//!
//! Three questions can be asked: does every state hold ([`state`]), was this step allowed ([`step`]), and is what is
//! called settled really there ([`settled`]). Some invariants speak of processes and not of objects: whoever runs the
//! processes holds them and says so by their id ([`witnessed`]).

mod budget;
mod claims;
mod identity;
mod intent;
mod order;
mod revisions;
mod status;
mod update;
mod volumes;
mod world;

use std::fmt;

use pb::objects::StatefulSet;
pub use world::{Actor, Key, Objects, Step, World};

/// Something that must never be otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Invariant {
    /// Its short name, such as "I7".
    pub id: &'static str,
    /// The rule in one sentence.
    pub rule: &'static str,
    /// How it is checked.
    pub test: Test,
}

/// When an invariant can be looked at.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// In every state.
    State(fn(&World, &mut Findings)),
    /// Between two states with one commit between them.
    Step(fn(&Step<'_>, &mut Findings)),
    /// In a state in which nothing is left to do.
    Settled(fn(&World, &mut Findings)),
    /// By whoever runs the processes: it cannot be seen in what is stored.
    Witnessed,
}

/// Every invariant.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        id: "I1",
        rule: "an identity has one pod, on one node, and a new one only after the old one is gone",
        test: Test::Step(identity::one_pod_for_life),
    },
    Invariant {
        id: "I1/process",
        rule: "a pod starts on a node only when no other process of its identity runs, and with all of its claims",
        test: Test::Witnessed,
    },
    Invariant { id: "I5", rule: "a claim keeps its volume for life", test: Test::Step(identity::volume_for_life) },
    Invariant {
        id: "I6",
        rule: "a claim is deleted only by a user, by the retention policy when its owners are gone, or by onNodeLost Recreate together with all of its ordinal",
        test: Test::Step(claims::kept),
    },
    Invariant {
        id: "I6/use",
        rule: "a pod is created with claims that are there, stay, and are not held by an operation",
        test: Test::Step(claims::usable),
    },
    Invariant {
        id: "I6/owner",
        rule: "a claim gets an owner only by the retention policy",
        test: Test::Step(claims::owned_by_policy),
    },
    Invariant {
        id: "I6/first",
        rule: "the owners of a claim are right before its pod is scaled away",
        test: Test::Step(claims::owned_before_removal),
    },
    Invariant {
        id: "I6/settled",
        rule: "the claims of a settled set have the owners that the retention policy gives them",
        test: Test::Settled(claims::settled_owners),
    },
    Invariant { id: "I6/size", rule: "no controller makes a claim smaller", test: Test::Step(volumes::never_shrinks) },
    Invariant {
        id: "I6/growing",
        rule: "of the claims of a template one grows at a time",
        test: Test::Step(volumes::one_at_a_time),
    },
    Invariant {
        id: "I9/growth",
        rule: "an available pod is replaced only after its claims were asked to grow",
        test: Test::Step(volumes::grown_before_update),
    },
    Invariant {
        id: "I6/revision",
        rule: "with snapshotBeforeUpdate a pod of another revision gets data only when it is in a snapshot",
        test: Test::Step(volumes::kept_between_revisions),
    },
    Invariant {
        id: "I7",
        rule: "a pod is created in its turn: under OrderedReady when every lower one is Running, Ready, available and not terminating, but for the window",
        test: Test::Step(order::created_in_order),
    },
    Invariant {
        id: "I8",
        rule: "OrderedReady: scale-down removes the highest pod, after the one above it is gone",
        test: Test::Step(order::removed_in_order),
    },
    Invariant {
        id: "I8/deletion",
        rule: "a set that is deleted in order loses its highest pod first, and goes when all are gone",
        test: Test::Step(order::deleted_in_order),
    },
    Invariant {
        id: "I9",
        rule: "a pod in range is taken away only for an update: the highest first, not below the partition, within bounds",
        test: Test::Step(update::from_the_top),
    },
    Invariant {
        id: "I9/recreate",
        rule: "Recreate: nothing is created while a pod of an older template is there",
        test: Test::Step(update::recreated_after_all_are_gone),
    },
    Invariant {
        id: "I9/budget",
        rule: "a healthy pod is taken away only within disruption budgets",
        test: Test::Step(update::within_budgets),
    },
    Invariant {
        id: "I10",
        rule: "a pod is made from the revision that its ordinal is due",
        test: Test::Step(revisions::due_revision),
    },
    Invariant {
        id: "I11",
        rule: "revisions of a set differ in number and in template",
        test: Test::State(revisions::distinct),
    },
    Invariant {
        id: "I11/number",
        rule: "the number of a revision never falls, and a new one has the highest",
        test: Test::Step(revisions::never_falls),
    },
    Invariant {
        id: "I11/live",
        rule: "a revision that is in use is not deleted",
        test: Test::Step(revisions::needed_are_kept),
    },
    Invariant {
        id: "I11/history",
        rule: "a settled set keeps no more history than its limit, and its newest revision is its template",
        test: Test::Settled(revisions::history),
    },
    Invariant { id: "I12", rule: "a restart without a change of any spec writes nothing", test: Test::Witnessed },
    Invariant { id: "I13", rule: "what a user asked for is changed by no controller", test: Test::Step(intent::kept) },
    Invariant {
        id: "I13/deletion",
        rule: "a deletion that was asked for is not taken back",
        test: Test::Step(intent::deletion_is_final),
    },
    Invariant {
        id: "I14",
        rule: "what was tried twice is made once: a claim has one volume",
        test: Test::State(identity::one_volume),
    },
    Invariant {
        id: "I17",
        rule: "nothing is decided from a view that is older than the decider's own last write",
        test: Test::Witnessed,
    },
    Invariant { id: "I18", rule: "a leader that was deposed writes nothing", test: Test::Witnessed },
    Invariant { id: "I22", rule: "the counts of a status fit together", test: Test::State(status::coherent) },
    Invariant {
        id: "I22/observed",
        rule: "observedGeneration and collisionCount never fall",
        test: Test::Step(status::never_falls),
    },
    Invariant {
        id: "I22/complete",
        rule: "a revision is called complete only when all pods are of it and available",
        test: Test::Step(status::complete_means_available),
    },
    Invariant { id: "I22/seen", rule: "a status counts the pods as they were seen at one time", test: Test::Witnessed },
    Invariant {
        id: "I22/true",
        rule: "the status of a settled set counts its pods",
        test: Test::Settled(status::is_true),
    },
    Invariant {
        id: "I24",
        rule: "a system without faults settles, and then nothing is written",
        test: Test::Witnessed,
    },
    Invariant {
        id: "I25",
        rule: "a settled set has exactly the pods it should have, all available, and a deleted one is gone",
        test: Test::Settled(status::complete),
    },
    Invariant {
        id: "I25/garbage",
        rule: "nothing is left of what is gone",
        test: Test::Settled(status::nothing_is_left_over),
    },
    Invariant {
        id: "I25/claims",
        rule: "no claim is left whose owners are gone",
        test: Test::Settled(claims::none_left_over),
    },
    Invariant {
        id: "I27",
        rule: "an object that was deleted does not come back",
        test: Test::Step(identity::stays_gone),
    },
    Invariant {
        id: "I27/update",
        rule: "a change of an object never makes one",
        test: Test::Step(identity::made_by_its_maker),
    },
];

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant.
    pub id: &'static str,
    /// The object, as kind namespace/name.
    pub object: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.id, self.object, self.what)
    }
}

/// Violations found so far.
#[derive(Debug, Default)]
pub struct Findings {
    id: &'static str,
    violations: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, object: impl Into<String>, what: impl Into<String>) {
        self.violations.push(Violation { id: self.id, object: object.into(), what: what.into() });
    }
}

/// Checks what must hold in every state.
pub fn state(world: &World) -> Vec<Violation> {
    run(|test, findings| {
        if let Test::State(test) = test {
            test(world, findings);
        }
    })
}

/// Checks what must hold of a step, and of the state after it.
pub fn step(step: &Step<'_>) -> Vec<Violation> {
    run(|test, findings| match test {
        Test::State(test) => test(step.after, findings),
        Test::Step(test) => test(step, findings),
        Test::Settled(_) | Test::Witnessed => {}
    })
}

/// Checks what must hold when nothing is left to do.
pub fn settled(world: &World) -> Vec<Violation> {
    run(|test, findings| match test {
        Test::State(test) | Test::Settled(test) => test(world, findings),
        Test::Step(_) | Test::Witnessed => {}
    })
}

/// Says that an invariant about processes does not hold. An id that is in no list is told as it is.
pub fn witnessed(id: &'static str, object: impl Into<String>, what: impl Into<String>) -> Violation {
    debug_assert!(INVARIANTS.iter().any(|one| one.id == id && matches!(one.test, Test::Witnessed)), "{id}");
    Violation { id, object: object.into(), what: what.into() }
}

/// Checks that the status that is about to be written counts the pods as they were seen (I22/seen): `seen` is what the
/// decision looked at.
pub fn counted(seen: &World, set: &StatefulSet) -> Vec<Violation> {
    let mut findings = Findings { id: "I22/seen", ..Findings::default() };
    status::counts(seen, set, &set.status.clone().unwrap_or_default(), &mut findings);
    findings.violations
}

fn run(ask: impl Fn(Test, &mut Findings)) -> Vec<Violation> {
    let mut findings = Findings::default();
    for invariant in INVARIANTS {
        findings.id = invariant.id;
        ask(invariant.test, &mut findings);
    }
    findings.violations
}
