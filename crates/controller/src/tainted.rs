//! Pods of nodes that let pods leave: a taint with the effect NoExecute that a pod does not put up with, or not for ever.
//!
//! When a pod has to leave is `plan::taints`' decision. It is asked to go as users ask, with its own grace, and its node
//! says when it is gone. Disruption budgets are not asked, as in Kubernetes: who taints a node says that its pods cannot
//! stay. That pod and node are still as they were seen is compared by the store. A taint does not say since when it is
//! there unless who put it there wrote so; then the time counts from when this controller saw it first.
//!
//! Must never: forget a pod; have anything to do with nodes that are out of service (`stranded`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use model::leaving::because;
use parking_lot::Mutex;
use pb::{Kind, ObjectExt, objects::*};
use plan::taints::{executing, leave};
use runtime::{cache::Change, queue::Queue};
use store::{Key, objects::unchanged};

use crate::{
    caches::Caches,
    events::{Note, Recorder},
    object::terminating,
    step::Surroundings,
    write::{Draft, Fault},
};

/// Why, in Kubernetes' word.
const BY_TAINT: &str = "DeletionByTaintManager";
/// Reason of the event, in Kubernetes' word.
const EVENT: &str = "TaintManagerEviction";

/// A taint of a node: the node's name, the taint's key and value.
type Seen = (String, String, String);

/// Looks after pods of tainted nodes until dropped.
pub async fn run(caches: Caches, around: Surroundings, recorder: Recorder) {
    let tainted = Tainted { caches, around, recorder, queue: Queue::new(), seen: Mutex::default() };
    tokio::join!(tainted.follow(), tainted.work());
}

struct Tainted {
    caches: Caches,
    around: Surroundings,
    recorder: Recorder,
    queue: Queue<Key>,
    /// Since when taints are known.
    seen: Mutex<BTreeMap<Seen, Timestamp>>,
}

impl Tainted {
    async fn follow(&self) {
        let (mut nodes, mut pods) = (self.caches.nodes.subscribe(), self.caches.pods.subscribe());
        self.all();
        loop {
            tokio::select! {
                Some(change) = nodes.next() => match change {
                    Change::Applied { new, .. } => self.node(&new),
                    Change::Deleted { old, .. } => self.forget(old.name(), &[]),
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
        let nodes = self.caches.nodes.all();
        self.seen.lock().retain(|(name, ..), _| nodes.iter().any(|node| node.name() == name));
        nodes.iter().for_each(|node| self.node(node));
    }

    fn node(&self, node: &Node) {
        let taints: Vec<Seen> = executing(node).map(|taint| seen(node, taint)).collect();
        self.forget(node.name(), &taints);
        if taints.is_empty() {
            return;
        }
        let now = self.around.host.now();
        let mut known = self.seen.lock();
        for taint in taints {
            known.entry(taint).or_insert(now);
        }
        drop(known);
        for pod in self.caches.pods.all().iter().filter(|pod| node_of(pod) == node.name()) {
            self.queue.add(Key::of(pod.as_ref()));
        }
    }

    /// Forgets since when taints were there that are there no more.
    fn forget(&self, node: &str, left: &[Seen]) {
        self.seen.lock().retain(|seen, _| seen.0 != node || left.contains(seen));
    }

    fn pod(&self, pod: &Pod) {
        if self.node_of(pod).is_some_and(|node| executing(&node).next().is_some()) {
            self.queue.add(Key::of(pod));
        }
    }

    fn node_of(&self, pod: &Pod) -> Option<Arc<Node>> {
        self.caches.nodes.get(&Key::object(Kind::Node, "", node_of(pod)))
    }

    async fn work(&self) {
        while let Some(work) = self.queue.take().await {
            match self.look_at(&work).await {
                Ok(()) => work.forget(),
                Err(fault) => {
                    tracing::debug!(pod = %*work, error = %fault, "a pod on a tainted node is looked at again");
                    work.retry();
                }
            }
        }
    }

    async fn look_at(&self, key: &Key) -> Result<(), Fault> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(()) };
        let Some(node) = self.node_of(&pod) else { return Ok(()) };
        let now = self.around.host.now();
        let since = |taint: &Taint| self.seen.lock().get(&seen(&node, taint)).copied().unwrap_or(now);
        let Some(leave) = leave(&pod, &node, since) else { return Ok(()) };
        let left = Duration::try_from(leave.at.duration_since(now)).unwrap_or_default();
        if !left.is_zero() {
            self.queue.add_after(key.clone(), left);
            return Ok(());
        }
        let Taint { key: taint, value, .. } = leave.taint;
        let why =
            format!("node {} has the taint {taint}={value}:NoExecute, which the pod does not put up with", node.name());
        let mut draft = Draft::new([unchanged(pod.as_ref()), unchanged(node.as_ref())]);
        draft.put(&leaving(&pod, now.into(), &why));
        draft.commit(self.around.store.as_ref(), self.around.fence.as_ref()).await?;
        self.recorder.note(Note::normal(pod.as_ref(), EVENT, format!("asked to go: {why}")));
        Ok(())
    }
}

/// The pod on its way out, with the reason among its conditions.
fn leaving(pod: &Pod, now: Time, why: &str) -> Pod {
    let mut pod = terminating(pod.clone(), now);
    because(&mut pod, BY_TAINT, why, now);
    pod
}

fn seen(node: &Node, taint: &Taint) -> Seen {
    (node.name().to_owned(), taint.key.clone(), taint.value.clone())
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}
