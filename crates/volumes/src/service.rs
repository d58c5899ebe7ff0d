//! Prepare and Provision.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::try_join_all;
use jiff::Timestamp;
use pb::{
    Kind, ObjectExt,
    csi::v1::{CapacityRange, CreateVolumeRequest, Topology, TopologyRequirement},
    meta::v1::Guard as PbGuard,
    objects::{PersistentVolumeClaim, StorageClass},
    volumes::v1::{
        BoundClaim, ClaimProblem, PrepareRequest, PrepareResponse, PreparedClaim, ProvisionRequest, ProvisionResponse,
        ProvisionedClaim, UnboundClaim, prepared_claim::State, volume_service_server::VolumeService,
    },
};
use plan::{
    schedule::NODE_TOPOLOGY_KEY,
    volume::{self, ClaimState, Made},
};
use store::{
    Guard, Key, Prefix,
    objects::{absent, guard_to_pb, unchanged},
};
use tonic::{Request, Response, Status};

use crate::{
    Inner, VolumeManager,
    drivers::{Place, VolumeKey},
    lookup::Lookup,
};

/// Claims that one question may be about.
const MOST_CLAIMS: usize = 32;

impl Inner {
    /// Runs a decision about one claim on what is known.
    async fn decide<R>(
        &self,
        claim: &PersistentVolumeClaim,
        with: impl FnOnce(ClaimState<'_>) -> R,
    ) -> Result<R, Status> {
        let volume = match volume::bound_to(claim) {
            Some(name) => {
                let key = Key::object(Kind::PersistentVolume, "", name);
                self.look_up(&self.volumes, &key).await.map_err(unavailable)?
            }
            None => Lookup::Absent,
        };
        let drivers = self.drivers.names();
        let drivers: Vec<&str> = drivers.iter().map(String::as_str).collect();
        let classes = self.classes.all();
        let state = volume::prepare(claim, volume.known(), classes.iter().map(Arc::as_ref), &drivers);
        if let ClaimState::Problem(problem) = &state {
            self.is_certain(problem)?;
        }
        Ok(with(state))
    }

    /// A problem may only seem to be one: a class that cannot be read, a driver that has not said its name yet.
    fn is_certain(&self, problem: &volume::Problem) -> Result<(), Status> {
        if let Some(class) = self.classes.undecodable(&Prefix::kind(Kind::StorageClass)).first()
            && matches!(problem.reason, "ClassNotFound" | "NoDefaultClass")
        {
            return Err(Status::unavailable(class.to_string()));
        }
        let silent = self.drivers.silent();
        if problem.reason == "UnknownProvisioner" && !silent.is_empty() {
            return Err(Status::unavailable(format!(
                "the CSI driver at {} has not answered yet; check that it runs",
                silent.join(", ")
            )));
        }
        Ok(())
    }

    async fn prepare(&self, claim: &PersistentVolumeClaim) -> Result<PreparedClaim, Status> {
        self.decide(claim, |state| {
            let mut guards: Vec<Guard> = Vec::new();
            if claim.mod_revision() > 0 {
                guards.push(unchanged(claim));
            }
            let state = match state {
                ClaimState::Bound(volume) => {
                    guards.push(unchanged(volume));
                    State::Bound(BoundClaim {
                        volume_name: volume.name().to_owned(),
                        reachable: volume::reachable(volume).cloned(),
                        driver: String::new(),
                    })
                }
                ClaimState::Unbound(class) => {
                    guards.push(unchanged(class));
                    State::Unbound(UnboundClaim {
                        storage_class: class.name().to_owned(),
                        reachable: None,
                        driver: class.provisioner.clone(),
                    })
                }
                ClaimState::Problem(problem) => {
                    State::Problem(ClaimProblem { reason: problem.reason.to_owned(), message: problem.message })
                }
            };
            PreparedClaim { name: claim.name().to_owned(), state: Some(state), guards: to_pb(&guards) }
        })
        .await
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, node: &str) -> Result<ProvisionedClaim, Status> {
        if claim.uid().is_empty() {
            return Err(Status::invalid_argument(format!(
                "claims[{:?}].metadata.uid is empty; the uid makes the call idempotent",
                claim.name()
            )));
        }
        let class: StorageClass = self
            .decide(claim, |state| match state {
                ClaimState::Unbound(class) => Ok(class.clone()),
                ClaimState::Bound(volume) => Err(Status::failed_precondition(format!(
                    "persistentvolumeclaim {:?} has its volume already: {:?}",
                    claim.name(),
                    volume.name()
                ))),
                ClaimState::Problem(problem) => Err(Status::failed_precondition(problem.message)),
            })
            .await??;
        let controller = self.drivers.controller(&class.provisioner, Place::Node(node)).await?;
        let turn = self.drivers.turn(&VolumeKey::new(&class.provisioner, &volume::volume_name(claim))).await;
        let made = controller.create_volume(creation(claim, &class, node)?).await?;
        drop(turn);
        let uid = uuid::Uuid::new_v4().to_string();
        let made = Made { volume: &made, node, uid: &uid, now: Timestamp::now() };
        let (bound, volume) = volume::bind(claim, &class, made);
        let same_claim = if claim.mod_revision() > 0 { unchanged(claim) } else { absent(claim) };
        let guards = to_pb(&[same_claim, unchanged(&class), absent(&volume)]);
        Ok(ProvisionedClaim { claim: Some(bound), volume: Some(volume), guards })
    }
}

/// What a driver is asked to make for a claim on a node.
fn creation(claim: &PersistentVolumeClaim, class: &StorageClass, node: &str) -> Result<CreateVolumeRequest, Status> {
    let bytes = match volume::requested_size(claim) {
        Some(size) => {
            let size: model::quantity::Quantity = size.value.parse().map_err(|error| {
                Status::invalid_argument(format!(
                    "claims[{:?}].spec.resources.requests.storage {:?}: {error}",
                    claim.name(),
                    size.value
                ))
            })?;
            size.as_units()
        }
        None => 0,
    };
    let access_modes = claim.spec.as_ref().map(|spec| spec.access_modes.as_slice()).unwrap_or_default();
    let place = Topology { segments: BTreeMap::from([(NODE_TOPOLOGY_KEY.to_owned(), node.to_owned())]) };
    Ok(CreateVolumeRequest {
        name: volume::volume_name(claim),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![volume::capability(access_modes, "")],
        parameters: class.parameters.clone(),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![place.clone()],
            preferred: vec![place],
        }),
        ..CreateVolumeRequest::default()
    })
}

