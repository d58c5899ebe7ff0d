//! Disruption budgets: which of them bear on a set, what changes them, and the status that they show.
//!
//! Decisions count pods (`plan::budget`); a budget's status is written for people, never read. What a budget comes to
//! changes with the budget, with the pods that it selects and with the size of their sets: [`follow`] tells.

pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{identity::ModRevision, selector::Selector};
use pb::{Kind, Object, ObjectExt, objects::*};
use plan::budget::{Budget, Health};
use runtime::cache::{Change, Changes};
use store::Prefix;

use crate::{caches::Caches, observed::SetKey};

/// The budgets that count one of a set's pods, counted over the whole namespace. One that cannot be decoded may be about
/// any pod.
pub fn around(caches: &Caches, namespace: &str, own: &BTreeMap<String, Arc<Pod>>) -> Vec<Budget> {
    let all = Prefix::namespace(Kind::PodDisruptionBudget, namespace);
    let (mut budgets, unreadable) = (caches.budgets.list(&all), caches.budgets.undecodable(&all));
    // Most budgets are about other sets: the namespace is looked at only for those that are not.
    let own: Vec<&Pod> = own.values().map(Arc::as_ref).collect();
    budgets.retain(|budget| own.iter().any(|pod| selects(budget, pod)));
    let unreadable = unreadable.iter().map(|budget| {
        let at = ModRevision(budget.revision);
        Budget::unreadable(budget.key.name(), at, &own)
    });
    let counted = counted(caches, namespace, &budgets);
    counted.into_iter().chain(unreadable).collect()
}

/// Budgets of one namespace with the pods that they count.
fn counted(caches: &Caches, namespace: &str, budgets: &[Arc<PodDisruptionBudget>]) -> Vec<Budget> {
    if budgets.is_empty() {
        return Vec::new();
    }
    let pods = caches.pods.list(&Prefix::namespace(Kind::Pod, namespace));
    let sets = caches.sets.list(&Prefix::namespace(Kind::StatefulSet, namespace));
    let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
    let sets: Vec<&StatefulSet> = sets.iter().map(Arc::as_ref).collect();
    budgets.iter().map(|budget| Budget::of(budget, &pods, &sets)).collect()
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.and_then(|selector| Selector::of(selector).ok());
    selector.is_some_and(|selector| selector.matches(&pod.meta().labels))
}

/// The sets that a budget may hold back: those that control a pod that it selects.
pub fn sets_of(caches: &Caches, budget: &PodDisruptionBudget) -> BTreeSet<SetKey> {
    let pods = caches.pods.list(&Prefix::namespace(Kind::Pod, budget.namespace()));
    let controllers = pods.iter().filter(|pod| selects(budget, pod)).filter_map(|pod| {
        let owner = pod.meta().owner_references.iter().find(|owner| owner.controller == Some(true))?;
        let is_set = owner.kind == Kind::StatefulSet.name();
        is_set.then(|| SetKey { namespace: pod.namespace().to_owned(), name: owner.name.clone() })
    });
    controllers.collect()
}

/// Calls `concerned` with each budget that is new, changed or gone, and with each that may come to something else
/// because of a pod or a set. Runs until dropped.
pub async fn follow(caches: &Caches, concerned: impl Fn(&PodDisruptionBudget)) {
    // Subscribed before anything is looked at: no change falls in between.
    let (budgets, pods, sets) = (caches.budgets.subscribe(), caches.pods.subscribe(), caches.sets.subscribe());
    let all = || caches.budgets.all().iter().for_each(|budget| concerned(budget));
    let of = |namespace: &str| caches.budgets.list(&Prefix::namespace(Kind::PodDisruptionBudget, namespace));
    all();
    tokio::join!(
        each(budgets, &all, |old, new| {
            // Its status alone changes nothing.
            let said = |budget: Option<&PodDisruptionBudget>| budget.map(|b| (b.uid().to_owned(), b.meta().generation));
            if said(old) != said(new) {
                old.into_iter().chain(new).for_each(&concerned);
            }
        }),
        each(pods, &all, |old: Option<&Pod>, new| {
            let counts = |pod: Option<&Pod>| pod.map(|pod| (Health::of(pod), pod.meta().labels.clone()));
            let Some(pod) = old.or(new).filter(|_| counts(old) != counts(new)) else { return };
            let touched = |budget: &PodDisruptionBudget| old.into_iter().chain(new).any(|pod| selects(budget, pod));
            of(pod.namespace()).iter().filter(|budget| touched(budget)).for_each(|budget| concerned(budget));
        }),
        each(sets, &all, |old: Option<&StatefulSet>, new| {
            let size = |set: Option<&StatefulSet>| set.map(|set| set.spec.as_ref().and_then(|spec| spec.replicas));
            let Some(set) = old.or(new).filter(|_| size(old) != size(new)) else { return };
            of(set.namespace()).iter().for_each(|budget| concerned(budget));
        }),
    );
}

async fn each<T: Object>(mut changes: Changes<T>, all: impl Fn(), look: impl Fn(Option<&T>, Option<&T>)) {
    while let Some(change) = changes.next().await {
        match change {
            Change::Applied { old, new, .. } => look(old.as_deref(), Some(&new)),
            Change::Deleted { old, .. } => look(Some(&old), None),
            Change::Resynced => all(),
        }
    }
}
