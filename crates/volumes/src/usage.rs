//! How full volumes are, asked of the agents of the nodes where they are mounted.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use pb::{Kind, agent::v1::InspectVolumeRequest, agent::v1::InspectVolumeResponse, volumes::v1::VolumeUsage};
use store::Key;
use tonic::{Request, Status};

use crate::{Inner, drivers::CallError};

/// Volumes that one question may be about.
const MOST_VOLUMES: usize = 1000;
/// Agents asked at the same time.
const WIDTH: usize = 32;
/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Inner {
    /// How full these volumes are; those that nobody can say it of are left out.
    pub(crate) async fn usage(&self, volumes: &[String]) -> Result<Vec<VolumeUsage>, Status> {
        if volumes.len() > MOST_VOLUMES {
            return Err(Status::invalid_argument(format!(
                "volumes: {} are more than {MOST_VOLUMES}; ask in parts",
                volumes.len()
            )));
        }
        let mut mounted = Vec::new();
        for name in volumes.iter().collect::<BTreeSet<_>>() {
            let Some(volume) = self.volumes.get(&Key::object(Kind::PersistentVolume, "", name)) else { continue };
            let spec = volume.spec.clone().unwrap_or_default();
            let (Some(csi), Some(owner)) = (spec.csi, spec.claim_ref) else { continue };
            let users = self.users(&owner.namespace, &owner.name);
            let nodes: BTreeSet<String> =
                users.iter().filter_map(|pod| Some(pod.spec.as_ref()?.node_name.clone())).collect();
            mounted.extend(nodes.into_iter().map(|node| (name.clone(), csi.clone(), node)));
        }
        let asked = stream::iter(mounted).map(|(name, csi, node)| async move {
            match self.inspect(&node, &csi.driver, &csi.volume_handle, true, PATIENCE).await {
                Ok(seen) => Some(VolumeUsage {
                    volume: name,
                    node,
                    total_bytes: seen.total_bytes?,
                    used_bytes: seen.used_bytes.unwrap_or(0),
                    available_bytes: seen.available_bytes.unwrap_or(0),
                }),
                Err(error) => {
                    tracing::debug!(volume = name, node, %error, "not known how full it is");
                    None
                }
            }
        });
        Ok(asked.buffered(WIDTH).filter_map(futures::future::ready).collect().await)
    }

    /// What a node has of a volume.
    pub(crate) async fn inspect(
        &self,
        node: &str,
        driver: &str,
        handle: &str,
        stats: bool,
        patience: Duration,
    ) -> Result<InspectVolumeResponse, CallError> {
        let mut agent = self.drivers.agent(node)?;
        let message = InspectVolumeRequest { driver: driver.to_owned(), volume_handle: handle.to_owned(), stats };
        let mut request = Request::new(message);
        request.set_timeout(patience);
        let unknown = |why: String| CallError::Uncertain {
            message: format!("the agent of node {node:?} does not say whether it has volume {handle:?}: {why}"),
        };
        match tokio::time::timeout(patience, agent.inspect_volume(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(unknown(status.message().to_owned())),
            Err(_) => Err(unknown(format!("no answer within {patience:?}"))),
        }
    }
}
