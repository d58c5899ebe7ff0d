//! The scheduler over a store in memory, with a volume manager of the test's own behind a socket.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pb::{
    Kind, Object, ObjectExt,
    objects::{
        Affinity, Condition, Container, CsiPersistentVolumeSource, Event, LabelSelector, Node, NodeSelector,
        NodeSelectorRequirement, NodeSelectorTerm, NodeSpec, NodeStatus, ObjectMeta, OwnerReference, PersistentVolume,
        PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm, PodAntiAffinity, PodSpec,
        Quantity, ResourceRequirements, Taint, Toleration, Volume,
    },
    scheduler::v1::{
        PlaceRequest, PlaceResponse, Placement, place_response::Result as Answer,
        scheduler_service_server::SchedulerService,
    },
    volumes::v1::{
        BoundClaim, ClaimProblem, PrepareRequest, PrepareResponse, PreparedClaim, ProvisionRequest, ProvisionResponse,
        ProvisionedClaim, UnboundClaim,
        prepared_claim::State,
        volume_service_server::{VolumeService, VolumeServiceServer},
    },
};
use runtime::{CancellationToken, Server, Tasks, channel::connect};
use scheduler::Scheduler;
use store::{
    Guard, Key, MemStore, Store, Txn, TxnOutcome,
    objects::{decode, delete, guard_from_pb, guard_to_pb, put, unchanged},
};
use tempfile::TempDir;
use tonic::{Request, Response, Status};

/// Says of every claim what the test wants.
#[derive(Clone)]
struct Volumes {
    state: Arc<Mutex<State>>,
}

#[tonic::async_trait]
impl VolumeService for Volumes {
    async fn usage(
        &self,
        _: Request<pb::volumes::v1::UsageRequest>,
    ) -> Result<Response<pb::volumes::v1::UsageResponse>, Status> {
        Err(Status::unimplemented("nothing is mounted here"))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<PrepareResponse>, Status> {
        let state = Some(self.state.lock().clone());
        let prepared = |claim: PersistentVolumeClaim| PreparedClaim {
            name: claim.name().to_owned(),
            state: state.clone(),
            guards: vec![guard_to_pb(&unchanged(&claim))],
        };
        let claims = request.into_inner().claims.into_iter().map(prepared).collect();
        Ok(Response::new(PrepareResponse { claims }))
    }

    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let ProvisionRequest { claims, node_name } = request.into_inner();
        let driver = match &*self.state.lock() {
            State::Unbound(unbound) => unbound.driver.clone(),
            State::Bound(_) | State::Problem(_) => String::new(),
        };
        let pair = |mut claim: PersistentVolumeClaim| {
            let guards = vec![guard_to_pb(&unchanged(&claim))];
            let name = format!("{}-on-{node_name}", claim.name());
            claim.spec.get_or_insert_default().volume_name.clone_from(&name);
            let mut volume = PersistentVolume::default();
            volume.meta_mut().name = name;
            let csi = CsiPersistentVolumeSource { driver: driver.clone(), ..CsiPersistentVolumeSource::default() };
            volume.spec.get_or_insert_default().csi = Some(csi);
            ProvisionedClaim { claim: Some(claim), volume: Some(volume), guards }
        };
        Ok(Response::new(ProvisionResponse { claims: claims.into_iter().map(pair).collect() }))
    }
}

struct Cluster {
    store: Arc<dyn Store>,
    scheduler: Scheduler,
    volumes: Volumes,
    tasks: Tasks,
    dir: TempDir,
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("within ten seconds")
}

