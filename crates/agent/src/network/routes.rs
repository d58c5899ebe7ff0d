//! Routes to the other nodes' pods.
//!
//! Every route that the agent makes carries its own protocol number, so that it knows its routes again after a restart
//! and touches no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use futures::TryStreamExt;
use pb::{
    agent::v1::{WatchNodesResponse, watch_nodes_response::Change},
    objects::Node,
};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol},
};

use crate::stream::Feed;

/// Marks our routes; from the range that the kernel leaves to routing daemons.
const PROTOCOL: u8 = 177;

/// A pod network and the node that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    network: Ipv4Addr,
    prefix: u8,
    via: Ipv4Addr,
}

/// The other nodes as told.
#[derive(Debug)]
pub struct Nodes {
    own: String,
    nodes: BTreeMap<String, Node>,
    named: BTreeSet<String>,
    complete: bool,
}

impl Nodes {
    /// None known; `own` is the node that needs no route.
    pub fn new(own: &str) -> Self {
        Self { own: own.to_owned(), nodes: BTreeMap::new(), named: BTreeSet::new(), complete: false }
    }

    /// Takes what the API service tells.
    pub fn take(&mut self, feed: Feed<WatchNodesResponse>) {
        match feed {
            Feed::Opened => self.named.clear(),
            Feed::Closed => {}
            Feed::Message(message) => match message.change {
                Some(Change::Upsert(node)) => {
                    let name = node.metadata.as_ref().map_or("", |meta| meta.name.as_str()).to_owned();
                    self.named.insert(name.clone());
                    self.nodes.insert(name, node);
                }
                Some(Change::Removed(name)) => {
                    self.nodes.remove(&name);
                }
                Some(Change::Synced(_)) => {
                    let named = std::mem::take(&mut self.named);
                    self.nodes.retain(|name, _| named.contains(name));
                    self.complete = true;
                }
                None => {}
            },
        }
    }

    /// The routes that follow; None until all nodes have been told once: then too little is known to take any away.
    pub fn routes(&self) -> Option<BTreeSet<Route>> {
        let others = self.nodes.iter().filter(|(name, _)| **name != self.own);
        self.complete.then(|| others.filter_map(|(_, node)| route(node)).collect())
    }
}

/// None for a node without a pod network or address.
fn route(node: &Node) -> Option<Route> {
    let (network, prefix) = node.spec.as_ref()?.pod_cidr.split_once('/')?;
    let addresses = &node.status.as_ref()?.addresses;
    let via = addresses.iter().find(|address| address.r#type == "InternalIP")?;
    Some(Route { network: network.parse().ok()?, prefix: prefix.parse().ok()?, via: via.address.parse().ok()? })
}

/// Makes the kernel's routes equal to `wanted`, as far as they are ours. A route that cannot be made (a node that is not
/// on our network yet) does not keep the others from being made; the first problem is returned.
pub async fn apply(netlink: &Handle, wanted: &BTreeSet<Route>) -> Result<(), rtnetlink::Error> {
    let ours = present(netlink).await?;
    let mut result = Ok(());
    for (route, message) in &ours {
        if !wanted.contains(route) {
            tracing::info!(?route, "removing a route");
            let removed = netlink.route().del(message.clone()).execute().await;
            result = result.and(removed);
        }
    }
    for route in wanted.iter().filter(|route| !ours.contains_key(route)) {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.network, route.prefix)
            .gateway(route.via)
            .protocol(RouteProtocol::from(PROTOCOL))
            .build();
        let added = netlink.route().add(message).replace().execute().await;
        match &added {
            Ok(()) => tracing::info!(?route, "added a route"),
            Err(error) => tracing::warn!(?route, %error, "cannot add a route"),
        }
        result = result.and(added);
    }
    result
}

/// Our routes in the kernel.
async fn present(netlink: &Handle) -> Result<BTreeMap<Route, RouteMessage>, rtnetlink::Error> {
    let all = netlink.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let all: Vec<RouteMessage> = all.try_collect().await?;
    let ours = all.into_iter().filter(|message| message.header.protocol == RouteProtocol::from(PROTOCOL));
    Ok(ours.filter_map(|message| Some((read(&message)?, message))).collect())
}

fn read(message: &RouteMessage) -> Option<Route> {
    let address = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
        message.attributes.iter().find_map(wanted).and_then(|address| match address {
            RouteAddress::Inet(ip) => Some(*ip),
            _ => None,
        })
    };
    let network = address(|a| if let RouteAttribute::Destination(ip) = a { Some(ip) } else { None })?;
    let via = address(|a| if let RouteAttribute::Gateway(ip) = a { Some(ip) } else { None })?;
    Some(Route { network, prefix: message.header.destination_prefix_length, via })
}

#[cfg(test)]
mod tests {
    use pb::objects::{NodeAddress, NodeSpec, NodeStatus, ObjectMeta};

    use super::*;

    fn node(name: &str, cidr: &str, ip: &str) -> Feed<WatchNodesResponse> {
        let node = Node {
            metadata: Some(ObjectMeta { name: name.into(), ..Default::default() }),
            spec: Some(NodeSpec { pod_cidr: cidr.into(), ..Default::default() }),
            status: Some(NodeStatus {
                addresses: vec![NodeAddress { r#type: "InternalIP".into(), address: ip.into() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        Feed::Message(WatchNodesResponse { change: Some(Change::Upsert(node)) })
    }

    #[test]
    fn one_route_for_each_other_node_and_none_taken_away_on_half_knowledge() {
        let synced = || Feed::Message(WatchNodesResponse { change: Some(Change::Synced(true)) });
        let mut nodes = Nodes::new("node-1");
        nodes.take(Feed::Opened);
        nodes.take(node("node-1", "10.77.0.0/24", "10.0.0.1"));
        nodes.take(node("node-2", "10.77.1.0/24", "10.0.0.2"));
        nodes.take(node("node-3", "", "10.0.0.3"));
        assert_eq!(nodes.routes(), None);
        nodes.take(synced());
        let route = Route { network: Ipv4Addr::new(10, 77, 1, 0), prefix: 24, via: Ipv4Addr::new(10, 0, 0, 2) };
        assert_eq!(nodes.routes(), Some([route].into()));

        nodes.take(Feed::Opened);
        assert_eq!(nodes.routes(), Some([route].into()), "what was told stays until the new telling is complete");
        nodes.take(synced());
        assert_eq!(nodes.routes(), Some(BTreeSet::new()));
    }
}
