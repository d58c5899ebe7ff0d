//! Registration and heartbeats: what keeps a node a member of the cluster.
//!
//! A heartbeat goes out every third of the lease and must be answered within that time. A lease that the server no
//! longer knows means: register again. Nothing here touches pods; they run on while the server is away.

use std::time::Duration;

use pb::{
    agent::v1::{HeartbeatRequest, RegisterRequest},
    objects::Node,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{api::NodeApi, stream::waits};

/// How long the server may take to register a node.
const REGISTERING: Duration = Duration::from_secs(10);

/// A lease shorter than this is treated as this long: a server that says 0 must not make the agent spin.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// What the server said at the last registration.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The node as known, with its pod network.
    pub node: Node,
    /// The lease.
    pub lease_id: i64,
    /// How long the lease lasts from each renewal.
    pub lease: Duration,
}

/// Keeps `node` registered until `shutdown`, anew when it changes; tells `registered` of each registration. `phase` (0 to
/// 1) spreads the heartbeats of nodes that start together.
pub async fn keep(
    mut api: NodeApi,
    mut node: watch::Receiver<Node>,
    phase: f64,
    registered: watch::Sender<Option<Registration>>,
    shutdown: CancellationToken,
) {
    let session = async {
        loop {
            let present = node.borrow_and_update().clone();
            let registration = register(&mut api, &present).await;
            tracing::info!(
                node = name(&present),
                lease = registration.lease_id,
                lease_seconds = registration.lease.as_secs(),
                "registered"
            );
            registered.send_replace(Some(registration.clone()));
            tokio::select! {
                () = heartbeats(&mut api, &present, registration, phase) => {}
                () = changed(&mut node) => tracing::info!(node = name(&present), "the node changed; registering again"),
            }
        }
    };
    shutdown.run_until_cancelled(session).await;
}

/// Never, if nobody is left who could change it.
async fn changed(node: &mut watch::Receiver<Node>) {
    if node.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn name(node: &Node) -> &str {
    node.metadata.as_ref().map_or("", |meta| meta.name.as_str())
}

/// Tries until it holds.
async fn register(api: &mut NodeApi, node: &Node) -> Registration {
    let mut delays = waits();
    loop {
        let request = RegisterRequest { node: Some(node.clone()) };
        let answer = timeout(REGISTERING, api.register(request)).await;
        let status = match answer {
            Ok(Ok(response)) => {
                let lease = seconds(response.lease_seconds);
                return Registration {
                    node: response.node.unwrap_or_else(|| node.clone()),
                    lease_id: response.lease_id,
                    lease,
                };
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer within 10 s"),
        };
        tracing::warn!(node = name(node), %status, "cannot register the node; trying again");
        tokio::time::sleep(delays.next().unwrap_or(REGISTERING)).await;
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(SHORTEST_LEASE)
}

/// Renews the lease until the server no longer knows it.
async fn heartbeats(api: &mut NodeApi, node: &Node, registration: Registration, phase: f64) {
    let mut lease = registration.lease;
    let mut next = Instant::now() + lease.div_f64(3.0).mul_f64(phase.clamp(0.0, 1.0));
    loop {
        sleep_until(next).await;
        let period = lease / 3;
        let sent = Instant::now();
        let request = HeartbeatRequest { node_name: name(node).to_owned(), lease_id: registration.lease_id };
        match timeout(period, api.heartbeat(request)).await {
            Ok(Ok(response)) => {
                lease = seconds(response.lease_seconds);
                next = sent + lease / 3;
            }
            Ok(Err(status)) if status.code() == Code::NotFound => {
                tracing::warn!(node = name(node), "the node's lease has ended; registering again");
                return;
            }
            Ok(Err(status)) => {
                tracing::warn!(node = name(node), %status, "heartbeat failed; trying again");
                // Sooner than the next regular one: the lease runs on.
                next = sent + (period / 4).max(Duration::from_millis(100));
            }
            Err(_) => {
                tracing::warn!(node = name(node), "heartbeat not answered in time; trying again");
                next = Instant::now();
            }
        }
    }
}
