//! One set in a store small enough to be read: guards, kubelets, the garbage collector, and the invariants after every
//! commit.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{collections::BTreeMap, sync::Arc};

use check::{Actor, Step, World};
use jiff::{SignedDuration, Timestamp};
use model::identity::Uid;
use pb::{
    Kind, Object, ObjectExt,
    objects::{
        Condition, ControllerRevision, ObjectMeta, PersistentVolumeClaim, Pod, Quantity, StatefulSet, VolumeSnapshot,
    },
};
use plan::{
    gc,
    statefulset::{Action, Guard, Objects, Op, Plan, PodAt, Snapshot, plan, stamp},
};

/// What happens in the middle of a plan, before the action of that number.
pub type Interrupt<'a> = (usize, &'a mut dyn FnMut(&mut Cluster));

/// Everything that is stored.
#[derive(Clone)]
pub struct Cluster {
    pub now: Timestamp,
    pub set: StatefulSet,
    /// Images with which no pod ever becomes ready.
    pub broken: Vec<&'static str>,
    pods: BTreeMap<String, Pod>,
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    pub snapshots: BTreeMap<String, VolumeSnapshot>,
    revisions: BTreeMap<String, ControllerRevision>,
    revision: i64,
}

impl Cluster {
    pub fn new(set: StatefulSet) -> Self {
        let (pods, claims, snapshots, revisions) = Default::default();
        let mut cluster = Self {
            now: Timestamp::UNIX_EPOCH,
            set,
            broken: vec!["i:9"],
            pods,
            claims,
            snapshots,
            revisions,
            revision: 0,
        };
        let at = cluster.next();
        let meta = cluster.set.meta_mut();
        (meta.uid, meta.resource_version, meta.generation) = ("S".to_owned(), at, 1);
        cluster
    }

    pub fn plan(&self) -> Plan {
        plan(&self.snapshot())
    }

    /// The plan for the same objects in the opposite order.
    pub fn reversed_plan(&self) -> Plan {
        let mut snapshot = self.snapshot();
        snapshot.pods.reverse();
        snapshot.revisions.reverse();
        plan(&snapshot)
    }

    pub fn snapshot(&self) -> Snapshot {
        let objects = Objects {
            set: &self.set,
            pods: &self.pods.values().collect::<Vec<_>>(),
            claims: &self.claims.values().collect::<Vec<_>>(),
            revisions: &self.revisions.values().collect::<Vec<_>>(),
            service_exists: true,
            budgets: &[],
        };
        Snapshot::of(self.now, objects).with_snapshots(self.snapshots.values())
    }

    pub fn world(&self) -> World {
        let world = World::of(
            self.now,
            [self.set.clone()],
            self.pods.values().cloned(),
            self.claims.values().cloned(),
            self.revisions.values().cloned(),
        );
        let key = |snapshot: &VolumeSnapshot| (snapshot.namespace().to_owned(), snapshot.name().to_owned());
        let snapshots = self.snapshots.values().map(|snapshot| (key(snapshot), Arc::new(snapshot.clone())));
        World { snapshots: snapshots.collect(), ..world }
    }

    /// Plans and carries the plan out.
    pub fn sync(&mut self, interrupt: Option<Interrupt<'_>>) -> Plan {
        let plan = self.plan();
        self.carry_out(&plan, interrupt);
        plan
    }

    /// Carries a plan out as far as its guards hold. Says how many actions were done.
    pub fn carry_out(&mut self, plan: &Plan, mut interrupt: Option<Interrupt<'_>>) -> usize {
        let mut own = BTreeMap::new();
        for (number, action) in plan.actions.iter().enumerate() {
            if let Some((_, event)) = interrupt.take_if(|(at, _)| *at == number) {
                event(self);
            }
            if !action.guards.iter().all(|guard| self.holds(guard, &own)) {
                return number;
            }
            self.commit(Actor::SetController, |cluster| cluster.apply(action, &mut own));
        }
        plan.actions.len()
    }

    /// One commit, and the invariants after it.
    pub fn commit(&mut self, by: Actor, write: impl FnOnce(&mut Self)) {
        let before = self.world();
        write(self);
        let after = self.world();
        let violations = check::step(&Step { before: &before, after: &after, by });
        assert!(violations.is_empty(), "{violations:#?}");
    }

    fn next(&mut self) -> String {
        self.revision += 1;
        self.revision.to_string()
    }

    fn touch<T: Object>(&mut self, object: &mut T) {
        object.meta_mut().resource_version = self.next();
    }

