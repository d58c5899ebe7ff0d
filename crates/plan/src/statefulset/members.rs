//! Which pods are the set's, and which of them are in range (AD-1 to AD-3, ID-2, ID-4).

use std::collections::BTreeMap;

use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    action::{Action, Op},
    draft::set_unchanged,
    snapshot::{Control, PodView, SetView, Snapshot},
};

/// The set's pods.
pub(super) struct Members<'a> {
    /// Pods in range, by ordinal. Ordinals that are missing have no pod.
    pub replicas: BTreeMap<Ordinal, &'a PodView>,
    /// Pods out of range, the highest ordinal first.
    pub condemned: Vec<(Ordinal, &'a PodView)>,
}

impl<'a> Members<'a> {
    /// All pods of the set with their ordinals, the highest in range first, then those out of range.
    pub fn iter(&self) -> impl Iterator<Item = (Ordinal, &'a PodView)> {
        self.replicas.iter().rev().map(|(ordinal, pod)| (*ordinal, *pod)).chain(self.condemned.iter().copied())
    }

    /// All pods of the set.
    pub fn all(&self) -> Vec<&'a PodView> {
        self.iter().map(|(_, pod)| pod).collect()
    }
}

/// Finds the set's pods; adopts those that nobody controls, releases those that are no longer members.
pub(super) fn find<'a>(snapshot: &'a Snapshot) -> (Members<'a>, Vec<Action>) {
    let mut members = Members { replicas: BTreeMap::new(), condemned: Vec::new() };
    let mut actions = Vec::new();
    for pod in by_ordinal(snapshot) {
        let ordinal = snapshot.set.name.ordinal_of(&pod.name);
        let owner_change = |op| Action { op, guards: vec![set_unchanged(snapshot), pod.unchanged()] };
        let ordinal = match belongs(&snapshot.set, pod, ordinal) {
            Belongs::No => continue,
            Belongs::Release => {
                actions.push(owner_change(Op::ReleasePod { pod: pod.name.clone() }));
                continue;
            }
            Belongs::Adopt(ordinal) => {
                actions.push(owner_change(Op::AdoptPod { pod: pod.name.clone() }));
                ordinal
            }
            Belongs::Yes(ordinal) => ordinal,
        };
        if snapshot.set.ordinals.contains(ordinal) {
            members.replicas.insert(ordinal, pod);
        } else {
            members.condemned.push((ordinal, pod));
        }
    }
    members.condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    if planted(Mutant::CondemnLowestFirst) {
        members.condemned.reverse();
    }
    (members, actions)
}

enum Belongs {
    Yes(Ordinal),
    Adopt(Ordinal),
    Release,
    No,
}

fn belongs(set: &SetView, pod: &PodView, ordinal: Option<Ordinal>) -> Belongs {
    let member = ordinal.filter(|_| pod.selected);
    match (pod.control, member) {
        (Control::Ours, Some(ordinal)) => Belongs::Yes(ordinal),
        // A set that is being deleted changes nobody's owner.
        (Control::Ours, None) if !set.deleting => Belongs::Release,
        (Control::Nobody, Some(ordinal)) if !set.deleting && !pod.terminating => Belongs::Adopt(ordinal),
        _ => Belongs::No,
    }
}

/// Pods in the order of their ordinals, so that a plan does not depend on the order of the snapshot.
fn by_ordinal(snapshot: &Snapshot) -> Vec<&PodView> {
    let mut pods: Vec<_> = snapshot.pods.iter().collect();
    pods.sort_by_key(|pod| (pod.name.split().map(|(_, ordinal)| ordinal), &pod.name));
    pods
}
