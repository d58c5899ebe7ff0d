//! The volume manager over a store in memory and the real driver behind its socket.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use csi::local::{Driver, serve};
use pb::{
    Object, ObjectExt,
    objects::{
        Node, ObjectMeta, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, StorageClass,
        VolumeResourceRequirements,
    },
    volumes::v1::{
        PrepareRequest, PreparedClaim, ProvisionRequest, ProvisionedClaim, prepared_claim::State,
        volume_service_server::VolumeService,
    },
};
use runtime::{CancellationToken, Tasks};
use store::{
    Guard, Key, MemStore, Store, Txn, TxnOutcome,
    objects::{decode, delete, guard_from_pb, put},
};
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use volumes::VolumeManager;

struct Cluster {
    store: Arc<dyn Store>,
    manager: VolumeManager,
    tasks: Tasks,
    _dir: TempDir,
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("within ten seconds")
}

impl Cluster {
    async fn start() -> Self {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new(&CancellationToken::new()));
        let (socket, token) = (dir.path().join("csi.sock"), tasks.token().clone());
        let url = format!("unix://{}", socket.display());
        tasks.spawn_graceful("driver", async move { serve(Driver::controller_only(), &socket, token).await.unwrap() });
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        let manager = VolumeManager::start(Arc::clone(&store), &[url], &tasks).unwrap();
        let cluster = Self { store, manager, tasks, _dir: dir };
        let node = |name: &str| Node {
            metadata: Some(ObjectMeta { name: name.into(), ..ObjectMeta::default() }),
            ..Node::default()
        };
        cluster.write(vec![put(&class()), put(&node("n1"))]).await;
        cluster
    }

    async fn write(&self, ops: Vec<store::Op>) -> i64 {
        self.commit(Txn { guards: vec![], ops }).await.expect("no guard")
    }

    async fn commit(&self, txn: Txn) -> Option<i64> {
        match self.store.txn(txn).await.unwrap() {
            TxnOutcome::Committed(revision) => Some(revision),
            TxnOutcome::Conflict => None,
        }
    }

    async fn read<T: Object>(&self, namespace: &str, name: &str) -> Option<T> {
        let kv = self.store.get(&Key::object(T::KIND, namespace, name)).await.unwrap();
        kv.map(|kv| decode(&kv).unwrap())
    }

    /// Asks until the manager has seen the class and the driver.
    async fn prepare(&self, claim: &PersistentVolumeClaim) -> PreparedClaim {
        in_time(async {
            loop {
                let request = PrepareRequest { claims: vec![claim.clone()] };
                match self.manager.prepare(Request::new(request)).await {
                    Ok(answer) => {
                        let prepared = answer.into_inner().claims.remove(0);
                        let early = matches!(&prepared.state, Some(State::Problem(p)) if p.reason == "NoDefaultClass");
                        if !early {
                            return prepared;
                        }
                    }
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, node: &str) -> Result<ProvisionedClaim, Status> {
        let request = ProvisionRequest { claims: vec![claim.clone()], node_name: node.into() };
        Ok(self.manager.provision(Request::new(request)).await?.into_inner().claims.remove(0))
    }

    /// What the controller does: both objects under the answer's guards.
    async fn bind(&self, pair: ProvisionedClaim) -> Option<i64> {
        let guards: Vec<Guard> = pair.guards.iter().map(|guard| guard_from_pb(guard).unwrap()).collect();
        let ops = vec![put(&pair.claim.unwrap()), put(&pair.volume.unwrap())];
        self.commit(Txn { guards, ops }).await
    }
}

fn class() -> StorageClass {
    let annotation = ("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
    StorageClass {
        metadata: Some(ObjectMeta {
            name: "local".into(),
            uid: "class".into(),
            annotations: BTreeMap::from([annotation]),
            ..ObjectMeta::default()
        }),
        provisioner: "local".into(),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        ..StorageClass::default()
    }
}

fn claim(uid: &str) -> PersistentVolumeClaim {
    let meta =
        ObjectMeta { name: "www-web-0".into(), namespace: "default".into(), uid: uid.into(), ..ObjectMeta::default() };
    let requests = BTreeMap::from([("storage".to_owned(), "1Gi".into())]);
    PersistentVolumeClaim {
        metadata: Some(meta),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: vec!["ReadWriteOnce".into()],
            resources: Some(VolumeResourceRequirements { requests, ..VolumeResourceRequirements::default() }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

#[tokio::test]
async fn a_new_claim_gets_a_volume_on_its_node_and_keeps_it() {
    let cluster = Cluster::start().await;
    let prepared = cluster.prepare(&claim("7")).await;
    assert!(matches!(&prepared.state, Some(State::Unbound(unbound)) if unbound.storage_class == "local"));

    let pair = cluster.provision(&claim("7"), "n1").await.unwrap();
    let again = cluster.provision(&claim("7"), "n1").await.unwrap();
    let handle = |pair: &ProvisionedClaim| pair.volume.clone().unwrap().spec.unwrap().csi.unwrap().volume_handle;
    assert_eq!(handle(&pair), handle(&again), "the same claim gives the same volume");
    assert!(cluster.bind(pair).await.is_some());
    assert!(cluster.bind(again).await.is_none(), "a late writer must not bind the claim a second time");

    // At once, whatever the caches show yet.
    let bound: PersistentVolumeClaim = cluster.read("default", "www-web-0").await.unwrap();
    let prepared = cluster.prepare(&bound).await;
    let Some(State::Bound(state)) = prepared.state else { panic!("{prepared:?}") };
    assert_eq!(state.volume_name, "pvc-7");
    let place = &state.reachable.unwrap().node_selector_terms[0].match_expressions[0];
    assert_eq!((place.key.as_str(), place.values.as_slice()), (csi::local::TOPOLOGY_KEY, &["n1".to_owned()][..]));
    assert_eq!(cluster.provision(&bound, "n2").await.unwrap_err().code(), Code::FailedPrecondition);
    cluster.tasks.finish(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_lost_volume_is_a_problem_with_advice() {
    let cluster = Cluster::start().await;
    cluster.prepare(&claim("7")).await;
    let pair = cluster.provision(&claim("7"), "n1").await.unwrap();
    let volume = pair.volume.clone().unwrap();
    cluster.bind(pair).await.unwrap();
    let bound: PersistentVolumeClaim = cluster.read("default", "www-web-0").await.unwrap();
    cluster.prepare(&bound).await;
    cluster.write(vec![delete(&volume)]).await;
    in_time(async {
        loop {
            match cluster.prepare(&bound).await.state {
                // The cache may still show it; the answer's guard would not hold.
                Some(State::Bound(_)) => tokio::task::yield_now().await,
                Some(State::Problem(problem)) => {
                    assert_eq!(problem.reason, "VolumeLost");
                    assert!(problem.message.contains("delete the claim"), "{}", problem.message);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_falls_with_the_class_that_it_rests_on() {
    let cluster = Cluster::start().await;
    cluster.prepare(&claim("7")).await;
    let pair = cluster.provision(&claim("7"), "n1").await.unwrap();
    let mut changed = class();
    changed.reclaim_policy = Some("Retain".into());
    cluster.write(vec![put(&changed)]).await;
    assert!(cluster.bind(pair).await.is_none());
}

#[tokio::test]
async fn the_leader_ends_the_volume_of_a_claim_that_is_gone_and_keeps_the_others() {
    let cluster = Cluster::start().await;
    cluster.manager.lead("test:1".into(), &cluster.tasks);
    cluster.prepare(&claim("7")).await;
    let pair = cluster.provision(&claim("7"), "n1").await.unwrap();
    cluster.bind(pair).await.unwrap();
    let mut other = claim("8");
    other.meta_mut().name = "www-web-1".into();
    let pair = cluster.provision(&other, "n1").await.unwrap();
    cluster.bind(pair).await.unwrap();

    // Deleted, and at once followed by another claim of the same name.
    cluster.write(vec![delete(&claim("7"))]).await;
    cluster.write(vec![put(&claim("9"))]).await;
    in_time(async {
        loop {
            if cluster.read::<PersistentVolume>("", "pvc-7").await.is_none() {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let kept: PersistentVolume = cluster.read("", "pvc-8").await.unwrap();
    assert_eq!(kept.status.as_ref().unwrap().phase, "Bound");
    assert_eq!(kept.mod_revision(), {
        let claim: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
        claim.mod_revision()
    });
    assert!(cluster.store.get(&Key::leader("volumes")).await.unwrap().is_some());
}

#[test]
fn the_scheduler_and_the_driver_mean_the_same_places() {
    assert_eq!(plan::schedule::NODE_TOPOLOGY_KEY, csi::local::TOPOLOGY_KEY);
}
