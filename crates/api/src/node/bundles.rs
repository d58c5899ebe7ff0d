//! What each node shall run, kept by node: one change of a pod, a claim, a volume, its attachment or a configuration wakes
//! the nodes that it is about and nobody else.
//!
//! The index says *that* something about a pod changed; what its node is told is read from the caches when it is told.
//! So a node that is slow is told less often, never wrongly, and what waits for it is bounded by the number of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use pb::{
    Kind, ObjectExt,
    agent::v1::{ClaimVolume, PodBundle},
    objects::{
        ConfigMap, Container, CsiDriver, PersistentVolume, PersistentVolumeClaim, Pod, Secret, VolumeAttachment,
    },
};
use store::Key;
use tokio::sync::Notify;

use crate::caches::{Caches, Stored};

/// What a pod needs beside itself, and where it is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Needs {
    node: String,
    objects: BTreeSet<Key>,
}

/// Which pods are whose, and who needs what.
#[derive(Default)]
pub struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pods: BTreeMap<Key, Needs>,
    by_need: BTreeMap<Key, BTreeSet<Key>>,
    /// Attachments, by the volume and the node that they are about.
    attachments: BTreeMap<Place, BTreeSet<Key>>,
    listeners: BTreeMap<String, Vec<Arc<Listener>>>,
}

/// A volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    volume: String,
    node: String,
}

impl Place {
    /// What an attachment is about.
    pub fn of(attachment: &VolumeAttachment) -> Option<Self> {
        let spec = attachment.spec.as_ref()?;
        let volume = spec.source.as_ref()?.persistent_volume_name.clone();
        Some(Self { volume, node: spec.node_name.clone() })
    }

    /// Name of the volume.
    pub fn volume(&self) -> &str {
        &self.volume
    }
}

/// What one stream of a node still has to look at.
#[derive(Default)]
struct Listener {
    changed: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

/// One stream's ear at the index.
pub struct Ear {
    node: String,
    listener: Arc<Listener>,
    index: Arc<Index>,
}

impl Index {
    /// Notes a pod as it is now; None when it is gone.
    pub fn pod(&self, key: &Key, pod: Option<&Pod>) {
        let mut inner = self.inner.lock();
        let needs = pod.filter(|pod| pod.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty())).map(needs_of);
        let before = inner.forget(key);
        let mut nodes: BTreeSet<String> = before.into_iter().map(|needs| needs.node).collect();
        if let Some(needs) = needs {
            nodes.insert(needs.node.clone());
            inner.learn(key, needs);
        }
        for node in nodes {
            inner.tell(&node, key);
        }
    }

    /// Notes that an object changed which pods may need.
    pub fn needed(&self, key: &Key) {
        let inner = self.inner.lock();
        for pod in inner.by_need.get(key).into_iter().flatten() {
            if let Some(needs) = inner.pods.get(pod) {
                inner.tell(&needs.node, pod);
            }
        }
    }

    /// Notes that anything may have changed which pods need.
    pub fn everything_needed(&self) {
        let inner = self.inner.lock();
        for (pod, needs) in &inner.pods {
            inner.tell(&needs.node, pod);
        }
    }

    /// Notes where an attachment was and is now.
    pub fn attachment(&self, key: &Key, before: Option<Place>, now: Option<Place>) {
        let mut inner = self.inner.lock();
        if let Some(before) = before {
            remove(&mut inner.attachments, &before, key);
        }
        if let Some(now) = now {
            inner.attachments.entry(now).or_default().insert(key.clone());
        }
    }

    /// Forgets all attachments: they are told anew.
    pub fn forget_attachments(&self) {
        self.inner.lock().attachments.clear();
    }

    fn attachments_at(&self, place: &Place) -> Vec<Key> {
        self.inner.lock().attachments.get(place).into_iter().flatten().cloned().collect()
    }

    /// All bound pods.
    pub fn pods(&self) -> Vec<Key> {
        self.inner.lock().pods.keys().cloned().collect()
    }

    /// Listens to what changes for a node from now on.
    pub fn listen(self: &Arc<Self>, node: &str) -> Ear {
        let listener = Arc::new(Listener::default());
        let mut inner = self.inner.lock();
        inner.listeners.entry(node.to_owned()).or_default().push(listener.clone());
        drop(inner);
        Ear { node: node.to_owned(), listener, index: self.clone() }
    }
}

