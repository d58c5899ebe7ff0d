//! Pods of nodes that somebody removed (NL-3b).
//!
//! A silent node keeps its pods: nobody but the node can say that it runs nothing (I1). Who deletes the Node object says
//! just that: the machine is off, or will never come back. An agent that lives after all registers its node again long
//! before the quarantine has passed. Then the pods are forgotten, and their names are free. That there is no such node is
//! compared by the store when a pod is forgotten.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
                    Change::Applied { new, .. } => drop(self.gone.lock().remove(new.name())),
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
        let node = node_of(pod);
        if !node.is_empty() && self.node(node).is_none() {
            self.node_is_gone(node);
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
            let since = self.gone.lock().get(work.as_str()).copied();
            let Some(since) = since else {
                work.forget();
                continue;
            };
            let left = QUARANTINE.saturating_sub(since.elapsed());
            if !left.is_zero() {
                self.queue.add_after(work.clone(), left);
                work.forget();
                continue;
            }
            match self.forget_pods(&work).await {
                Ok(()) => {
                    self.gone.lock().remove(work.as_str());
                    work.forget();
                }
                Err(fault) => {
                    tracing::debug!(node = %*work, error = %fault, "the pods of a removed node are looked at again");
                    work.retry();
                }
            }
        }
    }

    async fn forget_pods(&self, node: &str) -> Result<(), Fault> {
        for pod in self.caches.pods.all().iter().filter(|pod| node_of(pod) == node) {
            let absent = Guard::Absent(Key::object(Kind::Node, "", node));
            let mut draft = Draft::new([store::objects::unchanged(pod.as_ref()), absent]);
            draft.delete(pod.as_ref());
            draft.commit(self.around.store.as_ref(), self.around.fence.as_ref()).await?;
            let what = format!("forgot the pod: its node {node} was removed from the cluster");
            self.recorder.note(Note::warning(pod.as_ref(), "NodeRemoved", what));
        }
        Ok(())
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}
