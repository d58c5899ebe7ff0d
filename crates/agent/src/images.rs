//! Images of containers: found on the node, or pulled.
//!
//! A pull runs beside everything else: who needs its image asks again when it is done, and no pod waits for the pull of
//! another. A pull that failed is tried again after 10 s, each further one after twice as long, up to 5 min; reasons are
//! Kubernetes' (ErrImagePull, then ImagePullBackOff). A pull ends with the pod that it is for.

mod credentials;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use pb::{agent::v1::PodBundle, objects::Container};
use runtime::{backoff::Backoff, tasks::Tasks};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::cri::Cri;

/// Between a failed pull and the next try.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(10), longest: Duration::from_secs(300) };

/// The most pulls at the same moment.
const PARALLEL: usize = 4;

/// The images of a node.
#[derive(Debug)]
pub struct Images {
    cri: Cri,
    tasks: Tasks,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pulls: Mutex<BTreeMap<Key, Pull>>,
    slots: Semaphore,
    settled: watch::Sender<u64>,
}

/// Uid of a pod, and the image: credentials are a pod's own.
type Key = (String, String);

/// Why a container's image cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoImage {
    /// It is on its way.
    #[error("pulling image {0:?}")]
    Pulling(String),
    /// It is not there, and must not be pulled.
    #[error(
        "image {0:?} is not on this node, and imagePullPolicy is Never: import it, for example with \
         `ctr -n k8s.io images import FILE.tar`, or let it be pulled"
    )]
    Never(String),
    /// The last pull failed just now.
    #[error(
        "cannot pull image {image:?}: {problem}; it is tried again: see to the name, the registry and \
         spec.imagePullSecrets, or import the image on the node"
    )]
    Failed {
        /// The image.
        image: String,
        /// What the runtime said.
        problem: String,
    },
    /// The last pull failed, and the next one is not due.
    #[error("back-off pulling image {image:?}: {problem}")]
    BackOff {
        /// The image.
        image: String,
        /// What the runtime said.
        problem: String,
    },
    /// The runtime did not answer.
    #[error("cannot look up image {image:?}: {problem}")]
    Unknown {
        /// The image.
        image: String,
        /// What the runtime said.
        problem: String,
    },
}

impl NoImage {
    /// One word in Kubernetes' vocabulary.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Pulling(_) => PULLING,
            Self::Never(_) => "ErrImageNeverPull",
            Self::Failed { .. } => "ErrImagePull",
            Self::BackOff { .. } => BACK_OFF,
            Self::Unknown { .. } => "ImageInspectError",
        }
    }
}

/// The reason of a container whose image is on its way.
pub const PULLING: &str = "ContainerCreating";

/// The reason of a container whose image is pulled again later.
pub const BACK_OFF: &str = "ImagePullBackOff";

/// Whether a reason is about something that a pull which has ended may have changed.
pub fn waits_for_pull(reason: &str) -> bool {
    matches!(reason, PULLING | "ErrImagePull" | BACK_OFF)
}

impl Images {
    /// Nothing pulled yet.
    pub fn new(cri: Cri, tasks: Tasks) -> Self {
        let inner = Inner { pulls: Mutex::default(), slots: Semaphore::new(PARALLEL), settled: watch::Sender::new(0) };
        Self { cri, tasks, inner: Arc::new(inner) }
    }

    /// Told whenever a pull has ended, well or not.
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.inner.settled.subscribe()
    }

    /// The image of a container, if it can be used now; begins to pull it if that is due. Never waits for a pull.
    pub async fn ensure(&self, bundle: &PodBundle, container: &Container) -> Result<cri::Image, NoImage> {
        let name = &container.image;
        let unknown = |status: Status| NoImage::Unknown { image: name.clone(), problem: status.message().to_owned() };
        let present = self.cri.image(name).await.map_err(unknown)?;
        let uid = bundle.pod.as_ref().and_then(|pod| pod.metadata.as_ref()).map_or("", |meta| meta.uid.as_str());
        let key = (uid.to_owned(), name.clone());
        let mut pulls = self.inner.pulls.lock();
        match (container.image_pull_policy.as_str(), present) {
            ("Never", present) => return present.ok_or_else(|| NoImage::Never(name.clone())),
            ("Always", Some(image)) if pulls.get(&key).is_some_and(|pull| pull.state == State::Pulled) => {
                pulls.remove(&key);
                return Ok(image);
            }
            ("Always", _) | (_, None) => {}
            (_, Some(image)) => {
                pulls.remove(&key);
                return Ok(image);
            }
        }
        match pulls.entry(key.clone()).or_default().ask(name, Instant::now()) {
            Err(why) => Err(why),
            Ok(stop) => {
                self.tasks.spawn("pull", pull(self.cri.clone(), self.inner.clone(), key, bundle.clone(), stop));
                Err(NoImage::Pulling(name.clone()))
            }
        }
    }

    /// Forgets a pod that is gone, and ends what is pulled for it.
    pub fn forget(&self, uid: &str) {
        self.inner.pulls.lock().retain(|(of, _), pull| {
            let stays = of != uid;
            if !stays {
                pull.stop.cancel();
            }
            stays
        });
    }
}

