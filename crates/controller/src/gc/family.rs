//! One owner with all that it owns: what `plan::gc` looks at, and doing what it says.

use std::{collections::BTreeMap, sync::Arc};

use model::identity::{ModRevision, Uid};
use pb::{Kind, Object, ObjectExt, api::v1::Object as AnyObject, objects::*};
use plan::{
    gc::{Action, Dependent, ObjectName, Owner, Propagation, Reference},
    statefulset::stamp,
};
use runtime::Cache;
use store::{Guard, Key, Prefix, objects::Undecodable};

use crate::{
    caches::Caches,
    object::{may_vanish, terminating},
    step::Surroundings,
    write::{Draft, Fault},
};

/// An owner: one object, not a namesake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerKey {
    key: Key,
    uid: String,
}

impl OwnerKey {
    /// The key of an object that may own others.
    pub fn of<T: Object>(owner: &T) -> Self {
        Self { key: Key::of(owner), uid: owner.uid().to_owned() }
    }

    /// The owners that an object names, of the kinds that Berth has.
    pub fn all_of<T: Object>(dependent: &T) -> impl Iterator<Item = Self> {
        let namespace = dependent.namespace();
        dependent.meta().owner_references.iter().filter_map(move |owner| {
            let kind = owner_kind(owner)?;
            Some(Self { key: Key::object(kind, namespace, &owner.name), uid: owner.uid.clone() })
        })
    }
}

/// Kinds that own others here; None for any other, which is then never seen as gone.
fn owner_kind(owner: &OwnerReference) -> Option<Kind> {
    let kind: Kind = owner.kind.parse().ok()?;
    matches!(kind, Kind::StatefulSet | Kind::Pod).then_some(kind)
}

/// Whether an owner exists and is not on its way out in a way that concerns its dependents.
pub fn lives(caches: &Caches, owner: &OwnerKey) -> bool {
    match find(caches, &owner.key) {
        Found::Is(found) => found.uid == owner.uid && found.owner.deletion.is_none(),
        Found::Unknown => true,
        Found::Absent => false,
    }
}

struct Present {
    uid: String,
    owner: Owner,
}

enum Found {
    Is(Present),
    /// Something is there that cannot be read: it is not absent.
    Unknown,
    Absent,
}

fn find(caches: &Caches, key: &Key) -> Found {
    fn of<T: Object>(cache: &Cache<T>, key: &Key) -> Found {
        match cache.get(key) {
            Some(object) => Found::Is(present(object.as_ref())),
            None if cache.undecodable(&Prefix::from_raw(key.as_str())).iter().any(|u| u.key == *key) => Found::Unknown,
            None => Found::Absent,
        }
    }
    if Prefix::kind(Kind::StatefulSet).contains(key) { of(&caches.sets, key) } else { of(&caches.pods, key) }
}

fn present<T: Object>(object: &T) -> Present {
    let meta = object.meta();
    let has = |propagation: Propagation| {
        propagation.finalizer().is_some_and(|finalizer| meta.finalizers.iter().any(|have| have == finalizer))
    };
    // A set whose pods go in order is left alone until they have. Whoever orphans them wants no order.
    let in_order = meta.finalizers.iter().any(|finalizer| finalizer == stamp::ORDERED_DELETION);
    // A pod that is being stopped still owns; its claims follow when it is gone.
    let deletion = object.is_terminating().then(|| {
        if has(Propagation::Orphan) {
            Propagation::Orphan
        } else if has(Propagation::Foreground) && !in_order {
            Propagation::Foreground
        } else {
            Propagation::Background
        }
    });
    let owner = Owner { object: name_of(object), at: ModRevision(object.mod_revision()), deletion };
    Present { uid: meta.uid.clone(), owner }
}

fn name_of<T: Object>(object: &T) -> ObjectName {
    ObjectName { kind: T::KIND, namespace: object.namespace().to_owned(), name: object.name().to_owned() }
}

/// The family of one owner, as the caches show it.
#[derive(Default)]
struct Family {
    owners: BTreeMap<Uid, Owner>,
    dependents: Vec<Dependent>,
    objects: BTreeMap<Key, AnyObject>,
    /// That no dependent came that the caches do not show.
    complete: Vec<Guard>,
    /// Something in the namespace that cannot be read, and may be a dependent.
    unknown: Option<Undecodable>,
}

impl Family {
    fn gather(caches: &Caches, owner: &OwnerKey) -> Self {
        let mut family = Self::default();
        family.add_dependents(&caches.pods, owner);
        family.add_dependents(&caches.claims, owner);
        family.add_dependents(&caches.revisions, owner);
        family.add_dependents(&caches.services, owner);
        // After the dependents: what owns them is not older than they are.
        if let Found::Is(found) = find(caches, &owner.key) {
            if found.uid == owner.uid {
                family.owners.insert(owner.uid.as_str().into(), found.owner);
            }
            if let Some(set) = caches.sets.get(&owner.key) {
                family.objects.insert(owner.key.clone(), set.as_ref().clone().into_any());
            }
        }
        for dependent in &family.dependents {
            for reference in &dependent.owners {
                let Some(kind) = reference.kind else { continue };
                let key = Key::object(kind, &dependent.object.namespace, &reference.name);
                let found = match find(caches, &key) {
                    Found::Is(found) if found.uid == reference.uid.as_str() => found.owner,
                    // Nobody knows what it is: it counts as the owner.
                    Found::Unknown => Owner {
                        object: ObjectName {
                            kind,
                            namespace: key.namespace().to_owned(),
                            name: reference.name.clone(),
                        },
                        at: ModRevision(0),
                        deletion: None,
                    },
                    Found::Is(_) | Found::Absent => continue,
                };
                family.owners.insert(reference.uid.clone(), found);
            }
        }
        family
    }

