//! What users do and nodes tell, and what there is to look at.

use std::collections::BTreeMap;

use check::Actor;
use controller::{host::Host, object};
use pb::{Object, ObjectExt, objects::*};
use plan::{gc::Propagation, statefulset::stamp};
use store::{Key, Op, objects};

use super::{NAMESPACE, SET, Stage, set_key};
use crate::{
    ports::{self, SimHost},
    script::{Case, image, is_ready, kubelet::report, phase, version},
};

impl Stage {
    // What users do.

    /// Creates the set: three pods of version 1 and a claim each, changed as wanted.
    pub fn create(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        let mut set = new_set(self.case, &self.host);
        change(set.spec.get_or_insert_default());
        self.put(&set);
    }

    /// Changes the set's spec.
    pub fn change(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        let Some(mut set) = self.set() else { return };
        let before = set.spec.clone();
        change(set.spec.get_or_insert_default());
        if set.spec != before {
            set.meta_mut().generation += 1;
            self.put(&set);
        }
    }

    /// Deletes the set, as the front door does.
    pub fn delete_set(&mut self, propagation: Propagation) {
        let Some(mut set) = self.set() else { return };
        let now = Time::from(self.host.now());
        let ordered = set.spec.as_ref().is_some_and(|spec| spec.deletion_order == "Ordered");
        let meta = set.meta_mut();
        meta.deletion_timestamp = Some(now);
        meta.finalizers.extend(propagation.finalizer().map(str::to_owned));
        if ordered && propagation != Propagation::Orphan {
            meta.finalizers.push(stamp::ORDERED_DELETION.to_owned());
        }
        if meta.finalizers.is_empty() {
            self.commit(Vec::new(), vec![Op::Delete(Key::of(&set))], Actor::User);
        } else {
            self.put(&set);
        }
    }

    /// Deletes a pod, as the front door does.
    pub fn delete_pod(&mut self, name: &str) {
        let Some(pod) = self.pod(name).filter(|pod| !pod.is_terminating()) else { return };
        let op = if object::may_vanish(&pod) {
            Op::Delete(Key::of(&pod))
        } else {
            objects::put(&object::terminating(pod.clone(), Time::from(self.host.now())))
        };
        self.commit(vec![objects::unchanged(&pod)], vec![op], Actor::User);
    }

    /// Deletes a claim, as the front door does.
    pub fn delete_claim(&mut self, name: &str) {
        let now = Time::from(self.host.now());
        self.edit::<PersistentVolumeClaim>(name, |claim| claim.meta_mut().deletion_timestamp = Some(now));
    }

    /// Changes any object.
    pub fn edit<T: Object>(&mut self, name: &str, change: impl FnOnce(&mut T)) {
        let Some(mut object) = self.get::<T>(name) else { return };
        change(&mut object);
        self.put(&object);
    }

    /// Writes any object.
    pub fn put<T: Object>(&mut self, object: &T) {
        self.commit(Vec::new(), vec![objects::put(object)], Actor::User);
    }

    /// Takes any object away, whatever holds it.
    pub fn remove<T: Object>(&mut self, name: &str) {
        let namespace = self.namespace();
        self.commit(Vec::new(), vec![Op::Delete(Key::object(T::KIND, namespace, name))], Actor::User);
    }

    /// No node takes pods any more, or all do again.
    pub fn cordon(&mut self, cordoned: bool) {
        for mut node in ports::list::<Node>(&self.store) {
            node.spec.get_or_insert_default().unschedulable = cordoned;
            self.commit(Vec::new(), vec![objects::put(&node)], Actor::User);
        }
    }

    /// An identity that nothing else has.
    pub fn uid(&self) -> String {
        self.host.uid()
    }

    // What nodes tell.

    /// The containers of a pod end.
    pub fn end(&mut self, name: &str, phase: &str) {
        let Some(mut pod) = self.pod(name) else { return };
        report(&mut pod, phase, false, Time::from(self.host.now()));
        self.commit(Vec::new(), vec![objects::put(&pod)], Actor::Other);
    }

    /// A pod is no longer ready, until it is said to be.
    pub fn unready(&mut self, name: &str) {
        let Some(mut pod) = self.pod(name) else { return };
        self.kubelet.unready.insert(pod.uid().to_owned());
        report(&mut pod, "Running", false, Time::from(self.host.now()));
        self.commit(Vec::new(), vec![objects::put(&pod)], Actor::Other);
    }

    /// All pods are ready that can be.
    pub fn ready(&mut self) {
        self.kubelet.unready.clear();
    }

    /// Containers of a version never become ready, or do again.
    pub fn broken(&mut self, version: &str, broken: bool) {
        let image = format!("app:{version}");
        if broken {
            self.kubelet.broken.insert(image);
        } else {
            self.kubelet.broken.remove(&image);
        }
    }

