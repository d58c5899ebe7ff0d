//! What the invariants of the controller's own tests in Kubernetes ask for and `check` does not hold: numbers as in
//! "10 invariants for property tests". Each is told from stored objects alone.

use std::collections::BTreeMap;

use check::{Actor, Step, Violation, World};
use model::{
    identity::{Ordinal, PodName, SetName},
    ordinals::Ordinals,
};
use pb::{Object, ObjectExt, objects::*};

use super::phase;

const REVISION_LABEL: &str = "controller-revision-hash";

/// Laws that hold only while the script keeps to something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Laws {
    /// Nobody takes pods away but the update, and the template does not change in the middle of one: the revisions
    /// stand in order (4).
    pub orderly: bool,
    /// The retention policy is the same from the beginning, and no claim has an owner of somebody else.
    pub steady_claims: bool,
}

impl Laws {
    /// What is wrong with one commit.
    pub fn step(self, step: &Step<'_>) -> Vec<Violation> {
        let mut wrong = Vec::new();
        if step.by == Actor::SetController {
            born_right(step, &mut wrong);
            claims_born_right(step, &mut wrong);
            adopted_right(step, &mut wrong);
            within_budget(step, &mut wrong);
            if self.orderly {
                revisions_in_order(step.after, &mut wrong);
            }
        }
        wrong
    }

    /// What is wrong with a state in which nothing is left to do.
    pub fn settled(self, world: &World) -> Vec<Violation> {
        let mut wrong = Vec::new();
        if self.steady_claims {
            claims_kept_right(world, &mut wrong);
        }
        wrong
    }
}

fn say<T: ObjectExt>(wrong: &mut Vec<Violation>, id: &'static str, object: &T, what: String) {
    let object = format!("{} {}/{}", T::KIND, object.namespace(), object.name());
    wrong.push(Violation { id, object, what });
}

/// 3 and 5: whatever else is broken, a pod is born with the right name, labels, owner and volumes, and all of its claims
/// are there and stay.
fn born_right(step: &Step<'_>, wrong: &mut Vec<Violation>) {
    for (key, pod) in &step.after.pods {
        let pod = pod.as_ref();
        if step.before.pods.get(key).is_some_and(|before| before.uid() == pod.uid()) {
            continue;
        }
        let Some(set) = set_of(step.after, pod) else {
            say(wrong, "2.4/3", pod, "was born without its set as controller".to_owned());
            continue;
        };
        let Some(ordinal) = ordinal_of(set, pod) else { continue };
        let spec = pod.spec.clone().unwrap_or_default();
        let wanted = [
            ("hostname", spec.hostname.as_str(), pod.name()),
            ("subdomain", spec.subdomain.as_str(), self::spec(set).map_or("", |spec| spec.service_name.as_str())),
            ("label pod-name", label(pod, "statefulset.kubernetes.io/pod-name"), pod.name()),
            ("label pod-index", label(pod, "apps.kubernetes.io/pod-index"), &ordinal.to_string()),
        ];
        for (what, is, should) in wanted {
            if is != should {
                say(wrong, "2.4/3", pod, format!("was born with {what} {is:?}, not {should:?}"));
            }
        }
        if !step.after.revisions.contains_key(&(pod.namespace().to_owned(), label(pod, REVISION_LABEL).to_owned())) {
            say(wrong, "2.4/3", pod, "was born of a revision that is not stored".to_owned());
        }
        for template in templates(set) {
            let claim = format!("{template}-{}", pod.name());
            let mut volumes = spec.volumes.iter().filter(|volume| volume.name == template);
            let source = volumes.next().and_then(|volume| volume.persistent_volume_claim.as_ref());
            if source.is_none_or(|source| source.claim_name != claim) {
                say(wrong, "2.4/3", pod, format!("was born without the volume {template} of {claim}"));
            }
            match step.after.claims.get(&(pod.namespace().to_owned(), claim.clone())) {
                None => say(wrong, "2.4/5", pod, format!("was born without its claim {claim}")),
                Some(found) if found.is_terminating() => {
                    say(wrong, "2.4/5", pod, format!("was born while its claim {claim} was being deleted"));
                }
                Some(_) => {}
            }
        }
    }
}

/// AD-1: a pod gets a set as owner only while that set is there and stays, and the pod too.
fn adopted_right(step: &Step<'_>, wrong: &mut Vec<Violation>) {
    for (key, pod) in &step.after.pods {
        let Some(before) = step.before.pods.get(key).filter(|before| before.uid() == pod.uid()) else { continue };
        let had = |uid: &str| before.meta().owner_references.iter().any(|owner| owner.uid == uid);
        for owner in pod.meta().owner_references.iter().filter(|owner| !had(&owner.uid)) {
            let stays = step.before.sets.values().any(|set| set.uid() == owner.uid && !set.is_terminating());
            if !stays || before.is_terminating() {
                let what = format!("was adopted by {} although one of them is going or gone", owner.name);
                say(wrong, "2.4/adoption", pod.as_ref(), what);
            }
        }
    }
}

