//! Pods of nodes that somebody removed (NL-3b), or said to be off (NL-3d).
//!
//! A silent node keeps its pods: nobody but the node can say that it runs nothing (I1), unless a person does. There are
//! two ways to say it.
//!
//! Who deletes the Node object says that the machine will never come back. An agent that lives after all registers its
//! node again long before the quarantine has passed. Then the pods are forgotten, and their names are free. That there is
//! no such node is compared by the store when a pod is forgotten.
//!
//! Who puts the taint `node.kubernetes.io/out-of-service` on a node that is not Ready says that the machine is off now.
//! Its pods are forgotten at once. That the node is still as it was read, silent and tainted, is compared by the store: a
//! node that registers at this moment keeps its pods. On a Ready node the taint takes no pod away.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use model::validate::OUT_OF_SERVICE;
use parking_lot::Mutex;
use pb::{Kind, ObjectExt, objects::*};
use runtime::{cache::Change, queue::Queue};
use store::{Guard, Key};
use tokio::time::Instant;

use crate::{
    caches::Caches,
    events::{Note, Recorder},
    step::Surroundings,
    write::{Draft, Fault},
};

/// How long a node has to be gone before its pods are forgotten.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Looks after pods of removed nodes until dropped.
pub async fn run(caches: Caches, around: Surroundings, recorder: Recorder) {
    let stranded = Stranded { caches, around, recorder, queue: Queue::new(), gone: Mutex::default() };
    tokio::join!(stranded.follow(), stranded.work());
}

struct Stranded {
    caches: Caches,
    around: Surroundings,
    recorder: Recorder,
    queue: Queue<String>,
    /// Since when nodes that pods are bound to are known to be gone.
    gone: Mutex<BTreeMap<String, Instant>>,
}

impl Stranded {
    async fn follow(&self) {
        let (mut nodes, mut pods) = (self.caches.nodes.subscribe(), self.caches.pods.subscribe());
        self.all();
        loop {
            tokio::select! {
                Some(change) = nodes.next() => match change {
                    Change::Applied { new, .. } => self.node_is_there(&new),
                    Change::Deleted { old, .. } => self.node_is_gone(old.name()),
                    Change::Resynced => self.all(),
                },
                Some(change) = pods.next() => match change {
                    Change::Applied { new, .. } => self.pod(&new),
                    Change::Deleted { .. } => {}
                    Change::Resynced => self.all(),
                },
                else => return,
            }
        }
    }

    fn all(&self) {
        self.gone.lock().retain(|node, _| self.node(node).is_none());
        self.caches.pods.all().iter().for_each(|pod| self.pod(pod));
    }

    fn pod(&self, pod: &Pod) {
        let name = node_of(pod);
        match self.node(name) {
            _ if name.is_empty() => {}
            None => self.node_is_gone(name),
            Some(node) if is_off(&node) => self.queue.add(name.to_owned()),
            Some(_) => {}
        }
    }

    fn node_is_there(&self, node: &Node) {
        self.gone.lock().remove(node.name());
        if is_off(node) {
            self.queue.add(node.name().to_owned());
        }
    }

    fn node_is_gone(&self, node: &str) {
        let since = *self.gone.lock().entry(node.to_owned()).or_insert_with(Instant::now);
        self.queue.add_after(node.to_owned(), QUARANTINE.saturating_sub(since.elapsed()));
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.caches.nodes.get(&Key::object(Kind::Node, "", name))
    }

    async fn work(&self) {
        while let Some(work) = self.queue.take().await {
            match self.look_after(&work).await {
                Ok(()) => work.forget(),
                Err(fault) => {
                    tracing::debug!(node = %*work, error = %fault, "the pods of a lost node are looked at again");
                    work.retry();
                }
            }
        }
    }

    async fn look_after(&self, name: &str) -> Result<(), Fault> {
        let since = self.gone.lock().get(name).copied();
        match (self.node(name), since) {
            (Some(node), _) if is_off(&node) => {
                let why = format!("its node {name} is out of service, as its taint says");
                self.forget_pods(name, &store::objects::unchanged(node.as_ref()), "NodeOutOfService", &why).await
            }
            (None, Some(since)) => {
                let left = QUARANTINE.saturating_sub(since.elapsed());
                if !left.is_zero() {
                    self.queue.add_after(name.to_owned(), left);
                    return Ok(());
                }
                let absent = Guard::Absent(Key::object(Kind::Node, "", name));
                let why = format!("its node {name} was removed from the cluster");
                self.forget_pods(name, &absent, "NodeRemoved", &why).await?;
                self.gone.lock().remove(name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn forget_pods(&self, node: &str, lost: &Guard, reason: &'static str, why: &str) -> Result<(), Fault> {
        for pod in self.caches.pods.all().iter().filter(|pod| node_of(pod) == node) {
            let mut draft = Draft::new([store::objects::unchanged(pod.as_ref()), lost.clone()]);
            draft.delete(pod.as_ref());
            draft.commit(self.around.store.as_ref(), self.around.fence.as_ref()).await?;
            self.recorder.note(Note::warning(pod.as_ref(), reason, format!("forgot the pod: {why}")));
        }
        Ok(())
    }
}

/// Whether somebody said that the machine is off, and nothing is heard of it.
fn is_off(node: &Node) -> bool {
    let said = node.spec.iter().flat_map(|spec| &spec.taints).any(|taint| taint.key == OUT_OF_SERVICE);
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    said && !conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}
