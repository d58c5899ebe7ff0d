//! [`EtcdStore`]: a store in etcd.
//!
//! The client library gives single requests over one connection. What this module adds: one member at a time with
//! moves to the next ([`link`]), deadlines, what an error says about a request ([`failure`]), the way out of unknown
//! results ([`txn`]), and watches that resume ([`watch`]).
//!
//! What it must never do: repeat a write without knowing that this cannot do it twice, ask etcd for progress
//! notifications (wrong before 3.4.25 and later), or read from a member that may lag.

mod failure;
mod link;
mod txn;
mod version;
mod watch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{GetOptions, LeaseGrantOptions};

use self::{failure::Failure, link::Links};
use crate::{
    Error, Key, Kv, LeaseId, Page, PageRequest, Prefix, Result, Revision, Store, Txn, TxnOutcome, WatchStream,
    mem::{PAGE, check_revision, future_revision, whole_seconds},
};

/// How to use an etcd.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members, as `http://HOST:PORT`; tried in this order.
    pub endpoints: Vec<String>,
    /// A whole call, with all its attempts.
    pub deadline: Duration,
    /// One attempt on one member. Must leave room for others within the deadline.
    pub attempt: Duration,
    /// Making a connection.
    pub connect_timeout: Duration,
    /// Pings while something is open. etcd drops clients that ping more often than every 5 s.
    pub keep_alive_interval: Duration,
    /// A connection without an answer to a ping for so long is dead.
    pub keep_alive_timeout: Duration,
    /// A watch that hears nothing for so long, no event and no progress, is opened again. Longer than etcd's interval
    /// of progress notifications (10 minutes, and up to 10 % more).
    pub watch_idle: Duration,
}

impl EtcdConfig {
    /// The defaults for these members.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            deadline: Duration::from_secs(5),
            attempt: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            keep_alive_interval: Duration::from_secs(6),
            keep_alive_timeout: Duration::from_secs(3),
            watch_idle: Duration::from_secs(12 * 60),
        }
    }
}

/// A store in etcd. Clones share the connection.
#[derive(Clone)]
pub struct EtcdStore {
    links: Arc<Links>,
}

impl EtcdStore {
    /// A store that connects when it is first used. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] if an endpoint is none.
    pub async fn lazy(config: EtcdConfig) -> Result<Self> {
        Ok(Self { links: Arc::new(Links::new(config).await?) })
    }

