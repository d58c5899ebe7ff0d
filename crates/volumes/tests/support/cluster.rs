//! A store, nodes and a volume manager that leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use pb::{
    Object, ObjectExt,
    agent::v1::volume_agent_service_server::VolumeAgentServiceServer,
    csi::v1::controller_server::ControllerServer,
    objects::*,
    volumes::v1::{
        PrepareRequest, PreparedClaim, ProvisionRequest, ProvisionedClaim, UsageRequest, VolumeUsage,
        prepared_claim::State, volume_service_server::VolumeService,
    },
};
use runtime::{CancellationToken, Server, Tasks};
use store::{
    Guard, Key, Op, PageRequest, Prefix, Store, Txn, TxnOutcome,
    objects::{absent, decode, delete, guard_from_pb, put, unchanged},
    testing::EtcdProcess,
};
use tonic::{Request, Status};
use volumes::{Settings, VolumeManager};

use super::driver::{Driver, Kind, TOPOLOGY};

pub struct Cluster {
    pub store: Arc<dyn Store>,
    pub driver: Driver,
    pub manager: VolumeManager,
    manager_tasks: Tasks,
    nodes: Tasks,
    settings: Settings,
    _etcd: EtcdProcess,
}

/// What a test waits for comes soon.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

impl Cluster {
    /// A cluster of nodes n1, n2 and n3 with a driver, and a class "fast" of it.
    pub async fn start(kind: Kind) -> Self {
        let etcd = EtcdProcess::start().await.unwrap();
        let store: Arc<dyn Store> = Arc::new(etcd.store().await.unwrap());
        let settings = Settings {
            call: Duration::from_millis(300),
            orphan_grace: Duration::from_millis(1500),
            orphan_period: Duration::from_millis(500),
        };
        let driver = Driver::new(kind);
        let (manager, manager_tasks) = lead(&store, settings);
        let nodes = Tasks::new(&CancellationToken::new());
        let cluster = Self { store, driver, manager, manager_tasks, nodes, settings, _etcd: etcd };
        cluster.write(vec![put(&class("fast", &cluster.driver))]).await;
        for node in ["n1", "n2", "n3"] {
            cluster.node(node).await;
        }
        let probe = claim("probe", "uid-probe");
        let ready = async || matches!(cluster.prepare(&probe).await.state, Some(State::Unbound(_)));
        cluster.until("the manager knows the class and the nodes", ready).await;
        cluster
    }

