//! The life of nodes: a node whose lease has ended is no longer known to be ready.
//!
//! The API service sets Ready when a node's agent registers; the agent's lease ends when it falls silent. From then on
//! the node's Ready is Unknown, and the scheduler keeps away. No pod is deleted for it: only the node itself can say
//! that it runs nothing, or a person (`stranded`), and until then its pods keep their names (I1, NL-2).

use pb::{Kind, ObjectExt, objects::*};
use runtime::{cache::Change, queue::Queue};
use store::{Guard, Key};

use crate::{
    caches::Caches,
    step::Surroundings,
    write::{Draft, Fault},
};

/// Condition of a node.
const READY: &str = "Ready";
/// Word for a node that fell silent, as Kubernetes has it.
const SILENT: &str = "NodeStatusUnknown";
/// Sentence for people.
const SILENT_MESSAGE: &str = "the node's agent stopped renewing its lease; its pods keep their names until it returns or somebody says that it is off";

/// The node as it should be written once its lease has ended; None if nothing is to be written.
pub fn silent(node: &Node, now: Time) -> Option<Node> {
    let mut node = node.clone();
    let conditions = &mut node.status.get_or_insert_default().conditions;
    let known = conditions.iter_mut().find(|condition| condition.r#type == READY);
    let unknown = Condition {
        r#type: READY.to_owned(),
        status: "Unknown".to_owned(),
        reason: SILENT.to_owned(),
        message: SILENT_MESSAGE.to_owned(),
        last_transition_time: Some(now),
        ..Condition::default()
    };
    match known {
        Some(known) if known.status == "Unknown" => return None,
        Some(known) => *known = unknown,
        None => conditions.push(unknown),
    }
    Some(node)
}

/// Watches nodes and their leases until dropped.
pub async fn run(caches: Caches, around: Surroundings) {
    let queue = Queue::new();
    tokio::join!(follow(&caches, &queue), work(&caches, &around, &queue));
}

async fn follow(caches: &Caches, queue: &Queue<String>) {
    let (mut nodes, mut leases) = (caches.nodes.subscribe(), caches.leases.subscribe());
    let all = || caches.nodes.all().iter().for_each(|node| queue.add(node.name().to_owned()));
    all();
    loop {
        tokio::select! {
            Some(change) = nodes.next() => match change {
                Change::Applied { new, .. } => queue.add(new.name().to_owned()),
                Change::Deleted { .. } => {}
                Change::Resynced => all(),
            },
            Some(change) = leases.next() => match change {
                Change::Applied { .. } => {}
                Change::Deleted { old, .. } => queue.add(old.as_str().to_owned()),
                Change::Resynced => all(),
            },
            else => return,
        }
    }
}

async fn work(caches: &Caches, around: &Surroundings, queue: &Queue<String>) {
    while let Some(work) = queue.take().await {
        let Some(node) = caches.nodes.get(&Key::object(Kind::Node, "", &work)) else {
            work.forget();
            continue;
        };
        match judge(caches, around, &node).await {
            Ok(()) => work.forget(),
            Err(fault) => {
                tracing::debug!(node = node.name(), error = %fault, "the node is judged again");
                work.retry();
            }
        }
    }
}

async fn judge(caches: &Caches, around: &Surroundings, node: &Node) -> Result<(), Fault> {
    let lease = Key::node_lease(node.name());
    if caches.leases.get(&lease).is_some() {
        return Ok(());
    }
    let Some(silent) = silent(node, Time::from(around.host.now())) else { return Ok(()) };
    // That there is no lease is compared by the store: a node that registers at this moment wins.
    let mut draft = Draft::new([store::objects::unchanged(node), Guard::Absent(lease)]);
    draft.put(&silent);
    draft.commit(around.store.as_ref(), around.fence.as_ref()).await?;
    tracing::warn!(node = node.name(), "the node fell silent: its Ready is Unknown now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use pb::Object;

    use super::*;

    #[test]
    fn a_silent_node_is_written_once() {
        let mut node = Node::default();
        node.meta_mut().name = "n1".into();
        let ready = Condition { r#type: READY.into(), status: "True".into(), ..Condition::default() };
        node.status.get_or_insert_default().conditions.push(ready);
        let at = Time { seconds: 7, nanos: 0 };
        let silent_node = silent(&node, at).unwrap();
        let condition = &silent_node.status.as_ref().unwrap().conditions[0];
        assert_eq!((condition.status.as_str(), condition.last_transition_time), ("Unknown", Some(at)));
        assert_eq!(silent(&silent_node, Time { seconds: 9, nanos: 0 }), None);
    }
}
