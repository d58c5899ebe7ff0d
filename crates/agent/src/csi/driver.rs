//! One CSI driver of the node: what it says of itself, and the way to it.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use pb::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, ProbeRequest,
    identity_client::IdentityClient,
    node_client::NodeClient,
    node_service_capability::{self, rpc},
    plugin_capability::{self, service},
};
use runtime::channel::Channel;
use tokio::sync::Semaphore;
use tonic::{Code, Response, Status};

/// For each question about the driver itself.
const ANSWER: Duration = Duration::from_secs(5);

/// Node calls that one driver has in flight. One that never answers must not hold up the others.
const CALLS: usize = 16;

/// What a driver's node side can do beyond publishing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// STAGE_UNSTAGE_VOLUME.
    pub stage: bool,
    /// GET_VOLUME_STATS.
    pub stats: bool,
    /// EXPAND_VOLUME.
    pub expand: bool,
    /// VOLUME_MOUNT_GROUP: it gives a volume's files to a group itself.
    pub mount_group: bool,
    /// SINGLE_NODE_MULTI_WRITER: it knows the newer access modes.
    pub multi_writer: bool,
}

/// What a driver says of itself on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its name of the node.
    pub node_id: String,
    /// Where the node is for it: labels of the node.
    pub topology: BTreeMap<String, String>,
    /// Volumes that fit on the node; 0: no bound.
    pub max_volumes: i64,
    /// Whether it has a controller service.
    pub controller: bool,
    /// What its node side can do.
    pub abilities: Abilities,
}

/// A driver that has said what it is.
#[derive(Debug)]
pub struct Driver {
    /// What it said.
    pub facts: Facts,
    /// Its socket.
    pub endpoint: PathBuf,
    /// The way to it, without a deadline.
    pub channel: Channel,
    /// Taken during node calls.
    pub calls: Semaphore,
}

impl Driver {
    /// Asks the driver at a socket what it is.
    pub async fn ask(endpoint: &Path) -> Result<Self, Status> {
        let url = format!("unix://{}", endpoint.display());
        let bad = |error: runtime::channel::BadAddress| Status::invalid_argument(error.to_string());
        let channel = runtime::channel::connect_streaming(&url).map_err(bad)?;
        let facts = facts(channel.clone()).await?;
        Ok(Self { facts, endpoint: endpoint.to_owned(), channel, calls: Semaphore::new(CALLS) })
    }

    /// A client of its node side.
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }
}

async fn facts(channel: Channel) -> Result<Facts, Status> {
    let mut identity = IdentityClient::new(channel.clone());
    let mut node = NodeClient::new(channel);
    let info = within("GetPluginInfo", identity.get_plugin_info(GetPluginInfoRequest {})).await?;
    if !is_name(&info.name) {
        let message = format!("GetPluginInfo: {:?} is not a driver's name (RFC 1035 domain name)", info.name);
        return Err(Status::invalid_argument(message));
    }
    let asked = within("GetPluginCapabilities", identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}));
    let plugin = match asked.await {
        // Said by drivers that have nothing to say.
        Err(status) if status.code() == Code::Unimplemented => Vec::new(),
        answer => answer?.capabilities,
    };
    let controller = plugin.iter().any(|capability| {
        let kind = service::Type::ControllerService;
        matches!(&capability.r#type, Some(plugin_capability::Type::Service(s)) if s.r#type() == kind)
    });
    let probed = within("Probe", identity.probe(ProbeRequest {})).await?;
    if probed.ready.is_some_and(|ready| !ready.value) {
        return Err(Status::unavailable("Probe: the driver says that it is not ready"));
    }
    let place = within("NodeGetInfo", node.node_get_info(NodeGetInfoRequest {})).await?;
    let can = within("NodeGetCapabilities", node.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
    let has = |ability: rpc::Type| {
        let is = |kind: &Option<node_service_capability::Type>| matches!(kind, Some(node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == ability);
        can.capabilities.iter().any(|capability| is(&capability.r#type))
    };
    Ok(Facts {
        name: info.name,
        node_id: place.node_id,
        topology: place.accessible_topology.map(|topology| topology.segments).unwrap_or_default(),
        max_volumes: place.max_volumes_per_node.max(0),
        controller,
        abilities: Abilities {
            stage: has(rpc::Type::StageUnstageVolume),
            stats: has(rpc::Type::GetVolumeStats),
            expand: has(rpc::Type::ExpandVolume),
            mount_group: has(rpc::Type::VolumeMountGroup),
            multi_writer: has(rpc::Type::SingleNodeMultiWriter),
        },
    })
}

/// Names become names of folders and parts of resources.
fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.len() <= 63 && name.bytes().all(inner) && edge(name.bytes().next()) && edge(name.bytes().next_back())
}

/// The answer, or why there is none, with the call's name.
pub async fn within<T>(
    call: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Status::new(status.code(), format!("{call}: {}", status.message()))),
        Err(_) => Err(Status::deadline_exceeded(format!("{call}: no answer within {ANSWER:?}"))),
    }
}
