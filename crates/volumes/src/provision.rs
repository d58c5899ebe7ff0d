//! Provision: the volume of a claim, made or found, and the pair of both to write.
//!
//! The call to the driver belongs to the manager, not to the request that began it: a request that has waited long
//! enough answers "ask again", the call goes on, and the next request for the same claim takes its result or joins it. A
//! call whose outcome is not known is made again with the same arguments.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    Kind, ObjectExt,
    csi::v1::{
        self as csi, CapacityRange, CreateVolumeRequest, Topology, TopologyRequirement,
        controller_service_capability::rpc::Type as Rpc, volume_capability::AccessType,
    },
    objects::{PersistentVolume, PersistentVolumeClaim, StorageClass},
    volumes::v1::ProvisionedClaim,
};
use plan::{
    schedule::NODE_TOPOLOGY_KEY,
    volume::{self, Choice, ClaimState, Content, Made, SourceName},
};
use runtime::backoff::Backoff;
use store::{
    Guard, Key, Txn, TxnOutcome,
    objects::{absent, guard_to_pb, put, unchanged},
};
use tonic::{Code, Status};

use crate::{
    Inner,
    drivers::{CallError, Place, VolumeKey},
    lookup::Lookup,
    memory::Try,
    prepare::unavailable,
};

/// How long a request waits for a volume. Less than its caller's deadline, so that the caller hears why.
const PATIENCE: Duration = Duration::from_secs(4);
/// Times that a call of unknown outcome is made before its requester has to ask again.
const TRIES: u32 = 5;

type Making = Shared<BoxFuture<'static, Result<csi::Volume, CallError>>>;

/// Volumes that are being made, by name: what for, and the call.
#[derive(Default)]
pub(crate) struct Makings {
    running: Mutex<BTreeMap<VolumeKey, (CreateVolumeRequest, Making)>>,
}

/// A pair to write, and what it rests on.
pub(crate) struct Pair {
    pub(crate) claim: PersistentVolumeClaim,
    pub(crate) volume: PersistentVolume,
    pub(crate) guards: Vec<Guard>,
}

impl From<Pair> for ProvisionedClaim {
    fn from(pair: Pair) -> Self {
        let guards = pair.guards.iter().map(guard_to_pb).collect();
        Self { claim: Some(pair.claim), volume: Some(pair.volume), guards }
    }
}

impl Inner {
    /// The volume of a claim whose pod has this node.
    pub(crate) async fn provision(self: &Arc<Self>, claim: &PersistentVolumeClaim, node: &str) -> Result<Pair, Status> {
        if claim.uid().is_empty() {
            return Err(Status::invalid_argument(format!(
                "claims[{:?}].metadata.uid is empty; the uid makes the call idempotent",
                claim.name()
            )));
        }
        self.pair(claim, node, false).await
    }

    /// The same, also for the leader, who binds claims of classes that bind at once.
    pub(crate) async fn pair(
        self: &Arc<Self>,
        claim: &PersistentVolumeClaim,
        node: &str,
        at_once: bool,
    ) -> Result<Pair, Status> {
        let facts = self.facts(claim, at_once).await.map_err(unavailable)?;
        let choice = match facts.state(claim) {
            ClaimState::Unbound(choice) => choice,
            ClaimState::Bound(volume) => {
                return Err(Status::failed_precondition(format!(
                    "persistentvolumeclaim {:?} has its volume already: {:?}",
                    claim.name(),
                    volume.name()
                )));
            }
            ClaimState::Problem(problem) => {
                self.is_certain(&problem)?;
                return Err(Status::failed_precondition(problem.message));
            }
        };
        let mut guards = vec![if claim.mod_revision() > 0 { unchanged(claim) } else { absent(claim) }];
        guards.extend(facts.class(choice.class_name).map(|class| unchanged(&**class)));
        guards.extend(facts.snapshot().map(|snapshot| unchanged(&**snapshot)));
        if let Some(found) = self.found(&choice, node) {
            self.confirm(claim, found).await?;
            guards.push(unchanged(found));
            let (claim, volume) = volume::bind_existing(claim, found, node, Timestamp::now());
            return Ok(Pair { claim, volume, guards });
        }
        let Some(class) = choice.class else {
            return Err(Status::failed_precondition(format!(
                "no volume that persistentvolumeclaim {:?} may get can be reached from node {node:?}; ask where they can \
                 be reached, and place the pod there",
                claim.name()
            )));
        };
        let (made, before) = self.make(claim, class, choice.content.as_ref(), node).await?;
        let uid = before.as_ref().map_or_else(new_uid, |before| before.uid().to_owned());
        let (claim, mut volume) =
            volume::bind(claim, class, Made { volume: &made, node, uid: &uid, now: Timestamp::now() });
        match before {
            Some(before) => {
                guards.push(unchanged(&*before));
                pb::Object::meta_mut(&mut volume).resource_version = before.mod_revision().to_string();
            }
            None => guards.push(absent(&volume)),
        }
        Ok(Pair { claim, volume, guards })
    }

