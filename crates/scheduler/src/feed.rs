//! Keeps the ledger and the list of pods without a node in step with the caches, and says which of those pods are due.

use std::{collections::BTreeSet, sync::Arc};

use pb::{
    ObjectExt,
    objects::{Node, PersistentVolumeClaim, Pod},
};
use plan::schedule::PodName;
use runtime::Change;

use crate::{Inner, State, metrics};

/// Follows the caches until they end.
pub(crate) async fn run(inner: Arc<Inner>) {
    let (mut nodes, mut pods, mut claims) = (inner.nodes.subscribe(), inner.pods.subscribe(), inner.claims.subscribe());
    tokio::join!(inner.nodes.synced(), inner.pods.synced(), inner.claims.synced());
    resync_nodes(&inner);
    resync_pods(&inner);
    loop {
        let more = tokio::select! {
            change = nodes.next() => change.map(|change| on_node(&inner, change)),
            change = pods.next() => change.map(|change| on_pod(&inner, change)),
            change = claims.next() => change.map(|change| on_claim(&inner, change)),
        };
        if more.is_none() {
            return;
        }
        metrics::get().unbound.set(inner.state.lock().unbound.len().try_into().unwrap_or(i64::MAX));
    }
}

fn resync_nodes(inner: &Inner) {
    let (nodes, as_of) = inner.nodes.snapshot();
    let mut state = inner.state.lock();
    state.ledger.reset_nodes(nodes.iter().map(Arc::as_ref), as_of);
    all_due(inner, &state);
}

fn resync_pods(inner: &Inner) {
    let (pods, as_of) = inner.pods.snapshot();
    let mut state = inner.state.lock();
    state.ledger.reset_pods(pods.iter().map(Arc::as_ref), as_of);
    state.unbound = pods.iter().filter(|pod| needs_node(pod)).map(|pod| (PodName::of(pod), claims_of(pod))).collect();
    all_due(inner, &state);
}

fn all_due(inner: &Inner, state: &State) {
    for name in state.unbound.keys() {
        inner.due.add(name.clone());
    }
}

fn on_node(inner: &Inner, change: Change<Node>) {
    match change {
        Change::Applied { new, .. } => {
            let mut state = inner.state.lock();
            if state.ledger.set_node(&new) {
                all_due(inner, &state);
            }
        }
        Change::Deleted { old, revision } => inner.state.lock().ledger.remove_node(old.name(), revision),
        Change::Resynced => resync_nodes(inner),
    }
}

fn on_pod(inner: &Inner, change: Change<Pod>) {
    match change {
        Change::Applied { old, new, .. } => {
            let name = PodName::of(&new);
            let mut state = inner.state.lock();
            let freed = state.ledger.set_pod(&new);
            if needs_node(&new) {
                state.unbound.insert(name.clone(), claims_of(&new));
                // Not for a change of status: the reason why it waits is written there.
                let same = old.is_some_and(|old| old.uid() == new.uid() && old.spec == new.spec && needs_node(&old));
                if !same {
                    inner.due.add(name);
                }
            } else {
                state.unbound.remove(&name);
            }
            if freed {
                all_due(inner, &state);
            }
        }
        Change::Deleted { old, revision } => {
            let name = PodName::of(&old);
            let mut state = inner.state.lock();
            state.unbound.remove(&name);
            if state.ledger.remove_pod(&name, revision) {
                all_due(inner, &state);
            }
        }
        Change::Resynced => resync_pods(inner),
    }
}

fn on_claim(inner: &Inner, change: Change<PersistentVolumeClaim>) {
    let claim = match change {
        Change::Applied { new, .. } => new,
        Change::Deleted { old, .. } => old,
        Change::Resynced => return all_due(inner, &inner.state.lock()),
    };
    let state = inner.state.lock();
    for (pod, claims) in &state.unbound {
        if pod.namespace == claim.namespace() && claims.contains(claim.name()) {
            inner.due.add(pod.clone());
        }
    }
}

/// Whether a pod is to be bound to a node.
pub(crate) fn needs_node(pod: &Pod) -> bool {
    let unbound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_empty());
    let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"));
    unbound && !ended && !pod.is_terminating()
}

/// Names of the claims that a pod uses.
pub(crate) fn claims_of(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone())).collect()
}
