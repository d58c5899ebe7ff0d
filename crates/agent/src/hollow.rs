//! Many nodes in one process, whose pods become ready at once: for tests and benchmarks of the control plane at size.
//!
//! A hollow node speaks the same contract as a real one and runs nothing. It answers a new pod with Running and Ready,
//! and a terminating one with stopped, in the very moment in which it hears of it.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    agent::v1::{PodRef, PodReport, watch_pods_response::Change},
    objects::{Condition, ContainerState, ContainerStateRunning, ContainerStatus, Node, Pod, PodIp, PodStatus, Time},
};
use tokio::sync::watch;

use crate::{
    api::NodeApi,
    config::Config,
    facts,
    report::{Outcome, Reporter},
    session::{self, Registration},
    stream::{Feed, follow},
};
use runtime::tasks::Tasks;

/// Nodes that share a connection: servers bound the streams of one, commonly at 100 to 200, and each node takes two.
const NODES_PER_CONNECTION: u32 = 40;

/// Starts `count` hollow nodes under `tasks`.
pub fn start(config: &Config, count: u32, tasks: &Tasks) -> anyhow::Result<()> {
    let mut api = NodeApi::connect(&config.api)?;
    for index in 0..count {
        if index > 0 && index % NODES_PER_CONNECTION == 0 {
            api = NodeApi::connect(&config.api)?;
        }
        let name = format!("{}-{index}", config.node_name);
        let node = facts::hollow_node(&name, address(index), config);
        let phase = f64::from(index) / f64::from(count);
        start_node(name, node, phase, api.clone(), tasks);
    }
    Ok(())
}

/// An address that no machine has: from the range for benchmarks of networks, 198.18.0.0/15.
fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + index)
}

fn start_node(name: String, node: Node, phase: f64, api: NodeApi, tasks: &Tasks) {
    let (registered, registration) = watch::channel(None);
    let reporter = Reporter::default();
    let token = tasks.token().clone();
    tasks.spawn("hollow-session", session::keep(api.clone(), watch::channel(node).1, phase, registered, token.clone()));

    let pods = Arc::new(Mutex::new(Pods::default()));
    let settled = pods.clone();
    tasks.spawn(
        "hollow-report",
        reporter.clone().run(api.clone(), name.clone(), token.clone(), move |uid, stopped, outcome| {
            if stopped || outcome == Outcome::Gone {
                settled.lock().forget(uid);
            }
        }),
    );
    tasks.spawn("hollow-pods", async move {
        let Some(host) = first_registration(registration).await else { return };
        let host = Host::from(&host);
        let open = || api.clone().watch_pods(name.clone());
        follow("pods", token, open, |feed| pods.lock().take(feed, &host, Timestamp::now(), &reporter)).await;
    });
}

/// None when the agent ends before.
async fn first_registration(mut registered: watch::Receiver<Option<Registration>>) -> Option<Registration> {
    registered.wait_for(Option::is_some).await.ok()?.clone()
}

/// What pods need to know of their node.
#[derive(Debug)]
struct Host {
    ip: String,
    first_pod: Ipv4Addr,
}

