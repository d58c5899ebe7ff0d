//! What becomes of volumes: they grow in steps, are held while their data is moved, are lost with their node, and are
//! kept in snapshots that take a while.
//!
//! Stands for the volume manager's loops; what is asked on the way of a pod is in `ports`.

use pb::{Object, ObjectExt, objects::*};
use store::{MemStore, Op, Txn, objects};

use crate::{
    chance::Chance,
    ports::{get, list},
};

const STORAGE: &str = "storage";
const RESIZE_PENDING: &str = "FileSystemResizePending";
const LOST: &str = "VolumeLost";
/// Annotation of a claim: the node that its volume was made for.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What the volume manager does next about one object, if there is anything to do.
pub fn tend(store: &MemStore, chance: &mut Chance) -> Option<Txn> {
    let (claims, snapshots) = (open_claims(store), open_snapshots(store));
    let which = chance.below(claims.len() + snapshots.len());
    match claims.get(which) {
        Some(claim) => advance(store, claim, Some(chance)),
        None => snapshots.get(which - claims.len()).map(ready),
    }
}

/// All that the volume manager has to do, done.
pub fn settle(store: &MemStore) -> Vec<Txn> {
    let claims = open_claims(store).into_iter().filter_map(|claim| advance(store, &claim, None));
    claims.chain(open_snapshots(store).iter().map(ready)).collect()
}

/// Claims that grow, or that something is done with.
fn open_claims(store: &MemStore) -> Vec<PersistentVolumeClaim> {
    list::<PersistentVolumeClaim>(store).into_iter().filter(|claim| is_held(claim) || is_growing(claim)).collect()
}

fn open_snapshots(store: &MemStore) -> Vec<VolumeSnapshot> {
    let is_open = |snapshot: &VolumeSnapshot| !snapshot.status.as_ref().is_some_and(|status| status.ready_to_use);
    list::<VolumeSnapshot>(store).into_iter().filter(is_open).collect()
}

fn is_held(claim: &PersistentVolumeClaim) -> bool {
    let operation = claim.status.as_ref().and_then(|status| status.operation.as_ref());
    operation.is_some_and(|operation| !matches!(operation.phase.as_str(), "Done" | "Failed"))
}

fn is_growing(claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.get(STORAGE));
    let has = claim.status.as_ref().and_then(|status| status.capacity.get(STORAGE));
    plan::volume::bound_to(claim).is_some() && has.is_some() && wanted != has
}

/// Whether a pod that has a node, or a claim that waits, is in the way of what is done with the data.
fn is_used(store: &MemStore, claim: &PersistentVolumeClaim) -> bool {
    let uses = |pod: &Pod| {
        let spec = pod.spec.clone().unwrap_or_default();
        let mut sources = spec.volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
        !spec.node_name.is_empty() && sources.any(|source| source.claim_name == claim.name())
    };
    list::<Pod>(store).iter().any(uses)
}

/// One step of what is done with a claim, or the last one where nothing is left to chance.
fn advance(store: &MemStore, before: &PersistentVolumeClaim, mut chance: Option<&mut Chance>) -> Option<Txn> {
    let mut claim = before.clone();
    let mut one_in = |times: usize| chance.as_mut().is_some_and(|chance| chance.one_in(times));
    if is_held(&claim) {
        if is_used(store, &claim) {
            return None;
        }
        let phase = if one_in(2) {
            "Copying"
        } else if one_in(3) {
            "Failed"
        } else {
            "Done"
        };
        let operation = claim.status.get_or_insert_default().operation.get_or_insert_default();
        phase.clone_into(&mut operation.phase);
    } else if one_in(3) {
        set_condition(&mut claim, RESIZE_PENDING, Some(Time::default()));
    } else {
        let wanted = claim.spec.clone().unwrap_or_default().resources.unwrap_or_default().requests;
        claim.status.get_or_insert_default().capacity = wanted;
        set_condition(&mut claim, RESIZE_PENDING, None);
    }
    write(before, &claim)
}

fn ready(before: &VolumeSnapshot) -> Txn {
    let mut snapshot = before.clone();
    snapshot.status.get_or_insert_default().ready_to_use = true;
    Txn { guards: vec![objects::unchanged(before)], ops: vec![objects::put(&snapshot)] }
}

/// The volumes of a node are lost, or back.
pub fn lose(store: &MemStore, node: &str, lost: bool, now: Time) -> Vec<Txn> {
    let on_node =
        |claim: &PersistentVolumeClaim| claim.meta().annotations.get(SELECTED_NODE).is_some_and(|on| on == node);
    let claims = list::<PersistentVolumeClaim>(store).into_iter().filter(on_node);
    let changed = claims.filter_map(|before| {
        let mut claim = before.clone();
        let known = before.status.iter().flat_map(|status| &status.conditions).any(|known| known.r#type == LOST);
        if known != lost {
            set_condition(&mut claim, LOST, lost.then_some(now));
        }
        write(&before, &claim)
    });
    changed.collect()
}

/// A user asks for the data of a claim to be moved.
pub fn hold(before: &PersistentVolumeClaim) -> Option<Txn> {
    if is_held(before) || before.is_terminating() || plan::volume::bound_to(before).is_none() {
        return None;
    }
    let mut claim = before.clone();
    claim.status.get_or_insert_default().operation =
        Some(ClaimOperation { r#type: "Move".to_owned(), phase: "Waiting".to_owned(), ..ClaimOperation::default() });
    write(before, &claim)
}

/// Whether the data of one of a pod's claims is being moved: it gets no node.
pub fn waits_for_data(store: &MemStore, pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let mut names = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    names.any(|source| {
        get::<PersistentVolumeClaim>(store, pod.namespace(), &source.claim_name).is_some_and(|claim| is_held(&claim))
    })
}

fn set_condition(claim: &mut PersistentVolumeClaim, kind: &str, since: Option<Time>) {
    let conditions = &mut claim.status.get_or_insert_default().conditions;
    conditions.retain(|known| known.r#type != kind);
    conditions.extend(since.map(|since| Condition {
        r#type: kind.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(since),
        ..Condition::default()
    }));
}

fn write(before: &PersistentVolumeClaim, claim: &PersistentVolumeClaim) -> Option<Txn> {
    let ops: Vec<Op> = (claim != before).then(|| objects::put(claim)).into_iter().collect();
    (!ops.is_empty()).then(|| Txn { guards: vec![objects::unchanged(before)], ops })
}
