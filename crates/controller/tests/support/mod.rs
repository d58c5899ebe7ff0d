//! Around the controller in these tests: ports that answer in-process, and nodes that do at once what they are told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod steps;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use controller::{
    Parts,
    host::{Host, SystemHost},
    ports::{Placer, PortError, Volumes},
};
use futures::StreamExt;
use pb::{
    Kind, Object, ObjectExt,
    csi::v1 as csi,
    objects::*,
    scheduler::v1::{PlaceRequest, PlaceResponse, Placement, Unschedulable, place_response},
    volumes::v1::{
        BoundClaim, PrepareRequest, PrepareResponse, PreparedClaim, ProvisionRequest, ProvisionResponse,
        ProvisionedClaim, UnboundClaim, prepared_claim,
    },
};
use store::{Key, Op, Page, PageRequest, Prefix, Store, Txn, TxnOutcome, WatchItem, objects};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const NAMESPACE: &str = "default";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Every pod goes to n1, unless the cluster is full.
#[derive(Default)]
pub struct OneNode {
    pub full: AtomicBool,
}

#[async_trait]
impl Placer for OneNode {
    async fn place(&self, _: PlaceRequest) -> Result<PlaceResponse, PortError> {
        let result = if self.full.load(Ordering::SeqCst) {
            place_response::Result::Unschedulable(Unschedulable { message: "0/1 nodes are available".into() })
        } else {
            place_response::Result::Placement(Placement { node_name: "n1".into(), guards: Vec::new() })
        };
        Ok(PlaceResponse { result: Some(result) })
    }
}

/// Makes volumes out of nothing.
pub struct Imaginary;

#[async_trait]
impl Volumes for Imaginary {
    async fn prepare(&self, request: PrepareRequest) -> Result<PrepareResponse, PortError> {
        let state = |claim: &PersistentVolumeClaim| match plan::volume::bound_to(claim) {
            Some(name) => {
                prepared_claim::State::Bound(BoundClaim { volume_name: name.to_owned(), ..BoundClaim::default() })
            }
            None => prepared_claim::State::Unbound(UnboundClaim {
                storage_class: "local".into(),
                ..UnboundClaim::default()
            }),
        };
        let claims = request.claims.iter().map(|claim| PreparedClaim {
            name: claim.name().to_owned(),
            state: Some(state(claim)),
            guards: Vec::new(),
        });
        Ok(PrepareResponse { claims: claims.collect() })
    }

    async fn provision(&self, request: ProvisionRequest) -> Result<ProvisionResponse, PortError> {
        let class = StorageClass {
            metadata: Some(ObjectMeta { name: "local".into(), ..Default::default() }),
            provisioner: "local".into(),
            ..Default::default()
        };
        let claims = request.claims.iter().map(|claim| {
            let volume = csi::Volume { volume_id: claim.uid().to_owned(), ..Default::default() };
            let made = plan::volume::Made {
                volume: &volume,
                node: &request.node_name,
                uid: &format!("volume-{}", claim.uid()),
                now: SystemHost.now(),
            };
            let (claim, volume) = plan::volume::bind(claim, &class, made);
            ProvisionedClaim { claim: Some(claim), volume: Some(volume), guards: Vec::new() }
        });
        Ok(ProvisionResponse { claims: claims.collect() })
    }
}

