//! The scheduler and the volume manager: the pure decisions of `plan` over what is stored now.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use controller::{
    host::Host,
    object,
    ports::{Placer, PortError, Volumes},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    Object, ObjectExt,
    csi::v1 as csi,
    objects::*,
    scheduler::v1::{PlaceRequest, PlaceResponse, Placement, Unschedulable, place_response},
    volumes::v1::{
        BoundClaim, ClaimProblem, PrepareRequest, PrepareResponse, PreparedClaim, ProvisionRequest, ProvisionResponse,
        ProvisionedClaim, UnboundClaim, prepared_claim,
    },
};
use plan::{
    schedule::{Ledger, NODE_TOPOLOGY_KEY, Request},
    volume::{Around, ClaimState, Known, Made, Source},
};
use store::{Key, MemStore, PageRequest, Prefix, Txn, objects};

use crate::wire::Wire;

/// The one driver.
const DRIVER: &str = "local.berth";

/// Time and identities that follow from the seed.
#[derive(Clone, Default)]
pub struct SimHost(Arc<Mutex<(Timestamp, u64)>>);

impl SimHost {
    /// Another host that goes on from here.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(*self.0.lock())))
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock();
        state.0 = state.0.checked_add(by).unwrap_or(Timestamp::MAX);
    }
}

impl Host for SimHost {
    fn now(&self) -> Timestamp {
        self.0.lock().0
    }

    fn uid(&self) -> String {
        let mut state = self.0.lock();
        state.1 += 1;
        format!("uid-{:06}", state.1)
    }
}

/// Both services, reached over a wire that may break.
pub struct Services {
    /// What is stored.
    pub store: MemStore,
    /// The way to them.
    pub wire: Wire,
    /// Time and identities.
    pub host: SimHost,
}

/// The class of all claims.
pub fn class() -> StorageClass {
    StorageClass {
        metadata: Some(ObjectMeta { name: "local".to_owned(), ..ObjectMeta::default() }),
        provisioner: DRIVER.to_owned(),
        ..StorageClass::default()
    }
}

/// All objects of a kind, as stored now. The simulation's own objects can all be decoded.
pub fn list<T: Object>(store: &MemStore) -> Vec<T> {
    let mut all = Vec::new();
    let mut request = PageRequest::default();
    while let Ok(page) = store.inspect(|model| model.list(&Prefix::kind(T::KIND), &request)) {
        all.extend(page.items.iter().filter_map(|kv| objects::decode(kv).ok()));
        request.after = page.items.last().map(|kv| kv.key.clone());
        if !page.more {
            break;
        }
    }
    all
}

/// One object, as stored now.
pub fn get<T: Object>(store: &MemStore, namespace: &str, name: &str) -> Option<T> {
    let key = Key::object(T::KIND, namespace, name);
    store.inspect(|model| model.get(&key).and_then(|kv| objects::decode(kv).ok()))
}

/// A node for a pod, by the scheduler's own rules.
pub fn place(store: &MemStore, pod: &Pod, reachable: Vec<NodeSelector>) -> Result<String, String> {
    let mut ledger = Ledger::default();
    list::<Node>(store).iter().for_each(|node| {
        ledger.set_node(node);
    });
    list::<Pod>(store).iter().for_each(|pod| {
        ledger.set_pod(pod);
    });
    let placed = ledger.place(&Request::of(pod, reachable), Duration::ZERO);
    placed.map(|placed| placed.node).map_err(|why| why.to_string())
}

/// What the volume manager says of a claim.
pub fn prepare(store: &MemStore, claim: &PersistentVolumeClaim) -> prepared_claim::State {
    let class = class();
    let volume = plan::volume::bound_to(claim).and_then(|name| get::<PersistentVolume>(store, "", name));
    let known = volume.as_ref().map_or(Known::Absent, Known::Is);
    let drivers = BTreeSet::from([DRIVER.to_owned()]);
    let around = Around {
        classes: vec![&class],
        free: Vec::new(),
        drivers: &drivers,
        source: Source::None,
        users: Vec::new(),
        at_once: false,
    };
    match plan::volume::prepare(claim, known, &around) {
        ClaimState::Bound(volume) => prepared_claim::State::Bound(BoundClaim {
            volume_name: volume.name().to_owned(),
            reachable: plan::volume::reachable(volume).cloned(),
            ..BoundClaim::default()
        }),
        ClaimState::Unbound(choice) => prepared_claim::State::Unbound(UnboundClaim {
            storage_class: choice.class_name.to_owned(),
            ..UnboundClaim::default()
        }),
        ClaimState::Problem(problem) => {
            prepared_claim::State::Problem(ClaimProblem { reason: problem.reason.to_owned(), message: problem.message })
        }
    }
}

