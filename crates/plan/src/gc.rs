//! Which dependents follow an owner that is gone, and when an owner that waits for them may go (DEL-1 to DEL-3).
//!
//! An object whose owners are all gone is deleted; one that has another owner left only loses the reference. An owner
//! of a kind that Berth does not know counts as existing: unknown is never absent. A dependent is compared by the uid
//! of its owner, so a set that was made again under the same name inherits no deletion (I6, I27).
//!
//! The index of owners must not be older than the dependents: an owner that is merely not known yet would look gone.
//! That is why every deletion names the owners that must still be gone when it is made.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    identity::{ModRevision, Uid},
    mutant::{Mutant, planted},
};
use pb::Kind;

/// An object by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An object that exists and may own others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What it is.
    pub object: ObjectName,
    /// Revision of its last change.
    pub at: ModRevision,
    /// Whether and how it is being deleted.
    pub deletion: Option<Propagation>,
}

/// What becomes of the dependents of an object that is being deleted. The words are those of the finalizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes first, its dependents follow.
    Background,
    /// Dependents that block go first (finalizer foregroundDeletion).
    Foreground,
    /// Dependents stay and lose the reference (finalizer orphan).
    Orphan,
}

impl Propagation {
    /// The finalizer that stands for it.
    pub fn finalizer(self) -> Option<&'static str> {
        match self {
            Self::Background => None,
            Self::Foreground => Some("foregroundDeletion"),
            Self::Orphan => Some("orphan"),
        }
    }
}

/// An object that has owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// What it is.
    pub object: ObjectName,
    /// Its uid.
    pub uid: Uid,
    /// Revision of its last change.
    pub at: ModRevision,
    /// Whether deletion was asked for.
    pub terminating: bool,
    /// metadata.ownerReferences
    pub owners: Vec<Reference>,
}

/// A reference from a dependent to its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The owner's kind; None if Berth has no such kind.
    pub kind: Option<Kind>,
    /// The owner's name, in the dependent's namespace.
    pub name: String,
    /// The owner's uid.
    pub uid: Uid,
    /// Whether foreground deletion of the owner waits for the dependent.
    pub blocks: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for deletion of a dependent, if it is as it was seen and its owners are still gone.
    Delete {
        /// The dependent.
        object: ObjectName,
        /// Its uid.
        uid: Uid,
        /// The revision at which it was seen.
        at: ModRevision,
        /// Owners that must not exist under these uids. Empty when the owner exists and is deleted in the foreground.
        gone: Vec<Reference>,
        /// Foreground if an owner waits for it.
        propagation: Propagation,
    },
    /// Take owner references off a dependent, if it is as it was seen.
    DropOwners {
        /// The dependent.
        object: ObjectName,
        /// Its uid.
        uid: Uid,
        /// The revision at which it was seen.
        at: ModRevision,
        /// The uids of the owners.
        owners: Vec<Uid>,
    },
    /// Take a finalizer off an owner that need not wait any longer, if it is as it was seen.
    RemoveFinalizer {
        /// The owner.
        object: ObjectName,
        /// Its uid.
        uid: Uid,
        /// The revision at which it was seen.
        at: ModRevision,
        /// The finalizer.
        finalizer: &'static str,
    },
}

/// Decides what to do about dependents and about owners that wait for them.
///
/// `owners` are all objects that exist and may own one of `dependents`, by uid. An object may be among both.
pub fn plan(owners: &BTreeMap<Uid, Owner>, dependents: &[Dependent]) -> Vec<Action> {
    let mut actions: Vec<_> = dependents.iter().filter_map(|dependent| about(owners, dependent)).collect();

    let references = |blocking_only: bool| -> BTreeSet<&Uid> {
        let all = dependents.iter().flat_map(|dependent| &dependent.owners);
        all.filter(|reference| reference.blocks || !blocking_only).map(|reference| &reference.uid).collect()
    };
    let (any, blocking) = (references(false), references(true));
    for (uid, owner) in owners {
        let done = match owner.deletion {
            Some(Propagation::Foreground) => !blocking.contains(uid),
            Some(Propagation::Orphan) => !any.contains(uid),
            Some(Propagation::Background) | None => false,
        };
        let finalizer = owner.deletion.and_then(Propagation::finalizer).filter(|_| done);
        actions.extend(finalizer.map(|finalizer| Action::RemoveFinalizer {
            object: owner.object.clone(),
            uid: uid.clone(),
            at: owner.at,
            finalizer,
        }));
    }
    actions
}

/// What the owners of a dependent are to it.
enum Tie {
    /// The owner keeps it.
    Solid,
    /// The owner is gone.
    Gone,
    /// The owner is being deleted and waits for it.
    Awaited,
    /// The owner is being deleted and lets go of it.
    Released,
}

fn tie(owners: &BTreeMap<Uid, Owner>, reference: &Reference) -> Tie {
    match owners.get(&reference.uid).map(|owner| owner.deletion) {
        Some(Some(Propagation::Foreground)) => Tie::Awaited,
        Some(Some(Propagation::Orphan)) if planted(Mutant::CollectOrphans) => Tie::Gone,
        Some(Some(Propagation::Orphan)) => Tie::Released,
        Some(Some(Propagation::Background) | None) => Tie::Solid,
        None if reference.kind.is_none() => Tie::Solid,
        None => Tie::Gone,
    }
}