impl Cluster {
    async fn start() -> Self {
        let volumes = Volumes { state: Arc::new(Mutex::new(State::Unbound(UnboundClaim::default()))) };
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new(&CancellationToken::new()));
        let server = Server::unix("volumes", &dir.path().join("volumes.sock"));
        let server = server.service(VolumeServiceServer::new(volumes.clone())).bind().await.unwrap();
        let token = tasks.token().clone();
        tasks.spawn_graceful("volumes", async move { server.serve(token).await.unwrap() });
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        let scheduler = start_scheduler(&store, &dir, &tasks);
        Self { store, scheduler, volumes, tasks, dir }
    }

    async fn write(&self, ops: Vec<store::Op>) {
        assert!(self.commit(vec![], ops).await);
    }

    async fn commit(&self, guards: Vec<Guard>, ops: Vec<store::Op>) -> bool {
        matches!(self.store.txn(Txn { guards, ops }).await.unwrap(), TxnOutcome::Committed(_))
    }

    async fn pod(&self, name: &str) -> Pod {
        decode(&self.store.get(&Key::object(Kind::Pod, "default", name)).await.unwrap().unwrap()).unwrap()
    }

    /// Reads a pod until it is as expected.
    async fn pod_when(&self, name: &str, expected: impl Fn(&Pod) -> bool) -> Pod {
        in_time(async {
            loop {
                let pod = self.pod(name).await;
                if expected(&pod) {
                    return pod;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    async fn place(&self, pod: &Pod) -> Result<Placement, String> {
        place(&self.scheduler, pod).await
    }

    /// Asks until a node is found.
    async fn placed(&self, pod: &Pod) -> Placement {
        in_time(async {
            loop {
                if let Ok(placement) = self.place(pod).await {
                    return placement;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

fn start_scheduler(store: &Arc<dyn Store>, dir: &TempDir, tasks: &Tasks) -> Scheduler {
    let url = format!("unix://{}", dir.path().join("volumes.sock").display());
    let scheduler = Scheduler::start(Arc::clone(store), connect(&url).unwrap(), tasks);
    scheduler.lead("test:1".into(), tasks);
    scheduler
}

async fn place(scheduler: &Scheduler, pod: &Pod) -> Result<Placement, String> {
    let request = PlaceRequest { pod: Some(pod.clone()), ..PlaceRequest::default() };
    let PlaceResponse { result } = scheduler.place(Request::new(request)).await.unwrap().into_inner();
    match result.unwrap() {
        Answer::Placement(placement) => Ok(placement),
        Answer::Unschedulable(why) => Err(why.message),
    }
}

fn guards(placement: &Placement) -> Vec<Guard> {
    placement.guards.iter().map(|guard| guard_from_pb(guard).unwrap()).collect()
}

fn node(name: &str, cpu: &str) -> Node {
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() };
    let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity::from(cpu))]);
    Node {
        metadata: Some(ObjectMeta { name: name.into(), ..ObjectMeta::default() }),
        status: Some(NodeStatus { allocatable, conditions: vec![ready], ..NodeStatus::default() }),
        ..Node::default()
    }
}

fn pod(name: &str, cpu: &str, claim: Option<&str>) -> Pod {
    let requests = BTreeMap::from([("cpu".to_owned(), Quantity::from(cpu))]);
    let container = Container {
        resources: Some(ResourceRequirements { requests, ..ResourceRequirements::default() }),
        ..Container::default()
    };
    let volumes = claim.map(|claim_name| Volume {
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name.into(),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        ..Volume::default()
    });
    let owner = OwnerReference { uid: "set".into(), controller: Some(true), ..OwnerReference::default() };
    Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("{name}-a"),
            owner_references: vec![owner],
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            volumes: volumes.into_iter().collect(),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn claim(name: &str) -> PersistentVolumeClaim {
    let meta = ObjectMeta { name: name.into(), namespace: "default".into(), uid: name.into(), ..ObjectMeta::default() };
    PersistentVolumeClaim { metadata: Some(meta), ..PersistentVolumeClaim::default() }
}

fn node_of(pod: &Pod) -> &str {
    &pod.spec.as_ref().unwrap().node_name
}

fn waits_for(pod: &Pod) -> Option<&str> {
    let conditions = &pod.status.as_ref()?.conditions;
    let waiting = conditions.iter().find(|c| c.r#type == "PodScheduled" && c.status == "False");
    waiting.map(|condition| condition.message.as_str())
}

#[tokio::test]
async fn answers_are_counted_before_their_pods_are_seen() {
    let cluster = Cluster::start().await;
    cluster.write(vec![put(&node("a", "1")), put(&node("b", "1"))]).await;
    let first = cluster.placed(&pod("web-0", "600m", None)).await;
    let mut nodes = vec![first.node_name];
    nodes.push(cluster.placed(&pod("web-1", "600m", None)).await.node_name);
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    let why = cluster.place(&pod("web-2", "600m", None)).await.unwrap_err();
    assert_eq!(why, "0/2 nodes are available: 2 Insufficient cpu.");
}

#[tokio::test]
async fn an_answer_falls_with_its_node_and_with_its_leader() {
    let mut cluster = Cluster::start().await;
    cluster.write(vec![put(&node("a", "1"))]).await;
    let answer = cluster.placed(&pod("web-0", "600m", None)).await;
    cluster.write(vec![put(&node("a", "500m"))]).await;
    assert!(!cluster.commit(guards(&answer), vec![put(&pod("web-0", "600m", None))]).await);

    cluster.write(vec![put(&node("a", "1"))]).await;
    let late = cluster.placed(&pod("web-0", "600m", None)).await;
    // The process dies; its successor takes over and does not know of the answer.
    let old = std::mem::replace(&mut cluster.tasks, Tasks::new(&CancellationToken::new()));
    old.finish(Duration::from_secs(5)).await;
    let successor = start_scheduler(&cluster.store, &cluster.dir, &cluster.tasks);
    let answer = in_time(place(&successor, &pod("web-1", "600m", None))).await.unwrap();
    assert!(!cluster.commit(guards(&late), vec![put(&pod("web-0", "600m", None))]).await, "I19");
    assert!(cluster.commit(guards(&answer), vec![put(&pod("web-1", "600m", None))]).await);
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_once_and_is_bound_when_room_comes() {
    let cluster = Cluster::start().await;
    let mut full = pod("other", "800m", None);
    full.spec.as_mut().unwrap().node_name = "a".into();
    cluster.write(vec![put(&node("a", "1")), put(&full)]).await;
    cluster.write(vec![put(&claim("www")), put(&pod("web-0", "500m", Some("www")))]).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu.";
    let waiting = cluster.pod_when("web-0", |pod| waits_for(pod) == Some(text)).await;

    // Another pod that does not fit either changes nothing about the first.
    cluster.write(vec![put(&pod("web-1", "2", None))]).await;
    cluster.pod_when("web-1", |pod| waits_for(pod) == Some(text)).await;
    assert_eq!(cluster.pod("web-0").await.mod_revision(), waiting.mod_revision());

    cluster.write(vec![delete(&full)]).await;
    let bound = cluster.pod_when("web-0", |pod| !node_of(pod).is_empty()).await;
    assert_eq!((node_of(&bound), waits_for(&bound)), ("a", None));
    let kv = cluster.store.get(&Key::object(Kind::PersistentVolumeClaim, "default", "www")).await.unwrap().unwrap();
    let bound_claim: PersistentVolumeClaim = decode(&kv).unwrap();
    assert_eq!(bound_claim.spec.as_ref().unwrap().volume_name, "www-on-a");
    assert_eq!(bound_claim.mod_revision(), bound.mod_revision(), "pod, claim and volume in one transaction");
    assert!(node_of(&cluster.pod("web-1").await).is_empty());
}

#[tokio::test]
async fn a_bound_volume_decides_and_a_problem_is_told() {
    let cluster = Cluster::start().await;
    cluster.write(vec![put(&node("a", "1")), put(&node("b", "1"))]).await;
    let problem = ClaimProblem { reason: "VolumeLost".into(), message: "the volume is gone".into() };
    *cluster.volumes.state.lock() = State::Problem(problem);
    cluster.write(vec![put(&pod("web-0", "1m", Some("www")))]).await;
    cluster.pod_when("web-0", |pod| waits_for(pod).is_some_and(|why| why.contains("\"www\" not found"))).await;
    cluster.write(vec![put(&claim("www"))]).await;
    cluster.pod_when("web-0", |pod| waits_for(pod) == Some("claim www: the volume is gone")).await;
    let only_b = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".into(),
        operator: "In".into(),
        values: vec!["b".into()],
    };
    let terms = vec![NodeSelectorTerm { match_expressions: vec![only_b] }];
    let reachable = Some(NodeSelector { node_selector_terms: terms });
    *cluster.volumes.state.lock() =
        State::Bound(BoundClaim { volume_name: "v".into(), reachable, driver: String::new() });
    let bound = cluster.pod_when("web-0", |pod| !node_of(pod).is_empty()).await;
    assert_eq!(node_of(&bound), "b");
}

#[tokio::test]
async fn many_pods_at_once_are_spread_and_never_too_many() {
    let cluster = Cluster::start().await;
    let pods: Vec<Pod> = (0..9).map(|k| pod(&format!("web-{k}"), "300m", None)).collect();
    cluster.write(pods.iter().map(put).collect()).await;
    for pod in &pods {
        cluster.pod_when(pod.name(), |pod| waits_for(pod).is_some()).await;
    }
    cluster.write(vec![put(&node("a", "1")), put(&node("b", "1"))]).await;
    in_time(async {
        loop {
            let mut counts = BTreeMap::new();
            for pod in &pods {
                *counts.entry(node_of(&cluster.pod(pod.name()).await).to_owned()).or_insert(0) += 1;
            }
            let count = |node: &str| counts.get(node).copied().unwrap_or(0);
            assert!(count("a") <= 3 && count("b") <= 3, "{counts:?}");
            if count("a") + count("b") == 6 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_pod_waits_for_a_volume_of_the_node_to_be_given_back() {
    let cluster = Cluster::start().await;
    *cluster.volumes.state.lock() = State::Unbound(UnboundClaim { driver: "disk".into(), ..UnboundClaim::default() });
    let mut small = node("a", "8");
    let allocatable = &mut small.status.as_mut().unwrap().allocatable;
    allocatable.insert("attachable-volumes-csi-disk".into(), Quantity::from("2"));
    let names: Vec<String> = (0..4).map(|k| format!("web-{k}")).collect();
    let mut ops = vec![put(&small)];
    for name in &names {
        ops.extend([put(&claim(name)), put(&pod(name, "1m", Some(name)))]);
    }
    cluster.write(ops).await;

    let text = "0/1 nodes are available: 1 node(s) exceed max volume count.";
    let count = async |holds: fn(&Pod) -> bool| {
        let mut found = Vec::new();
        for name in &names {
            if let Some(kv) = cluster.store.get(&Key::object(Kind::Pod, "default", name)).await.unwrap() {
                found.extend(Some(decode::<Pod>(&kv).unwrap()).filter(holds));
            }
        }
        found
    };
    let bound = in_time(async {
        loop {
            let bound = count(|pod| !node_of(pod).is_empty()).await;
            assert!(bound.len() <= 2, "{bound:?}");
            if bound.len() == 2
                && count(|pod| waits_for(pod).is_some_and(|why| why.contains("max volume"))).await.len() == 2
            {
                return bound;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for waiting in count(|pod| node_of(pod).is_empty()).await {
        assert_eq!(waits_for(&waiting), Some(text));
    }
    cluster.write(vec![delete(&bound[0])]).await;
    in_time(async {
        while count(|pod| !node_of(pod).is_empty()).await.len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(count(|pod| node_of(pod).is_empty()).await.len(), 1);
}

/// The pod with what the test says of its spec.
fn with(mut pod: Pod, change: impl FnOnce(&mut PodSpec)) -> Pod {
    change(pod.spec.as_mut().unwrap());
    pod
}

#[tokio::test]
async fn pods_that_keep_apart_wait_for_another_node() {
    let cluster = Cluster::start().await;
    let apart = |name: &str| {
        let mut pod = with(pod(name, "1m", None), |spec| {
            let selector = LabelSelector { match_labels: [("app".into(), "zk".into())].into(), ..Default::default() };
            let term = PodAffinityTerm {
                label_selector: Some(selector),
                topology_key: "kubernetes.io/hostname".into(),
                ..Default::default()
            };
            let far = PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: vec![term],
                ..Default::default()
            };
            spec.affinity = Some(Affinity { pod_anti_affinity: Some(far), ..Default::default() });
        });
        pod.meta_mut().labels.insert("app".into(), "zk".into());
        pod
    };
    cluster.write(vec![put(&node("a", "1")), put(&node("b", "1"))]).await;
    cluster.write((0..3).map(|k| put(&apart(&format!("zk-{k}")))).collect()).await;
    let text = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.";
    in_time(async {
        loop {
            let mut waiting = Vec::new();
            let mut nodes = Vec::new();
            for k in 0..3 {
                let pod = cluster.pod(&format!("zk-{k}")).await;
                waiting.extend(waits_for(&pod).map(str::to_owned));
                nodes.extend(Some(node_of(&pod).to_owned()).filter(|node| !node.is_empty()));
            }
            nodes.sort();
            if waiting == [text] && nodes == ["a", "b"] {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.write(vec![put(&node("c", "1"))]).await;
    for k in 0..3 {
        cluster.pod_when(&format!("zk-{k}"), |pod| !node_of(pod).is_empty()).await;
    }
}

#[tokio::test]
async fn a_taint_or_a_cordon_that_goes_lets_pods_in() {
    let cluster = Cluster::start().await;
    let (mut tainted, mut cordoned) = (node("a", "1"), node("b", "1"));
    let taint = Taint { key: "gpu".into(), value: "yes".into(), effect: "NoSchedule".into(), ..Taint::default() };
    tainted.spec = Some(NodeSpec { taints: vec![taint], ..NodeSpec::default() });
    cordoned.spec = Some(NodeSpec { unschedulable: true, ..NodeSpec::default() });
    let everything = Toleration { operator: "Exists".into(), ..Toleration::default() };
    let daemon = with(pod("daemon", "1m", None), |spec| {
        spec.tolerations = vec![everything];
        spec.node_selector = [("kubernetes.io/hostname".to_owned(), "b".to_owned())].into();
    });
    cluster.write(vec![put(&tainted), put(&cordoned), put(&pod("web-0", "1m", None)), put(&daemon)]).await;
    let text = "0/2 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable.";
    cluster.pod_when("web-0", |pod| waits_for(pod) == Some(text)).await;
    let bound = cluster.pod_when("daemon", |pod| !node_of(pod).is_empty()).await;
    assert_eq!(node_of(&bound), "b", "who tolerates every taint tolerates a cordon");
    cluster.write(vec![put(&node("a", "1"))]).await;
    assert_eq!(node_of(&cluster.pod_when("web-0", |pod| !node_of(pod).is_empty()).await), "a");
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_a_less_important_one() {
    let cluster = Cluster::start().await;
    let ranked =
        |name: &str, cpu: &str, priority: i32| with(pod(name, cpu, None), |spec| spec.priority = Some(priority));
    let on_a = |pod: Pod| with(pod, |spec| spec.node_name = "a".into());
    cluster.write(vec![put(&node("a", "1")), put(&on_a(ranked("low", "500m", 1)))]).await;
    cluster.write(vec![put(&on_a(ranked("mid", "400m", 5)))]).await;
    let patient = with(ranked("patient", "900m", 100), |spec| spec.preemption_policy = "Never".into());
    cluster.write(vec![put(&patient)]).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu.";
    cluster.pod_when("patient", |pod| waits_for(pod) == Some(text)).await;
    assert!(!cluster.pod("low").await.is_terminating(), "who waits takes nobody's place");

    cluster.write(vec![put(&ranked("high", "550m", 50))]).await;
    let nominated = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.nominated_node_name == "a");
    let waiting = cluster.pod_when("high", nominated).await;
    assert_eq!(waits_for(&waiting), Some(text));
    let low = cluster.pod("low").await;
    assert_eq!(low.meta().deletion_grace_period_seconds, Some(30), "with its own grace");
    assert_eq!(low.mod_revision(), waiting.mod_revision(), "victim and word in one transaction");
    assert!(!cluster.pod("mid").await.is_terminating(), "no more than is needed");

    // The room is kept: neither a smaller pod nor one that came before gets it.
    cluster.write(vec![put(&ranked("small", "100m", 2))]).await;
    cluster.write(vec![delete(&low)]).await;
    let bound = cluster.pod_when("high", |pod| !node_of(pod).is_empty()).await;
    assert_eq!((node_of(&bound), nominated(&bound)), ("a", false));
    assert!(node_of(&cluster.pod("small").await).is_empty());
    let events = cluster.store.list(&store::Prefix::kind(Kind::Event), store::PageRequest::default()).await.unwrap();
    let events: Vec<Event> = events.items.iter().map(|kv| decode(kv).unwrap()).collect();
    assert_eq!(events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), ["Preempted"]);
}