/// 5: a claim is born with the owner that the retention table gives it.
fn claims_born_right(step: &Step<'_>, wrong: &mut Vec<Violation>) {
    for (key, claim) in &step.after.claims {
        if step.before.claims.get(key).is_some_and(|before| before.uid() == claim.uid()) {
            continue;
        }
        if let Some((set, ordinal)) = whose(step.after, claim) {
            owners_by_table(step.after, set, ordinal, claim, wrong);
        }
    }
}

/// 5, 6: once all is quiet every claim has the owner of the table, and none is left that the policy gives up.
fn claims_kept_right(world: &World, wrong: &mut Vec<Violation>) {
    for claim in world.claims.values().map(AsRef::as_ref) {
        let Some((set, ordinal)) = whose(world, claim) else { continue };
        if claim.is_terminating() {
            say(wrong, "2.4/6", claim, "is still being deleted".to_owned());
        } else if Ordinals::of(&spec(set).cloned().unwrap_or_default()).contains(ordinal) {
            owners_by_table(world, set, ordinal, claim, wrong);
        } else if retention(set).1 {
            say(wrong, "2.4/6", claim, "is left although its pod was scaled away and whenScaled is Delete".to_owned());
        }
    }
}

/// The table of RET: who owns a claim of a set.
fn owners_by_table(
    world: &World,
    set: &StatefulSet,
    ordinal: Ordinal,
    claim: &PersistentVolumeClaim,
    wrong: &mut Vec<Violation>,
) {
    let in_range = Ordinals::of(&spec(set).cloned().unwrap_or_default()).contains(ordinal);
    let (with_set, when_scaled) = retention(set);
    let pod = world.pods.get(&(set.namespace().to_owned(), format!("{}-{ordinal}", set.name())));
    let wanted = match (in_range, with_set, when_scaled) {
        (false, _, true) => pod.map(|pod| pod.uid().to_owned()),
        (_, true, _) => Some(set.uid().to_owned()),
        _ => None,
    };
    let owners: Vec<_> = claim.meta().owner_references.iter().map(|owner| owner.uid.clone()).collect();
    if owners != Vec::from_iter(wanted.clone()) {
        let what = format!("has the owners {owners:?}; by whenDeleted and whenScaled it is {wanted:?}");
        say(wrong, "2.4/5", claim, what);
    }
    if claim.meta().owner_references.iter().any(|owner| owner.controller != Some(true)) {
        say(wrong, "2.4/5", claim, "has an owner that is not its controller".to_owned());
    }
}

