//! Types on the store: objects are protobuf bytes under their key, and carry their revision as `resourceVersion`.
//!
//! `resourceVersion` is never in the stored bytes; it is filled in from the store's own revision on the way out.
//! An object that cannot be decoded is an error that names its key, never an absent object.

use bytes::Bytes;
use pb::{
    Kind, Object,
    api::v1::Object as AnyObject,
    meta::v1::{Guard as PbGuard, guard::Condition},
};

use crate::{
    key::{Key, Prefix},
    kv::{Guard, Kv, Op},
};

/// A value that is not an object of the expected kind.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the value at {key} (revision {revision}) is not a {kind}: {reason}; nothing is decided from it until it is repaired or deleted"
)]
pub struct Undecodable {
    /// Where.
    pub key: Key,
    /// Its revision.
    pub revision: i64,
    /// What it should be.
    pub kind: Kind,
    /// What the decoder says.
    pub reason: String,
}

/// The object in a value.
pub fn decode<T: Object>(kv: &Kv) -> Result<T, Undecodable> {
    match T::decode(kv.value.clone()) {
        Ok(mut object) => {
            object.meta_mut().resource_version = kv.mod_revision.to_string();
            Ok(object)
        }
        Err(error) => Err(undecodable(kv, T::KIND, error)),
    }
}

/// The object of any kind in a value.
pub fn decode_any(kind: Kind, kv: &Kv) -> Result<AnyObject, Undecodable> {
    match AnyObject::decode_object(kind, &kv.value) {
        Ok(mut object) => {
            if let Some(meta) = object.meta_mut() {
                meta.resource_version = kv.mod_revision.to_string();
            }
            Ok(object)
        }
        Err(error) => Err(undecodable(kv, kind, error)),
    }
}

fn undecodable(kv: &Kv, kind: Kind, error: impl std::fmt::Display) -> Undecodable {
    Undecodable { key: kv.key.clone(), revision: kv.mod_revision, kind, reason: error.to_string() }
}

/// The bytes of an object as they are stored.
pub fn encode<T: Object>(object: &T) -> Bytes {
    let mut stored = object.clone();
    stored.stamp_type();
    stored.meta_mut().resource_version.clear();
    stored.encode_to_vec().into()
}

/// The change that writes an object.
pub fn put<T: Object>(object: &T) -> Op {
    Op::Put(Key::of(object), encode(object), None)
}

/// The change that writes an object of any kind; None if the message is empty.
pub fn put_any(object: &AnyObject) -> Option<Op> {
    let kind = object.kind()?;
    let mut stored = object.clone();
    stored.meta_mut()?.resource_version.clear();
    let key = Key::object(kind, &stored.meta().namespace, &stored.meta().name);
    Some(Op::Put(key, stored.encode_object().into(), None))
}

/// The change that deletes an object.
pub fn delete<T: Object>(object: &T) -> Op {
    Op::Delete(Key::of(object))
}

/// The guard that nobody changed this object since it was read.
pub fn unchanged<T: Object>(object: &T) -> Guard {
    use pb::ObjectExt;
    Guard::ModRevision(Key::of(object), object.mod_revision())
}

/// The guard that no object has this one's name yet.
pub fn absent<T: Object>(object: &T) -> Guard {
    Guard::Absent(Key::of(object))
}

/// A guard as it travels between services.
pub fn guard_to_pb(guard: &Guard) -> PbGuard {
    let (key, condition) = match guard {
        Guard::Absent(key) => (key.as_str(), Condition::Absent(true)),
        Guard::ModRevision(key, revision) => (key.as_str(), Condition::ModRevision(*revision)),
        Guard::CreateRevision(key, revision) => (key.as_str(), Condition::CreateRevision(*revision)),
        Guard::PrefixNotNewer(prefix, revision) => (prefix.as_str(), Condition::PrefixNotNewer(*revision)),
    };
    PbGuard { key: key.to_owned(), condition: Some(condition) }
}

/// A guard that came from a service; None if it says nothing.
pub fn guard_from_pb(guard: &PbGuard) -> Option<Guard> {
    let key = || Key::from_raw(guard.key.clone());
    Some(match guard.condition.as_ref()? {
        Condition::Absent(_) => Guard::Absent(key()),
        Condition::ModRevision(revision) => Guard::ModRevision(key(), *revision),
        Condition::CreateRevision(revision) => Guard::CreateRevision(key(), *revision),
        Condition::PrefixNotNewer(revision) => Guard::PrefixNotNewer(Prefix::from_raw(guard.key.clone()), *revision),
    })
}