    fn born<T: Object>(&mut self, mut object: T) -> T {
        let at = self.next();
        let meta = object.meta_mut();
        (meta.uid, meta.resource_version) = (format!("u{at}"), at);
        meta.creation_timestamp = Some(self.now.into());
        object
    }

    /// Objects that the plan itself has written are compared at that write.
    fn holds(&self, guard: &Guard, own: &BTreeMap<String, i64>) -> bool {
        let as_seen = |meta: Option<&ObjectMeta>, uid: &Uid, at: i64| {
            meta.is_some_and(|meta| {
                let at = own.get(&meta.name).copied().unwrap_or(at);
                meta.uid == uid.as_str() && meta.resource_version == at.to_string()
            })
        };
        let pod = |pod: &PodAt| as_seen(self.pods.get(pod.pod.as_str()).map(Object::meta), &pod.uid, pod.at.0);
        match guard {
            Guard::SetUnchanged { uid, at } => as_seen(Some(self.set.meta()), uid, at.0),
            Guard::PodUnchanged(seen) => pod(seen),
            Guard::PodsUnchanged(seen) => seen.iter().all(pod),
            Guard::PodAbsent(name) => !self.pods.contains_key(name.as_str()),
            Guard::ClaimUnchanged { claim, uid, at } => {
                as_seen(self.claims.get(claim.as_str()).map(Object::meta), uid, at.0)
            }
            Guard::ClaimAbsent(name) => !self.claims.contains_key(name.as_str()),
            Guard::RevisionUnchanged { name, uid, at } => {
                as_seen(self.revisions.get(name.as_str()).map(Object::meta), uid, at.0)
            }
            Guard::RevisionAbsent(name) => !self.revisions.contains_key(name.as_str()),
            Guard::ServiceAbsent(_) | Guard::BudgetUnchanged(_) => false,
        }
    }

    fn apply(&mut self, action: &Action, own: &mut BTreeMap<String, i64>) {
        let set = self.set.clone();
        let written = match &action.op {
            Op::CreateRevision { name, number, .. } => {
                let revision = self.born(stamp::revision(&set, name.as_str(), *number));
                self.revisions.insert(name.to_string(), revision);
                name.to_string()
            }
            Op::RenumberRevision { name, number } => {
                self.edit(Kind::ControllerRevision, name.as_str(), |cluster| {
                    if let Some(revision) = cluster.revisions.get_mut(name.as_str()) {
                        revision.revision = *number;
                    }
                });
                name.to_string()
            }
            Op::DeleteRevision { name } => {
                self.revisions.remove(name.as_str());
                return;
            }
            Op::CreateClaim(new) => {
                self.create_claim(&set, new);
                new.name.to_string()
            }
            Op::CreatePod(new) => {
                new.claims.iter().for_each(|claim| self.create_claim(&set, claim));
                let template = self.revisions[new.revision.as_str()].data.clone().unwrap_or_default();
                let mut pod = stamp::pod(&set, &template, new);
                pod.spec.get_or_insert_default().node_name = "n".to_owned();
                pod.status.get_or_insert_default().phase = "Pending".to_owned();
                let pod = self.born(pod);
                self.pods.insert(new.pod.to_string(), pod);
                let claims = new.claims.iter().map(|claim| &claim.name).chain(&new.reused).filter(|_| new.marks);
                for name in claims {
                    self.change_claim(name.as_str(), |claim| stamp::mark(claim, &new.revision));
                }
                new.pod.to_string()
            }
            Op::FitClaim { claim, template, ordinal, grow } => {
                self.change_claim(claim.as_str(), |claim| stamp::fit(&set, claim, template, *ordinal, *grow));
                claim.to_string()
            }
            Op::CreateSnapshot(new) => {
                let snapshot = self.born(stamp::snapshot(&set, new));
                self.snapshots.insert(new.name.clone(), snapshot);
                new.name.clone()
            }
            Op::RestoreClaims { claims, .. } => {
                let now = self.now;
                for (name, from) in claims {
                    self.change_claim(name.as_str(), |claim| stamp::restore(claim, "id".to_owned(), from, now.into()));
                }
                claims.first().map(|(name, _)| name.to_string()).unwrap_or_default()
            }
            Op::RecreateVolumes { pod, claims, .. } => {
                pod.iter().for_each(|pod| self.terminate(pod.as_str()));
                claims.iter().for_each(|claim| self.delete_claim(claim.as_str()));
                claims.first().map(ToString::to_string).unwrap_or_default()
            }
            Op::UpdateClaimOwners { claim, owners } => {
                let mut object = self.claims[claim.as_str()].clone();
                let references = stamp::owner_references(&object.meta().owner_references, owners);
                object.meta_mut().owner_references = references;
                self.touch(&mut object);
                self.claims.insert(claim.to_string(), object);
                claim.to_string()
            }
            Op::DeletePod { pod, .. } => {
                self.terminate(pod.as_str());
                pod.to_string()
            }
            Op::UpdateStatus(status) => {
                let mut set = self.set.clone();
                stamp::status(status, set.status.get_or_insert_default());
                self.touch(&mut set);
                self.set = set;
                "web".to_owned()
            }
            Op::RevertTemplate { from, to } => {
                let template = self.revisions[to.as_str()].data.clone();
                self.change_set(|set| {
                    set.spec.get_or_insert_default().template = template;
                    from.as_str().clone_into(&mut set.status.get_or_insert_default().failed_revision);
                });
                "web".to_owned()
            }
            Op::ReleaseSet => {
                let mut set = self.set.clone();
                set.meta_mut().finalizers.retain(|finalizer| finalizer != stamp::ORDERED_DELETION);
                self.touch(&mut set);
                self.set = set;
                "web".to_owned()
            }
            other => panic!("nothing in this cluster gives rise to {other:?}"),
        };
        own.insert(written, self.revision);
    }