impl Inner {
    fn forget(&mut self, key: &Key) -> Option<Needs> {
        let needs = self.pods.remove(key)?;
        for object in &needs.objects {
            remove(&mut self.by_need, object, key);
        }
        Some(needs)
    }

    fn learn(&mut self, key: &Key, needs: Needs) {
        for object in &needs.objects {
            self.by_need.entry(object.clone()).or_default().insert(key.clone());
        }
        self.pods.insert(key.clone(), needs);
    }

    fn tell(&self, node: &str, pod: &Key) {
        for listener in self.listeners.get(node).into_iter().flatten() {
            listener.changed.lock().insert(pod.clone());
            listener.wake.notify_one();
        }
    }
}

fn remove<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<Key>>, at: &K, key: &Key) {
    if let Some(set) = sets.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            sets.remove(at);
        }
    }
}

impl Ear {
    /// The pods to look at now.
    pub fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.listener.changed.lock())
    }

    /// Waits until there are pods to look at.
    pub async fn heard(&self) {
        // A permit is kept for a change that came before the wait.
        self.listener.wake.notified().await;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut inner = self.index.inner.lock();
        if let Some(listeners) = inner.listeners.get_mut(&self.node) {
            listeners.retain(|listener| !Arc::ptr_eq(listener, &self.listener));
            if listeners.is_empty() {
                inner.listeners.remove(&self.node);
            }
        }
    }
}

/// What a pod names: claims, ConfigMaps, Secrets. The volumes behind claims and their attachments are not named here: who
/// sees one change wakes whoever needs its claim.
fn needs_of(pod: &Pod) -> Needs {
    let named = names(pod);
    let key = |kind, name: &String| Key::object(kind, pod.namespace(), name);
    let claims = named.claims.iter().map(|name| key(Kind::PersistentVolumeClaim, name));
    let maps = named.config_maps.iter().map(|name| key(Kind::ConfigMap, name));
    let secrets = named.secrets.iter().map(|name| key(Kind::Secret, name));
    Needs {
        node: pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default(),
        objects: claims.chain(maps).chain(secrets).collect(),
    }
}

/// Names of what a pod needs, in its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    claims: BTreeSet<String>,
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

fn names(pod: &Pod) -> Named {
    let mut named = Named::default();
    let Some(spec) = &pod.spec else { return named };
    for volume in &spec.volumes {
        named.claims.extend(volume.persistent_volume_claim.iter().map(|claim| claim.claim_name.clone()));
        named.config_maps.extend(volume.config_map.iter().map(|map| map.name.clone()));
        named.secrets.extend(volume.secret.iter().map(|secret| secret.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            named.config_maps.extend(source.config_map.iter().map(|map| map.name.clone()));
            named.secrets.extend(source.secret.iter().map(|secret| secret.name.clone()));
        }
    }
    named.secrets.extend(spec.image_pull_secrets.iter().map(|secret| secret.name.clone()));
    for container in spec.init_containers.iter().chain(&spec.containers) {
        names_in_env(container, &mut named);
    }
    named
}

fn names_in_env(container: &Container, named: &mut Named) {
    for source in &container.env_from {
        named.config_maps.extend(source.config_map_ref.iter().map(|map| map.name.clone()));
        named.secrets.extend(source.secret_ref.iter().map(|secret| secret.name.clone()));
    }
    for source in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
        named.config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
        named.secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
    }
}

/// A pod with all that its node needs to run it, as the caches show it. What is not there is left out: the node waits
/// for it and is told when it comes.
pub fn bundle(caches: &Caches, index: &Index, pod: &Pod) -> PodBundle {
    let named = names(pod);
    let find = |kind, name: &str| caches.of(kind).last_known(&Key::object(kind, pod.namespace(), name));
    let volumes = named.claims.iter().map(|name| claim_volume(caches, index, pod, name));
    let config_maps = named.config_maps.iter().filter_map(|name| find(Kind::ConfigMap, name));
    let secrets = named.secrets.iter().filter_map(|name| find(Kind::Secret, name));
    PodBundle {
        pod: Some(pod.clone()),
        volumes: volumes.collect(),
        config_maps: config_maps.filter_map(|stored| stored.typed::<ConfigMap>().cloned()).collect(),
        secrets: secrets.filter_map(|stored| stored.typed::<Secret>().cloned()).collect(),
    }
}

