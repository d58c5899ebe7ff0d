//! What the driver is.

use std::collections::BTreeMap;

use pb::csi::v1::{
    BoolValue, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
};
use tonic::{Request, Response, Status};

use crate::{driver::Driver, error::io_error};

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.policy.name.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |r#type: service::Type| Type::Service(Service { r#type: r#type.into() });
        let online = Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() });
        let placed = self.policy.topology_key.map(|_| service(service::Type::VolumeAccessibilityConstraints));
        let all = [service(service::Type::ControllerService), online].into_iter().chain(placed);
        let capabilities = all.map(|ability| PluginCapability { r#type: Some(ability) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        if self.has_node() {
            self.work(|node| {
                let root = node.disk.root().join("volumes");
                std::fs::read_dir(&root).map(drop).map_err(io_error("reach", &root))
            })
            .await
            .map_err(|error| Status::failed_precondition(error.message().to_owned()))?;
        }
        Ok(Response::new(ProbeResponse { ready: Some(BoolValue { value: true }) }))
    }
}
