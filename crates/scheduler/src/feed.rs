//! Keeps the ledger and the list of pods without a node in step with the caches, and says which of those pods are due.

use std::sync::Arc;

use pb::{
    ObjectExt,
    objects::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
};
use plan::schedule::{ClaimName, PodName};
use runtime::Change;

use crate::{Inner, State, Unbound, metrics};

/// Follows the caches until they end.
pub(crate) async fn run(inner: Arc<Inner>) {
    let (mut nodes, mut pods) = (inner.nodes.subscribe(), inner.pods.subscribe());
    let (mut claims, mut volumes) = (inner.claims.subscribe(), inner.stored_volumes.subscribe());
    let mut namespaces = inner.namespaces.subscribe();
    tokio::join!(inner.nodes.synced(), inner.pods.synced(), inner.claims.synced(), inner.stored_volumes.synced());
    tokio::join!(inner.namespaces.synced(), inner.budgets.synced());
    resync_namespaces(&inner);
    resync_claims(&inner);
    resync_volumes(&inner);
    resync_nodes(&inner);
    resync_pods(&inner);
    loop {
        let more = tokio::select! {
            change = nodes.next() => change.map(|change| on_node(&inner, change)),
            change = pods.next() => change.map(|change| on_pod(&inner, change)),
            change = claims.next() => change.map(|change| on_claim(&inner, change)),
            change = volumes.next() => change.map(|change| on_volume(&inner, change)),
            change = namespaces.next() => change.map(|change| on_namespace(&inner, change)),
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
    state.unbound = pods.iter().filter(|pod| needs_node(pod)).map(|pod| (PodName::of(pod), Unbound::of(pod))).collect();
    all_due(inner, &state);
}

fn all_due(inner: &Inner, state: &State) {
    for unbound in state.unbound.values() {
        inner.due.add(unbound.due.clone());
    }
}

fn resync_namespaces(inner: &Inner) {
    let (namespaces, _) = inner.namespaces.snapshot();
    let mut state = inner.state.lock();
    state.ledger.reset_namespaces(namespaces.iter().map(Arc::as_ref));
    all_due(inner, &state);
}

fn on_namespace(inner: &Inner, change: Change<Namespace>) {
    match change {
        Change::Applied { new, .. } => {
            let mut state = inner.state.lock();
            if state.ledger.set_namespace(&new) {
                all_due(inner, &state);
            }
        }
        Change::Deleted { old, .. } => inner.state.lock().ledger.remove_namespace(old.name()),
        Change::Resynced => resync_namespaces(inner),
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
                let unbound = Unbound::of(&new);
                let due = unbound.due.clone();
                state.unbound.insert(name, unbound);
                // Not for a change of status: the reason why it waits is written there.
                let same =
                    old.as_ref().is_some_and(|old| old.uid() == new.uid() && old.spec == new.spec && needs_node(old));
                if !same {
                    inner.due.add(due);
                }
            } else {
                state.unbound.remove(&name);
            }
            if freed {
                all_due(inner, &state);
            } else if !needs_node(&new) && old.is_none_or(|old| needs_node(&old)) {
                // It came somewhere, which others may have waited for.
                let waiting = state.unbound.values().filter(|unbound| unbound.asks_for_peers);
                waiting.for_each(|unbound| inner.due.add(unbound.due.clone()));
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

fn resync_claims(inner: &Inner) {
    let (claims, as_of) = inner.claims.snapshot();
    let mut state = inner.state.lock();
    state.ledger.reset_claims(claims.iter().map(Arc::as_ref), as_of);
    all_due(inner, &state);
}

fn resync_volumes(inner: &Inner) {
    let (volumes, as_of) = inner.stored_volumes.snapshot();
    let mut state = inner.state.lock();
    state.ledger.reset_volumes(volumes.iter().map(Arc::as_ref), as_of);
    all_due(inner, &state);
}

fn on_claim(inner: &Inner, change: Change<PersistentVolumeClaim>) {
    let claim = match change {
        Change::Applied { new, .. } => {
            let mut state = inner.state.lock();
            if state.ledger.set_claim(&new) {
                return all_due(inner, &state);
            }
            new
        }
        Change::Deleted { old, revision } => {
            inner.state.lock().ledger.remove_claim(&ClaimName::of(&old), revision);
            old
        }
        Change::Resynced => return resync_claims(inner),
    };
    let (state, claim) = (inner.state.lock(), ClaimName::of(&claim));
    for unbound in state.unbound.values() {
        if unbound.claims.contains(&claim) {
            inner.due.add(unbound.due.clone());
        }
    }
}

fn on_volume(inner: &Inner, change: Change<PersistentVolume>) {
    match change {
        Change::Applied { new, .. } => {
            let mut state = inner.state.lock();
            if state.ledger.set_volume(&new) {
                all_due(inner, &state);
            }
        }
        Change::Deleted { old, revision } => inner.state.lock().ledger.remove_volume(old.name(), revision),
        Change::Resynced => resync_volumes(inner),
    }
}

/// Whether a pod is to be bound to a node.
pub(crate) fn needs_node(pod: &Pod) -> bool {
    let unbound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_empty());
    let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"));
    unbound && !ended && !pod.is_terminating()
}
