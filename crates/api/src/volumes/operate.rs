//! Asks for an operation on claims' data: Move takes it to another node, Restore puts a snapshot's data in its place.
//!
//! The request is checked against what is stored now and written into the status of all claims concerned in one
//! transaction, under the guard that nothing it rests on changed; with `stop`, the pod is asked to stop in the same
//! transaction. From then on no pod gets a node with the claims until the operation has ended, and the volume manager
//! carries it out when nobody uses them any more.

use model::quantity::Quantity;
use pb::{
    Kind, Object as _, ObjectExt,
    api::v1::{
        DeleteRequest, MoveVolumesRequest, MoveVolumesResponse, Object as AnyObject, RestoreVolumesRequest,
        RestoreVolumesResponse,
    },
    objects::{ClaimOperation, Node, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod, VolumeSnapshot},
};
use plan::{
    schedule::matches,
    volume::{
        held,
        lost::is_off,
        operation::{MOVE, RESTORE, WAITING},
    },
};
use store::{Guard, Op, Txn, TxnOutcome, objects};

use super::{
    admit::size,
    owner::{Owner, claim_in, claims_named},
    snapshot::named,
};
use crate::{
    Shared,
    caches::Stored,
    delete::marked,
    error::{Error, Result, called},
    object::{may_go, now},
};

/// How often a request is decided again when others change what it rests on at the same time.
const ATTEMPTS: usize = 5;
/// Letters of an operation's id: it becomes a part of a volume's name.
const ID: usize = 8;

