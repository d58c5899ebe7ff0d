//! Streams that start with all there is, say `synced`, and go on with changes: of endpoints and of nodes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::{Stream, stream};
use pb::{
    Kind,
    agent::v1::{
        ServiceRef, WatchEndpointsResponse, WatchNodesResponse, watch_endpoints_response, watch_nodes_response,
    },
    objects::Node,
};
use store::Key;
use tokio_util::sync::CancellationToken;

use crate::{
    Shared,
    error::{Error, Result},
    window::{Follower, New, Window},
};

/// How a value and its absence are told.
trait Telling: Send + 'static {
    type Value: Send + Sync + 'static;
    type Message: Send;

    fn upsert(value: &Self::Value) -> Option<Self::Message>;
    fn removed(key: &Key) -> Self::Message;
    fn synced() -> Self::Message;
}

struct Endpoints;

impl Telling for Endpoints {
    type Value = pb::agent::v1::ServiceEndpoints;
    type Message = WatchEndpointsResponse;

    fn upsert(value: &Self::Value) -> Option<Self::Message> {
        Some(WatchEndpointsResponse { change: Some(watch_endpoints_response::Change::Upsert(value.clone())) })
    }

    fn removed(key: &Key) -> Self::Message {
        let service = ServiceRef { namespace: key.namespace().to_owned(), name: key.name().to_owned() };
        WatchEndpointsResponse { change: Some(watch_endpoints_response::Change::Removed(service)) }
    }

    fn synced() -> Self::Message {
        WatchEndpointsResponse { change: Some(watch_endpoints_response::Change::Synced(true)) }
    }
}

struct Nodes;

impl Telling for Nodes {
    type Value = crate::caches::Stored;
    type Message = WatchNodesResponse;

    fn upsert(value: &Self::Value) -> Option<Self::Message> {
        let node = value.typed::<Node>()?.clone();
        Some(WatchNodesResponse { change: Some(watch_nodes_response::Change::Upsert(node)) })
    }

    fn removed(key: &Key) -> Self::Message {
        WatchNodesResponse { change: Some(watch_nodes_response::Change::Removed(key.name().to_owned())) }
    }

    fn synced() -> Self::Message {
        WatchNodesResponse { change: Some(watch_nodes_response::Change::Synced(true)) }
    }
}

struct Teller<T: Telling> {
    follower: Follower<Key, T::Value>,
    ready: VecDeque<T::Message>,
    stop: CancellationToken,
    ended: bool,
}

impl<T: Telling> Teller<T> {
    fn new(window: &Arc<Window<Key, T::Value>>, stop: CancellationToken) -> Self {
        let (known, revision) = window.known();
        let mut ready: VecDeque<_> = known.iter().filter_map(|(_, value)| T::upsert(value)).collect();
        ready.push_back(T::synced());
        Self { follower: Follower::new(window.clone(), revision), ready, stop, ended: false }
    }

    async fn next(&mut self) -> Option<Result<T::Message>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(Ok(message));
            }
            if self.ended {
                return None;
            }
            let changes = tokio::select! {
                changes = self.follower.next() => changes.map_err(Error::from),
                () = self.stop.cancelled() => {
                    Err(Error::Unavailable("this API service is stopping; watch again".to_owned()))
                }
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            // Only the last change of each key matters.
            let last: BTreeMap<_, _> = changes.iter().map(|change| (&change.key, &change.new)).collect();
            self.ready.extend(last.into_iter().filter_map(|(key, new)| match new {
                New::Is(value) => T::upsert(value),
                New::Gone => Some(T::removed(key)),
                New::Unknown(_) => None,
            }));
        }
    }

    fn stream(self) -> impl Stream<Item = Result<T::Message>> {
        stream::unfold(self, |mut teller| async move { Some((teller.next().await?, teller)) })
    }
}

impl Shared {
    /// Tells which pods stand behind which Services.
    pub async fn watch_endpoints(&self) -> impl Stream<Item = Result<WatchEndpointsResponse>> + use<> {
        self.endpoints.synced().await;
        Teller::<Endpoints>::new(&self.endpoints, self.stop.clone()).stream()
    }

    /// Tells the nodes' addresses and pod networks.
    pub async fn watch_nodes(&self) -> Result<impl Stream<Item = Result<WatchNodesResponse>> + use<>> {
        let window = self.caches.current(Kind::Node).await?;
        Ok(Teller::<Nodes>::new(window, self.stop.clone()).stream())
    }
}