fn to_pb(guards: &[Guard]) -> Vec<PbGuard> {
    guards.iter().map(guard_to_pb).collect()
}

fn unavailable(error: store::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn bounded(claims: &[PersistentVolumeClaim]) -> Result<(), Status> {
    if claims.len() > MOST_CLAIMS {
        return Err(Status::invalid_argument(format!("claims: {} are more than {MOST_CLAIMS}", claims.len())));
    }
    Ok(())
}

#[tonic::async_trait]
impl VolumeService for VolumeManager {
    async fn usage(
        &self,
        _: Request<pb::volumes::v1::UsageRequest>,
    ) -> Result<Response<pb::volumes::v1::UsageResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<PrepareResponse>, Status> {
        let PrepareRequest { claims } = request.into_inner();
        bounded(&claims)?;
        self.ready().await;
        let claims = try_join_all(claims.iter().map(|claim| self.inner.prepare(claim))).await?;
        Ok(Response::new(PrepareResponse { claims }))
    }

    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let ProvisionRequest { claims, node_name } = request.into_inner();
        bounded(&claims)?;
        if node_name.is_empty() {
            return Err(Status::invalid_argument("node_name is empty; ask the scheduler for a node first"));
        }
        self.ready().await;
        let claims = try_join_all(claims.iter().map(|claim| self.inner.provision(claim, &node_name))).await?;
        Ok(Response::new(ProvisionResponse { claims }))
    }
}