/// 7: under Parallel an update never makes more pods unavailable than maxUnavailable, unless more were so before.
fn within_budget(step: &Step<'_>, wrong: &mut Vec<Violation>) {
    for (key, set) in &step.before.sets {
        let Some(spec) = spec(set).filter(|spec| spec.pod_management_policy == "Parallel" && !set.is_terminating())
        else {
            continue;
        };
        let rolling = spec.update_strategy.as_ref().filter(|strategy| strategy.r#type == "RollingUpdate");
        let Some(rolling) = rolling.map(|strategy| strategy.rolling_update.clone().unwrap_or_default()) else {
            continue;
        };
        let all = i64::from(spec.replicas.unwrap_or(1));
        let bound = match rolling.max_unavailable.and_then(|bound| bound.kind) {
            Some(int_or_string::Kind::IntValue(count)) => i64::from(count),
            Some(int_or_string::Kind::StringValue(text)) => {
                text.trim_end_matches('%').parse::<i64>().unwrap_or(0) * all / 100
            }
            // The classic walk counts only the pods above (UPD-4).
            None => continue,
        }
        .max(1);
        // A scale-down or a new size counts other pods: looked at in the commits before and after it.
        if step.after.sets.get(key).is_none_or(|after| after.meta().generation != set.meta().generation) {
            continue;
        }
        let (before, after) = (unavailable(step.before, set), unavailable(step.after, set));
        if after > before && after > bound && !only_ended(step, set) {
            let what = format!("{after} pods are unavailable of {before} before; maxUnavailable is {bound}");
            say(wrong, "2.4/7", set.as_ref(), what);
        }
    }
}

/// Whether the pods that the step asked to go had ended: they were unavailable before.
fn only_ended(step: &Step<'_>, set: &StatefulSet) -> bool {
    let mut asked = step.before.pods.iter().filter(|(key, pod)| {
        let now = step.after.pods.get(*key).filter(|now| now.uid() == pod.uid());
        set_of(step.before, pod).is_some_and(|owner| owner.uid() == set.uid())
            && !pod.is_terminating()
            && now.is_none_or(|now| now.is_terminating())
    });
    asked.all(|(_, pod)| matches!(phase(pod), "Failed" | "Succeeded"))
}

fn unavailable(world: &World, set: &StatefulSet) -> i64 {
    let pods = pods_of(world, set);
    let min_ready = i64::from(spec(set).map_or(0, |spec| spec.min_ready_seconds));
    let available = |ordinal: &Ordinal| {
        pods.get(ordinal).is_some_and(|pod| {
            let ready = pod.status.iter().flat_map(|status| &status.conditions);
            let ready = ready.into_iter().find(|condition| condition.r#type == "Ready" && condition.status == "True");
            let since = ready.and_then(|ready| ready.last_transition_time);
            let long_enough =
                since.is_some_and(|since| world.now.duration_since(since.timestamp()).as_secs() >= min_ready);
            long_enough && !pod.is_terminating()
        })
    };
    let range = Ordinals::of(&spec(set).cloned().unwrap_or_default());
    i64::try_from(range.iter().filter(|ordinal| !available(ordinal)).count()).unwrap_or(i64::MAX)
}

/// 4: under OrderedReady the lowest `currentReplicas` pods are of the current revision, the highest `updatedReplicas` of
/// the update revision.
fn revisions_in_order(world: &World, wrong: &mut Vec<Violation>) {
    for set in world.sets.values().map(AsRef::as_ref) {
        let Some(status) = set.status.as_ref() else { continue };
        let in_order = spec(set).is_some_and(|spec| spec.pod_management_policy != "Parallel");
        let current = status.observed_generation == set.meta().generation;
        if !in_order || !current || status.current_revision == status.update_revision {
            continue;
        }
        let pods: Vec<_> = pods_of(world, set).into_values().collect();
        let is = |pod: &Pod, revision: &str| label(pod, REVISION_LABEL) == revision;
        let first_new = pods.iter().position(|pod| is(pod, &status.update_revision)).unwrap_or(pods.len());
        let (low, high) = pods.split_at(first_new);
        for pod in low.iter().filter(|pod| !is(pod, &status.current_revision)) {
            say(wrong, "2.4/4", *pod, "is of another revision than the current one below the updated pods".to_owned());
        }
        for pod in high.iter().filter(|pod| !is(pod, &status.update_revision)) {
            say(wrong, "2.4/4", *pod, "is not updated although a pod below it is".to_owned());
        }
        let count = |of: &str| {
            let those = pods.iter().filter(|pod| !pod.is_terminating() && is(pod, of)).count();
            i32::try_from(those).unwrap_or(i32::MAX)
        };
        if status.updated_replicas > count(&status.update_revision) {
            let what =
                format!("says {} updated and there are {}", status.updated_replicas, count(&status.update_revision));
            say(wrong, "2.4/4", set, what);
        }
    }
}

fn spec(set: &StatefulSet) -> Option<&StatefulSetSpec> {
    set.spec.as_ref()
}

fn templates(set: &StatefulSet) -> impl Iterator<Item = &str> {
    spec(set).into_iter().flat_map(|spec| &spec.volume_claim_templates).map(ObjectExt::name)
}

/// whenDeleted and whenScaled are Delete.
fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = spec(set).and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    policy.map_or((false, false), |policy| (policy.when_deleted == "Delete", policy.when_scaled == "Delete"))
}

fn label<'a>(pod: &'a Pod, name: &str) -> &'a str {
    pod.meta().labels.get(name).map_or("", String::as_str)
}

fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<Ordinal> {
    SetName::from(set.name()).ordinal_of(&PodName::from(pod.name()))
}

fn set_of<'a>(world: &'a World, pod: &Pod) -> Option<&'a StatefulSet> {
    let owner = pod.meta().owner_references.iter().find(|owner| owner.controller == Some(true))?;
    world.sets.values().map(AsRef::as_ref).find(|set| set.uid() == owner.uid)
}

/// The set's pods by ordinal.
fn pods_of<'a>(world: &'a World, set: &StatefulSet) -> BTreeMap<Ordinal, &'a Pod> {
    let ours = world
        .pods
        .values()
        .map(AsRef::as_ref)
        .filter(|pod| set_of(world, pod).is_some_and(|owner| owner.uid() == set.uid()));
    ours.filter_map(|pod| Some((ordinal_of(set, pod)?, pod))).collect()
}

/// The set and the ordinal that a claim's name speaks of.
fn whose<'a>(world: &'a World, claim: &PersistentVolumeClaim) -> Option<(&'a StatefulSet, Ordinal)> {
    world.sets.values().map(AsRef::as_ref).filter(|set| set.namespace() == claim.namespace()).find_map(|set| {
        templates(set).find_map(|template| {
            let pod = claim.name().strip_prefix(template)?.strip_prefix('-')?;
            Some((set, SetName::from(set.name()).ordinal_of(&PodName::from(pod))?))
        })
    })
}
