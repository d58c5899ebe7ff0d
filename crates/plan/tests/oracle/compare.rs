//! What was recorded against what is planned, and where they may differ.
//!
//! Every deviation has its name in `docs/deviations.md`. A deviation is as narrow as can be: it says which actions of
//! the recording or of the plan do not count, and the rest must agree.

use std::collections::BTreeSet;

use plan::statefulset::Plan;

use crate::{
    due::Case,
    vector::{Act, Revision, Set, Status},
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
    let mut failed = recorded.failed;

    let unborn = deletes_of_the_unborn(world, recorded.actions);
    if unborn > 0 {
        names.insert("create-and-delete");
        expected.retain(|act| !(act.op == "delete_pod" && is_unborn(world, act)));
        failed = plan.is_obstructed();
    }

    if drop_new_revisions(world, &mut expected) {
        names.insert("no-revision-for-a-deleting-set");
    }

    let case = Case::new(world, update_revision(world, recorded, plan));
    if case.update_new_pods(&mut expected) {
        names.insert("no-block-is-partition-0");
    }
    let replaced = match replace_as_due(&case, world, plan, &mut expected, &mut planned) {
        Ok(replaced) => replaced,
        Err(difference) => return Outcome::Differ(difference),
    };
    names.extend(replaced.name);

    if let Some(held_up) = case.held_up_by_lost().filter(|_| !failed) {
        names.insert("what-is-lost-blocks-nothing");
        let goes = |act: &Act| act.op == "delete_pod" && act.o == Some(held_up) && act.name.is_none();
        if !planned.iter().any(goes) || expected.iter().any(goes) {
            return Outcome::Differ(format!("ordinal {held_up} is out of range and due to go, in Berth alone"));
        }
        planned.retain(|act| !goes(act));
    }

    let collisions = plan.status.collisions;
    let said = recorded.status.or(recorded.written).cloned();
    let said = said.unwrap_or_else(|| case.status(replaced.recorded + unborn, collisions));
    let (due, more) = due_status(&case, world, &said, replaced.recorded + unborn, replaced.due);
    names.extend(more);
    if due != said {
        let at = expected.iter().position(|act| act.op == "delete_rev").unwrap_or(expected.len());
        let written = expected.iter().any(|act| act.op == "update_status");
        match (world.is_stored(&due), written) {
            (true, true) => expected.retain(|act| act.op != "update_status"),
            (false, false) => expected.insert(at, Act { op: "update_status".to_owned(), ..Act::default() }),
            _ => {}
        }
    }

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
    if let Some(difference) = difference(&expected, &planned) {
        return Outcome::Differ(difference);
    }
    let status = world.status(&plan.status);
    if recorded.status.or(recorded.written).is_some() && due != status {
        return Outcome::Differ(format!("status\n  recorded {said:?}\n  due      {due:?}\n  planned  {status:?}"));
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
    if drop_new_revisions(world, &mut expected) {
        names.insert("no-revision-for-a-deleting-set");
    }
    let begins = |expected: &[Act], planned: &[Act]| !differs(expected, &planned[..expected.len().min(planned.len())]);
    let case = Case::new(world, update_revision(world, recorded, plan));
    if case.update_new_pods(&mut expected) {
        names.insert("no-block-is-partition-0");
    }
    if !begins(&expected, &planned) {
        let broken = case.broken();
        let is_broken = |act: &Act| act.op == "delete_pod" && act.o.is_some_and(|ordinal| broken.contains(&ordinal));
        if planned.iter().any(is_broken) {
            names.insert(replacing(world));
            expected.retain(|act| !is_broken(act));
            planned.retain(|act| !is_broken(act));
        }
    }
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

/// The status that a failed sync of Kubernetes wrote, where the recording does not show it.
pub fn unshown_status(world: &World<'_>, recorded: &Recorded<'_>, plan: &Plan) -> Status {
    let case = Case::new(world, update_revision(world, recorded, plan));
    let deleted = case.replaced(recorded.actions).count + deletes_of_the_unborn(world, recorded.actions);
    case.status(deleted, plan.status.collisions)
}

/// The revision of the present template, from the recording where it says so.
fn update_revision(world: &World<'_>, recorded: &Recorded<'_>, plan: &Plan) -> i64 {
    let said = recorded.status.or(recorded.written).and_then(|status| status.update_rev);
    said.or(world.status(&plan.status).update_rev).unwrap_or_default()
}

/// Deletions of outdated pods, counted.
struct Deletions {
    name: Option<&'static str>,
    recorded: i32,
    due: i32,
}

/// Takes the deletions of outdated pods off both lists where others are due than were recorded, or in another order. The
/// plan must have exactly those that are due; beside an obstacle, at which both stop before the update, it may have fewer.
fn replace_as_due(
    case: &Case<'_>,
    world: &World<'_>,
    plan: &Plan,
    expected: &mut Vec<Act>,
    planned: &mut Vec<Act>,
) -> Result<Deletions, String> {
    let recorded = case.replaced(expected);
    let chosen = case.replaced(planned).pods;
    let Some(mut due) = case.due(&recorded) else {
        return Err(format!("the recording replaces {:?}, which cannot be", recorded.pods));
    };
    if plan.is_obstructed() && chosen.is_subset(&due.pods) && recorded.pods.is_subset(&chosen) {
        due.count = i32::try_from(chosen.len()).unwrap_or(i32::MAX);
        due.pods.clone_from(&chosen);
    }
    if chosen != due.pods {
        return Err(format!("outdated pods: recorded {:?}, due {:?}, planned {chosen:?}", recorded.pods, due.pods));
    }
    let touched = due.pods != recorded.pods || !due.pods.is_disjoint(&case.broken());
    if touched {
        let replaced =
            |act: &Act| act.op == "delete_pod" && act.o.is_some_and(|o| due.pods.contains(&o)) && act.name.is_none();
        expected.retain(|act| !replaced(act));
        planned.retain(|act| !replaced(act));
    }
    let name = (touched || due.count != recorded.count).then(|| replacing(world));
    Ok(Deletions { name, recorded: recorded.count, due: due.count })
}

fn replacing(world: &World<'_>) -> &'static str {
    if world.set.policy == "Parallel" { "parallel-replaces-broken-pods-first" } else { "heals-stuck-rollout" }
}

/// The status that is due where Kubernetes said `said` and took `counted` deletions of outdated pods off the current ones,
/// while `deleted` are due.
fn due_status(
    case: &Case<'_>,
    world: &World<'_>,
    said: &Status,
    counted: i32,
    deleted: i32,
) -> (Status, Vec<&'static str>) {
    let all = i32::try_from(world.set.replicas).unwrap_or(i32::MAX);
    let rolling = world.set.strategy.r#type == "RollingUpdate";
    let ready = [said.updated, said.ready, said.replicas] == [all; 3];
    let available = [said.updated, said.available, said.replicas] == [all; 3];
    let mut due = said.clone();
    let mut names = Vec::new();
    if available {
        (due.current, due.current_rev) = (said.updated, said.update_rev);
        names.extend((!rolling && due != *said).then_some("on-delete-completes"));
    } else if rolling && ready {
        (due.current, due.current_rev) = (case.at_current() - deleted, Some(case.current()));
        names.extend((due != *said).then_some("complete-means-available"));
    } else {
        due.current += counted - deleted;
    }
    if due.current < 0 || said.current < 0 {
        names.push("current-not-negative");
        due.current = due.current.max(0);
    }
    (due, names)
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
    } else if reuses_foreign_revision(world) {
        Some("revision-of-a-namesake")
    } else {
        None
    }
}

/// Revisions that are made or renumbered for a set that is being deleted.
fn drop_new_revisions(world: &World<'_>, expected: &mut Vec<Act>) -> bool {
    let before = expected.len();
    expected.retain(|act| !(world.set.deleting && matches!(act.op.as_str(), "create_rev" | "update_rev")));
    expected.len() < before
}

/// Whether the set has no revision of its present template, and one that has the name which it would get, and is equal, is
/// another's.
fn reuses_foreign_revision(world: &World<'_>) -> bool {
    let is_equal = |revision: &&Revision| revision.template == world.set.template;
    let foreign = |revision: &&Revision| revision.owner.as_deref() == Some("other");
    let own = || world.revisions.iter().filter(|revision| !foreign(revision) && !revision.no_select);
    let newest = own().max_by_key(|revision| (revision.revision, revision.id));
    let known =
        own().any(|revision| is_equal(&revision) && revision.variant == 0) || newest.as_ref().is_some_and(is_equal);
    let mut taken = world.revisions.iter().filter(foreign).filter(is_equal);
    !known && taken.any(|revision| revision.collides && revision.variant == 0)
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