/// What is done with the data.
enum Act<'a> {
    Move { to: &'a str },
    Restore { from: &'a str },
}

/// A claim, and what is to be done with its data.
struct Begun {
    stored: Stored,
    claim: PersistentVolumeClaim,
    volume: PersistentVolume,
    operation: ClaimOperation,
}

/// A request, checked: what to write and what that rests on.
#[derive(Default)]
struct Draft {
    claims: Vec<PersistentVolumeClaim>,
    guards: Vec<Guard>,
    ops: Vec<Op>,
}

impl Shared {
    /// Asks for data of snapshots to take the place of claims' data.
    pub async fn restore_volumes(&self, request: RestoreVolumesRequest) -> Result<RestoreVolumesResponse> {
        let (namespace, owner) = Owner::read(request.into.as_ref(), "into")?;
        if request.from.is_empty() {
            let why = "Required value: the group of snapshots, or the snapshot (`berth get volumesnapshots`)";
            return Err(Error::field("from", why));
        }
        let act = Act::Restore { from: &request.from };
        Ok(RestoreVolumesResponse { claims: self.operate(&namespace, &owner, &act, request.stop).await? })
    }

    /// Asks for claims' data to go to another node.
    pub async fn move_volumes(&self, request: MoveVolumesRequest) -> Result<MoveVolumesResponse> {
        let (namespace, owner) = Owner::read(request.of.as_ref(), "of")?;
        if request.target_node.is_empty() {
            return Err(Error::field("targetNode", "Required value: a node (`berth get nodes`)"));
        }
        let act = Act::Move { to: &request.target_node };
        Ok(MoveVolumesResponse { claims: self.operate(&namespace, &owner, &act, request.stop).await? })
    }

    async fn operate(
        &self,
        namespace: &str,
        owner: &Owner,
        act: &Act<'_>,
        stop: bool,
    ) -> Result<Vec<PersistentVolumeClaim>> {
        if let Owner::Set(set) = owner {
            let verb = if matches!(act, Act::Move { .. }) { "move" } else { "restore" };
            return Err(Error::Refused(format!(
                "the pods of a set do not stop all at once for this: do it pod by pod (`berth volume {verb} pod/{set}-0 ...`)"
            )));
        }
        for _ in 0..ATTEMPTS {
            let Draft { mut claims, guards, ops } = self.drafted(namespace, owner, act, stop).await?;
            let stops = ops.len() > claims.len();
            if let TxnOutcome::Committed(revision) = self.store.txn(Txn { guards, ops }).await? {
                self.caches.of(Kind::PersistentVolumeClaim).wrote(revision);
                if stops {
                    self.caches.of(Kind::Pod).wrote(revision);
                }
                for claim in &mut claims {
                    claim.meta_mut().resource_version = revision.to_string();
                }
                return Ok(claims);
            }
        }
        Err(Error::contended(&format!("the claims in namespace {namespace}")))
    }

    async fn drafted(&self, namespace: &str, owner: &Owner, act: &Act<'_>, stop: bool) -> Result<Draft> {
        let mut begun = Vec::new();
        for stored in self.claims_of(namespace, owner).await? {
            let claim = claim_in(&stored)?.clone();
            let volume = self.bound_volume(&claim, namespace).await?;
            begun.push(Begun { stored, claim, volume, operation: operation() });
        }
        let mut draft = Draft::default();
        match act {
            Act::Move { to } => self.moved(&mut begun, to).await?,
            Act::Restore { from } => {
                let by_name = matches!(owner, Owner::Claim(_));
                draft.guards = self.restored(&mut begun, namespace, from, by_name).await?;
            }
        }
        for Begun { stored, mut claim, operation, .. } in begun {
            free(&claim, namespace)?;
            claim.status.get_or_insert_default().operation = Some(operation);
            draft.guards.push(Guard::ModRevision(stored.key, stored.mod_revision));
            draft.ops.push(objects::put(&claim));
            draft.claims.push(claim);
        }
        for pod in self.users(namespace, &draft.claims).await? {
            stopped(&pod, stop, &mut draft)?;
        }
        Ok(draft)
    }

    /// Leaves those claims whose data is not on the node yet, and says that it goes there.
    async fn moved(&self, begun: &mut Vec<Begun>, to: &str) -> Result<()> {
        let node = self.target(to).await?;
        begun.retain(|one| !reached(&one.volume, &node));
        if begun.is_empty() {
            return Err(Error::Refused(format!(
                "the volumes can be reached from node {to} as they are: there is nothing to move"
            )));
        }
        for one in begun {
            self.movable(&one.claim, &one.volume, &node).await?;
            MOVE.clone_into(&mut one.operation.r#type);
            to.clone_into(&mut one.operation.target_node);
        }
        Ok(())
    }

    /// Says for each claim whose data takes the place of its own; the guards that the snapshots stay as they are.
    async fn restored(&self, begun: &mut [Begun], namespace: &str, from: &str, by_name: bool) -> Result<Vec<Guard>> {
        let mut guards = Vec::new();
        for one in begun {
            let snapshot = self.snapshot_for(namespace, &one.claim, from, by_name).await?;
            fits(&snapshot, &one.claim, &one.volume)?;
            guards.push(objects::unchanged(&snapshot));
            RESTORE.clone_into(&mut one.operation.r#type);
            snapshot.name().clone_into(&mut one.operation.snapshot);
        }
        // One snapshot may serve several claims.
        guards.dedup();
        Ok(guards)
    }

    /// The volume of a claim that has one.
    async fn bound_volume(&self, claim: &PersistentVolumeClaim, namespace: &str) -> Result<PersistentVolume> {
        let what = called(Kind::PersistentVolumeClaim, namespace, claim.name());
        if claim.is_terminating() {
            return Err(Error::Refused(format!("{what} is being deleted")));
        }
        let name = claim.spec.as_ref().map(|spec| spec.volume_name.as_str()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::Refused(format!(
                "{what} has no volume yet, so there is no data; `berth why` says what its pod waits for"
            )));
        }
        self.caches.get_typed("", name).await.map_err(|error| match error {
            Error::NotFound { what: volume, .. } => Error::Refused(format!("{volume} of {what} is gone")),
            error => error,
        })
    }

    /// The node that data is to go to.
    async fn target(&self, name: &str) -> Result<Node> {
        let node: Node = self.caches.get_typed("", name).await.map_err(|error| match error {
            Error::NotFound { what, .. } => {
                Error::NotFound { what, hint: "; `berth get nodes` lists those that there are".to_owned() }
            }
            error => error,
        })?;
        let why = if is_off(&node) {
            "is out of service"
        } else if !is_ready(&node) {
            "is not ready"
        } else if node.spec.as_ref().is_some_and(|spec| spec.unschedulable) {
            "takes no new pods (it is cordoned)"
        } else {
            return Ok(node);
        };
        Err(Error::Refused(format!("node {name} {why}: the pod could not start there; choose another node")))
    }

    /// Whether a volume's data can be brought to a node.
    async fn movable(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume, to: &Node) -> Result<()> {
        let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| csi.driver.as_str());
        let drivers = to.status.iter().flat_map(|status| &status.csi_drivers);
        if !drivers.clone().any(|known| known.name == driver) {
            let there: Vec<_> = drivers.map(|known| known.name.as_str()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(Error::Refused(format!(
                "node {} does not have the CSI driver {driver:?} of claim {} (it has {there}); choose another node, or \
                 start the driver there",
                to.name(),
                claim.name()
            )));
        }
        let (nodes, _) = self.caches.list(Kind::Node, "").await?;
        let nodes = nodes.iter().filter_map(|stored| stored.typed::<Node>());
        let alive = |node: &Node| reached(volume, node) && is_ready(node) && !is_off(node);
        if nodes.into_iter().any(alive) {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "no node that is well has the data of claim {}, so it cannot be copied from there; bring its node back, or \
             restore a snapshot of it",
            claim.name()
        )))
    }

    /// The snapshot that is meant for a claim: of the group, or, if a single claim is restored, of that name.
    async fn snapshot_for(
        &self,
        namespace: &str,
        claim: &PersistentVolumeClaim,
        from: &str,
        by_name: bool,
    ) -> Result<VolumeSnapshot> {
        let kind = Kind::VolumeSnapshot;
        let of_group = named(from, claim.name());
        let names = [Some(of_group.as_str()), Some(from).filter(|_| by_name)];
        for name in names.into_iter().flatten() {
            if let Some(Stored { object, .. }) = self.read(kind, namespace, name).await?
                && let Ok(snapshot) = VolumeSnapshot::from_any(object)
            {
                return Ok(snapshot);
            }
        }
        Err(Error::NotFound {
            what: called(kind, namespace, &of_group),
            hint: format!(
                ": {from:?} has no snapshot of claim {}; `berth get volumesnapshots` lists those that there are",
                claim.name()
            ),
        })
    }

    /// Pods that may have one of the claims in use: all that have a node.
    async fn users(&self, namespace: &str, claims: &[PersistentVolumeClaim]) -> Result<Vec<Stored>> {
        let (pods, _) = self.caches.list(Kind::Pod, namespace).await?;
        let mut users = Vec::new();
        for pod in pods {
            let Some(named) = pod.typed::<Pod>() else { continue };
            let bound = named.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty());
            if !bound || !claims_named(named).any(|name| claims.iter().any(|claim| claim.name() == name)) {
                continue;
            }
            users.extend(self.read(Kind::Pod, namespace, named.name()).await?);
        }
        Ok(users)
    }
}

