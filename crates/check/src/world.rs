//! What invariants look at: stored objects, by name; and what a set asks for, read from its spec alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use model::identity::{Ordinal, PodName, SetName};
use pb::{
    ObjectExt,
    objects::{
        ControllerRevision, PersistentVolume, PersistentVolumeClaim, Pod, PodDisruptionBudget, StatefulSet,
        StatefulSetSpec, VolumeSnapshot, int_or_string,
    },
};

/// Namespace and name.
pub type Key = (String, String);

/// Objects of a kind.
pub type Objects<T> = BTreeMap<Key, Arc<T>>;

/// Stored objects at one revision of the store.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The time: that of whoever decided the step.
    pub now: Timestamp,
    /// Sets.
    pub sets: Objects<StatefulSet>,
    /// Pods.
    pub pods: Objects<Pod>,
    /// Claims.
    pub claims: Objects<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Objects<PersistentVolume>,
    /// Revisions.
    pub revisions: Objects<ControllerRevision>,
    /// Snapshots of volumes.
    pub snapshots: Objects<VolumeSnapshot>,
    /// Disruption budgets.
    pub budgets: Objects<PodDisruptionBudget>,
    /// The uids of objects that were there once and are gone.
    pub gone: Arc<BTreeSet<String>>,
}

/// Two states with exactly one commit between them.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The state before the commit.
    pub before: &'a World,
    /// The state after it.
    pub after: &'a World,
    /// Who committed.
    pub by: Actor,
}

/// Who changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The StatefulSet controller.
    SetController,
    /// A user: may do what no controller may.
    User,
    /// Any other part of Berth, or unknown.
    Other,
    /// The garbage collector.
    Collector,
    /// Whoever evicts pods within disruption budgets.
    Evictor,
}

impl World {
    /// From the objects of four lists.
    pub fn of(
        now: Timestamp,
        sets: impl IntoIterator<Item = StatefulSet>,
        pods: impl IntoIterator<Item = Pod>,
        claims: impl IntoIterator<Item = PersistentVolumeClaim>,
        revisions: impl IntoIterator<Item = ControllerRevision>,
    ) -> Self {
        fn by_name<T: ObjectExt>(objects: impl IntoIterator<Item = T>) -> Objects<T> {
            objects.into_iter().map(|object| (key(&object), Arc::new(object))).collect()
        }
        Self {
            now,
            sets: by_name(sets),
            pods: by_name(pods),
            claims: by_name(claims),
            revisions: by_name(revisions),
            ..Self::default()
        }
    }

    /// The set that controls an object, by uid.
    pub(crate) fn set_of(&self, object: &impl ObjectExt) -> Option<&StatefulSet> {
        let owner = object.meta().owner_references.iter().find(|owner| owner.controller == Some(true))?;
        let set = self.sets.get(&(object.namespace().to_owned(), owner.name.clone()))?;
        (owner.kind == "StatefulSet" && owner.uid == set.uid()).then_some(set)
    }

    /// The pods that a set controls, by ordinal.
    pub(crate) fn pods_of(&self, set: &StatefulSet) -> BTreeMap<Ordinal, &Pod> {
        let ours = |pod: &&Pod| self.set_of(*pod).is_some_and(|owner| owner.uid() == set.uid());
        let pods = self.pods.values().map(Arc::as_ref).filter(ours);
        pods.filter_map(|pod| Some((ordinal(set, pod)?, pod))).collect()
    }

    /// The claims of an ordinal that exist.
    pub(crate) fn claims_of(&self, set: &StatefulSet, ordinal: Ordinal) -> Vec<&PersistentVolumeClaim> {
        let templates = spec(set).map(|spec| spec.volume_claim_templates.as_slice()).unwrap_or_default();
        let names = templates.iter().map(|template| format!("{}-{}-{ordinal}", template.name(), set.name()));
        names.filter_map(|name| self.claims.get(&(set.namespace().to_owned(), name))).map(Arc::as_ref).collect()
    }

    /// The revision of this name beside a set.
    pub(crate) fn revision(&self, set: &StatefulSet, name: &str) -> Option<&ControllerRevision> {
        self.revisions.get(&(set.namespace().to_owned(), name.to_owned())).map(Arc::as_ref)
    }

    /// Running, Ready for minReadySeconds, and not on its way out.
    pub(crate) fn is_available(&self, set: &StatefulSet, pod: &Pod) -> bool {
        self.is_ready_long_enough(set, pod) && !pod.is_terminating()
    }

    /// Running, and Ready for minReadySeconds.
    pub(crate) fn is_ready_long_enough(&self, set: &StatefulSet, pod: &Pod) -> bool {
        let min_ready = SignedDuration::from_secs(spec(set).map_or(0, |spec| i64::from(spec.min_ready_seconds)));
        let since = ready_since(pod);
        let long_enough = since.is_some_and(|since| self.now.duration_since(since) >= min_ready);
        long_enough && phase(pod) == "Running"
    }
}

