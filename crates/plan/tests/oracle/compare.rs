//! What was recorded against what is planned, and where they may differ.
//!
//! Every deviation has its name in `docs/deviations.md`. A deviation is as narrow as can be: it says which actions of
//! the recording or of the plan do not count, and the rest must agree.

use std::collections::BTreeSet;

use plan::statefulset::Plan;

use crate::{
    vector::{Act, Set, Status},
    world::World,
};

/// How a case came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Agree,
    /// Names of deviations.
    Deviate(BTreeSet<&'static str>),
    /// What differs.
    Differ(String),
}

/// What was recorded of one sync.
pub struct Recorded<'a> {
    pub actions: &'a [Act],
    /// The status that the sync returned; None if it failed or is not known.
    pub status: Option<&'a Status>,
    /// The status that was written, where the recording tells.
    pub written: Option<&'a Status>,
    pub failed: bool,
    pub requeue: Option<u64>,
}

/// Compares one decision.
pub fn compare(world: &World<'_>, recorded: &Recorded<'_>, plan: &Plan) -> Outcome {
    if let Some(name) = not_comparable(world) {
        return Outcome::Deviate([name].into());
    }
    let mut names = BTreeSet::new();
    let mut expected: Vec<Act> =
        recorded.actions.iter().filter(|act| act.err.is_none() && !act.existing).cloned().collect();
    let mut planned = world.acts(plan);
    let mut status = world.status(&plan.status);
    let mut failed = recorded.failed;

    if differs(&expected, &planned) {
        if drop_empty_pod_updates(&mut expected) {
            names.insert("empty-pod-update");
        }
        if drop_owners_at_creation(&mut planned, &expected) {
            names.insert("owners-at-creation");
        }
        if drop_repeated_deletes(&mut expected) {
            names.insert("delete-once");
        }
    }
    let unborn = deletes_of_the_unborn(world, recorded.actions);
    if unborn > 0 {
        names.insert("create-and-delete");
        expected.retain(|act| !(act.op == "delete_pod" && is_unborn(world, act)));
        status.current -= unborn;
        failed = plan.is_obstructed();
    }

    let reported = recorded.status.or(recorded.written).filter(|status| status.current < 0);
    if let Some(reported) = reported {
        names.insert("current-not-negative");
        // What remains may be what is stored already.
        if reported.current != world.set.status.current && !planned.iter().any(|act| act.op == "update_status") {
            expected.retain(|act| act.op != "update_status");
        }
    }

    if let Some(difference) = difference(&expected, &planned) {
        return Outcome::Differ(difference);
    }
    if let Some(expected) = recorded.status.or(recorded.written) {
        let expected = Status { current: expected.current.max(0), ..expected.clone() };
        if expected != status {
            return Outcome::Differ(format!("status\n  recorded {expected:?}\n  planned  {status:?}"));
        }
    }
    if failed != plan.is_obstructed() {
        return Outcome::Differ(format!("recorded failed: {failed}, planned obstructed: {:?}", plan.waits));
    }
    let requeue = plan.requeue_after.map(|after| after.as_secs()).filter(|_| !failed);
    if recorded.requeue != requeue && unborn == 0 {
        return Outcome::Differ(format!("requeue: recorded {:?}, planned {requeue:?}", recorded.requeue));
    }
    if names.is_empty() { Outcome::Agree } else { Outcome::Deviate(names) }
}

/// Compares the decisions up to the first write that failed; None if no write failed, but a read.
pub fn compare_until_failure(world: &World<'_>, recorded: &Recorded<'_>, plan: &Plan) -> Option<Outcome> {
    let failed = recorded.actions.iter().position(|act| act.err.is_some())?;
    if let Some(name) = not_comparable(world) {
        return Some(Outcome::Deviate([name].into()));
    }
    let mut names = BTreeSet::new();
    let mut expected: Vec<Act> = recorded.actions[..failed].iter().filter(|act| !act.existing).cloned().collect();
    let mut planned = world.acts(plan);
    let begins = |expected: &[Act], planned: &[Act]| !differs(expected, &planned[..expected.len().min(planned.len())]);
    if !begins(&expected, &planned) {
        drop_empty_pod_updates(&mut expected).then(|| names.insert("empty-pod-update"));
        drop_repeated_deletes(&mut expected).then(|| names.insert("delete-once"));
    }
    if !begins(&expected, &planned) {
        drop_owners_at_creation(&mut planned, &expected).then(|| names.insert("owners-at-creation"));
    }
    planned.truncate(expected.len());
    Some(match difference(&expected, &planned) {
        Some(difference) => Outcome::Differ(difference),
        None if names.is_empty() => Outcome::Agree,
        None => Outcome::Deviate(names),
    })
}