    /// The smallest of the volumes that there are and that the node reaches.
    fn found<'a>(&self, choice: &Choice<'a>, node: &str) -> Option<&'a PersistentVolume> {
        let object = self.drivers.node(node);
        let labels = object.as_ref().map(|node| pb::Object::meta(&**node).labels.clone()).unwrap_or_default();
        let near = choice.existing.iter().copied();
        volume::smallest(near.filter(|v| node.is_empty() || volume::reaches(volume::reachable(v), node, &labels)))
    }

    /// Lets the driver say whether a volume that a person described is there and can be used as the claim wants.
    async fn confirm(&self, claim: &PersistentVolumeClaim, found: &PersistentVolume) -> Result<(), Status> {
        let spec = found.spec.clone().unwrap_or_default();
        let Some(csi) = spec.csi else { return Ok(()) };
        let modes = claim.spec.as_ref().map(|spec| spec.access_modes.as_slice()).unwrap_or_default();
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: csi.volume_handle,
            volume_context: csi.volume_attributes,
            volume_capabilities: vec![volume::capability(modes, &csi.fs_type)],
            ..Default::default()
        };
        let answer = self.drivers.controller(&csi.driver, Place::of(found)).await?.validate(request).await;
        let why = match answer {
            Ok(answer) if answer.confirmed.is_some() => return Ok(()),
            Err(error) if error.refused() == Some(Code::Unimplemented) => return Ok(()),
            Ok(answer) => answer.message,
            Err(error) if error.refused().is_some() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        Err(Status::failed_precondition(format!(
            "persistentvolume {:?} cannot be used as persistentvolumeclaim {:?} wants: {why}; correct one of the two",
            found.name(),
            claim.name()
        )))
    }

    /// Makes the volume. Gives what the driver answered, and the object that was written before the driver was asked.
    async fn make(
        self: &Arc<Self>,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        content: Option<&Content>,
        node: &str,
    ) -> Result<(csi::Volume, Option<Arc<PersistentVolume>>), Status> {
        let driver = class.provisioner.as_str();
        let source = content.and_then(|content| self.attached_source(driver, content));
        let at = source.as_deref().unwrap_or(node);
        let place = if at.is_empty() { Place::Anywhere } else { Place::Node(at) };
        let controller = self.drivers.controller(driver, place).await?;
        let topology = self.topology(driver, node);
        let request = creation(claim, class, content, topology)?;
        // A driver that no node has stands in for one in a cluster of hollow nodes, and holds nothing.
        let hollow = self.drivers.is_central(driver) && self.drivers.nodes_of(driver).is_empty();
        let lists = hollow || (controller.can(Rpc::ListVolumes) && !self.index.has_foreign_ids(driver));
        let before = if lists { None } else { Some(self.intend(claim, class, content, &request).await?) };
        let made = match tokio::time::timeout(PATIENCE, self.making(driver, place, request)?).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => {
                if error.refused().is_some() {
                    self.memory.note(claim.uid(), Try::Refused(error.to_string()));
                }
                return Err(error.into());
            }
            Err(_) => {
                return Err(Status::unavailable(format!(
                    "the CSI driver {driver:?} is still making {}; ask again",
                    volume::volume_name(claim)
                )));
            }
        };
        self.index.note_id(driver, &made.volume_id);
        self.check(claim, &made, node)?;
        self.capacity.took(class, &made);
        Ok((made, before))
    }

    /// What was made must be what was asked for.
    fn check(&self, claim: &PersistentVolumeClaim, made: &csi::Volume, node: &str) -> Result<(), Status> {
        let reach = volume::selector_of(&made.accessible_topology);
        let object = self.drivers.node(node);
        let labels = object.as_ref().map(|node| pb::Object::meta(&**node).labels.clone()).unwrap_or_default();
        // Wherever it is: a claim that is asked about again goes there.
        self.memory.note(claim.uid(), Try::Made(reach.clone()));
        if !node.is_empty() && !volume::reaches(reach.as_ref(), node, &labels) {
            let place = reach.as_ref().map(volume::selector_text).unwrap_or_default();
            return Err(Status::unavailable(format!(
                "the CSI driver made {} where {place}, which node {node:?} is not; ask for a node there",
                made.volume_id
            )));
        }
        let asked = volume::requested_bytes(claim).unwrap_or(0);
        if made.capacity_bytes > 0 && made.capacity_bytes < asked {
            return Err(Status::unavailable(format!(
                "the CSI driver made {} with {} bytes although {asked} were asked for; ask its maker",
                made.volume_id, made.capacity_bytes
            )));
        }
        Ok(())
    }

    /// Where the volume is mounted that another begins with: its driver there can make what is written stand still.
    fn attached_source(&self, driver: &str, content: &Content) -> Option<String> {
        let SourceName::Volume(handle) = &content.source else { return None };
        let volumes = self.volumes.all();
        let is_it = |volume: &&Arc<PersistentVolume>| {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            csi.is_some_and(|csi| csi.driver == driver && csi.volume_handle == *handle)
        };
        self.attached_to(volumes.iter().find(is_it)?.name())
    }

    /// The place that a volume for a node is asked for.
    fn topology(&self, driver: &str, node: &str) -> Option<Topology> {
        if node.is_empty() {
            return None;
        }
        if self.drivers.is_central(driver) {
            let segments = BTreeMap::from([(NODE_TOPOLOGY_KEY.to_owned(), node.to_owned())]);
            return Some(Topology { segments });
        }
        let registered = self.drivers.on_node(driver, node)?;
        volume::place_of(&*self.drivers.node(node)?, &registered.topology_keys)
    }

    /// Joins the call that makes the volume, or begins it.
    fn making(
        self: &Arc<Self>,
        driver: &str,
        place: Place<'_>,
        request: CreateVolumeRequest,
    ) -> Result<Making, Status> {
        let key = VolumeKey::new(driver, &request.name);
        let mut running = self.makings.running.lock();
        if let Some((same, making)) = running.get(&key) {
            if *same == request {
                return Ok(making.clone());
            }
            return Err(Status::unavailable(format!(
                "{} is being made with other arguments (for another node, perhaps); ask again when that is known",
                request.name
            )));
        }
        let node = match place {
            Place::Node(node) => Some(node.to_owned()),
            Place::Anywhere | Place::Reachable(_) => None,
        };
        let making = Arc::clone(self).create(key.clone(), node, request.clone()).boxed().shared();
        running.insert(key.clone(), (request, making.clone()));
        drop(running);
        let (inner, call) = (Arc::clone(self), making.clone());
        self.tasks.spawn("create", async move {
            // Those who wait for it have clones of it.
            drop(call.await);
            inner.makings.running.lock().remove(&key);
        });
        Ok(making)
    }

    async fn create(
        self: Arc<Self>,
        key: VolumeKey,
        node: Option<String>,
        request: CreateVolumeRequest,
    ) -> Result<csi::Volume, CallError> {
        let _turn = self.drivers.turn(&key).await;
        let mut tries = 0;
        loop {
            tries += 1;
            let place = node.as_deref().map_or(Place::Anywhere, Place::Node);
            let result = match self.drivers.controller(&key.driver, place).await {
                Ok(controller) => controller.create_volume(request.clone()).await,
                Err(error) => Err(error),
            };
            match result {
                Err(CallError::Uncertain { message }) if tries < TRIES => {
                    tracing::warn!(volume = key.name, tries, message, "not known whether the volume was made");
                    tokio::time::sleep(Backoff::RECONNECT.after(tries)).await;
                }
                result => return result,
            }
        }
    }

    /// Writes that a volume is about to be made, for a driver that would not tell of it afterwards.
    async fn intend(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        content: Option<&Content>,
        request: &CreateVolumeRequest,
    ) -> Result<Arc<PersistentVolume>, Status> {
        let key = Key::object(Kind::PersistentVolume, "", &request.name);
        let places = request.accessibility_requirements.as_ref().map(|places| places.requisite.as_slice());
        let places = volume::selector_of(places.unwrap_or_default());
        for _ in 0..2 {
            match self.read::<PersistentVolume>(&key).await.map_err(unavailable)? {
                Lookup::Is(before)
                    if volume::phase(&before) == "Pending" && volume::reachable(&before) == places.as_ref() =>
                {
                    return Ok(before);
                }
                Lookup::Is(before) => {
                    return Err(Status::unavailable(format!(
                        "persistentvolume {:?} ({}) stands for an earlier try to make it, elsewhere perhaps; ask again \
                         when it is gone",
                        before.name(),
                        volume::phase(&before)
                    )));
                }
                Lookup::Unreadable(why) => return Err(Status::unavailable(why)),
                Lookup::Absent => {}
            }
            let intent = volume::intent(claim, class, content, places.clone(), &new_uid(), Timestamp::now());
            let txn = Txn { guards: vec![absent(&intent)], ops: vec![put(&intent)] };
            if let TxnOutcome::Committed(revision) = self.store.txn(txn).await.map_err(unavailable)? {
                let mut intent = intent;
                pb::Object::meta_mut(&mut intent).resource_version = revision.to_string();
                return Ok(Arc::new(intent));
            }
        }
        Err(Status::unavailable(format!("persistentvolume {:?} is being written by another; ask again", request.name)))
    }
}