impl<'a> Step<'a> {
    /// Pods that the step created: of a name that was free, or of another uid.
    pub(crate) fn created_pods(&self) -> impl Iterator<Item = &'a Pod> {
        let before = self.before;
        let is_new =
            move |(key, pod): &(&Key, &Arc<Pod>)| before.pods.get(*key).is_none_or(|old| old.uid() != pod.uid());
        self.after.pods.iter().filter(is_new).map(|(_, pod)| pod.as_ref())
    }

    /// Pods that were not on their way out before, and now are, or are gone.
    pub(crate) fn pods_asked_to_go(&self) -> impl Iterator<Item = &'a Pod> {
        let after = self.after;
        let stays = move |pod: &&Pod| {
            let now = after.pods.get(&key(*pod)).filter(|after| after.uid() == pod.uid());
            now.is_some_and(|now| !now.is_terminating())
        };
        let before = self.before.pods.values().map(Arc::as_ref);
        before.filter(|pod| !pod.is_terminating()).filter(move |pod| !stays(pod))
    }
}

/// Objects that are in both states under one name and uid, and were written in between.
pub(crate) fn changed<'a, T: ObjectExt>(
    before: &'a Objects<T>,
    after: &'a Objects<T>,
) -> impl Iterator<Item = (&'a T, &'a T)> {
    let pairs = after.iter().filter_map(|(key, after)| Some((before.get(key)?, after)));
    pairs.filter(|(was, is)| !Arc::ptr_eq(was, is) && was.uid() == is.uid()).map(|(was, is)| (&**was, &**is))
}

pub(crate) fn key(object: &impl ObjectExt) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

/// kind namespace/name
pub(crate) fn title<T: ObjectExt>(object: &T) -> String {
    format!("{} {}/{}", T::KIND, object.namespace(), object.name())
}

pub(crate) fn spec(set: &StatefulSet) -> Option<&StatefulSetSpec> {
    set.spec.as_ref()
}

pub(crate) fn replicas(set: &StatefulSet) -> usize {
    spec(set).map_or(0, |spec| usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0))
}

/// The ordinals that a set should have, the lowest first: from `start` on, leaving out what is reserved.
pub(crate) fn range(set: &StatefulSet) -> Vec<Ordinal> {
    let numbering = spec(set).and_then(|spec| spec.ordinals.as_ref());
    let start = numbering.map_or(0, |numbering| u32::try_from(numbering.start).unwrap_or(0));
    let reserved: Vec<_> = numbering.iter().flat_map(|numbering| &numbering.reserved).filter_map(bounds).collect();
    let free = |ordinal: &u32| !reserved.iter().any(|(first, last)| first <= ordinal && ordinal <= last);
    (start..=u32::MAX).filter(free).take(replicas(set)).map(Ordinal).collect()
}

fn bounds(item: &pb::objects::IntOrString) -> Option<(u32, u32)> {
    match item.kind.as_ref()? {
        int_or_string::Kind::IntValue(one) => u32::try_from(*one).ok().map(|one| (one, one)),
        int_or_string::Kind::StringValue(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        }
    }
}

pub(crate) fn in_range(set: &StatefulSet, ordinal: Ordinal) -> bool {
    range(set).contains(&ordinal)
}

/// The place of an ordinal among those of its set: what `partition` counts.
pub(crate) fn index(set: &StatefulSet, ordinal: Ordinal) -> Option<i64> {
    let place = range(set).iter().position(|one| *one == ordinal)?;
    i64::try_from(place).ok()
}

pub(crate) fn in_order(set: &StatefulSet) -> bool {
    spec(set).is_some_and(|spec| spec.pod_management_policy != "Parallel")
}

/// How many pods may be on their way at a time under OrderedReady.
pub(crate) fn window(set: &StatefulSet) -> usize {
    let window = spec(set).and_then(|spec| spec.max_concurrent_start).unwrap_or(1);
    usize::try_from(window).unwrap_or(1).max(1)
}

/// OnDelete, Recreate, or RollingUpdate.
pub(crate) fn strategy(set: &StatefulSet) -> &str {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref()).map_or("", |s| s.r#type.as_str());
    if strategy.is_empty() { "RollingUpdate" } else { strategy }
}

pub(crate) fn partition(set: &StatefulSet) -> i64 {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).map_or(0, i64::from)
}

/// Whether the set keeps its deletion waiting until its pods have gone in order.
pub(crate) fn goes_in_order(set: &StatefulSet) -> bool {
    set.is_terminating() && has_finalizer(set, ORDERED)
}

/// Finalizer of a set whose pods go in order.
pub(crate) const ORDERED: &str = "berth.dev/ordered-deletion";

pub(crate) fn has_finalizer(object: &impl ObjectExt, finalizer: &str) -> bool {
    object.meta().finalizers.iter().any(|have| have == finalizer)
}

pub(crate) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<Ordinal> {
    SetName::from(set.name()).ordinal_of(&PodName::from(pod.name()))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("", |status| status.phase.as_str())
}

/// Whether its containers have ended for good.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Failed" | "Succeeded")
}

pub(crate) fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().find(|condition| condition.r#type == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.timestamp()))
}
