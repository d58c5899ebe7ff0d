//! What must never be otherwise, as data.
//!
//! One list of invariants for tests, the simulator and `berth doctor`. Each is a function over stored objects that
//! knows nothing of how decisions are made: it shares no code with the planners, so that one mistake is not made twice.
//!
//! Three questions can be asked: does every state hold ([`state`]), was this step allowed ([`step`]), and is what is
//! called settled really there ([`settled`]).

mod claims;
mod identity;
mod order;
mod revisions;
mod status;
mod update;
mod world;

use std::fmt;

pub use world::{Actor, Key, Step, World};

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
}

/// Every invariant.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        id: "I1",
        rule: "an identity has one pod, on one node, and a new one only after the old one is gone",
        test: Test::Step(identity::one_pod_for_life),
    },
    Invariant {
        id: "I6",
        rule: "a claim is deleted only by a user, or by the retention policy when its owners are gone",
        test: Test::Step(claims::kept),
    },
    Invariant {
        id: "I6/owner",
        rule: "a claim gets its pod as owner only when the pod is scaled away",
        test: Test::Step(claims::owned_by_policy),
    },
    Invariant {
        id: "I7",
        rule: "OrderedReady: a pod is created only when every lower one is Running, Ready, available and not terminating, \
               but for maxConcurrentStart - 1 of them",
        test: Test::Step(order::created_in_order),
    },
    Invariant {
        id: "I8",
        rule: "OrderedReady: scale-down removes the highest pod, after the one above it is gone",
        test: Test::Step(order::removed_in_order),
    },
    Invariant {
        id: "I9",
        rule: "a pod in range is taken away only for an update that is not paused: at or above the partition, and if it was \
               available, the highest first and within budget",
        test: Test::Step(update::from_the_top),
    },
    Invariant {
        id: "I9/recreate",
        rule: "Recreate: no pod is created while an outdated one is left",
        test: Test::Step(update::old_before_new),
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
        rule: "the number of a revision never falls",
        test: Test::Step(revisions::never_falls),
    },
    Invariant { id: "I22", rule: "the counts of a status fit together", test: Test::State(status::coherent) },
    Invariant {
        id: "I22/observed",
        rule: "observedGeneration and collisionCount never fall",
        test: Test::Step(status::never_falls),
    },
    Invariant {
        id: "I22/true",
        rule: "the status of a settled set counts its pods",
        test: Test::Settled(status::is_true),
    },
    Invariant {
        id: "I24",
        rule: "a settled set has exactly the pods it should have, all available",
        test: Test::Settled(status::complete),
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
        Test::Settled(_) => {}
    })
}

/// Checks what must hold when nothing is left to do.
pub fn settled(world: &World) -> Vec<Violation> {
    run(|test, findings| match test {
        Test::State(test) | Test::Settled(test) => test(world, findings),
        Test::Step(_) => {}
    })
}

fn run(ask: impl Fn(Test, &mut Findings)) -> Vec<Violation> {
    let mut findings = Findings::default();
    for invariant in INVARIANTS {
        findings.id = invariant.id;
        ask(invariant.test, &mut findings);
    }
    findings.violations
}
