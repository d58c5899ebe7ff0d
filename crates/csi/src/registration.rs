//! How a driver makes itself known to the node's agent.

use std::path::Path;

use pb::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server::Registration,
};
use tonic::{Request, Response, Status};

/// Answers the agent's questions about a driver.
#[derive(Clone, Debug)]
pub(crate) struct Registrar {
    info: PluginInfo,
}

impl Registrar {
    /// For a driver with its socket.
    pub fn new(driver: &str, socket: &Path) -> Self {
        let info = PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: driver.to_owned(),
            endpoint: socket.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        };
        Self { info }
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.info.name, "registered with the node's agent");
        } else {
            tracing::error!(
                driver = self.info.name,
                error = status.error,
                "the node's agent does not take this driver"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
