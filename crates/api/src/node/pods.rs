//! The stream of one node's pods.
//!
//! `synced` means "what was not named is not wanted", and the node stops what is not wanted. So the start of a stream is
//! never told from a cache that may be old: the store itself confirms first that no pod is newer than what is shown.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::{Stream, stream};
use pb::{
    Kind, ObjectExt,
    agent::v1::{PodBundle, PodRef, WatchPodsRequest, WatchPodsResponse, watch_pods_response::Change},
    objects::Pod,
};
use store::Key;

use super::bundles::{Ear, bundle};
use crate::{
    Shared,
    error::{Error, Result},
};

/// What of a bundle was told: uid of the pod, and the revision of everything in it. What the bundle says without a revision
/// stands between them as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    uid: String,
    revisions: Vec<i64>,
}

impl Told {
    fn of(pod: &Pod, bundle: &PodBundle) -> Self {
        let volumes = bundle.volumes.iter().flat_map(|claim| {
            let volume = claim.volume.as_ref().map_or(0, ObjectExt::mod_revision);
            let attachment = claim.attachment.as_ref().map_or(0, ObjectExt::mod_revision);
            [volume, i64::from(claim.attach_required), attachment]
        });
        let maps = bundle.config_maps.iter().map(ObjectExt::mod_revision);
        let secrets = bundle.secrets.iter().map(ObjectExt::mod_revision);
        let revisions = [pod.mod_revision()].into_iter().chain(volumes).chain(maps).chain(secrets);
        Self { uid: pod.uid().to_owned(), revisions: revisions.collect() }
    }
}

struct Teller {
    shared: Arc<Shared>,
    node: String,
    ear: Ear,
    told: BTreeMap<Key, Told>,
    ready: VecDeque<Change>,
    ended: bool,
}

impl Teller {
    async fn next(&mut self) -> Option<Result<WatchPodsResponse>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(WatchPodsResponse { change: Some(change) }));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                () = self.ear.heard() => {}
                () = self.shared.stop.cancelled() => {
                    self.ended = true;
                    return Some(Err(Error::Unavailable("this API service is stopping; watch again".to_owned())));
                }
            }
            for key in self.ear.take() {
                self.look_at(&key);
            }
        }
    }

    fn look_at(&mut self, key: &Key) {
        let stored = self.shared.caches.of(Kind::Pod).last_known(key);
        let pod = stored.as_deref().and_then(|stored| stored.typed::<Pod>());
        let pod = pod.filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name == self.node));
        let uid = pod.map(ObjectExt::uid);
        if let Some(before) = self.told.get(key)
            && uid != Some(before.uid.as_str())
        {
            let (namespace, name, uid) = (key.namespace().to_owned(), key.name().to_owned(), before.uid.clone());
            self.ready.push_back(Change::Removed(PodRef { namespace, name, uid }));
            self.told.remove(key);
        }
        let Some(pod) = pod else { return };
        let bundle = bundle(&self.shared.caches, &self.shared.index, pod);
        let now = Told::of(pod, &bundle);
        if self.told.get(key) != Some(&now) {
            self.told.insert(key.clone(), now);
            self.ready.push_back(Change::Upsert(bundle));
        }
    }
}

impl Shared {
    /// Starts the stream of a node's pods.
    pub async fn watch_pods(
        self: &Arc<Self>,
        request: WatchPodsRequest,
    ) -> Result<impl Stream<Item = Result<WatchPodsResponse>> + use<>> {
        if request.node_name.is_empty() {
            return Err(Error::field("nodeName", "Required value"));
        }
        // Whatever changes from here on is heard.
        let ear = self.index.listen(&request.node_name);
        let window = self.caches.confirmed_pods(&*self.store).await?;
        if let Some(unknown) = window.unknown() {
            // Nobody can say which node it is bound to: no node may conclude that it is not wanted.
            return Err(unknown.into());
        }
        let mut teller = Teller {
            shared: self.clone(),
            node: request.node_name,
            ear,
            told: BTreeMap::new(),
            ready: VecDeque::new(),
            ended: false,
        };
        for (key, _) in window.known().0 {
            teller.look_at(&key);
        }
        teller.ready.push_back(Change::Synced(true));
        Ok(stream::unfold(teller, |mut teller| async move { Some((teller.next().await?, teller)) }))
    }
}
