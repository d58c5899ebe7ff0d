//! The pod network of the node: CNI configuration, forwarding, routes to the other nodes' pods, virtual addresses of
//! Services, and DNS.

mod cni;
mod nft;
mod routes;
mod services;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures::TryStreamExt;
use parking_lot::Mutex;
use rtnetlink::Handle;
use runtime::tasks::Tasks;
use tokio::sync::Notify;

use crate::{
    api::NodeApi,
    config::Config,
    dns,
    session::Registration,
    stream::{follow, waits},
};
use routes::Nodes;
use services::{PodNetwork, Ruleset, Services};

/// The port that resolvers ask.
const DNS_PORT: u16 = 53;

/// Names the node's own name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Looks at routes and rules again after this time even if nothing changes: somebody may have flushed them.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Sets the network up and keeps it.
pub async fn start(config: &Config, registration: &Registration, api: NodeApi, tasks: &Tasks) -> anyhow::Result<()> {
    let cidr = registration.node.spec.as_ref().map_or("", |spec| spec.pod_cidr.as_str());
    cni::write(&config.data_dir, cidr)?;
    let pods = PodNetwork::parse(cidr).with_context(|| format!("{cidr:?} is not a pod network"))?;
    cni::enable_forwarding()?;
    let (connection, netlink, _) = rtnetlink::new_connection().context("open netlink")?;
    tasks.spawn("netlink", connection);
    add_dns_address(&netlink, config.dns_ip)
        .await
        .with_context(|| format!("cannot take the address {} for DNS: the agent must run as root", config.dns_ip))?;
    let zone = dns::Zone::new(&config.cluster_domain, config.dns_ip);
    start_dns(config, zone.clone(), tasks);
    start_services(pods, zone, api.clone(), tasks);
    start_routes(config, api, netlink, tasks);
    Ok(())
}

/// The name server's address is one of the node itself, on the loopback interface: pods reach it through their gateway,
/// and it is the same on every node. Idempotent.
async fn add_dns_address(netlink: &Handle, ip: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    let mut links = netlink.link().get().match_name("lo").execute();
    let Some(lo) = links.try_next().await? else { return Ok(()) };
    netlink.address().add(lo.header.index, ip.into(), 32).replace().execute().await
}

/// Follows who stands behind Services: names and rules change together.
fn start_services(pods: PodNetwork, zone: dns::Zone, api: NodeApi, tasks: &Tasks) {
    let services = Arc::new(Mutex::new(Services::default()));
    let changed = Arc::new(Notify::new());
    let (told, tell, token) = (services.clone(), changed.clone(), tasks.token().clone());
    tasks.spawn("endpoints", async move {
        let take = |feed| {
            if told.lock().take(&feed) {
                tell.notify_one();
            }
            zone.take(feed);
        };
        follow("endpoints", token, || api.clone().watch_endpoints(), take).await;
    });
    tasks.spawn("rules", async move {
        let mut delays = waits();
        let mut applied = None;
        loop {
            let wanted = services.lock().rules(pods);
            let mut wait = LOOK_AGAIN;
            if let Some(wanted) = wanted {
                match keep_rules(&wanted, &mut applied).await {
                    Ok(()) => delays = waits(),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "virtual addresses do not lead where they should; trying again");
                        wait = delays.next().unwrap_or(LOOK_AGAIN);
                    }
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
}

/// Gives the kernel rules that it does not have.
async fn keep_rules(wanted: &Ruleset, applied: &mut Option<Ruleset>) -> anyhow::Result<()> {
    if applied.as_ref() == Some(wanted) && nft::is_there().await? {
        return Ok(());
    }
    nft::apply(wanted).await?;
    tracing::debug!("gave the kernel new rules for virtual addresses");
    *applied = Some(wanted.clone());
    Ok(())
}

fn start_dns(config: &Config, zone: dns::Zone, tasks: &Tasks) {
    let address = SocketAddr::from((config.dns_ip, DNS_PORT));
    let upstream = dns::Upstream::new(&config.dns_upstream, RESOLV_CONF.into(), config.dns_ip).map(Arc::new);
    tasks.spawn("dns", async move {
        for wait in waits() {
            match dns::serve(zone.clone(), address, upstream.clone()).await {
                Ok(()) => tracing::warn!("DNS has stopped; starting it again"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "DNS failed; starting it again"),
            }
            tokio::time::sleep(wait).await;
        }
    });
}

fn start_routes(config: &Config, api: NodeApi, netlink: Handle, tasks: &Tasks) {
    let nodes = Arc::new(Mutex::new(Nodes::new(&config.node_name)));
    let changed = Arc::new(Notify::new());
    let (told, tell, token) = (nodes.clone(), changed.clone(), tasks.token().clone());
    tasks.spawn("nodes", async move {
        let take = |feed| {
            told.lock().take(feed);
            tell.notify_one();
        };
        follow("nodes", token, || api.clone().watch_nodes(), take).await;
    });
    tasks.spawn("routes", async move {
        let mut delays = waits();
        loop {
            let wanted = nodes.lock().routes();
            let mut wait = LOOK_AGAIN;
            if let Some(wanted) = wanted {
                match routes::apply(&netlink, &wanted).await {
                    Ok(()) => delays = waits(),
                    Err(error) => {
                        tracing::warn!(%error, "cannot set all routes; trying again");
                        wait = delays.next().unwrap_or(LOOK_AGAIN);
                    }
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
}