/// Cases that cannot come up in Berth.
fn not_comparable(world: &World<'_>) -> Option<&'static str> {
    let set = world.set;
    let padded = |name: &String| {
        let ordinal = name.strip_prefix(&set.name).and_then(|rest| rest.strip_prefix('-'));
        ordinal.is_some_and(|o| o.len() > 1 && o.starts_with('0') && o.bytes().all(|b| b.is_ascii_digit()))
    };
    let orphaned =
        world.revisions.iter().any(|revision| revision.owner.as_deref() == Some("none") && !revision.no_select);
    let odd_bound = |set: &Set| match &set.strategy.max_unavailable {
        Some(serde_json::Value::String(text)) => text.strip_suffix('%').is_none_or(|p| p.parse::<u32>().is_err()),
        _ => false,
    };
    let bounded = world.gates.max_unavailable && set.strategy.r#type == "RollingUpdate";
    if world.pods.iter().any(|pod| pod.name.as_ref().is_some_and(padded)) {
        Some("canonical-names")
    } else if bounded && odd_bound(set) {
        Some("refused-by-validation")
    } else if world.revisions.iter().any(|revision| revision.corrupt) {
        Some("undecodable-revision")
    } else if set.deleting && orphaned {
        Some("status-of-a-deleting-set")
    } else {
        None
    }
}

/// Writes of a pod in which nothing changes.
fn drop_empty_pod_updates(expected: &mut Vec<Act>) -> bool {
    let before = expected.len();
    expected.retain(|act| act.op != "update_pod" || act.fix_identity || act.fix_storage);
    expected.len() < before
}

/// Owners of claims that the plan creates with them, where the recording does not add them in the same sync: its reads
/// lag, or it stopped at an obstacle before.
fn drop_owners_at_creation(planned: &mut Vec<Act>, expected: &[Act]) -> bool {
    let created: Vec<_> =
        planned.iter().filter(|act| act.op == "create_claim").map(|act| (act.o, act.t.clone())).collect();
    let before = planned.len();
    planned
        .retain(|act| act.op != "update_claim" || !created.contains(&(act.o, act.t.clone())) || expected.contains(act));
    planned.len() < before
}

/// The second of two deletions of one pod in one sync.
fn drop_repeated_deletes(expected: &mut Vec<Act>) -> bool {
    let before = expected.len();
    let mut seen = BTreeSet::new();
    expected.retain(|act| act.op != "delete_pod" || seen.insert((act.o, act.name.clone())));
    expected.len() < before
}

/// How many pods were deleted that did not exist before the sync; that such a deletion may fail does not matter to the
/// recording's count of current pods.
fn deletes_of_the_unborn(world: &World<'_>, actions: &[Act]) -> i32 {
    let deletes = actions.iter().filter(|act| act.op == "delete_pod" && is_unborn(world, act));
    i32::try_from(deletes.count()).unwrap_or(i32::MAX)
}

fn is_unborn(world: &World<'_>, act: &Act) -> bool {
    act.name.is_none() && !world.pods.iter().any(|pod| pod.name.is_none() && Some(pod.o) == act.o)
}

fn differs(expected: &[Act], planned: &[Act]) -> bool {
    difference(expected, planned).is_some()
}

/// Adoption and release come in any order.
fn difference(expected: &[Act], planned: &[Act]) -> Option<String> {
    let owner_changes = |acts: &[Act]| {
        let mut changes: Vec<_> =
            acts.iter().filter(|act| is_owner_change(act)).map(|act| format!("{act:?}")).collect();
        changes.sort();
        changes
    };
    let rest = |acts: &[Act]| acts.iter().filter(|act| !is_owner_change(act)).cloned().collect::<Vec<_>>();
    if owner_changes(expected) == owner_changes(planned) && rest(expected) == rest(planned) {
        return None;
    }
    let list = |acts: &[Act]| acts.iter().map(|act| format!("\n    {}", brief(act))).collect::<String>();
    Some(format!("actions\n  recorded{}\n  planned{}", list(expected), list(planned)))
}

fn is_owner_change(act: &Act) -> bool {
    matches!(act.op.as_str(), "adopt_pod" | "release_pod" | "adopt_rev")
}

fn brief(act: &Act) -> String {
    let Act { op, o, t, name, rev, template, revision, owners, fix_identity, fix_storage, .. } = act;
    let mut text = op.clone();
    for (key, value) in [("o", o.map(i64::from)), ("rev", *rev), ("template", *template), ("revision", *revision)] {
        if let Some(value) = value {
            text.push_str(&format!(" {key}={value}"));
        }
    }
    for (key, value) in [("t", t), ("name", name)] {
        if let Some(value) = value {
            text.push_str(&format!(" {key}={value}"));
        }
    }
    if let Some(owners) = owners {
        text.push_str(&format!(" {owners:?}"));
    }
    if *fix_identity || *fix_storage {
        text.push_str(&format!(" fix_identity={fix_identity} fix_storage={fix_storage}"));
    }
    text
}
