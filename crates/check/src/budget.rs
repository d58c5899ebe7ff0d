//! Disruption budgets, counted again.

use std::collections::BTreeMap;

use model::selector::Selector;
use pb::{
    Object, ObjectExt,
    objects::{IntOrString, Pod, PodDisruptionBudget, StatefulSet, int_or_string},
};

use crate::world::{World, phase, ready_since, replicas};

/// Ready and not on its way out.
pub(crate) fn is_healthy(pod: &Pod) -> bool {
    phase(pod) == "Running" && ready_since(pod).is_some() && !pod.is_terminating()
}

/// Why a budget does not let a healthy pod go; None if it does, or does not count it.
pub(crate) fn refuses(world: &World, budget: &PodDisruptionBudget, pod: &Pod) -> Option<String> {
    let spec = budget.spec.as_ref()?;
    let selector = Selector::of(spec.selector.as_ref()?).ok()?;
    let counts = |pod: &&Pod| pod.namespace() == budget.namespace() && selector.matches(&pod.meta().labels);
    if !counts(&pod) {
        return None;
    }
    let pods: Vec<&Pod> = world.pods.values().map(AsRef::as_ref).filter(counts).collect();
    let healthy = pods.iter().filter(|pod| is_healthy(pod)).count();
    // A set counts with its size when its pods are meant, though all of them may be away.
    let meant = |set: &StatefulSet| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).and_then(|t| t.metadata.as_ref());
        let matches = template.is_some_and(|meta| selector.matches(&meta.labels));
        set.namespace() == budget.namespace() && !set.is_terminating() && matches
    };
    let all = world.sets.values().map(AsRef::as_ref);
    let mut sets: BTreeMap<_, _> = all.filter(|set| meant(set)).map(|set| (set.uid(), replicas(set))).collect();
    let mut alone = 0;
    for pod in &pods {
        match world.set_of(*pod) {
            Some(set) => drop(sets.insert(set.uid(), replicas(set))),
            None => alone += 1,
        }
    }
    let wanted = sets.values().sum::<usize>() + alone;
    let needed = match (&spec.min_available, &spec.max_unavailable) {
        (Some(least), _) => amount(least, wanted)?,
        (None, Some(most)) => wanted.saturating_sub(amount(most, wanted)?),
        (None, None) => return None,
    };
    (healthy <= needed).then(|| format!("needs {needed} healthy pods and there were {healthy}"))
}

/// A number, or a percentage rounded up.
fn amount(bound: &IntOrString, all: usize) -> Option<usize> {
    match bound.kind.as_ref()? {
        int_or_string::Kind::IntValue(count) => usize::try_from(*count).ok(),
        int_or_string::Kind::StringValue(text) => {
            Some((all * text.strip_suffix('%')?.parse::<usize>().ok()?).div_ceil(100))
        }
    }
}
