//! One CSI call: a deadline, what its outcome means, and a look at what the driver says before anyone believes it.
//!
//! A call is done, or refused with a final code, or uncertain: then it may have been done, or may yet be. An uncertain
//! call is made again with the same arguments until it is known; nothing is decided as if it had not been made.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use pb::csi::v1::{self as csi, controller_client::ControllerClient, controller_service_capability::rpc::Type as Rpc};
use runtime::channel::Channel;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

/// How the agent's proxy is told which driver is meant.
const DRIVER_KEY: &str = "berth-csi-driver";
/// Bytes that a driver's id of a volume or snapshot may have: the specification's bound on strings, with room to spare.
const LONGEST_ID: usize = 1024;
/// Bytes and entries of a map that a driver hands over: the specification's bound is 4 KiB for all of it.
const LARGEST_MAP: usize = 8 * 1024;
/// Volumes on a page of a list, and pages.
const PAGE: i32 = 500;
const MOST_PAGES: usize = 200;

/// A call that was not done for certain.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The driver said no, for good: the same call will be answered alike.
    #[error("{message}")]
    Refused { code: Code, message: String },
    /// It may have been done. Call again with the same arguments.
    #[error("{message}; it is asked again until the answer is known")]
    Uncertain { message: String },
    /// Nobody could be called.
    #[error("{message}")]
    NoController { message: String },
}

impl CallError {
    fn of(driver: &str, call: &str, status: &Status) -> Self {
        let message = format!("the CSI driver {driver:?} did not do {call}: {}", status.message());
        match status.code() {
            code @ (Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated) => Self::Refused { code, message },
            code => Self::Uncertain { message: format!("{message} ({code:?})") },
        }
    }

    /// The code that the driver refused with.
    pub(crate) fn refused(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Uncertain { .. } | Self::NoController { .. } => None,
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { message, .. } => Status::failed_precondition(message),
            uncertain => Status::unavailable(uncertain.to_string()),
        }
    }
}

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// Calls that change something.
    pub(crate) change: Duration,
    /// Questions.
    pub(crate) question: Duration,
}

/// The controller service of a driver at one place.
#[derive(Clone)]
pub(crate) struct Controller {
    pub(super) driver: String,
    /// The node whose agent hands calls over; None: a socket beside the control plane.
    pub(super) node: Option<String>,
    pub(super) client: ControllerClient<Channel>,
    pub(super) abilities: Arc<Abilities>,
    pub(super) deadlines: Deadlines,
}

/// What the controller service of a driver can do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Abilities(pub(super) Vec<i32>);

impl Controller {
    /// Whether the driver says that it can.
    pub(crate) fn can(&self, rpc: Rpc) -> bool {
        self.abilities.0.contains(&i32::from(rpc))
    }

    /// The node whose agent hands calls over; None: a socket beside the control plane.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Makes a volume; the same for the same name.
    pub(crate) async fn create_volume(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, CallError> {
        let what = format!("CreateVolume {}", request.name);
        let deadline = self.deadlines.change;
        let answer =
            self.call(&what, deadline, request, async |mut client, request| client.create_volume(request).await);
        let volume = answer.await?.volume.unwrap_or_default();
        self.plausible(&what, plausible_volume(&volume))?;
        Ok(volume)
    }

    /// Deletes a volume. One that is not there is done.
    pub(crate) async fn delete_volume(&self, volume_id: &str) -> Result<(), CallError> {
        let request = csi::DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..Default::default() };
        let what = format!("DeleteVolume {volume_id}");
        let deadline = self.deadlines.change;
        self.call(&what, deadline, request, async |mut client, request| client.delete_volume(request).await).await?;
        Ok(())
    }

