//! One member at a time.
//!
//! The client library would spread requests over all endpoints and keep picking dead ones. Here every request goes to
//! the same member until that fails; then the link moves on to the next, for all users at once. Every move makes a new
//! connection, so a connection that swallows everything is left behind even when there is only one endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use backon::BackoffBuilder;
use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tokio::{sync::watch, time::Instant};
use tonic::transport::Endpoint;

use super::{EtcdConfig, failure::Failure};
use crate::{Error, Result, Revision};

/// What one answer may have in bytes. A page of large objects must fit.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A connection to one member.
pub(super) struct Link {
    generation: usize,
    pub(super) endpoint: String,
    client: Client,
}

impl Link {
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn watcher(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn maintenance(&self) -> MaintenanceClient {
        self.client.maintenance_client()
    }
}

/// The members, and which one is used now.
pub(super) struct Links {
    endpoints: Vec<Endpoint>,
    current: watch::Sender<Arc<Link>>,
    /// The newest revision that any answer has shown.
    seen: AtomicI64,
    pub(super) config: EtcdConfig,
}

impl Links {
    pub(super) async fn new(config: EtcdConfig) -> Result<Self> {
        let endpoints: Vec<Endpoint> =
            config.endpoints.iter().map(|url| endpoint(url, &config)).collect::<Result<_>>()?;
        if endpoints.is_empty() {
            return Err(Error::Refused("no etcd endpoint is given; name at least one with --etcd".to_owned()));
        }
        let (current, _) = watch::channel(Arc::new(link(&endpoints, 0).await?));
        Ok(Self { endpoints, current, seen: AtomicI64::new(0), config })
    }

    pub(super) fn current(&self) -> Arc<Link> {
        self.current.borrow().clone()
    }

    /// Sees every move.
    pub(super) fn moves(&self) -> watch::Receiver<Arc<Link>> {
        self.current.subscribe()
    }

    /// Leaves a link that failed; nothing happens if that has been done.
    pub(super) async fn leave(&self, failed: &Link, why: &Failure) {
        if self.current.borrow().generation != failed.generation {
            return;
        }
        match link(&self.endpoints, failed.generation + 1).await {
            Ok(next) => {
                let endpoint = next.endpoint.clone();
                let moved = self.current.send_if_modified(|current| {
                    let first = current.generation == failed.generation;
                    if first {
                        *current = Arc::new(next);
                    }
                    first
                });
                if moved {
                    tracing::debug!(from = failed.endpoint, to = endpoint, %why, "moved to another etcd connection");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot make another connection to etcd"),
        }
    }

    /// Remembers the revision of an answer.
    pub(super) fn saw(&self, revision: Revision) {
        self.seen.fetch_max(revision, Ordering::AcqRel);
    }

    /// The newest revision that any answer has shown.
    pub(super) fn seen(&self) -> Revision {
        self.seen.load(Ordering::Acquire)
    }

    /// A budget of attempts for one call.
    pub(super) fn attempts(&self) -> Attempts {
        Attempts {
            deadline: Instant::now() + self.config.deadline,
            each: self.config.attempt,
            round: self.endpoints.len(),
            made: 0,
            pauses: pauses(Duration::from_millis(500)),
        }
    }

    /// Asks until a member answers or the deadline is over. Only for requests that change nothing when repeated.
    pub(super) async fn ask<T, F>(&self, call: impl Fn(Arc<Link>) -> F) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>>,
    {
        let mut attempts = self.attempts();
        loop {
            let link = self.current();
            let failure = match attempts.run(&link, call(link.clone())).await {
                Err(failure @ (Failure::NotSent(_) | Failure::Busy(_) | Failure::Lost(_))) => failure,
                answer => return answer,
            };
            self.leave(&link, &failure).await;
            if !attempts.again().await {
                return Err(failure);
            }
        }
    }
}

/// How often and how long one call is tried.
pub(super) struct Attempts {
    deadline: Instant,
    each: Duration,
    round: usize,
    made: usize,
    pauses: backon::ExponentialBackoff,
}

impl Attempts {
    /// One attempt on one link.
    pub(super) async fn run<T>(
        &mut self,
        link: &Link,
        call: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
    ) -> std::result::Result<T, Failure> {
        self.made += 1;
        let until = (Instant::now() + self.each).min(self.deadline);
        match tokio::time::timeout_at(until, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure::of(error, &link.endpoint)),
            Err(_) => Err(Failure::timeout(&link.endpoint)),
        }
    }

    /// Whether there is time for another attempt. Pauses after each round over all endpoints.
    pub(super) async fn again(&mut self) -> bool {
        if self.made.is_multiple_of(self.round) {
            let pause = self.pauses.next().unwrap_or(self.each);
            tokio::time::sleep_until((Instant::now() + pause).min(self.deadline)).await;
        }
        Instant::now() < self.deadline
    }

    /// What is left of the deadline.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Growing pauses between rounds, without end: whoever uses them has a deadline, or must go on.
pub(super) fn pauses(longest: Duration) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

fn endpoint(url: &str, config: &EtcdConfig) -> Result<Endpoint> {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|error| Error::Refused(format!("{url:?} is not an etcd endpoint ({error}); use http://HOST:PORT")))?;
    // Pings go only while a call or a watch is open: etcd drops clients that ping an idle connection.
    Ok(endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .keep_alive_while_idle(false))
}

async fn link(endpoints: &[Endpoint], generation: usize) -> Result<Link> {
    let endpoint = &endpoints[generation % endpoints.len()];
    let channel = Channel::Tonic(endpoint.connect_lazy());
    // A member that is cut off from the others says so instead of keeping silent.
    let options = ConnectOptions::new().with_require_leader(true);
    let client = Client::from_channel(channel, Some(options))
        .await
        .map_err(|error| Error::Unavailable(format!("no client for {}: {error}", endpoint.uri())))?;
    Ok(Link { generation, endpoint: endpoint.uri().to_string(), client })
}