    /// A node whose agent answers.
    pub async fn node(&self, name: &str) {
        let driver = self.driver.on(name);
        let server = Server::new("agent", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let server = server
            .service(ControllerServer::new(driver.clone()))
            .service(VolumeAgentServiceServer::new(driver))
            .bind()
            .await
            .unwrap();
        let port = server.local_addr().unwrap().port();
        let token = self.nodes.token().clone();
        self.nodes.spawn_graceful("agent", async move { server.serve(token).await.unwrap() });
        self.write(vec![put(&node_of(name, port, &self.driver))]).await;
    }

    /// Another manager takes over from one that is gone without a word.
    pub async fn restart(&mut self) {
        let (manager, tasks) = lead(&self.store, self.settings);
        std::mem::replace(&mut self.manager_tasks, tasks).finish(Duration::from_secs(5)).await;
        self.manager = manager;
    }

    pub async fn write(&self, ops: Vec<Op>) -> i64 {
        self.commit(Txn { guards: vec![], ops }).await.expect("no guard")
    }

    pub async fn commit(&self, txn: Txn) -> Option<i64> {
        match self.store.txn(txn).await.unwrap() {
            TxnOutcome::Committed(revision) => Some(revision),
            TxnOutcome::Conflict => None,
        }
    }

    pub async fn read<T: Object>(&self, namespace: &str, name: &str) -> Option<T> {
        let kv = self.store.get(&Key::object(T::KIND, namespace, name)).await.unwrap();
        kv.map(|kv| decode(&kv).unwrap())
    }

    pub async fn all<T: Object>(&self) -> Vec<T> {
        let page = self.store.list(&Prefix::kind(T::KIND), PageRequest::default()).await.unwrap();
        page.items.iter().map(|kv| decode(kv).unwrap()).collect()
    }

    /// Changes an object until nobody else wrote in between.
    pub async fn change<T: Object>(&self, namespace: &str, name: &str, change: impl Fn(&mut T)) {
        loop {
            let object: T = self.read(namespace, name).await.unwrap();
            let mut changed = object.clone();
            change(&mut changed);
            if self.commit(Txn { guards: vec![unchanged(&object)], ops: vec![put(&changed)] }).await.is_some() {
                return;
            }
        }
    }

    pub async fn prepare(&self, claim: &PersistentVolumeClaim) -> PreparedClaim {
        let request = PrepareRequest { claims: vec![claim.clone()] };
        self.manager.prepare(Request::new(request)).await.unwrap().into_inner().claims.remove(0)
    }

    pub async fn provision(&self, claim: &PersistentVolumeClaim, node: &str) -> Result<ProvisionedClaim, Status> {
        let request = ProvisionRequest { claims: vec![claim.clone()], node_name: node.into() };
        Ok(self.manager.provision(Request::new(request)).await?.into_inner().claims.remove(0))
    }

    /// Asks until there is an answer.
    pub async fn provisioned(&self, claim: &PersistentVolumeClaim, node: &str) -> ProvisionedClaim {
        in_time("a volume", async {
            loop {
                match self.provision(claim, node).await {
                    Ok(pair) => return pair,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    /// What the controller does: both objects under the answer's guards.
    pub async fn bind(&self, pair: ProvisionedClaim) -> Option<i64> {
        let guards: Vec<Guard> = pair.guards.iter().map(|guard| guard_from_pb(guard).unwrap()).collect();
        let ops = vec![put(&pair.claim.unwrap()), put(&pair.volume.unwrap())];
        self.commit(Txn { guards, ops }).await
    }

    /// A claim with its volume on a node.
    pub async fn bound(&self, claim: &PersistentVolumeClaim, node: &str) {
        in_time("a bound claim", async {
            loop {
                let pair = self.provisioned(claim, node).await;
                if self.bind(pair).await.is_some() {
                    return;
                }
            }
        })
        .await;
    }

    pub async fn usage(&self, volume: &str) -> Vec<VolumeUsage> {
        let request = UsageRequest { volumes: vec![volume.into()] };
        self.manager.usage(Request::new(request)).await.unwrap().into_inner().volumes
    }

    /// Waits until something holds.
    pub async fn until<F, Fut>(&self, what: &str, holds: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = bool>,
    {
        in_time(what, async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    pub async fn until_phase(&self, volume: &str, phase: &str) {
        let holds = async || {
            let object: Option<PersistentVolume> = self.read("", volume).await;
            object.is_some_and(|volume| volume.status.is_some_and(|status| status.phase == phase))
        };
        self.until(&format!("{volume} is {phase}"), holds).await;
    }

    /// Waits until the driver's volumes are the store's, with nothing broken on the way.
    pub async fn converges(&self) {
        let same = async || {
            let objects = self.all::<PersistentVolume>().await;
            let handle = |volume: &PersistentVolume| volume.spec.clone().unwrap().csi.unwrap().volume_handle;
            let known: BTreeSet<String> = objects.iter().map(handle).collect();
            let disks = self.driver.disks();
            disks.len() == objects.len() && disks.iter().all(|(_, id)| known.contains(id))
        };
        self.until("the driver's volumes are the store's", same).await;
        let broken = self.driver.state.lock().broken.clone();
        assert_eq!(broken, Vec::<String>::new());
    }

    pub async fn end(self) {
        self.manager_tasks.finish(Duration::from_secs(5)).await;
        self.nodes.finish(Duration::from_secs(5)).await;
    }
}

fn lead(store: &Arc<dyn Store>, settings: Settings) -> (VolumeManager, Tasks) {
    let tasks = Tasks::new(&CancellationToken::new());
    let manager = VolumeManager::start_with(Arc::clone(store), &[], settings, &tasks).unwrap();
    manager.lead("test:1".into(), &tasks);
    (manager, tasks)
}

pub fn node_of(name: &str, port: u16, driver: &Driver) -> Node {
    let address = NodeAddress { r#type: "InternalIP".into(), address: "127.0.0.1".into() };
    let keys = if driver.kind == Kind::Shared { vec![] } else { vec![TOPOLOGY.to_owned()] };
    let registered = NodeCsiDriver {
        name: driver.name().into(),
        node_id: format!("id-of-{name}"),
        topology_keys: keys,
        max_volumes: 0,
        controller: true,
    };
    Node {
        metadata: Some(ObjectMeta {
            name: name.into(),
            uid: name.into(),
            labels: BTreeMap::from([(TOPOLOGY.to_owned(), name.to_owned())]),
            ..ObjectMeta::default()
        }),
        status: Some(NodeStatus {
            addresses: vec![address],
            conditions: vec![Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() }],
            daemon_endpoints: Some(NodeDaemonEndpoints { agent_endpoint: Some(DaemonEndpoint { port: port.into() }) }),
            csi_drivers: vec![registered],
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

pub fn class(name: &str, driver: &Driver) -> StorageClass {
    let parameters = [("type", "directory"), ("csi.storage.k8s.io/fstype", "xfs")];
    StorageClass {
        metadata: Some(ObjectMeta { name: name.into(), uid: name.into(), ..ObjectMeta::default() }),
        provisioner: driver.name().into(),
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        reclaim_policy: Some("Delete".into()),
        mount_options: vec!["noatime".into()],
        ..StorageClass::default()
    }
}

pub fn claim(name: &str, uid: &str) -> PersistentVolumeClaim {
    let meta = ObjectMeta { name: name.into(), namespace: "default".into(), uid: uid.into(), ..ObjectMeta::default() };
    let requests = BTreeMap::from([("storage".to_owned(), "1Gi".into())]);
    PersistentVolumeClaim {
        metadata: Some(meta),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: vec!["ReadWriteOnce".into()],
            resources: Some(VolumeResourceRequirements { requests, ..VolumeResourceRequirements::default() }),
            storage_class_name: Some("fast".into()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// A claim by its number.
pub fn pvc(number: usize) -> PersistentVolumeClaim {
    claim(&format!("www-web-{number}"), &format!("uid-{number}"))
}

/// A pod on a node that uses a claim.
pub fn pod(name: &str, node: &str, claim: &str) -> Pod {
    let source = PersistentVolumeClaimVolumeSource { claim_name: claim.into(), ..Default::default() };
    let volume = Volume { name: "www".into(), persistent_volume_claim: Some(source), ..Default::default() };
    let meta = ObjectMeta { name: name.into(), namespace: "default".into(), uid: name.into(), ..ObjectMeta::default() };
    Pod {
        metadata: Some(meta),
        spec: Some(PodSpec { node_name: node.into(), volumes: vec![volume], ..PodSpec::default() }),
        ..Pod::default()
    }
}

/// The volume that a claim is bound to.
pub fn bound(prepared: &PreparedClaim) -> Option<&str> {
    match &prepared.state {
        Some(State::Bound(bound)) => Some(&bound.volume_name),
        _ => None,
    }
}

impl Cluster {
    pub async fn create<T: Object>(&self, object: &T) {
        assert!(self.commit(Txn { guards: vec![absent(object)], ops: vec![put(object)] }).await.is_some());
    }

    pub async fn remove<T: Object>(&self, object: &T) {
        self.write(vec![delete(object)]).await;
    }

    pub fn name_of(&self, object: &PersistentVolume) -> String {
        object.name().to_owned()
    }
}
