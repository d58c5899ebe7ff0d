//! Claims that are being deleted stay for as long as a pod uses them (PVC-12).

use model::mutant::{Mutant, planted};
use pb::{Kind, ObjectExt, objects::*};
use store::{Guard, Key, Prefix};

use crate::{
    caches::Caches,
    object::CLAIM_PROTECTION,
    step::Surroundings,
    write::{Draft, Fault},
};

/// The claims that a pod names.
pub fn used_by(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| source.claim_name.as_str())
}

/// Whether a pod can still use its claims: every pod that has a node, but one that has ended for good. A pod without a node
/// uses nothing yet, and would wait for ever for a claim that waits for it (#74374).
fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
    let bound = pod.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty());
    bound && !matches!(phase, "Failed" | "Succeeded")
}

/// Lets a terminating claim go once no pod uses it. That no pod gets a node in between is compared.
pub async fn release(caches: &Caches, around: &Surroundings, key: &Key) -> Result<(), Fault> {
    let pods = Prefix::namespace(Kind::Pod, key.namespace());
    // Read before the pods: a pod that comes later than this is noticed by the store.
    let pods_at = caches.pods.revision();
    let Some(claim) = caches.claims.get(key).filter(|claim| claim.is_terminating()) else { return Ok(()) };
    if let Some(unknown) = caches.pods.undecodable(&pods).into_iter().next() {
        // It may use the claim.
        return Err(unknown.into());
    }
    let in_use =
        caches.pods.list(&pods).iter().any(|pod| is_live(pod) && used_by(pod).any(|name| name == claim.name()));
    if in_use && !planted(Mutant::ReleaseClaimInUse) {
        return Ok(());
    }
    let mut draft = Draft::new([store::objects::unchanged(claim.as_ref()), Guard::PrefixNotNewer(pods, pods_at)]);
    let mut freed = claim.as_ref().clone();
    let finalizers = &mut freed.metadata.get_or_insert_default().finalizers;
    let held = finalizers.len();
    finalizers.retain(|finalizer| finalizer != CLAIM_PROTECTION);
    if finalizers.is_empty() {
        draft.delete(&freed);
    } else if finalizers.len() < held {
        draft.put(&freed);
    } else {
        // Others hold it.
        return Ok(());
    }
    draft.commit(around.store.as_ref(), around.fence.as_ref()).await.map(drop)
}