pub(crate) fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What a driver is asked to make for a claim.
fn creation(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    content: Option<&Content>,
    place: Option<Topology>,
) -> Result<CreateVolumeRequest, Status> {
    let bytes = volume::requested_bytes(claim).ok_or_else(|| {
        Status::invalid_argument(format!(
            "claims[{:?}].spec.resources.requests.storage is no quantity; write it as 10Gi",
            claim.name()
        ))
    })?;
    let access_modes = claim.spec.as_ref().map(|spec| spec.access_modes.as_slice()).unwrap_or_default();
    let mut capability = volume::capability(access_modes, volume::fs_type(class));
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.mount_flags.clone_from(&class.mount_options);
    }
    Ok(CreateVolumeRequest {
        name: volume::volume_name(claim),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        parameters: parameters(&class.parameters),
        volume_content_source: content.map(|content| (&content.source).into()),
        accessibility_requirements: place
            .map(|place| TopologyRequirement { requisite: vec![place.clone()], preferred: vec![place] }),
        ..CreateVolumeRequest::default()
    })
}

/// What of a class is the driver's: Kubernetes keeps its own words under a prefix.
pub(crate) fn parameters(of_class: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = |key: &&String| !key.starts_with("csi.storage.k8s.io/");
    of_class.iter().filter(|(key, _)| own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