    /// [`EtcdStore::connect_with`] the defaults.
    ///
    /// # Errors
    /// The same.
    pub async fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        Self::connect_with(EtcdConfig::new(endpoints)).await
    }

    /// A store whose etcd has answered. Warns if etcd lacks fixes that matter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no member answers within the deadline; [`Error::Refused`] if an endpoint is none.
    pub async fn connect_with(config: EtcdConfig) -> Result<Self> {
        let store = Self::lazy(config).await?;
        let version = store.version().await?;
        match version::missing_fixes(&version) {
            Some(missing) if missing.is_empty() => tracing::info!(version, "connected to etcd"),
            Some(missing) => tracing::warn!(
                version,
                missing = missing.join("; "),
                "this etcd lacks fixes; use 3.5.33, 3.6.14 or later where it matters"
            ),
            None => tracing::warn!(version, "the version of etcd is not known; 3.5.33, 3.6.14 or later is needed"),
        }
        Ok(store)
    }

    /// The version of the member in use.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn version(&self) -> Result<String> {
        let status = self.links.ask(|link| async move { link.maintenance().status().await }).await;
        let status = status.map_err(simple)?;
        self.saw(status.header());
        Ok(status.version().to_owned())
    }

    /// Forgets what was before a revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] if that has been done, [`Error::Refused`] if there is no such revision yet.
    pub async fn compact(&self, revision: Revision) -> Result<()> {
        let answer = self.links.ask(|link| async move { link.kv().compact(revision, None).await }).await;
        match answer {
            Ok(_) => Ok(()),
            Err(failure) => Err(read_error(failure, revision)),
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &Key) -> Result<Option<Kv>> {
        let answer = self.links.ask(|link| async move { link.kv().get(key.as_str(), None).await }).await;
        let mut answer = answer.map_err(simple)?;
        self.saw(answer.header());
        Ok(answer.0.kvs.pop().map(kv))
    }

    async fn list(&self, prefix: &Prefix, page: PageRequest) -> Result<Page> {
        if let Some(revision) = page.revision {
            check_revision(revision)?;
        }
        let limit = if page.limit == 0 { PAGE } else { page.limit };
        // The smallest key after `after` is `after` with a zero byte.
        let start = match &page.after {
            Some(after) if after.as_str() >= prefix.as_str() => [after.as_str().as_bytes(), &[0]].concat(),
            // To etcd the empty key is none.
            _ if prefix.as_str().is_empty() => vec![0],
            _ => prefix.as_str().as_bytes().to_vec(),
        };
        let end = prefix_end(prefix);
        if end.as_slice() != [0] && start >= end {
            // `after` lies behind the prefix. Ask all the same: the page needs a revision.
            return self.empty_page(prefix, page.revision).await;
        }
        let options = GetOptions::new()
            .with_range(end)
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(page.revision.unwrap_or(0));
        let answer = self
            .links
            .ask(|link| {
                let (start, options) = (start.clone(), options.clone());
                async move { link.kv().get(start, Some(options)).await }
            })
            .await
            .map_err(|failure| read_error(failure, page.revision.unwrap_or(0)))?;
        self.saw(answer.header());
        let revision = page.revision.unwrap_or_else(|| answer.header().map_or(0, |header| header.revision()));
        Ok(Page { more: answer.more(), items: answer.0.kvs.into_iter().map(kv).collect(), revision })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        txn::commit(&self.links, &txn).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<WatchStream> {
        Ok(watch::open(self.links.clone(), prefix.clone(), after))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = i64::try_from(whole_seconds(ttl).as_secs().max(1)).unwrap_or(i64::MAX);
        // Our own id makes it safe to ask again after an answer was lost.
        let id = random_id();
        let grant = self
            .links
            .ask(|link| async move { link.lease().grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await })
            .await;
        match grant {
            Ok(_) | Err(Failure::LeaseExists) => Ok(LeaseId(id)),
            Err(failure) => Err(simple(failure)),
        }
    }

    async fn renew_lease(&self, lease: LeaseId) -> Result<Duration> {
        let renewal = self
            .links
            .ask(|link| async move {
                // The library keeps the length in the first answer to itself, so there is a second renewal.
                let (mut keeper, mut answers) = link.lease().keep_alive(lease.0).await?;
                keeper.keep_alive().await?;
                answers.message().await
            })
            .await;
        match renewal {
            Ok(Some(answer)) if answer.ttl() > 0 => Ok(Duration::from_secs(answer.ttl().unsigned_abs())),
            Ok(Some(_)) | Err(Failure::LeaseEnded) => Err(Error::LeaseEnded(lease)),
            Ok(None) => Err(Error::Unavailable("etcd closed the renewal of a lease without an answer".to_owned())),
            Err(failure) => Err(simple(failure)),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<()> {
        match self.links.ask(|link| async move { link.lease().revoke(lease.0).await }).await {
            Ok(_) | Err(Failure::LeaseEnded) => Ok(()),
            Err(failure) => Err(simple(failure)),
        }
    }
}

impl EtcdStore {
    fn saw(&self, header: Option<&etcd_client::ResponseHeader>) {
        if let Some(header) = header {
            self.links.saw(header.revision());
        }
    }

    async fn empty_page(&self, prefix: &Prefix, revision: Option<Revision>) -> Result<Page> {
        let options = GetOptions::new().with_revision(revision.unwrap_or(0)).with_count_only();
        let answer = self
            .links
            .ask(|link| {
                let options = options.clone();
                async move { link.kv().get(prefix.as_str(), Some(options)).await }
            })
            .await
            .map_err(|failure| read_error(failure, revision.unwrap_or(0)))?;
        self.saw(answer.header());
        let now = answer.header().map_or(0, |header| header.revision());
        Ok(Page { items: Vec::new(), revision: revision.unwrap_or(now), more: false })
    }
}

/// A failure of a call that names no revision and no lease.
fn simple(failure: Failure) -> Error {
    match failure {
        Failure::NotSent(_) | Failure::Busy(_) | Failure::Lost(_) => Error::Unavailable(failure.to_string()),
        other => Error::Refused(other.to_string()),
    }
}

/// A failure of a read at a revision.
fn read_error(failure: Failure, revision: Revision) -> Error {
    match failure {
        Failure::Compacted => Error::Compacted { requested: revision, oldest: 0 },
        Failure::Future => future_revision(revision),
        other => simple(other),
    }
}

/// Our value for etcd's. Keys are text: all writers go through this crate.
fn kv(kv: etcd_client::proto::PbKeyValue) -> Kv {
    Kv {
        key: key(kv.key),
        value: Bytes::from(kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
    }
}

fn key(bytes: Vec<u8>) -> Key {
    Key::from_raw(String::from_utf8_lossy(&bytes))
}

/// The first key after a prefix; a zero byte if there is none.
fn prefix_end(prefix: &Prefix) -> Vec<u8> {
    let mut end = prefix.as_str().as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A positive number that nobody else has.
fn random_id() -> i64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    i64::try_from(high >> 1).unwrap_or(i64::MAX).max(1)
}
