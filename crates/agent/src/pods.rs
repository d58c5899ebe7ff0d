//! All pods of the node: one worker each, told what the API service says and what containerd tells.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use pb::{
    agent::v1::{PodBundle, PodRef, WatchPodsResponse, watch_pods_response::Change},
    objects::Pod,
};
use runtime::tasks::Tasks;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    cri::FoundPod,
    events::Happened,
    report::Outcome,
    spec::reference,
    stream::Feed,
    worker::{Desired, Mailbox, Shared, Worker},
};

/// The workers.
pub struct Pods {
    shared: Arc<Shared>,
    tasks: Tasks,
    workers: Mutex<BTreeMap<String, Handle>>,
}

struct Handle {
    reference: PodRef,
    desired: watch::Sender<Desired>,
    mailbox: Arc<Mailbox>,
    /// Nothing of the pod is left on the node.
    done: CancellationToken,
    /// Named since the stream was opened.
    named: bool,
}

impl Pods {
    /// No pods yet.
    pub fn new(shared: Arc<Shared>, tasks: Tasks) -> Self {
        Self { shared, tasks, workers: Mutex::default() }
    }

    /// Takes a pod that was found on the node. Nothing happens to it until the API service has told all its pods.
    pub fn adopt(&self, found: FoundPod) {
        tracing::info!(pod = name(&found.reference), uid = found.reference.uid, "found on the node");
        let mut workers = self.workers.lock();
        let grace = found.grace;
        self.start(&mut workers, found.reference, Desired::Unknown, grace);
    }

    fn start(
        &self,
        workers: &mut BTreeMap<String, Handle>,
        reference: PodRef,
        desired: Desired,
        grace: Option<std::time::Duration>,
    ) {
        let same_name = |other: &&Handle| {
            other.reference.namespace == reference.namespace && other.reference.name == reference.name
        };
        let predecessors = workers.values().filter(same_name).map(|handle| handle.done.clone()).collect();
        let (sender, receiver) = watch::channel(desired);
        let (mailbox, done) = (Arc::new(Mailbox::default()), CancellationToken::new());
        let worker =
            Worker::new(self.shared.clone(), reference.clone(), receiver, mailbox.clone(), predecessors, grace);
        let span = tracing::info_span!("pod", name = name(&reference), uid = reference.uid);
        let (finished, pods) = (done.clone(), self.shared.metrics.pods.clone());
        pods.inc();
        self.tasks.spawn("pod", async move {
            worker.run().instrument(span).await;
            pods.dec();
            finished.cancel();
        });
        let handle = Handle { reference: reference.clone(), desired: sender, mailbox, done, named: true };
        workers.insert(reference.uid, handle);
    }

    /// Takes what the API service tells.
    pub fn take(&self, feed: Feed<WatchPodsResponse>) {
        let mut workers = self.workers.lock();
        match feed {
            Feed::Opened => workers.values_mut().for_each(|handle| handle.named = false),
            // What was told holds until the next telling.
            Feed::Closed => {}
            Feed::Message(message) => match message.change {
                Some(Change::Upsert(bundle)) => self.upsert(&mut workers, bundle),
                Some(Change::Removed(pod)) => remove(&mut workers, &pod.uid),
                Some(Change::Synced(_)) => {
                    let unnamed: Vec<_> =
                        workers.iter().filter(|(_, handle)| !handle.named).map(|(uid, _)| uid.clone()).collect();
                    for uid in unnamed {
                        remove(&mut workers, &uid);
                    }
                }
                None => {}
            },
        }
    }

    fn upsert(&self, workers: &mut BTreeMap<String, Handle>, bundle: PodBundle) {
        let Some(pod) = &bundle.pod else { return };
        let reference = reference(pod);
        if reference.uid.is_empty() {
            tracing::warn!(pod = name(&reference), "the API service named a pod without uid; it is not run");
            return;
        }
        match workers.get_mut(&reference.uid) {
            Some(handle) if !handle.done.is_cancelled() => {
                handle.named = true;
                handle.reference = reference;
                handle.desired.send_replace(Desired::Known(Arc::new(bundle)));
            }
            // Stopped and reported; the report is on its way or answered.
            Some(handle) if is_terminating(pod) => handle.named = true,
            _ => self.start(workers, reference, Desired::Known(Arc::new(bundle)), None),
        }
    }

    /// Whether the pod of this uid has a worker: it is on this node, or shall be.
    pub fn knows(&self, uid: &str) -> bool {
        self.workers.lock().contains_key(uid)
    }

    /// Takes what became of a report.
    pub fn settled(&self, uid: &str, stopped: bool, outcome: Outcome) {
        tracing::debug!(uid, stopped, ?outcome, "report settled");
        let mut workers = self.workers.lock();
        // A pod that the API does not have is stopped when the watch says so, not on the word of one answer.
        if stopped && workers.get(uid).is_some_and(|handle| handle.done.is_cancelled()) {
            workers.remove(uid);
        }
    }

    /// A driver came or went: what waited for it is tried at once.
    pub fn drivers_changed(&self) {
        for handle in self.workers.lock().values() {
            handle.mailbox.retry_volumes.store(true, Ordering::Relaxed);
            handle.mailbox.woken.notify_one();
        }
    }

    /// A pull has ended: who waits for an image asks at once.
    pub fn images_changed(&self) {
        for handle in self.workers.lock().values() {
            handle.mailbox.retry_images.store(true, Ordering::Relaxed);
            handle.mailbox.woken.notify_one();
        }
    }

    /// Takes what containerd tells.
    pub fn happened(&self, happened: Happened) {
        let workers = self.workers.lock();
        let (id, ended) = match happened {
            Happened::Listening | Happened::Deaf => {
                self.shared.listening.store(happened == Happened::Listening, Ordering::Relaxed);
                workers.values().for_each(|handle| handle.mailbox.woken.notify_one());
                return;
            }
            Happened::Ended(id) => (id, true),
            Happened::Other(id) => (id, false),
        };
        let uid = self.shared.index.lock().get(&id).cloned();
        let Some(handle) = uid.and_then(|uid| workers.get(&uid)) else { return };
        if ended {
            handle.mailbox.ended.lock().insert(id);
        }
        handle.mailbox.woken.notify_one();
    }
}

fn remove(workers: &mut BTreeMap<String, Handle>, uid: &str) {
    let Some(handle) = workers.get(uid) else { return };
    if handle.done.is_cancelled() {
        workers.remove(uid);
    } else if !matches!(*handle.desired.borrow(), Desired::Gone) {
        tracing::info!(pod = name(&handle.reference), uid, "the API service has no such pod; stopping it");
        handle.desired.send_replace(Desired::Gone);
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.as_ref().is_some_and(|meta| meta.deletion_timestamp.is_some())
}

fn name(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