/// A controller, a node that makes bound pods ready at once and stops terminating ones, and a store.
pub struct Rig {
    pub store: Arc<dyn Store>,
    pub placer: Arc<OneNode>,
    /// Names of pods that the node does not make ready.
    pub shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Rig {
    pub fn start(store: Arc<dyn Store>) -> Self {
        let mut rig = Self::without_controller(store);
        rig.controller("a");
        rig
    }

    pub fn without_controller(store: Arc<dyn Store>) -> Self {
        let shutdown = CancellationToken::new();
        let node = tokio::spawn(kubelet(Arc::clone(&store), shutdown.clone()));
        Self { store, placer: Arc::default(), shutdown, tasks: vec![node] }
    }

    pub fn controller(&mut self, identity: &'static str) {
        let parts = Parts {
            store: Arc::clone(&self.store),
            placer: Arc::clone(&self.placer) as Arc<dyn Placer>,
            volumes: Arc::new(Imaginary),
            host: Arc::new(SystemHost),
        };
        let shutdown = self.shutdown.clone();
        self.tasks.push(tokio::spawn(async move { controller::run_parts(parts, identity, &shutdown).await }));
    }

    pub async fn stop(mut self) {
        self.pause().await;
    }

    /// Ends the controller and the node; what is stored stays.
    pub async fn pause(&mut self) {
        self.shutdown.cancel();
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
    }

    /// Puts a node and a controller to work again.
    pub fn resume(&mut self, identity: &'static str) {
        self.shutdown = CancellationToken::new();
        self.tasks.push(tokio::spawn(kubelet(Arc::clone(&self.store), self.shutdown.clone())));
        self.controller(identity);
    }

    pub async fn put<T: Object>(&self, object: &T) {
        let txn = Txn { guards: Vec::new(), ops: vec![objects::put(object)] };
        assert!(matches!(self.store.txn(txn).await.unwrap(), TxnOutcome::Committed(_)));
    }

    pub async fn get<T: Object>(&self, name: &str) -> Option<T> {
        let kv = self.store.get(&Key::object(T::KIND, NAMESPACE, name)).await.unwrap()?;
        Some(objects::decode(&kv).unwrap())
    }

    pub async fn list<T: Object>(&self) -> BTreeMap<String, T> {
        list(self.store.as_ref()).await.0
    }

    /// Changes an object, over and over until nobody interferes.
    pub async fn change<T: Object>(&self, name: &str, change: impl Fn(&mut T)) {
        loop {
            let mut object: T = self.get(name).await.unwrap();
            let guards = vec![objects::unchanged(&object)];
            change(&mut object);
            let txn = Txn { guards, ops: vec![objects::put(&object)] };
            if let TxnOutcome::Committed(_) = self.store.txn(txn).await.unwrap() {
                return;
            }
        }
    }

    pub async fn scale(&self, name: &str, replicas: i32) {
        self.change(name, |set: &mut StatefulSet| {
            set.spec.as_mut().unwrap().replicas = Some(replicas);
            set.meta_mut().generation += 1;
        })
        .await;
    }

    /// Asks a pod to go, as the API service does.
    pub async fn delete_pod(&self, name: &str) {
        self.change(name, |pod: &mut Pod| {
            *pod = controller::object::terminating(pod.clone(), Time::from(SystemHost.now()));
        })
        .await;
    }

    /// Waits until the objects of a kind are as wanted.
    pub async fn until<T: Object + std::fmt::Debug>(&self, what: &str, wanted: impl Fn(&BTreeMap<String, T>) -> bool) {
        let (mut seen, revision) = list::<T>(self.store.as_ref()).await;
        let mut watch = self.store.watch(&Prefix::kind(T::KIND), revision).await.unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !wanted(&seen) {
            let item = tokio::time::timeout_at(deadline, watch.next()).await;
            let item = item.unwrap_or_else(|_| panic!("waited in vain until {what}; there are {:#?}", seen));
            if let WatchItem::Events(_, events) = item.unwrap().unwrap() {
                apply(&mut seen, events);
            }
        }
    }

    /// Waits until the set says that it is complete.
    pub async fn complete(&self, name: &str, replicas: i32) {
        self.until(&format!("{name} has {replicas} ready pods"), |sets: &BTreeMap<String, StatefulSet>| {
            sets.get(name).is_some_and(|set| {
                let status = set.status.clone().unwrap_or_default();
                let counts = [status.replicas, status.ready_replicas, status.available_replicas];
                counts == [replicas; 3] && status.observed_generation == set.meta().generation
            })
        })
        .await;
    }
}

async fn list<T: Object>(store: &dyn Store) -> (BTreeMap<String, T>, i64) {
    let page: Page = store.list(&Prefix::kind(T::KIND), PageRequest::default()).await.unwrap();
    assert!(!page.more);
    let objects = page.items.iter().map(|kv| {
        let object: T = objects::decode(kv).unwrap();
        (object.name().to_owned(), object)
    });
    (objects.collect(), page.revision)
}

fn apply<T: Object>(seen: &mut BTreeMap<String, T>, events: Vec<store::Event>) {
    for event in events {
        match event {
            store::Event::Put(kv) => {
                let object: T = objects::decode(&kv).unwrap();
                seen.insert(object.name().to_owned(), object);
            }
            store::Event::Delete(key, _) => {
                seen.remove(key.name());
            }
        }
    }
}

/// A node: bound pods become ready, terminating pods go, at once.
async fn kubelet(store: Arc<dyn Store>, shutdown: CancellationToken) {
    let run = async {
        let (pods, revision) = list::<Pod>(store.as_ref()).await;
        for pod in pods.values() {
            tend(store.as_ref(), pod).await;
        }
        let mut watch = store.watch(&Prefix::kind(Kind::Pod), revision).await.unwrap();
        while let Some(item) = watch.next().await {
            let WatchItem::Events(_, events) = item.unwrap() else { continue };
            for event in events {
                if let store::Event::Put(kv) = event {
                    tend(store.as_ref(), &objects::decode(&kv).unwrap()).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(run).await;
}

async fn tend(store: &dyn Store, pod: &Pod) {
    let status = pod.status.clone().unwrap_or_default();
    let guards = vec![objects::unchanged(pod)];
    let held = pod.is_terminating() && !pod.meta().finalizers.is_empty();
    let op = if pod.spec.as_ref().unwrap().node_name.is_empty() || held {
        return;
    } else if pod.is_terminating() {
        Op::Delete(Key::of(pod))
    } else if status.phase == "Pending" && !pod.meta().labels.contains_key("slow") {
        let mut pod = pod.clone();
        make_ready(&mut pod, true);
        objects::put(&pod)
    } else {
        return;
    };
    // Somebody may have been faster: the watch tells.
    store.txn(Txn { guards, ops: vec![op] }).await.unwrap();
}

pub fn make_ready(pod: &mut Pod, ready: bool) {
    let status = pod.status.get_or_insert_default();
    status.phase = "Running".into();
    status.conditions.retain(|condition| condition.r#type != "Ready");
    status.conditions.push(Condition {
        r#type: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        last_transition_time: Some(Time::from(SystemHost.now())),
        ..Default::default()
    });
}

/// A set with one claim template, as the API service stores it.
pub fn set(name: &str, replicas: i32) -> StatefulSet {
    let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
    let claim = PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "www".into(), ..Default::default() }),
        spec: Some(PersistentVolumeClaimSpec { access_modes: vec!["ReadWriteOnce".into()], ..Default::default() }),
        ..Default::default()
    };
    StatefulSet {
        metadata: Some(ObjectMeta {
            name: name.into(),
            namespace: NAMESPACE.into(),
            uid: SystemHost.uid(),
            generation: 1,
            ..Default::default()
        }),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            selector: Some(LabelSelector { match_labels: labels.clone(), ..Default::default() }),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..Default::default() }),
                spec: Some(PodSpec {
                    containers: vec![Container { name: "c".into(), image: "i".into(), ..Default::default() }],
                    ..Default::default()
                }),
            }),
            volume_claim_templates: vec![claim],
            service_name: format!("{name}-svc"),
            pod_management_policy: "OrderedReady".into(),
            update_strategy: Some(StatefulSetUpdateStrategy {
                r#type: "RollingUpdate".into(),
                rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(0), max_unavailable: None }),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The keys that each revision after `since` changed, in order.
pub async fn history(store: &dyn Store, since: i64) -> BTreeMap<i64, Vec<String>> {
    // A write of our own marks the end.
    let mark = Key::from_raw("/berth/test/mark");
    let txn = Txn { guards: Vec::new(), ops: vec![Op::Put(mark.clone(), "x".into(), None)] };
    let TxnOutcome::Committed(end) = store.txn(txn).await.unwrap() else { panic!("nothing to conflict with") };
    let mut watch = store.watch(&Prefix::all(), since).await.unwrap();
    let mut history = BTreeMap::new();
    loop {
        let item = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        if let WatchItem::Events(revision, events) = item {
            if revision >= end {
                return history;
            }
            let keys = events.iter().map(|event| match event {
                store::Event::Put(kv) => kv.key.to_string(),
                store::Event::Delete(key, _) => format!("-{key}"),
            });
            history.insert(revision, keys.collect());
        }
    }
}