/// Pulls, with each of the pod's credentials in turn, or with none if it has none for the registry.
async fn pull(cri: Cri, inner: Arc<Inner>, key: Key, bundle: PodBundle, stop: CancellationToken) {
    let image = &key.1;
    let pulling = async {
        // The semaphore is never closed.
        let _slot = inner.slots.acquire().await.ok();
        let began = Instant::now();
        let secrets = credentials::secrets(&bundle);
        let mut auths: Vec<_> = credentials::matching(image, &secrets).into_iter().map(Some).collect();
        if auths.is_empty() {
            auths.push(None);
        }
        let mut problem = String::new();
        for auth in auths {
            match cri.pull(image, auth).await {
                Ok(()) => {
                    tracing::info!(image, took = ?began.elapsed(), "image pulled");
                    return Ok(());
                }
                Err(status) => status.message().clone_into(&mut problem),
            }
        }
        tracing::warn!(image, problem, "cannot pull the image; trying again later");
        Err(problem)
    };
    let Some(ended) = stop.run_until_cancelled(pulling).await else { return };
    if let Some(pull) = inner.pulls.lock().get_mut(&key) {
        pull.ended(ended, Instant::now());
    }
    inner.settled.send_modify(|count| *count += 1);
}

/// The pulls of one image for one pod.
#[derive(Debug, Default)]
struct Pull {
    state: State,
    failures: u32,
    stop: CancellationToken,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Pulling,
    Pulled,
    Failed {
        problem: String,
        until: Instant,
        told: bool,
    },
}

impl Pull {
    /// Ok with what ends it if a pull is to begin now; otherwise what to tell.
    fn ask(&mut self, image: &str, now: Instant) -> Result<CancellationToken, NoImage> {
        let image = image.to_owned();
        match &mut self.state {
            State::Pulling => Err(NoImage::Pulling(image)),
            State::Failed { problem, told: told @ false, .. } => {
                *told = true;
                Err(NoImage::Failed { image, problem: problem.clone() })
            }
            State::Failed { problem, until, .. } if *until > now => {
                Err(NoImage::BackOff { image, problem: problem.clone() })
            }
            State::New | State::Pulled | State::Failed { .. } => {
                self.state = State::Pulling;
                Ok(self.stop.clone())
            }
        }
    }

    fn ended(&mut self, result: Result<(), String>, now: Instant) {
        self.state = match result {
            Ok(()) => {
                self.failures = 0;
                State::Pulled
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                State::Failed { problem, until: now + BACKOFF.after(self.failures), told: false }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_fails_is_told_once_and_backs_off() {
        let mut pull = Pull::default();
        let mut now = Instant::now();
        let reason = |asked: Result<CancellationToken, NoImage>| asked.err().map(|why| why.reason());
        for wait in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(reason(pull.ask("i", now)), None, "it begins");
            assert_eq!(reason(pull.ask("i", now)), Some("ContainerCreating"), "one at a time");
            pull.ended(Err("no such host".into()), now);
            assert_eq!(reason(pull.ask("i", now)), Some("ErrImagePull"));
            now += Duration::from_secs(wait) - Duration::from_millis(1);
            assert_eq!(reason(pull.ask("i", now)), Some("ImagePullBackOff"));
            now += Duration::from_millis(1);
        }
        assert_eq!(reason(pull.ask("i", now)), None);
        pull.ended(Ok(()), now);
        assert_eq!(pull.state, State::Pulled);
        assert_eq!(reason(pull.ask("i", now)), None, "an image that went away is pulled again");
        pull.ended(Err("gone".into()), now);
        assert_eq!(reason(pull.ask("i", now)), Some("ErrImagePull"));
        assert_eq!(reason(pull.ask("i", now + Duration::from_secs(10))), None, "the waits begin anew");
    }
}