    /// Makes a volume reachable from a node; gives what the node side needs to know.
    pub(crate) async fn publish(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<BTreeMap<String, String>, CallError> {
        let what = format!("ControllerPublishVolume {} to {}", request.volume_id, request.node_id);
        let deadline = self.deadlines.change;
        let answer = self
            .call(&what, deadline, request, async |mut client, request| client.controller_publish_volume(request).await)
            .await?;
        self.plausible(&what, plausible_map("publish_context", &answer.publish_context))?;
        Ok(answer.publish_context)
    }

    /// Ends that a node reaches a volume.
    pub(crate) async fn unpublish(&self, volume_id: &str, node_id: &str) -> Result<(), CallError> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            node_id: node_id.to_owned(),
            ..Default::default()
        };
        let what = format!("ControllerUnpublishVolume {volume_id} from {node_id}");
        let deadline = self.deadlines.change;
        self.call(&what, deadline, request, async |mut client, request| {
            client.controller_unpublish_volume(request).await
        })
        .await?;
        Ok(())
    }

    /// Makes a volume larger.
    pub(crate) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, CallError> {
        let what = format!("ControllerExpandVolume {}", request.volume_id);
        let deadline = self.deadlines.change;
        let answer = self
            .call(&what, deadline, request, async |mut client, request| client.controller_expand_volume(request).await)
            .await?;
        self.plausible(&what, plausible_size(answer.capacity_bytes))?;
        Ok(answer)
    }

    /// Takes a snapshot; the same for the same name.
    pub(crate) async fn create_snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::Snapshot, CallError> {
        let what = format!("CreateSnapshot {}", request.name);
        let deadline = self.deadlines.change;
        let answer =
            self.call(&what, deadline, request, async |mut client, request| client.create_snapshot(request).await);
        let snapshot = answer.await?.snapshot.unwrap_or_default();
        self.plausible(&what, plausible_id(&snapshot.snapshot_id).and_then(|()| plausible_size(snapshot.size_bytes)))?;
        Ok(snapshot)
    }

    /// Deletes a snapshot. One that is not there is done.
    pub(crate) async fn delete_snapshot(&self, snapshot_id: &str) -> Result<(), CallError> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: snapshot_id.to_owned(), ..Default::default() };
        let what = format!("DeleteSnapshot {snapshot_id}");
        let deadline = self.deadlines.change;
        self.call(&what, deadline, request, async |mut client, request| client.delete_snapshot(request).await).await?;
        Ok(())
    }

    /// All volumes that the driver has here.
    pub(crate) async fn list_volumes(&self) -> Result<Vec<csi::Volume>, CallError> {
        let (mut volumes, mut token) = (Vec::new(), String::new());
        for _ in 0..MOST_PAGES {
            let request = csi::ListVolumesRequest { max_entries: PAGE, starting_token: token };
            let deadline = self.deadlines.question;
            let answer = self
                .call("ListVolumes", deadline, request, async |mut client, request| client.list_volumes(request).await)
                .await?;
            let page = answer.entries.into_iter().filter_map(|entry| entry.volume);
            volumes.extend(page.filter(|volume| plausible_volume(volume).is_ok()));
            token = answer.next_token;
            if token.is_empty() {
                return Ok(volumes);
            }
        }
        let message = format!("the CSI driver {:?} lists volumes on more than {MOST_PAGES} pages", self.driver);
        Err(CallError::Uncertain { message })
    }

    /// Room for volumes of a class at a place.
    pub(crate) async fn capacity(
        &self,
        request: csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, CallError> {
        let deadline = self.deadlines.question;
        let answer = self
            .call("GetCapacity", deadline, request, async |mut client, request| client.get_capacity(request).await)
            .await?;
        self.plausible("GetCapacity", plausible_size(answer.available_capacity))?;
        Ok(answer)
    }

    /// Asks whether a volume can be used in a way.
    pub(crate) async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, CallError> {
        let what = format!("ValidateVolumeCapabilities {}", request.volume_id);
        let deadline = self.deadlines.question;
        self.call(&what, deadline, request, async |mut client, request| {
            client.validate_volume_capabilities(request).await
        })
        .await
    }

    pub(super) async fn abilities(&self) -> Result<Abilities, CallError> {
        let request = csi::ControllerGetCapabilitiesRequest {};
        let deadline = self.deadlines.question;
        let answer = self
            .call("ControllerGetCapabilities", deadline, request, async |mut client, request| {
                client.controller_get_capabilities(request).await
            })
            .await?;
        let types = answer.capabilities.into_iter().filter_map(|capability| match capability.r#type? {
            csi::controller_service_capability::Type::Rpc(rpc) => Some(rpc.r#type),
        });
        Ok(Abilities(types.collect()))
    }

    async fn call<Q, A, F>(&self, what: &str, deadline: Duration, message: Q, call: F) -> Result<A, CallError>
    where
        F: AsyncFnOnce(ControllerClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        if self.node.is_some() {
            let name = MetadataValue::try_from(self.driver.as_str()).map_err(|_| CallError::NoController {
                message: format!("{:?} is no name that a CSI driver can have", self.driver),
            })?;
            request.metadata_mut().insert(DRIVER_KEY, name);
        }
        within(deadline, call(self.client.clone(), request))
            .await
            .map(Response::into_inner)
            .map_err(|status| CallError::of(&self.driver, &self.at(what), &status))
    }

    fn at(&self, what: &str) -> String {
        self.node.as_ref().map_or_else(|| what.to_owned(), |node| format!("{what} on node {node}"))
    }

    /// An answer that no driver may give is no answer: what the call did is not known.
    fn plausible(&self, what: &str, verdict: Result<(), String>) -> Result<(), CallError> {
        verdict.map_err(|why| CallError::Uncertain {
            message: format!("the CSI driver {:?} answered {} with nonsense: {why}", self.driver, self.at(what)),
        })
    }
}

async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))),
    }
}

fn plausible_volume(volume: &csi::Volume) -> Result<(), String> {
    plausible_id(&volume.volume_id)?;
    plausible_size(volume.capacity_bytes)?;
    plausible_map("volume_context", &volume.volume_context)
}

/// Ids become parts of paths on nodes that are written carelessly elsewhere, and of messages.
fn plausible_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > LONGEST_ID {
        return Err(format!("an id of {} bytes (1 to {LONGEST_ID} are possible)", id.len()));
    }
    if id.chars().any(char::is_control) || id.split('/').any(|part| part == "..") {
        return Err(format!("an id with control characters or \"..\": {id:?}"));
    }
    Ok(())
}

fn plausible_size(bytes: i64) -> Result<(), String> {
    if bytes < 0 { Err(format!("a size of {bytes} bytes")) } else { Ok(()) }
}

fn plausible_map(field: &str, map: &BTreeMap<String, String>) -> Result<(), String> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LARGEST_MAP { Err(format!("{field} of {bytes} bytes")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_final_codes_are_refusals() {
        for code in (0..=16).map(Code::from) {
            let error = CallError::of("d", "CreateVolume x", &Status::new(code, "why"));
            let uncertain = matches!(
                code,
                Code::Ok
                    | Code::Cancelled
                    | Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            );
            assert_eq!(error.refused().is_none(), uncertain, "{code:?}");
        }
    }

    #[test]
    fn ids_that_lead_elsewhere_are_not_believed() {
        for id in ["", "..", "a/../b", "/..", "a\nb", &"x".repeat(LONGEST_ID + 1)] {
            assert!(plausible_id(id).is_err(), "{id:?}");
        }
        for id in ["pvc-1", "a..b", "/dev/disk/7", &"x".repeat(LONGEST_ID)] {
            assert!(plausible_id(id).is_ok(), "{id:?}");
        }
        assert!(plausible_size(-1).is_err());
    }
}