    /// Pods of a name do not stop, or do again.
    pub fn stubborn(&mut self, name: &str, stubborn: bool) {
        if stubborn {
            self.kubelet.stubborn.insert(name.to_owned());
        } else {
            self.kubelet.stubborn.remove(name);
        }
    }

    // What there is.

    /// The namespace of everything.
    pub fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// The set.
    pub fn set(&self) -> Option<StatefulSet> {
        self.get(SET)
    }

    /// The status of the set.
    pub fn status(&self) -> StatefulSetStatus {
        self.set().and_then(|set| set.status).unwrap_or_default()
    }

    /// One pod.
    pub fn pod(&self, name: &str) -> Option<Pod> {
        self.get(name)
    }

    /// Any object.
    pub fn get<T: Object>(&self, name: &str) -> Option<T> {
        ports::get(&self.store, NAMESPACE, name)
    }

    /// All objects of a kind.
    pub fn all<T: Object>(&self) -> Vec<T> {
        ports::list(&self.store)
    }

    /// All pods as name:version, with what is special about them: `!` not ready, `~` to go.
    pub fn pods(&self) -> String {
        let tell = |pod: &Pod| {
            let ready = if is_ready(pod) { "" } else { "!" };
            let going = if pod.is_terminating() { "~" } else { "" };
            let ended = if matches!(phase(pod), "Failed" | "Succeeded") { "x" } else { "" };
            format!("{}:{}{ready}{ended}{going}", pod.name(), version(image(pod)))
        };
        words(self.all::<Pod>().iter().map(tell))
    }

    /// The names of all claims, `~` if they are to go.
    pub fn claims(&self) -> String {
        let tell = |claim: &PersistentVolumeClaim| {
            format!("{}{}", claim.name(), if claim.is_terminating() { "~" } else { "" })
        };
        words(self.all::<PersistentVolumeClaim>().iter().map(tell))
    }

    /// All revisions as number:version, in order of their numbers.
    pub fn revisions(&self) -> String {
        let mut all = self.all::<ControllerRevision>();
        all.sort_by_key(|revision| revision.revision);
        words(all.iter().map(|revision| {
            let template = revision.data.clone().and_then(|data| data.spec).unwrap_or_default();
            let image = template.containers.first().map_or("", |container| container.image.as_str());
            format!("{}:{}", revision.revision, version(image))
        }))
    }

    /// Remembers which pods there are.
    pub fn mark(&mut self) {
        self.marked = self.all::<Pod>().iter().map(|pod| (pod.name().to_owned(), pod.uid().to_owned())).collect();
    }

    /// The pods that are still those that were remembered.
    pub fn kept(&self) -> String {
        let same = |pod: &&Pod| self.marked.get(pod.name()).is_some_and(|uid| uid == pod.uid());
        words(self.all::<Pod>().iter().filter(same).map(|pod| pod.name().to_owned()))
    }

    /// The name of the revision that the controller would make now.
    pub fn revision_due(&mut self) -> Option<String> {
        self.controller.as_mut().and_then(|controller| controller.revision_due(&set_key()))
    }

    /// What the set waits for, as people are told.
    pub fn waits(&mut self) -> Vec<String> {
        self.controller.as_mut().map(|controller| controller.waits(&set_key())).unwrap_or_default()
    }
}

fn words(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(" ")
}

fn new_set(case: Case, host: &SimHost) -> StatefulSet {
    let labels = BTreeMap::from([("app".to_owned(), SET.to_owned())]);
    let claim = PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "data".to_owned(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeClaimSpec {
            storage_class_name: Some(ports::class().name().to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    let word = |delete: bool| if delete { "Delete" } else { "Retain" }.to_owned();
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels.clone(), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "app".to_owned(), image: "app:1".to_owned(), ..Container::default() }],
            ..PodSpec::default()
        }),
    };
    let spec = StatefulSetSpec {
        replicas: Some(3),
        selector: Some(LabelSelector { match_labels: labels, ..LabelSelector::default() }),
        template: Some(template),
        volume_claim_templates: vec![claim],
        service_name: "web-svc".to_owned(),
        pod_management_policy: if case.parallel { "Parallel" } else { "OrderedReady" }.to_owned(),
        update_strategy: Some(StatefulSetUpdateStrategy {
            r#type: "RollingUpdate".to_owned(),
            rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(0), max_unavailable: None }),
        }),
        persistent_volume_claim_retention_policy: Some(PersistentVolumeClaimRetentionPolicy {
            when_deleted: word(case.delete_with_set),
            when_scaled: word(case.delete_when_scaled),
        }),
        ..StatefulSetSpec::default()
    };
    StatefulSet {
        metadata: Some(ObjectMeta {
            name: SET.to_owned(),
            namespace: NAMESPACE.to_owned(),
            uid: host.uid(),
            generation: 1,
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
        ..StatefulSet::default()
    }
}
