//! One transaction of the controller: guards without repetition, the leader's fence, and what it wrote.

use model::mutant::{Mutant, planted};
use pb::{Kind, api::v1::Object as AnyObject};
use store::{Guard, Key, Op, Revision, Store, Txn, TxnOutcome};

use crate::ports::PortError;

/// Why a step ended early. All of them lead to the same end: plan again from what is there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// Something that the plan rests on has changed. Nothing was written.
    #[error("something changed in the meantime; planning again")]
    Conflict,
    /// The store did not answer, or refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The scheduler or the volume manager did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A value that should be an object is none: nothing is decided until it is repaired.
    #[error(transparent)]
    Undecodable(#[from] store::objects::Undecodable),
    /// What the set asks for cannot be had as things are; people are told what to change.
    #[error("{0}")]
    Refused(String),
    /// The plan speaks of something that was not observed, or another service answered what makes no sense.
    #[error("{0}; planning again")]
    Nonsense(String),
}

/// The last revisions at which a step wrote objects of each kind: what the caches must show before the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrote {
    /// StatefulSets.
    pub sets: Revision,
    /// Pods.
    pub pods: Revision,
    /// Claims.
    pub claims: Revision,
    /// ControllerRevisions.
    pub revisions: Revision,
    /// Services.
    pub services: Revision,
    /// VolumeSnapshots.
    pub snapshots: Revision,
}

impl Wrote {
    /// Takes in what a transaction wrote.
    fn record(&mut self, kinds: &[Kind], revision: Revision) {
        for kind in kinds {
            let slot = match kind {
                Kind::StatefulSet => &mut self.sets,
                Kind::Pod => &mut self.pods,
                Kind::PersistentVolumeClaim => &mut self.claims,
                Kind::ControllerRevision => &mut self.revisions,
                Kind::Service => &mut self.services,
                Kind::VolumeSnapshot => &mut self.snapshots,
                _ => continue,
            };
            *slot = revision.max(*slot);
        }
    }

    /// The later of both, kind by kind.
    pub fn merge(&mut self, other: &Wrote) {
        self.sets = self.sets.max(other.sets);
        self.pods = self.pods.max(other.pods);
        self.claims = self.claims.max(other.claims);
        self.revisions = self.revisions.max(other.revisions);
        self.services = self.services.max(other.services);
        self.snapshots = self.snapshots.max(other.snapshots);
    }

    /// Whether nothing was written.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A transaction in the making.
#[derive(Debug, Default)]
pub struct Draft {
    txn: Txn,
    kinds: Vec<Kind>,
}

impl Draft {
    /// Starts with guards.
    pub fn new(guards: impl IntoIterator<Item = Guard>) -> Self {
        let mut draft = Self::default();
        draft.guard(guards);
        draft
    }

    /// Adds guards that are not among them yet.
    pub fn guard(&mut self, guards: impl IntoIterator<Item = Guard>) {
        for guard in guards {
            let left_out = matches!(guard, Guard::Absent(_)) && planted(Mutant::CreateOverwrites);
            if !left_out && !self.txn.guards.contains(&guard) {
                self.txn.guards.push(guard);
            }
        }
    }

    /// Adds guards that came from another service.
    pub fn guard_pb(&mut self, guards: &[pb::meta::v1::Guard]) {
        self.guard(guards.iter().filter_map(store::objects::guard_from_pb));
    }

    /// Writes an object.
    pub fn put<T: pb::Object>(&mut self, object: &T) {
        self.kinds.push(T::KIND);
        self.txn.ops.push(store::objects::put(object));
    }

    /// Creates an object.
    pub fn create<T: pb::Object>(&mut self, object: &T) {
        self.guard([Guard::Absent(Key::of(object))]);
        self.put(object);
    }

    /// Deletes an object.
    pub fn delete<T: pb::Object>(&mut self, object: &T) {
        self.kinds.push(T::KIND);
        self.txn.ops.push(Op::Delete(Key::of(object)));
    }

    /// Writes an object of any kind; nothing if the message is empty.
    pub fn put_any(&mut self, object: &AnyObject) {
        self.kinds.extend(object.kind());
        self.txn.ops.extend(store::objects::put_any(object));
    }

    /// Deletes an object of any kind; nothing if the message is empty.
    pub fn delete_any(&mut self, object: &AnyObject) {
        let Some(kind) = object.kind() else { return };
        self.kinds.push(kind);
        let meta = object.meta();
        self.txn.ops.push(Op::Delete(Key::object(kind, &meta.namespace, &meta.name)));
    }

    /// Commits: all of it, or nothing.
    pub async fn commit(self, store: &dyn Store, fence: Option<&Guard>) -> Result<Wrote, Fault> {
        let Self { mut txn, kinds } = self;
        txn.guards.extend(fence.filter(|_| !planted(Mutant::NoFence)).cloned());
        match store.txn(txn).await? {
            TxnOutcome::Committed(revision) => {
                let mut wrote = Wrote::default();
                wrote.record(&kinds, revision);
                Ok(wrote)
            }
            TxnOutcome::Conflict => Err(Fault::Conflict),
        }
    }
}
