//! Fenced leadership: at most one process of a role acts, and one that only believes it leads can write nothing.
//!
//! The leader holds a key that hangs on its lease. The key's create revision is the fence: every transaction of the
//! leader carries it as a guard, so that a leader which was paused past its lease is refused by the store itself. The
//! clock is only used to stop early: leadership ends, by the leader's own reckoning, one lease after it *sent* the last
//! renewal that was answered.
//!
//! An identity names one place that can hold one living process (a host and a port that the process has bound). A
//! process that finds its own identity in the key is the successor of one that is dead, and takes the key at once.

use std::{future::Future, sync::Arc, time::Duration};

use futures::StreamExt;
use store::{Error, Event, Guard, Key, LeaseId, Op, PageRequest, Prefix, Revision, Store, Txn, TxnOutcome, WatchItem};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// How long a leader that fell silent keeps others waiting.
pub const LEASE: Duration = Duration::from_secs(5);

/// A time of leading.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// Belongs into every transaction of the leader.
    pub guard: Guard,
    /// Cancelled when the lease can no longer be counted on. Work stops then.
    pub lost: CancellationToken,
}

/// Campaigns, leads, and campaigns again, until shutdown. `work` runs while leading; when it returns by itself, or
/// leadership is lost, its future is dropped.
pub async fn lead<F, Fut>(store: Arc<dyn Store>, role: &str, identity: &str, shutdown: &CancellationToken, work: F)
where
    F: Fn(Leadership) -> Fut,
    Fut: Future<Output = ()>,
{
    let candidate = Candidate { store, key: Key::leader(role), identity, role };
    let mut failures = 0;
    while !shutdown.is_cancelled() {
        let campaign = shutdown.run_until_cancelled(candidate.campaign()).await;
        let (lease, fence) = match campaign {
            Some(Ok(won)) => won,
            Some(Err(error)) => {
                failures += 1;
                tracing::warn!(role, %error, "campaign failed");
                let pause = tokio::time::sleep(Backoff::RECONNECT.after(failures));
                shutdown.run_until_cancelled(pause).await;
                continue;
            }
            None => return,
        };
        failures = 0;
        tracing::info!(role, identity, fence, "leading");
        let lost = shutdown.child_token();
        let leadership = Leadership { guard: Guard::CreateRevision(candidate.key.clone(), fence), lost: lost.clone() };
        tokio::select! {
            () = candidate.hold(lease, fence) => {}
            () = work(leadership) => {}
            () = shutdown.cancelled() => {}
        }
        lost.cancel();
        tracing::info!(role, identity, fence, "no longer leading");
        candidate.resign(lease).await;
    }
}

struct Candidate<'a> {
    store: Arc<dyn Store>,
    key: Key,
    identity: &'a str,
    role: &'a str,
}

impl Candidate<'_> {
    /// Waits until the key is free and takes it. Gives the lease and the key's create revision.
    async fn campaign(&self) -> store::Result<(LeaseId, Revision)> {
        loop {
            self.wait_until_free().await?;
            let lease = self.store.grant_lease(LEASE).await?;
            let txn = Txn {
                guards: vec![Guard::Absent(self.key.clone())],
                ops: vec![Op::Put(self.key.clone(), self.identity.as_bytes().to_vec().into(), Some(lease))],
            };
            match self.store.txn(txn).await {
                Ok(TxnOutcome::Committed(revision)) => return Ok((lease, revision)),
                Ok(TxnOutcome::Conflict) => self.resign(lease).await,
                Err(error) => {
                    self.resign(lease).await;
                    return Err(error);
                }
            }
        }
    }

    async fn wait_until_free(&self) -> store::Result<()> {
        let prefix = Prefix::from_raw(self.key.as_str());
        let page = self.store.list(&prefix, PageRequest::default()).await?;
        let Some(holder) = page.items.into_iter().find(|kv| kv.key == self.key) else { return Ok(()) };
        if holder.value == self.identity.as_bytes() {
            tracing::info!(role = self.role, "succeeding a dead process of the same identity");
            let txn = Txn {
                guards: vec![Guard::CreateRevision(self.key.clone(), holder.create_revision)],
                ops: vec![Op::Delete(self.key.clone())],
            };
            self.store.txn(txn).await?;
            return Ok(());
        }
        tracing::info!(role = self.role, leader = %String::from_utf8_lossy(&holder.value), "standing by");
        let mut watch = self.store.watch(&prefix, page.revision).await?;
        while let Some(item) = watch.next().await {
            let WatchItem::Events(_, events) = item? else { continue };
            if events.iter().any(|event| matches!(event, Event::Delete(key, _) if *key == self.key)) {
                return Ok(());
            }
        }
        Err(Error::Unavailable("the watch on the leader's key ended".to_owned()))
    }

    /// Renews the lease; returns when it can no longer be counted on.
    async fn hold(&self, lease: LeaseId, fence: Revision) {
        let mut deadline = Instant::now() + LEASE;
        loop {
            tokio::time::sleep(LEASE / 3).await;
            let mut failures = 0;
            loop {
                let sent = Instant::now();
                match timeout_at(deadline, self.store.renew_lease(lease)).await {
                    Ok(Ok(ttl)) => {
                        deadline = sent + ttl.min(LEASE);
                        break;
                    }
                    Ok(Err(Error::LeaseEnded(_))) | Err(_) => {
                        tracing::warn!(role = self.role, fence, "the leader's lease could not be renewed in time");
                        return;
                    }
                    Ok(Err(error)) => {
                        failures += 1;
                        tracing::warn!(role = self.role, fence, %error, "renewing the leader's lease");
                        let next = Instant::now() + Backoff::RECONNECT.after(failures);
                        tokio::time::sleep_until(next.min(deadline)).await;
                    }
                }
            }
        }
    }

    /// Lets others lead at once. If that fails they wait for the lease to end.
    async fn resign(&self, lease: LeaseId) {
        if let Err(error) = self.store.revoke_lease(lease).await {
            tracing::debug!(role = self.role, %error, "revoking the leader's lease");
        }
    }
}