    fn create_claim(&mut self, set: &StatefulSet, new: &plan::statefulset::NewClaim) {
        let claim = stamp::claim(set, new).expect("the template is the set's");
        let mut claim = self.born(claim);
        // Its volume is made at once, as large as it is to be.
        let wanted = claim.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default().requests;
        if !wanted.is_empty() {
            claim.spec.get_or_insert_default().volume_name = format!("volume-of-{}", claim.uid());
            claim.status.get_or_insert_default().capacity = wanted;
        }
        self.claims.insert(new.name.to_string(), claim);
    }

    /// Anybody changes a claim that is there.
    pub fn change_claim(&mut self, name: &str, change: impl FnOnce(&mut PersistentVolumeClaim)) {
        if self.claims.contains_key(name) {
            self.edit(Kind::PersistentVolumeClaim, name, |cluster| {
                if let Some(claim) = cluster.claims.get_mut(name) {
                    change(claim);
                }
            });
        }
    }

    /// The sizes of a claim: what it asks for, and what its volume has.
    pub fn sizes(&self, name: &str) -> (String, String) {
        let claim = self.claims.get(name).cloned().unwrap_or_default();
        let value = |amount: Option<&Quantity>| amount.map(|amount| amount.value.clone()).unwrap_or_default();
        let requests = claim.spec.unwrap_or_default().resources.unwrap_or_default().requests;
        (value(requests.get("storage")), value(claim.status.unwrap_or_default().capacity.get("storage")))
    }

    fn edit(&mut self, kind: Kind, name: &str, change: impl FnOnce(&mut Self)) {
        change(self);
        let at = self.next();
        let meta = match kind {
            Kind::Pod => self.pods.get_mut(name).map(Object::meta_mut),
            Kind::PersistentVolumeClaim => self.claims.get_mut(name).map(Object::meta_mut),
            Kind::ControllerRevision => self.revisions.get_mut(name).map(Object::meta_mut),
            _ => None,
        };
        meta.into_iter().for_each(|meta| meta.resource_version.clone_from(&at));
    }

    /// Asks for deletion of a pod.
    pub fn terminate(&mut self, name: &str) {
        let now = self.now.into();
        self.edit(Kind::Pod, name, |cluster| {
            if let Some(pod) = cluster.pods.get_mut(name) {
                pod.meta_mut().deletion_timestamp.get_or_insert(now);
            }
        });
    }

    /// A user deletes the claim of an ordinal.
    pub fn delete_claim(&mut self, name: &str) {
        let now = self.now.into();
        self.edit(Kind::PersistentVolumeClaim, name, |cluster| {
            if let Some(claim) = cluster.claims.get_mut(name) {
                claim.meta_mut().deletion_timestamp.get_or_insert(now);
            }
        });
    }

    /// A claim that nothing holds any more is gone.
    #[allow(dead_code, reason = "the regressions use it")]
    pub fn forget_claim(&mut self, name: &str) {
        self.claims.remove(name);
        self.next();
    }

