//! How full volumes are: asked of the volume manager, which asks the nodes.

use std::time::Duration;

use pb::{
    api::v1::{UsedVolume, VolumeUsageRequest, VolumeUsageResponse},
    volumes::v1::{UsageRequest, volume_service_client::VolumeServiceClient},
};
use tokio::time::timeout;

use crate::{
    Shared,
    error::{Error, Result},
};

/// How long the volume manager may take: less than a client waits for this service.
const PATIENCE: Duration = Duration::from_secs(4);
/// Volumes of one request.
const MOST: usize = 1000;

impl Shared {
    /// Says how full volumes are.
    pub async fn volume_usage(&self, request: VolumeUsageRequest) -> Result<VolumeUsageResponse> {
        if request.volumes.is_empty() {
            return Ok(VolumeUsageResponse::default());
        }
        if request.volumes.len() > MOST {
            let many = request.volumes.len();
            return Err(Error::field("volumes", format!("Too many: {many}: must have at most {MOST} items")));
        }
        let mut manager = VolumeServiceClient::new(self.volume_manager.clone());
        let asked = manager.usage(UsageRequest { volumes: request.volumes });
        let silent = |why: &dyn std::fmt::Display| {
            let address = &self.settings.volumes;
            Error::Unavailable(format!(
                "the volume manager at {address} does not say how full volumes are ({why}); is it up? the API service's \
                 --volumes names it"
            ))
        };
        let answer = match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(silent(&status.message())),
            Err(_) => return Err(silent(&"no answer in time")),
        };
        let used = answer.volumes.into_iter().map(|used| UsedVolume {
            volume: used.volume,
            node: used.node,
            total_bytes: used.total_bytes,
            used_bytes: used.used_bytes,
            available_bytes: used.available_bytes,
        });
        Ok(VolumeUsageResponse { volumes: used.collect() })
    }
}
