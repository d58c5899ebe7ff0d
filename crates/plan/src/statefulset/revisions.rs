//! Which revision the set comes from, which it goes to, and which old ones are kept (REV-4 to REV-12).
//!
//! Holds I11: numbers only grow, equal templates share one revision, no more history than the limit.

use model::{
    identity::RevisionName,
    mutant::{Mutant, planted},
};

use super::{
    action::{Action, Guard, Op},
    draft::{Draft, set_unchanged},
    members::Members,
    snapshot::{Control, PodView, RevisionView, SetView, Snapshot, Strategy},
};

/// The two revisions that matter.
pub(super) struct Revisions {
    /// Where the set comes from.
    pub current: RevisionName,
    /// Where the set goes to: the present template.
    pub update: RevisionName,
    /// How many names of revisions were found taken by other templates.
    pub collisions: u32,
    /// The number of the present template's revision, as it will be.
    number: i64,
}

impl Revisions {
    /// The number of a revision, as it will be after the actions of the plan.
    pub fn number_of(&self, snapshot: &Snapshot, name: &RevisionName) -> i64 {
        if *name == self.update {
            return self.number;
        }
        let stored = snapshot.revisions.iter().find(|revision| revision.name == *name);
        stored.map_or(self.number, |revision| revision.number)
    }

    /// How many indices, from the first on, get their new pods from the current revision (REV-12, D4). While the set is
    /// paused the update stays where it is: below the lowest pod that has it already.
    pub fn kept_back(&self, set: &SetView, members: &Members<'_>) -> u32 {
        let by_strategy = match &set.strategy {
            Strategy::Rolling { partition, .. } => partition.unwrap_or(0),
            Strategy::OnDelete | Strategy::Recreate => 0,
        };
        if planted(Mutant::IgnorePartitionOnRecreate) {
            return 0;
        }
        if !set.paused {
            return by_strategy;
        }
        let updated = members.replicas.iter().find(|(_, pod)| pod.revision.as_ref() == Some(&self.update));
        let frontier = updated.and_then(|(ordinal, _)| set.ordinals.index_of(*ordinal));
        by_strategy.max(frontier.unwrap_or(u32::MAX))
    }
}

/// Finds the current and the update revision; adopts orphans, makes or renumbers what is missing, unless the set is going.
pub(super) fn find(snapshot: &Snapshot) -> (Revisions, Vec<Action>) {
    let set = &snapshot.set;
    let history = history(snapshot);
    let mut actions = adopt(snapshot, &history);

    let mut collisions = set.status.collisions.unwrap_or(0);
    let more = if planted(Mutant::ReuseRevisionNumber) { 0 } else { 1 };
    let next = history.last().map_or(1, |newest| newest.number.saturating_add(more));
    let equal = history.iter().rfind(|revision| revision.template == set.template);
    let newest = history.last();
    let mut number = next;
    let update = match (equal, newest) {
        (Some(equal), Some(newest)) if equal.template == newest.template => {
            number = newest.number;
            newest.name.clone()
        }
        (Some(equal), _) if planted(Mutant::NoRenumbering) => equal.name.clone(),
        (Some(equal), _) => {
            let op = Op::RenumberRevision { name: equal.name.clone(), number: next };
            actions.push(Action { op, guards: vec![set_unchanged(snapshot), unchanged(equal)] });
            equal.name.clone()
        }
        (None, Some(newest)) if newest.equivalent => {
            number = newest.number;
            newest.name.clone()
        }
        (None, _) => {
            let name = free_name(snapshot, &mut collisions);
            if !snapshot.revisions.iter().any(|revision| revision.name == name) {
                let op = Op::CreateRevision { name: name.clone(), number: next, template: set.template.clone() };
                actions.push(Action { op, guards: vec![set_unchanged(snapshot), Guard::RevisionAbsent(name.clone())] });
            }
            name
        }
    };

    if set.deleting {
        // Its revisions are being collected: one that is made now goes too, for as long as the set is there.
        actions.clear();
    }

    let stored = |revision: &&RevisionView| Some(&revision.name) == set.status.current_revision.as_ref();
    let current = history.iter().copied().find(stored).map_or(&update, |revision| &revision.name).clone();
    (Revisions { current, update, collisions, number }, actions)
}

/// Deletes the oldest revisions that nothing uses, beyond the limit (REV-11). The last one that was complete is of use: a
/// rollout that fails goes back to it.
pub(super) fn truncate(draft: &mut Draft<'_>, pods: &[&PodView]) {
    let Some(limit) = draft.snapshot.set.history_limit else { return };
    if planted(Mutant::NeverTruncate) {
        return;
    }
    let live = |revision: &RevisionView| {
        revision.name == draft.revisions.current
            || revision.name == draft.revisions.update
            || Some(&revision.name) == draft.snapshot.set.status.complete_revision.as_ref()
            || pods.iter().any(|pod| pod.revision.as_ref() == Some(&revision.name)) && !planted(Mutant::TruncateLive)
    };
    let old: Vec<_> = history(draft.snapshot).into_iter().filter(|revision| !live(revision)).collect();
    let keep = usize::try_from(limit).unwrap_or(usize::MAX);
    let surplus = old.len().saturating_sub(keep);
    draft.actions.extend(old.into_iter().take(surplus).map(|revision| Action {
        op: Op::DeleteRevision { name: revision.name.clone() },
        guards: vec![unchanged(revision)],
    }));
}

/// The set's revisions and those it may adopt, the oldest first.
fn history(snapshot: &Snapshot) -> Vec<&RevisionView> {
    let mut history: Vec<_> =
        snapshot.revisions.iter().filter(|revision| revision.selected && revision.control != Control::Other).collect();
    history.sort_by_key(|revision| (revision.number, revision.created, &revision.name));
    history
}

fn adopt(snapshot: &Snapshot, history: &[&RevisionView]) -> Vec<Action> {
    let orphans = history.iter().filter(|revision| revision.control == Control::Nobody);
    let adopt = |revision: &&RevisionView| Action {
        op: Op::AdoptRevision { name: revision.name.clone() },
        guards: vec![set_unchanged(snapshot), unchanged(revision)],
    };
    orphans.map(adopt).collect()
}

/// The first name for the present template that no other template holds (REV-8), and no other set: that of a set which
/// was deleted and made again is collected with its old self, whatever it stores. Each collision rules out one existing
/// revision, so there are no more tries than revisions.
fn free_name(snapshot: &Snapshot, collisions: &mut u32) -> RevisionName {
    let set = &snapshot.set;
    loop {
        let name = set.template.revision_name(&set.name, *collisions);
        let holder = snapshot.revisions.iter().find(|revision| revision.name == name);
        let is_free = |holder: &RevisionView| holder.template == set.template && holder.control != Control::Other;
        if holder.is_none_or(is_free) {
            return name;
        }
        *collisions = collisions.wrapping_add(1);
    }
}

/// The guard that a revision of the set stays as it is; None if there is no such revision any more.
pub(super) fn unchanged_if_kept(snapshot: &Snapshot, name: &RevisionName) -> Option<Guard> {
    history(snapshot).into_iter().find(|revision| revision.name == *name).map(unchanged)
}

fn unchanged(revision: &RevisionView) -> Guard {
    Guard::RevisionUnchanged { name: revision.name.clone(), uid: revision.uid.clone(), at: revision.at }
}
