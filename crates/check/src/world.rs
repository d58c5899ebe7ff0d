//! What invariants look at: stored objects, by name.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use model::{
    identity::{Ordinal, PodName, SetName},
    ordinals::Ordinals,
};
use pb::{
    ObjectExt,
    objects::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet, StatefulSetSpec},
};

/// Namespace and name.
pub type Key = (String, String);

/// Stored objects at one revision of the store.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The time.
    pub now: Timestamp,
    /// Sets.
    pub sets: BTreeMap<Key, StatefulSet>,
    /// Pods.
    pub pods: BTreeMap<Key, Pod>,
    /// Claims.
    pub claims: BTreeMap<Key, PersistentVolumeClaim>,
    /// Revisions.
    pub revisions: BTreeMap<Key, ControllerRevision>,
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
        Self {
            now,
            sets: sets.into_iter().map(|object| (key(&object), object)).collect(),
            pods: pods.into_iter().map(|object| (key(&object), object)).collect(),
            claims: claims.into_iter().map(|object| (key(&object), object)).collect(),
            revisions: revisions.into_iter().map(|object| (key(&object), object)).collect(),
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
        let pods = self.pods.values().filter(ours);
        pods.filter_map(|pod| Some((ordinal(set, pod)?, pod))).collect()
    }

    /// Running, Ready for minReadySeconds, and not on its way out.
    pub(crate) fn is_available(&self, set: &StatefulSet, pod: &Pod) -> bool {
        let min_ready = SignedDuration::from_secs(spec(set).map_or(0, |spec| i64::from(spec.min_ready_seconds)));
        let since = ready_since(pod);
        let long_enough = since.is_some_and(|since| self.now.duration_since(since) >= min_ready);
        long_enough && phase(pod) == "Running" && !pod.is_terminating()
    }
}

impl Step<'_> {
    /// Pods that the step created: of a name that was free, or of another uid.
    pub(crate) fn created_pods(&self) -> impl Iterator<Item = &Pod> {
        let is_new = |(key, pod): &(&Key, &Pod)| self.before.pods.get(*key).is_none_or(|old| old.uid() != pod.uid());
        self.after.pods.iter().filter(is_new).map(|(_, pod)| pod)
    }
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

pub(crate) fn replicas(set: &StatefulSet) -> u32 {
    spec(set).map_or(0, |spec| u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0))
}

/// The ordinals that the set should have.
pub(crate) fn ordinals(set: &StatefulSet) -> Ordinals {
    spec(set).map(Ordinals::of).unwrap_or_default()
}

pub(crate) fn in_range(set: &StatefulSet, ordinal: Ordinal) -> bool {
    ordinals(set).contains(ordinal)
}

/// The index of a pod, which is what partition counts; None if the set could never have it.
pub(crate) fn index(set: &StatefulSet, pod: &Pod) -> Option<u32> {
    ordinals(set).index_of(ordinal(set, pod)?)
}

/// spec.updateStrategy.type
pub(crate) fn strategy(set: &StatefulSet) -> &str {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let kind = strategy.map(|strategy| strategy.r#type.as_str());
    kind.filter(|kind| !kind.is_empty()).unwrap_or("RollingUpdate")
}

pub(crate) fn paused(set: &StatefulSet) -> bool {
    spec(set).is_some_and(|spec| spec.paused)
}

pub(crate) fn in_order(set: &StatefulSet) -> bool {
    spec(set).is_some_and(|spec| spec.pod_management_policy != "Parallel")
}

pub(crate) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<Ordinal> {
    SetName::from(set.name()).ordinal_of(&PodName::from(pod.name()))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("", |status| status.phase.as_str())
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().find(|condition| condition.r#type == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.timestamp()))
}