/// A claim and the volume that is made for it on a node.
pub fn provision(
    host: &SimHost,
    claim: &PersistentVolumeClaim,
    node: &str,
) -> (PersistentVolumeClaim, PersistentVolume) {
    let segments = BTreeMap::from([(NODE_TOPOLOGY_KEY.to_owned(), node.to_owned())]);
    let volume = csi::Volume {
        volume_id: claim.uid().to_owned(),
        accessible_topology: vec![csi::Topology { segments }],
        ..csi::Volume::default()
    };
    let uid = format!("volume-of-{}", claim.uid());
    plan::volume::bind(claim, &class(), Made { volume: &volume, node, uid: &uid, now: host.now() })
}

#[async_trait]
impl Placer for Services {
    async fn place(&self, request: PlaceRequest) -> Result<PlaceResponse, PortError> {
        self.wire.call().await.map_err(|error| unanswered("scheduler", "Place", &error))?;
        let result = match place(&self.store, &request.pod.unwrap_or_default(), request.reachable) {
            Ok(node_name) => place_response::Result::Placement(Placement { node_name, guards: Vec::new() }),
            Err(message) => place_response::Result::Unschedulable(Unschedulable { message }),
        };
        Ok(PlaceResponse { result: Some(result) })
    }
}

#[async_trait]
impl Volumes for Services {
    async fn prepare(&self, request: PrepareRequest) -> Result<PrepareResponse, PortError> {
        self.wire.call().await.map_err(|error| unanswered("volume manager", "Prepare", &error))?;
        let claims = request.claims.iter().map(|claim| PreparedClaim {
            name: claim.name().to_owned(),
            state: Some(prepare(&self.store, claim)),
            guards: Vec::new(),
        });
        Ok(PrepareResponse { claims: claims.collect() })
    }

    async fn provision(&self, request: ProvisionRequest) -> Result<ProvisionResponse, PortError> {
        self.wire.call().await.map_err(|error| unanswered("volume manager", "Provision", &error))?;
        let claims = request.claims.iter().map(|claim| {
            let (claim, volume) = provision(&self.host, claim, &request.node_name);
            ProvisionedClaim { claim: Some(claim), volume: Some(volume), guards: Vec::new() }
        });
        Ok(ProvisionResponse { claims: claims.collect() })
    }
}

fn unanswered(service: &'static str, call: &'static str, error: &store::Error) -> PortError {
    PortError { service, call, reason: error.to_string() }
}

/// The pods that wait for a node.
pub fn waiting(store: &MemStore) -> Vec<Pod> {
    let unbound = |pod: &Pod| object::may_vanish(pod) && !pod.is_terminating();
    list::<Pod>(store).into_iter().filter(unbound).collect()
}

/// What the scheduler does about a pod that waits: a node if one has room, and there the volumes that its claims lack.
pub fn bind(store: &MemStore, host: &SimHost, mut pod: Pod) -> Option<Txn> {
    let mut guards = vec![objects::unchanged(&pod)];
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let names = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    let claims = names.map(|source| get::<PersistentVolumeClaim>(store, pod.namespace(), &source.claim_name));
    let claims = claims.collect::<Option<Vec<_>>>()?;
    let bound = claims.iter().filter_map(plan::volume::bound_to);
    let volumes: Vec<PersistentVolume> = bound.filter_map(|name| get(store, "", name)).collect();
    let reachable = volumes.iter().filter_map(plan::volume::reachable).cloned().collect();
    let node = place(store, &pod, reachable).ok()?;
    object::bind(&mut pod, &node, Time::from(host.now()));
    let mut ops = vec![objects::put(&pod)];
    for claim in claims.iter().filter(|claim| plan::volume::bound_to(claim).is_none()) {
        guards.push(objects::unchanged(claim));
        let (claim, volume) = provision(host, claim, &node);
        ops.extend([objects::put(&claim), objects::put(&volume)]);
    }
    Some(Txn { guards, ops })
}

/// A node with room for so many pods.
pub fn node(name: &str, pods: usize) -> Node {
    let labels = BTreeMap::from([(NODE_TOPOLOGY_KEY.to_owned(), name.to_owned())]);
    let room = BTreeMap::from([("pods".to_owned(), Quantity { value: pods.to_string() })]);
    let ready = Condition { r#type: "Ready".to_owned(), status: "True".to_owned(), ..Condition::default() };
    Node {
        metadata: Some(ObjectMeta { name: name.to_owned(), labels, ..ObjectMeta::default() }),
        status: Some(NodeStatus { allocatable: room, conditions: vec![ready], ..NodeStatus::default() }),
        ..Node::default()
    }
}