/// Adds what becomes of a pod that uses the claims; an error if nobody asked for it to stop.
fn stopped(pod: &Stored, stop: bool, draft: &mut Draft) -> Result<()> {
    let meta = pod.object.meta();
    draft.guards.push(Guard::ModRevision(pod.key.clone(), pod.mod_revision));
    if meta.deletion_timestamp.is_some() {
        return Ok(());
    }
    if !stop {
        return Err(Error::Refused(format!(
            "pod {0} uses the data now; with --stop it is stopped for as long as this takes (or stop it yourself, for \
             example by scaling down)",
            meta.name
        )));
    }
    let new: AnyObject = marked(pod, &DeleteRequest::default(), now())?;
    if may_go(&new) {
        draft.ops.push(Op::Delete(pod.key.clone()));
    } else {
        draft.ops.extend(objects::put_any(&new));
    }
    Ok(())
}

/// No other operation holds the claim.
fn free(claim: &PersistentVolumeClaim, namespace: &str) -> Result<()> {
    let Some(held) = held(claim) else { return Ok(()) };
    let what = called(Kind::PersistentVolumeClaim, namespace, claim.name());
    Err(Error::Refused(format!(
        "{what} is held by operation {} ({}, {}); `berth volume describe {}` says how far it is",
        held.id,
        held.r#type,
        held.phase,
        claim.name()
    )))
}

/// Whether a snapshot can take the place of a claim's data.
fn fits(snapshot: &VolumeSnapshot, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<()> {
    let (name, status) = (snapshot.name(), snapshot.status.clone().unwrap_or_default());
    if snapshot.is_terminating() {
        return Err(Error::Refused(format!("snapshot {name} is being deleted; choose another one")));
    }
    if !status.ready_to_use {
        let why = status.error.map(|error| format!(": {}", error.message)).unwrap_or_default();
        return Err(Error::Refused(format!(
            "snapshot {name} is not ready yet{why}; `berth describe vs {name}` says more"
        )));
    }
    let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| csi.driver.as_str());
    if !status.driver.is_empty() && status.driver != driver {
        return Err(Error::Refused(format!(
            "snapshot {name} is of the CSI driver {:?}, and the volume of claim {} of {driver:?}; make a new claim with \
             the snapshot as its dataSource instead",
            status.driver,
            claim.name()
        )));
    }
    let needed = status.restore_size.as_ref().and_then(|size| size.value.parse::<Quantity>().ok());
    if let (Some(needed), Some(has)) = (needed, size(claim))
        && needed > has
    {
        let claim = claim.name();
        return Err(Error::Refused(format!(
            "snapshot {name} needs {needed}, and claim {claim} asks for {has}; `berth volume expand {claim} --size \
             {needed}` first"
        )));
    }
    Ok(())
}

/// An operation that has been asked for.
fn operation() -> ClaimOperation {
    ClaimOperation {
        id: uuid::Uuid::new_v4().simple().to_string().chars().take(ID).collect(),
        phase: WAITING.to_owned(),
        started_at: Some(now()),
        ..ClaimOperation::default()
    }
}

/// Whether a volume can be reached from a node.
fn reached(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let selector: Option<&NodeSelector> = affinity.and_then(|affinity| affinity.required.as_ref());
    selector.is_none_or(|selector| matches(selector, node.name(), &node.meta().labels))
}

fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.r#type == "Ready" && condition.status == "True")
}