    fn add_dependents<T: Object>(&mut self, cache: &Cache<T>, owner: &OwnerKey) {
        let prefix = Prefix::namespace(T::KIND, owner.key.namespace());
        self.complete.push(Guard::PrefixNotNewer(prefix.clone(), cache.revision()));
        self.unknown = self.unknown.take().or_else(|| cache.undecodable(&prefix).into_iter().next());
        for object in cache.list(&prefix) {
            if object.meta().owner_references.iter().any(|reference| reference.uid == owner.uid) {
                self.dependents.push(dependent(object.as_ref()));
                self.objects.insert(Key::of(object.as_ref()), Arc::unwrap_or_clone(object).into_any());
            }
        }
    }

    fn object(&self, name: &ObjectName) -> Result<AnyObject, Fault> {
        let key = Key::object(name.kind, &name.namespace, &name.name);
        let unknown = || Fault::Nonsense(format!("the plan speaks of {key}, which was not observed"));
        self.objects.get(&key).cloned().ok_or_else(unknown)
    }
}

fn dependent<T: Object>(object: &T) -> Dependent {
    let references = object.meta().owner_references.iter().map(|owner| Reference {
        kind: owner_kind(owner),
        name: owner.name.clone(),
        uid: owner.uid.as_str().into(),
        blocks: owner.block_owner_deletion == Some(true),
    });
    Dependent {
        object: name_of(object),
        uid: object.uid().into(),
        at: ModRevision(object.mod_revision()),
        terminating: object.is_terminating(),
        owners: references.collect(),
    }
}

/// Does what is due about one owner and all that it owns.
pub async fn collect(caches: &Caches, around: &Surroundings, owner: &OwnerKey) -> Result<(), Fault> {
    let family = Family::gather(caches, owner);
    let mut failed = None;
    for action in plan::gc::plan(&family.owners, &family.dependents) {
        let done = match draft(caches, around, &family, &action) {
            Ok(draft) => draft.commit(around.store.as_ref(), around.fence.as_ref()).await.map(drop),
            Err(fault) => Err(fault),
        };
        // One that cannot go does not keep the others.
        if let Err(fault) = done {
            failed.get_or_insert(fault);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn draft(caches: &Caches, around: &Surroundings, family: &Family, action: &Action) -> Result<Draft, Fault> {
    let seen = |object: &ObjectName, at: &ModRevision| {
        Guard::ModRevision(Key::object(object.kind, &object.namespace, &object.name), at.0)
    };
    Ok(match action {
        Action::Delete { object, at, gone, .. } => {
            let mut draft = Draft::new([seen(object, at)]);
            draft.guard(gone.iter().filter_map(|reference| still_gone(caches, &object.namespace, reference)));
            delete(&mut draft, family.object(object)?, Time::from(around.host.now()));
            draft
        }
        Action::DropOwners { object, at, owners, .. } => {
            let mut draft = Draft::new([seen(object, at)]);
            let mut changed = family.object(object)?;
            if let Some(meta) = changed.meta_mut() {
                meta.owner_references.retain(|owner| !owners.iter().any(|uid| uid.as_str() == owner.uid));
            }
            draft.put_any(&changed);
            draft
        }
        Action::RemoveFinalizer { object, at, finalizer, .. } => {
            if let Some(unknown) = &family.unknown {
                // The owner waits for it if it is a dependent, and nobody can tell.
                return Err(unknown.clone().into());
            }
            let mut draft = Draft::new([seen(object, at)]);
            draft.guard(family.complete.iter().cloned());
            let mut changed = family.object(object)?;
            if let Some(meta) = changed.meta_mut() {
                meta.finalizers.retain(|have| have != finalizer);
            }
            if changed.meta().finalizers.is_empty() {
                draft.delete_any(&changed);
            } else {
                draft.put_any(&changed);
            }
            draft
        }
    })
}

/// The guard that an owner does not exist under this uid: its name is free, or another object's.
fn still_gone(caches: &Caches, namespace: &str, owner: &Reference) -> Option<Guard> {
    let key = Key::object(owner.kind?, namespace, &owner.name);
    Some(match find(caches, &key) {
        Found::Is(namesake) => Guard::ModRevision(key, namesake.owner.at.0),
        Found::Unknown | Found::Absent => Guard::Absent(key),
    })
}

/// Deletes what nobody holds; asks the rest to go.
fn delete(draft: &mut Draft, mut object: AnyObject, now: Time) {
    if let Some(pod) = Pod::peek(&object) {
        if may_vanish(pod) {
            draft.delete(pod);
        } else {
            draft.put(&terminating(pod.clone(), now));
        }
        return;
    }
    if object.meta().finalizers.is_empty() {
        draft.delete_any(&object);
        return;
    }
    if let Some(meta) = object.meta_mut() {
        meta.deletion_timestamp = Some(now);
        meta.deletion_grace_period_seconds = Some(0);
    }
    draft.put_any(&object);
}
