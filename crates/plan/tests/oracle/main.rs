//! Replays recorded decisions of Kubernetes' own controller.
//!
//! `ORACLE_DIR` names the folder with the recordings; without it the project's own copy is taken. Prints for each
//! category how many cases agree, deviate on purpose, differ, or are skipped and why. Fails if any differs.

#![allow(clippy::expect_used, reason = "a recording that cannot be read fails the test")]

mod compare;
mod due;
mod identity;
mod trajectory;
mod vector;
mod world;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use compare::{Outcome, Recorded, compare, compare_until_failure};
use vector::{Step, Trajectory};
use world::World;

/// Differences printed in full; the rest is counted.
const SHOWN: usize = 12;

#[test]
fn decisions_agree_with_the_recordings() {
    let mut report = Report::default();
    for step in read::<Step>("steps.jsonl") {
        let category = format!("step/{}", step.class);
        match replay(&step) {
            Ok(outcome) => report.add(&category, &step.id, outcome),
            Err(reason) => report.skip(&category, reason),
        }
    }
    for story in read::<Trajectory>("trajectories.jsonl") {
        let replay = trajectory::replay(&story);
        for (tick, outcome) in replay.ticks {
            report.add("trajectory ticks", &format!("{} tick {tick}", story.id), outcome);
        }
        match replay.end {
            Ok(outcome) => report.add("trajectory ends", &format!("{} end", story.id), outcome),
            Err(reason) => report.skip("trajectory ends", reason),
        }
    }
    for made in read::<identity::Made>("identity.jsonl") {
        report.add("identity", &made.label, identity::compare(&made));
    }
    report.print();
    assert_eq!(report.differ(), 0, "decisions differ from the recordings");
}

/// Cases of which nobody recorded an answer, but it is known: the recorded ones with every ordinal moved up and with lists
/// in the opposite order. Deviations, too, must hold for them.
#[test]
fn decisions_agree_wherever_the_ordinals_start() {
    let mut report = Report::default();
    for step in read::<Step>("steps.jsonl") {
        if let Ok(outcome) = replay(&moved(step.clone(), 3)) {
            report.add("moved", &step.id, outcome);
        }
    }
    assert_eq!(report.differ(), 0, "decisions differ when the ordinals are others");
}

/// The same case with ordinals that are higher by `by`.
fn moved(mut step: Step, by: u32) -> Step {
    step.set.start = Some(step.set.start.unwrap_or(0) + by);
    // Pods of odd names have no ordinal to move.
    step.pods.iter_mut().filter(|pod| pod.name.is_none()).for_each(|pod| pod.o += by);
    step.claims.iter_mut().for_each(|claim| claim.o += by);
    for act in step.expect.actions.iter_mut().filter(|act| act.name.is_none()) {
        act.o = act.o.map(|ordinal| ordinal + by);
    }
    step.pods.reverse();
    step.claims.reverse();
    step.revisions.reverse();
    step
}

/// Compares one decision, or says why the case tells nothing about a pure one.
fn replay(step: &Step) -> Result<Outcome, &'static str> {
    if step.class == "stale" {
        return Err("a write is refused because reads lag behind the sync's own writes: about applying");
    }
    let world = World {
        now: step.now.parse().expect("the recording's time is RFC 3339"),
        gates: step.gates,
        set: &step.set,
        revisions: &step.revisions,
        pods: step.pods.clone(),
        claims: &step.claims,
    };
    let recorded = Recorded {
        actions: &step.expect.actions,
        status: step.expect.status.as_ref(),
        written: step.expect.status_written.as_ref(),
        failed: !step.expect.errors.is_empty(),
        requeue: step.expect.requeue,
    };
    let plan = plan::statefulset::plan(&world.snapshot());
    if step.faults.is_empty() {
        return Ok(compare(&world, &recorded, &plan));
    }
    compare_until_failure(&world, &recorded, &plan).ok_or("a read fails, and no write shows where: about applying")
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> Vec<T> {
    let path = folder().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle");
    std::env::var_os("ORACLE_DIR").map_or_else(own, PathBuf::from)
}

#[derive(Default)]
struct Report {
    categories: BTreeMap<String, Counts>,
    shown: usize,
}

#[derive(Default)]
struct Counts {
    agree: usize,
    deviate: BTreeMap<String, usize>,
    differ: usize,
    skipped: BTreeMap<&'static str, usize>,
}

impl Report {
    fn skip(&mut self, category: &str, reason: &'static str) {
        *self.categories.entry(category.to_owned()).or_default().skipped.entry(reason).or_default() += 1;
    }

    fn add(&mut self, category: &str, id: &str, outcome: Outcome) {
        let counts = self.categories.entry(category.to_owned()).or_default();
        match outcome {
            Outcome::Agree => counts.agree += 1,
            Outcome::Deviate(names) => {
                let names: Vec<_> = names.into_iter().collect();
                *counts.deviate.entry(names.join("+")).or_default() += 1;
            }
            Outcome::Differ(how) => {
                counts.differ += 1;
                self.shown += 1;
                if self.shown <= SHOWN {
                    println!("{category} {id} differs: {how}\n");
                }
            }
        }
    }

    fn differ(&self) -> usize {
        self.categories.values().map(|counts| counts.differ).sum()
    }

    fn print(&self) {
        println!("{:<20} {:>6} {:>8} {:>7} {:>8}", "category", "agree", "deviate", "differ", "skipped");
        for (category, counts) in &self.categories {
            let deviate: usize = counts.deviate.values().sum();
            let skipped: usize = counts.skipped.values().sum();
            println!("{category:<20} {:>6} {deviate:>8} {:>7} {skipped:>8}", counts.agree, counts.differ);
            for (name, count) in &counts.deviate {
                println!("{:<20} {count:>15} deviate({name})", "");
            }
            for (reason, count) in &counts.skipped {
                println!("{:<20} {count:>32} skipped({reason})", "");
            }
        }
    }
}