/// A claim of a pod with its volume, and whether and how that is attached to the pod's node.
fn claim_volume(caches: &Caches, index: &Index, pod: &Pod, claim: &str) -> ClaimVolume {
    let volume = bound_volume(caches, pod.namespace(), claim);
    let Some(named) = volume.as_ref() else {
        return ClaimVolume { claim_name: claim.to_owned(), ..ClaimVolume::default() };
    };
    let driver = named.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| &csi.driver);
    let node = pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default();
    let place = Place { volume: named.name().to_owned(), node };
    let attachment = index.attachments_at(&place).iter().find_map(|key| {
        let stored = caches.of(Kind::VolumeAttachment).last_known(key)?;
        // One that is on its way to end does not hold any more.
        stored.typed::<VolumeAttachment>().filter(|attachment| !attachment.is_terminating()).cloned()
    });
    let known = caches.of(Kind::CsiDriver).last_known(&Key::object(Kind::CsiDriver, "", driver));
    let driver = known.as_deref().and_then(Stored::typed::<CsiDriver>).and_then(|driver| driver.spec.as_ref());
    ClaimVolume {
        claim_name: claim.to_owned(),
        // Attached before it is staged unless the driver says otherwise; one that is not known may need it.
        attach_required: driver.and_then(|spec| spec.attach_required).unwrap_or(true),
        fs_group_policy: driver.and_then(|spec| spec.fs_group_policy.clone()).unwrap_or_default(),
        attachment,
        volume,
    }
}

fn bound_volume(caches: &Caches, namespace: &str, claim: &str) -> Option<PersistentVolume> {
    let find = |kind, namespace: &str, name: &str| caches.of(kind).last_known(&Key::object(kind, namespace, name));
    let claim = find(Kind::PersistentVolumeClaim, namespace, claim)?;
    let claim = claim.typed::<PersistentVolumeClaim>()?;
    let bound_to = claim.spec.as_ref().map(|spec| spec.volume_name.as_str()).filter(|name| !name.is_empty())?;
    let volume = find(Kind::PersistentVolume, "", bound_to)?;
    let volume = volume.typed::<PersistentVolume>()?;
    // Bound means bound from both sides: a volume that was given to another claim is not this one's.
    let claimed_by = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref())?;
    (claimed_by.uid == claim.uid()).then(|| volume.clone())
}

#[cfg(test)]
mod tests {
    use pb::objects::{ObjectMeta, PersistentVolumeClaimVolumeSource, PodSpec, Volume};

    use super::*;

    fn pod(name: &str, node: &str, claim: &str) -> (Key, Pod) {
        let volume = Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pod = Pod {
            metadata: Some(ObjectMeta { name: name.into(), namespace: "default".into(), ..Default::default() }),
            spec: Some(PodSpec { node_name: node.into(), volumes: vec![volume], ..Default::default() }),
            ..Default::default()
        };
        (Key::of(&pod), pod)
    }

    #[test]
    fn a_change_is_heard_by_the_node_that_it_is_about() {
        let index = Arc::new(Index::default());
        let (key, pod) = pod("web-0", "n1", "www-web-0");
        let (one, two) = (index.listen("n1"), index.listen("n2"));
        index.pod(&key, Some(&pod));
        assert_eq!((one.take().len(), two.take().len()), (1, 0));
        index.needed(&Key::object(Kind::PersistentVolumeClaim, "default", "www-web-0"));
        index.needed(&Key::object(Kind::PersistentVolumeClaim, "default", "www-web-1"));
        assert_eq!((one.take().len(), two.take().len()), (1, 0));
        index.pod(&key, None);
        assert_eq!(one.take().len(), 1);
        assert!(index.pods().is_empty());
        assert!(index.inner.lock().by_need.is_empty());
    }

    #[test]
    fn a_pod_without_a_node_is_nobodys() {
        let index = Arc::new(Index::default());
        let ear = index.listen("");
        let (key, pod) = pod("web-0", "", "c");
        index.pod(&key, Some(&pod));
        assert!(ear.take().is_empty());
    }
}