fn about(owners: &BTreeMap<Uid, Owner>, dependent: &Dependent) -> Option<Action> {
    let (mut solid, mut gone, mut awaited, mut released) = (0, Vec::new(), Vec::new(), Vec::new());
    for reference in &dependent.owners {
        match tie(owners, reference) {
            Tie::Solid => solid += 1,
            Tie::Gone => gone.push(reference.clone()),
            Tie::Awaited => awaited.push(reference.uid.clone()),
            Tie::Released => released.push(reference.uid.clone()),
        }
    }
    let drop = |owners: Vec<Uid>| Action::DropOwners {
        object: dependent.object.clone(),
        uid: dependent.uid.clone(),
        at: dependent.at,
        owners,
    };
    if !released.is_empty() {
        return Some(drop(released));
    }
    if solid > 0 {
        let loose: Vec<_> = gone.into_iter().map(|reference| reference.uid).chain(awaited).collect();
        return (!loose.is_empty()).then(|| drop(loose));
    }
    let orphaned = !gone.is_empty() || !awaited.is_empty();
    (orphaned && !dependent.terminating).then(|| Action::Delete {
        object: dependent.object.clone(),
        uid: dependent.uid.clone(),
        at: dependent.at,
        gone,
        propagation: if awaited.is_empty() { Propagation::Background } else { Propagation::Foreground },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(kind: Kind, name: &str) -> ObjectName {
        ObjectName { kind, namespace: "ns".to_owned(), name: name.to_owned() }
    }

    fn set(uid: &str, deletion: Option<Propagation>) -> (Uid, Owner) {
        (uid.into(), Owner { object: name(Kind::StatefulSet, "web"), at: ModRevision(1), deletion })
    }

    fn reference(uid: &str) -> Reference {
        Reference { kind: Some(Kind::StatefulSet), name: "web".to_owned(), uid: uid.into(), blocks: true }
    }

    fn pod(owners: &[Reference]) -> Dependent {
        Dependent {
            object: name(Kind::Pod, "web-0"),
            uid: "p0".into(),
            at: ModRevision(2),
            terminating: false,
            owners: owners.to_vec(),
        }
    }

    fn one(owners: &[(Uid, Owner)], dependent: Dependent) -> Vec<Action> {
        plan(&owners.iter().cloned().collect(), &[dependent])
    }

    #[test]
    fn a_dependent_follows_its_owner_and_not_a_namesake() {
        let deleted = one(&[set("new", None)], pod(&[reference("old")]));
        assert!(
            matches!(&deleted[..], [Action::Delete { gone, propagation: Propagation::Background, .. }] if gone.len() == 1)
        );
        assert_eq!(one(&[set("S", None)], pod(&[reference("S")])), []);
        assert_eq!(one(&[], pod(&[])), [], "an object without owners is nobody's dependent");
        assert_eq!(one(&[], Dependent { terminating: true, ..pod(&[reference("old")]) }), []);
    }

    #[test]
    fn a_set_that_is_deleted_in_the_background_keeps_its_pods_until_it_is_gone() {
        assert_eq!(one(&[set("S", Some(Propagation::Background))], pod(&[reference("S")])), []);
    }

    #[test]
    fn an_owner_that_is_left_keeps_the_dependent() {
        let dropped = one(&[set("S", None)], pod(&[reference("S"), reference("old")]));
        assert!(matches!(&dropped[..], [Action::DropOwners { owners, .. }] if owners == &[Uid::from("old")]));
        let foreign = Reference { kind: None, ..reference("x") };
        assert_eq!(one(&[], pod(std::slice::from_ref(&foreign))), [], "an unknown kind is never absent");
        let dropped = one(&[], pod(&[foreign, reference("old")]));
        assert!(matches!(&dropped[..], [Action::DropOwners { owners, .. }] if owners == &[Uid::from("old")]));
    }

    #[test]
    fn foreground_waits_for_dependents_that_block() {
        let owners = [set("S", Some(Propagation::Foreground))];
        let waiting = one(&owners, pod(&[reference("S")]));
        assert!(matches!(&waiting[..], [Action::Delete { propagation: Propagation::Foreground, .. }]));
        let terminating = Dependent { terminating: true, ..pod(&[reference("S")]) };
        assert_eq!(one(&owners, terminating), [], "the pod is still there");
        let done = plan(&owners.iter().cloned().collect(), &[]);
        assert!(matches!(&done[..], [Action::RemoveFinalizer { finalizer: "foregroundDeletion", .. }]));
        let loose = Dependent { terminating: true, ..pod(&[Reference { blocks: false, ..reference("S") }]) };
        assert!(matches!(&one(&owners, loose)[..], [Action::RemoveFinalizer { .. }]), "it does not block");
    }

    #[test]
    fn orphan_lets_go_first() {
        let owners = [set("S", Some(Propagation::Orphan))];
        assert!(matches!(&one(&owners, pod(&[reference("S")]))[..], [Action::DropOwners { .. }]));
        assert!(matches!(&one(&owners, pod(&[]))[..], [Action::RemoveFinalizer { finalizer: "orphan", .. }]));
    }
}