impl From<&Registration> for Host {
    fn from(registration: &Registration) -> Self {
        let status = registration.node.status.as_ref();
        let internal = status.and_then(|s| s.addresses.iter().find(|a| a.r#type == "InternalIP"));
        let cidr = registration.node.spec.as_ref().map_or("", |spec| spec.pod_cidr.as_str());
        let network = cidr.split('/').next().and_then(|ip| ip.parse().ok());
        Self {
            ip: internal.map(|a| a.address.clone()).unwrap_or_default(),
            first_pod: network.unwrap_or(Ipv4Addr::new(198, 19, 0, 0)),
        }
    }
}

/// The pods of one hollow node.
#[derive(Debug, Default)]
struct Pods {
    /// Offset of the pod's address, by uid.
    running: BTreeMap<String, u32>,
    /// Uids named since the stream was opened.
    named: BTreeMap<String, ()>,
}

impl Pods {
    fn take(&mut self, feed: Feed<pb::agent::v1::WatchPodsResponse>, host: &Host, now: Timestamp, reporter: &Reporter) {
        match feed {
            Feed::Opened => self.named.clear(),
            Feed::Closed => {}
            Feed::Message(message) => match message.change {
                Some(Change::Upsert(bundle)) => {
                    if let Some(report) = bundle.pod.and_then(|pod| self.upsert(&pod, host, now)) {
                        reporter.report(report);
                    }
                }
                Some(Change::Removed(pod)) => self.forget(&pod.uid),
                Some(Change::Synced(_)) => {
                    let named = std::mem::take(&mut self.named);
                    self.running.retain(|uid, _| named.contains_key(uid));
                }
                None => {}
            },
        }
    }

    fn forget(&mut self, uid: &str) {
        self.running.remove(uid);
    }

    fn upsert(&mut self, pod: &Pod, host: &Host, now: Timestamp) -> Option<PodReport> {
        let meta = pod.metadata.as_ref()?;
        self.named.insert(meta.uid.clone(), ());
        let reference = PodRef { namespace: meta.namespace.clone(), name: meta.name.clone(), uid: meta.uid.clone() };
        if meta.deletion_timestamp.is_some() {
            return Some(PodReport { pod: Some(reference), status: pod.status.clone(), stopped: true });
        }
        if self.running.contains_key(&meta.uid) {
            return None;
        }
        let offset = self.free_offset();
        self.running.insert(meta.uid.clone(), offset);
        let told =
            pod.status.as_ref().is_some_and(|s| s.phase == "Running" || s.phase == "Succeeded" || s.phase == "Failed");
        if told {
            return None;
        }
        let ip = Ipv4Addr::from_bits(host.first_pod.to_bits().wrapping_add(offset)).to_string();
        Some(PodReport { pod: Some(reference), status: Some(ready_status(pod, &host.ip, &ip, now)), stopped: false })
    }

    /// The lowest offset from 2 on that no pod has: 0 and 1 are the network and its gateway.
    fn free_offset(&self) -> u32 {
        let taken: std::collections::BTreeSet<u32> = self.running.values().copied().collect();
        (2..).find(|offset| !taken.contains(offset)).unwrap_or(2)
    }
}

fn ready_status(pod: &Pod, host_ip: &str, pod_ip: &str, now: Timestamp) -> PodStatus {
    let at = Time::from(now);
    let generation = pod.metadata.as_ref().map_or(0, |meta| meta.generation);
    let condition = |kind: &str| Condition {
        r#type: kind.into(),
        status: "True".into(),
        observed_generation: generation,
        last_transition_time: Some(at),
        ..Default::default()
    };
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    PodStatus {
        observed_generation: generation,
        phase: "Running".into(),
        conditions: ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition).into(),
        host_ip: host_ip.into(),
        pod_ip: pod_ip.into(),
        pod_ips: vec![PodIp { ip: pod_ip.into() }],
        start_time: Some(at),
        container_statuses: containers
            .iter()
            .map(|container| ContainerStatus {
                name: container.name.clone(),
                state: Some(ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(at) }),
                    ..Default::default()
                }),
                ready: true,
                image: container.image.clone(),
                container_id: format!("hollow://{}/{}", pod.metadata.as_ref().map_or("", |m| &m.uid), container.name),
                started: Some(true),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{Container, ObjectMeta, PodSpec};

    use super::*;

    fn pod(uid: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta { name: uid.into(), uid: uid.into(), ..Default::default() }),
            spec: Some(PodSpec {
                containers: vec![Container { name: "main".into(), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn host() -> Host {
        Host { ip: "198.18.0.1".into(), first_pod: Ipv4Addr::new(10, 77, 1, 0) }
    }

    #[test]
    fn a_pod_is_ready_at_once_with_an_address_of_its_own_and_stopped_at_once() {
        let mut pods = Pods::default();
        let first = pods.upsert(&pod("a"), &host(), Timestamp::UNIX_EPOCH).unwrap();
        let second = pods.upsert(&pod("b"), &host(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(first.status.unwrap().pod_ip, "10.77.1.2");
        assert_eq!(second.status.unwrap().pod_ip, "10.77.1.3");
        assert!(pods.upsert(&pod("a"), &host(), Timestamp::UNIX_EPOCH).is_none(), "told already");

        let mut going = pod("a");
        going.metadata.as_mut().unwrap().deletion_timestamp = Some(Time::default());
        assert!(pods.upsert(&going, &host(), Timestamp::UNIX_EPOCH).unwrap().stopped);
        pods.forget("a");
        let third = pods.upsert(&pod("c"), &host(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(third.status.unwrap().pod_ip, "10.77.1.2", "the address is free again");
    }
}
