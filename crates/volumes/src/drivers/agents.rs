//! The nodes' agents: where they answer, and what drivers are registered with them.

use std::sync::Arc;

use pb::{
    Kind,
    agent::v1::volume_agent_service_client::VolumeAgentServiceClient,
    objects::{Node, NodeCsiDriver},
};
use runtime::channel::{Channel, connect_streaming};
use store::Key;

use super::{CallError, Drivers};

/// Where the agent of a node answers, as `http://host:port`.
fn address(node: &Node) -> Option<String> {
    let status = node.status.as_ref()?;
    let ip = status.addresses.iter().find(|address| address.r#type == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref()?.agent_endpoint.as_ref()?.port;
    let host = if ip.address.contains(':') { format!("[{}]", ip.address) } else { ip.address.clone() };
    Some(format!("http://{host}:{port}"))
}

/// A driver on a node.
pub(super) fn registered<'a>(node: &'a Node, driver: &str) -> Option<&'a NodeCsiDriver> {
    node.status.as_ref()?.csi_drivers.iter().find(|registered| registered.name == driver)
}

impl Drivers {
    pub(crate) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&Key::object(Kind::Node, "", name))
    }

    /// The driver as it is registered on the node.
    pub(crate) fn on_node(&self, driver: &str, node: &str) -> Option<NodeCsiDriver> {
        registered(&*self.node(node)?, driver).cloned()
    }

    /// Where the agent of a node answers, as `http://host:port`.
    pub(crate) fn agent_address(&self, node: &str) -> Option<String> {
        address(&*self.node(node)?)
    }

    /// A client of the agent of a node. Calls have no deadline of their own: whoever calls sets one.
    pub(crate) fn agent(&self, node: &str) -> Result<VolumeAgentServiceClient<Channel>, CallError> {
        Ok(VolumeAgentServiceClient::new(self.agent_channel(node)?))
    }

    pub(super) fn agent_channel(&self, node: &str) -> Result<Channel, CallError> {
        let address = self.agent_address(node).ok_or_else(|| CallError::NoController {
            message: format!(
                "node {node:?} is not known, or has not said where its agent answers; start the agent there"
            ),
        })?;
        let mut channels = self.shared.channels.lock();
        if let Some((known, channel)) = channels.get(node)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let channel = connect_streaming(&address)
            .map_err(|error| CallError::NoController { message: format!("node {node:?}: {error}") })?;
        // As many as there are nodes.
        channels.retain(|node, _| self.node(node).is_some());
        channels.insert(node.to_owned(), (address, channel.clone()));
        Ok(channel)
    }
}
