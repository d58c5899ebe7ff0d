//! Nodes that come up, and their signs of life.
//!
//! A node is alive as long as its lease is: the lease holds the key `leases/nodes/<name>`, and whoever registers under a
//! name takes that key. The agent before it finds out at its next heartbeat and must register again: two agents of one
//! name never both count as the node. Heartbeats write nothing.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use pb::{
    Kind, Object, ObjectExt,
    agent::v1::{HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse},
    objects::{Condition, Node, Time},
};
use runtime::feed::list_all;
use store::{Guard, Key, LeaseId, Op, Prefix, Revision, Txn, TxnOutcome, objects};

use crate::{
    Shared, admission,
    error::{Error, Result, called},
    object::{born, now},
};

/// How often a registration is decided again when other nodes register at the same time. Each try that fails means
/// that another node got its network, so this many can come up at once.
const ATTEMPTS: usize = 64;
/// Nodes with this label set to "true" run no real pods and need no network.
pub const HOLLOW: &str = "berth.dev/hollow";

/// Whether a node only pretends.
pub fn is_hollow(node: &Node) -> bool {
    node.meta().labels.get(HOLLOW).is_some_and(|value| value == "true")
}

/// The node as it becomes known: what the agent says, over what is known already. The agent owns the status and its own
/// labels; the network once given, cordons, taints and the labels of others stay.
fn known(reported: &Node, stored: Option<&Node>, now: Time) -> Node {
    let mut node = stored.cloned().unwrap_or_else(|| Node {
        metadata: Some(pb::objects::ObjectMeta { name: reported.name().to_owned(), ..Default::default() }),
        ..Default::default()
    });
    let meta = node.meta_mut();
    meta.labels.extend(reported.meta().labels.clone());
    meta.annotations.extend(reported.meta().annotations.clone());
    let before = node.status.take().unwrap_or_default();
    let mut status = reported.status.clone().unwrap_or_default();
    let said = |kind: &str| kind == "Ready" || status.conditions.iter().any(|condition| condition.r#type == kind);
    let mut conditions: Vec<_> = before.conditions.iter().filter(|c| !said(&c.r#type)).cloned().collect();
    for condition in &mut status.conditions {
        // An agent that starts anew does not know since when it is so.
        let same = |old: &&Condition| old.r#type == condition.r#type && old.status == condition.status;
        if let Some(old) = before.conditions.iter().find(same) {
            condition.clone_from(old);
        }
    }
    conditions.append(&mut status.conditions);
    conditions.retain(|condition| condition.r#type != "Ready");
    conditions.push(ready(&before.conditions, now));
    status.conditions = conditions;
    node.status = Some(status);
    node
}

/// The Ready condition of a node whose agent is here; since when, if it was ready before.
fn ready(before: &[Condition], now: Time) -> Condition {
    let was = before.iter().find(|condition| condition.r#type == "Ready" && condition.status == "True");
    Condition {
        r#type: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: "AgentReady".to_owned(),
        message: "the node's agent is registered and renews its lease".to_owned(),
        last_transition_time: was.and_then(|condition| condition.last_transition_time).or(Some(now)),
        ..Default::default()
    }
}

impl Shared {
    /// Makes a node known and starts its lease.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse> {
        let reported = request.node.ok_or_else(|| Error::field("node", "Required value"))?;
        if reported.name().is_empty() {
            return Err(Error::field("node.metadata.name", "Required value"));
        }
        let lease = self.store.grant_lease(self.settings.node_lease).await?;
        match self.register_under(&reported, lease).await {
            Ok(node) => Ok(RegisterResponse {
                node: Some(node),
                lease_id: lease.0,
                lease_seconds: whole_seconds(self.settings.node_lease),
            }),
            Err(error) => {
                // The lease would end by itself; this only saves the store the wait.
                if let Err(error) = self.store.revoke_lease(lease).await {
                    tracing::debug!(%error, "could not revoke the lease of a failed registration");
                }
                Err(error)
            }
        }
    }

    async fn register_under(&self, reported: &Node, lease: LeaseId) -> Result<Node> {
        let name = reported.name();
        let key = Key::object(Kind::Node, "", name);
        for _ in 0..ATTEMPTS {
            let stored: Option<Node> = self.store.get(&key).await?.map(|kv| objects::decode(&kv)).transpose()?;
            let mut node = known(reported, stored.as_ref(), now());
            let mut guards = Vec::new();
            if node.spec.as_ref().is_none_or(|spec| spec.pod_cidr.is_empty()) && !is_hollow(reported) {
                let (network, revision) = self.free_network().await?;
                node.spec.get_or_insert_default().pod_cidr = network;
                guards.push(Guard::PrefixNotNewer(Prefix::kind(Kind::Node), revision));
            }
            let mut ops = vec![Op::Put(Key::node_lease(name), Bytes::from(name.to_owned()), Some(lease))];
            match &stored {
                Some(stored) if *stored == node => guards.push(objects::unchanged(stored)),
                Some(stored) => {
                    guards.push(objects::unchanged(stored));
                    ops.push(objects::put(&node));
                }
                None => {
                    guards.push(Guard::Absent(key.clone()));
                    node = first_time(node)?;
                    ops.push(objects::put(&node));
                }
            }
            let writes_node = ops.len() > 1;
            if let TxnOutcome::Committed(revision) = self.store.txn(Txn { guards, ops }).await? {
                self.caches.leases().wrote(revision);
                if writes_node {
                    self.caches.of(Kind::Node).wrote(revision);
                    node.meta_mut().resource_version = revision.to_string();
                }
                return Ok(node);
            }
        }
        Err(Error::contended(&called(Kind::Node, "", name)))
    }

    /// A network that no node has, and the revision at which that was so.
    async fn free_network(&self) -> Result<(String, Revision)> {
        let (nodes, revision) = list_all(&*self.store, &Prefix::kind(Kind::Node)).await?;
        let mut taken = BTreeSet::new();
        for kv in &nodes {
            let node: Node = objects::decode(kv)?;
            taken.extend(node.spec.map(|spec| spec.pod_cidr));
        }
        let free = self.settings.pod_cidr.first_free(&taken).ok_or_else(|| {
            let cidr = self.settings.pod_cidr;
            Error::Refused(format!(
                "no pod network is left in {cidr}: delete the nodes that are gone, or start the API service with a larger --pod-cidr"
            ))
        })?;
        Ok((free, revision))
    }

    /// Renews the lease of a node.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse> {
        let lease = LeaseId(request.lease_id);
        let key = Key::node_lease(&request.node_name);
        let ended = |why: &str| Error::NotFound {
            what: format!("lease {} of node {}", request.lease_id, request.node_name),
            hint: format!("{why}; register again"),
        };
        // The cache answers nearly always; what it does not confirm is asked of the store.
        if self.caches.leases().last_known(&key).as_deref() != Some(&lease) {
            match self.store.get(&key).await?.map(|kv| kv.lease) {
                Some(Some(held)) if held == lease => {}
                Some(_) => return Err(ended(": another agent has registered under this name")),
                None => return Err(ended(": it has ended")),
            }
        }
        match self.store.renew_lease(lease).await {
            Ok(lasts) => Ok(HeartbeatResponse { lease_seconds: whole_seconds(lasts) }),
            Err(store::Error::LeaseEnded(_)) => Err(ended(": it has ended")),
            Err(error) => Err(error.into()),
        }
    }
}

/// A node that nobody knew.
fn first_time(node: Node) -> Result<Node> {
    let status = node.status.clone();
    let mut object = node.into_any();
    born(&mut object)?;
    admission::default(&mut object);
    admission::create(&object)?;
    let mut node = Node::from_any(object).map_err(|_| Error::Bug("a node became another kind".to_owned()))?;
    node.status = status;
    Ok(node)
}

/// Rounded down: an agent must not count on a fraction that is not there.
fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use pb::objects::{NodeSpec, NodeStatus, ObjectMeta, Taint};

    use super::*;

    fn at(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    fn reported() -> Node {
        Node {
            metadata: Some(ObjectMeta {
                name: "n1".into(),
                labels: [("zone".to_owned(), "a".to_owned())].into(),
                ..Default::default()
            }),
            status: Some(NodeStatus::default()),
            ..Default::default()
        }
    }

    #[test]
    fn registering_again_keeps_what_others_said_and_changes_nothing_else() {
        let mut stored = known(&reported(), None, at(1));
        let off = Taint { key: "node.kubernetes.io/out-of-service".into(), ..Default::default() };
        stored.spec = Some(NodeSpec { pod_cidr: "10.77.1.0/24".into(), unschedulable: true, taints: vec![off] });
        stored.meta_mut().labels.insert("theirs".into(), "x".into());
        assert_eq!(known(&reported(), Some(&stored), at(9)), stored);
    }

    #[test]
    fn a_condition_that_did_not_turn_is_as_old_as_it_was() {
        let pressed = |status: &str, since: i64| {
            let mut node = reported();
            node.status.as_mut().unwrap().conditions = vec![Condition {
                r#type: "MemoryPressure".into(),
                status: status.into(),
                last_transition_time: Some(at(since)),
                ..Default::default()
            }];
            node
        };
        let stored = known(&pressed("False", 1), None, at(1));
        assert_eq!(known(&pressed("False", 9), Some(&stored), at(9)), stored);
        let turned = known(&pressed("True", 9), Some(&stored), at(9));
        assert_eq!(turned.status.unwrap().conditions[0].last_transition_time, Some(at(9)));
    }

    #[test]
    fn a_node_that_comes_back_is_ready_since_now() {
        let mut lost = known(&reported(), None, at(1));
        lost.status.as_mut().unwrap().conditions[0].status = "Unknown".into();
        let back = known(&reported(), Some(&lost), at(9));
        let conditions = back.status.unwrap().conditions;
        assert_eq!(conditions.len(), 1);
        assert_eq!((conditions[0].status.as_str(), conditions[0].last_transition_time), ("True", Some(at(9))));
    }
}
