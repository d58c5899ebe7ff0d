//! Disruption budgets: which of them bear on a set.

use std::{collections::BTreeMap, sync::Arc};

use model::identity::ModRevision;
use pb::{Kind, objects::*};
use plan::budget::Budget;
use store::Prefix;

use crate::caches::Caches;

/// The budgets that count one of a set's pods, counted over the whole namespace. One that cannot be decoded may be about
/// any pod.
pub fn around(caches: &Caches, namespace: &str, own: &BTreeMap<String, Arc<Pod>>) -> Vec<Budget> {
    let all = Prefix::namespace(Kind::PodDisruptionBudget, namespace);
    let (mut budgets, unreadable) = (caches.budgets.list(&all), caches.budgets.undecodable(&all));
    // Most budgets are about other sets: the namespace is looked at only for those that are not.
    let own: Vec<&Pod> = own.values().map(Arc::as_ref).collect();
    budgets.retain(|budget| !Budget::of(budget, &own, &[]).pods.is_empty());
    let unreadable = unreadable.iter().map(|budget| {
        let at = ModRevision(budget.revision);
        Budget::unreadable(budget.key.name(), at, &own)
    });
    let unreadable: Vec<_> = unreadable.collect();
    if budgets.is_empty() {
        return unreadable;
    }
    let pods = caches.pods.list(&Prefix::namespace(Kind::Pod, namespace));
    let sets = caches.sets.list(&Prefix::namespace(Kind::StatefulSet, namespace));
    let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
    let sets: Vec<&StatefulSet> = sets.iter().map(Arc::as_ref).collect();
    budgets.iter().map(|budget| Budget::of(budget, &pods, &sets)).chain(unreadable).collect()
}