    /// A user changes the spec.
    pub fn change_set(&mut self, change: impl FnOnce(&mut StatefulSet)) {
        let mut set = self.set.clone();
        change(&mut set);
        set.meta_mut().generation += 1;
        self.touch(&mut set);
        self.set = set;
    }

    /// The node reports another phase or readiness of a pod. One that has ended has ended: nodes start no pod again.
    pub fn report(&mut self, name: &str, phase: &str, ready: bool) {
        let ended =
            |pod: &Pod| pod.status.as_ref().is_some_and(|s| ["Failed", "Succeeded"].contains(&s.phase.as_str()));
        if self.pods.get(name).is_some_and(ended) {
            return;
        }
        let now = self.now;
        self.edit(Kind::Pod, name, |cluster| {
            let Some(pod) = cluster.pods.get_mut(name) else { return };
            let status = pod.status.get_or_insert_default();
            status.phase = phase.to_owned();
            status.conditions = vec![Condition {
                r#type: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                last_transition_time: Some(now.into()),
                ..Condition::default()
            }];
        });
    }

    /// What the node does next with a pod: start it, find it ready, or end it.
    pub fn kubelet(&mut self, name: &str) {
        let Some(pod) = self.pods.get(name) else { return };
        let status = pod.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().any(|condition| condition.status == "True");
        if pod.is_terminating() {
            self.pods.remove(name);
            self.next();
        } else if status.phase == "Pending" {
            self.report(name, "Running", false);
        } else if status.phase == "Running" && !ready && !self.broken.contains(&image(pod.spec.as_ref())) {
            self.report(name, "Running", true);
        }
    }

    /// The image that a revision is about: its name in stories.
    pub fn image_of(&self, revision: &str) -> String {
        let template = self.revisions.get(revision).and_then(|revision| revision.data.as_ref());
        image(template.and_then(|template| template.spec.as_ref())).to_owned()
    }

    pub fn pod_names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    pub fn claim_names(&self) -> Vec<&str> {
        self.claims.keys().map(String::as_str).collect()
    }

    /// How many pods were asked to go.
    pub fn terminating(&self) -> usize {
        self.pods.values().filter(|pod| pod.is_terminating()).count()
    }

    pub fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// Deletes claims whose owners are gone, and takes away claims that were asked to go and that no pod uses.
    pub fn collect_garbage(&mut self) {
        let owner = |kind: Kind, meta: &ObjectMeta| {
            let object = gc::ObjectName { kind, namespace: meta.namespace.clone(), name: meta.name.clone() };
            let owner = gc::Owner { object, at: model::identity::ModRevision(0), deletion: None };
            (Uid::from(meta.uid.as_str()), owner)
        };
        let owners = self.pods.values().map(|pod| owner(Kind::Pod, pod.meta()));
        let owners = owners.chain([owner(Kind::StatefulSet, self.set.meta())]).collect();
        let dependents: Vec<_> = self.claims.values().map(dependent).collect();
        for action in gc::plan(&owners, &dependents) {
            let gc::Action::Delete { object, .. } = action else { continue };
            self.commit(Actor::Other, |cluster| cluster.delete_claim(&object.name));
        }
        let unused = |claim: &&PersistentVolumeClaim| {
            let ordinal = claim.name().rsplit('-').next().map(|ordinal| format!("web-{ordinal}"));
            claim.is_terminating() && ordinal.is_some_and(|pod| !self.pods.contains_key(&pod))
        };
        let unused: Vec<_> = self.claims.values().filter(unused).map(|claim| claim.name().to_owned()).collect();
        for name in unused {
            self.commit(Actor::Other, |cluster| {
                cluster.claims.remove(&name);
            });
        }
    }
}

fn image(spec: Option<&pb::objects::PodSpec>) -> &str {
    spec.and_then(|spec| spec.containers.first()).map_or("", |container| container.image.as_str())
}

fn dependent(claim: &PersistentVolumeClaim) -> gc::Dependent {
    let reference = |owner: &pb::objects::OwnerReference| gc::Reference {
        kind: owner.kind.parse().ok(),
        name: owner.name.clone(),
        uid: owner.uid.as_str().into(),
        blocks: owner.block_owner_deletion == Some(true),
    };
    gc::Dependent {
        object: gc::ObjectName {
            kind: Kind::PersistentVolumeClaim,
            namespace: claim.namespace().to_owned(),
            name: claim.name().to_owned(),
        },
        uid: claim.uid().into(),
        at: model::identity::ModRevision(claim.mod_revision()),
        terminating: claim.is_terminating(),
        owners: claim.meta().owner_references.iter().map(reference).collect(),
    }
}
