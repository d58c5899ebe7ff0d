//! Keeps something in step with a prefix of the store: lists once, then watches; lists again only when the store has
//! forgotten the revision to go on from.
//!
//! What is fed ([`Sink`]) sees every revision once, in order, or a whole new list. It decides what to keep; this module
//! decides only when to list, when to watch and how long to wait after a failure.

use std::sync::Arc;

use futures::StreamExt;
use store::{Error, Event, Kv, PageRequest, Prefix, Result, Revision, Store, WatchItem};

use crate::backoff::Backoff;

/// Values a page of a list.
const PAGE: usize = 1000;

/// What is kept in step.
pub trait Sink: Send + Sync + 'static {
    /// Takes everything that there is at a revision; whatever was known and is not in it is gone. Refuses (false) to go
    /// back to a revision before one that was shown.
    fn reset(&self, revision: Revision, items: Vec<Kv>) -> bool;

    /// Takes all changes of one revision.
    fn apply(&self, revision: Revision, events: Vec<Event>);

    /// There were no other changes up to a revision.
    fn progress(&self, revision: Revision);
}

/// Feeds a sink for as long as it is polled.
pub async fn feed(store: Arc<dyn Store>, prefix: Prefix, sink: impl Sink) {
    let mut after = None;
    let mut failures = 0;
    loop {
        let before = after;
        let error = follow(&*store, &prefix, &sink, &mut after).await;
        failures = if after > before { 1 } else { failures + 1 };
        match error {
            Error::Compacted { .. } => {
                tracing::info!(%prefix, "the store has forgotten the revision to go on from; listing again");
                after = None;
            }
            error => tracing::warn!(%prefix, %error, failures, "the watch ended; going on from the last revision"),
        }
        tokio::time::sleep(Backoff::RECONNECT.after(failures)).await;
    }
}

/// Follows the store until it fails, and says why.
async fn follow(store: &dyn Store, prefix: &Prefix, sink: &impl Sink, after: &mut Option<Revision>) -> Error {
    let from = match *after {
        Some(revision) => revision,
        None => match list(store, prefix, sink).await {
            Ok(revision) => *after.insert(revision),
            Err(error) => return error,
        },
    };
    let mut changes = match store.watch(prefix, from).await {
        Ok(changes) => changes,
        Err(error) => return error,
    };
    while let Some(item) = changes.next().await {
        match item {
            Ok(WatchItem::Events(revision, events)) => {
                sink.apply(revision, events);
                *after = Some(revision);
            }
            Ok(WatchItem::Progress(revision)) => {
                sink.progress(revision);
                *after = (*after).max(Some(revision));
            }
            Err(error) => return error,
        }
    }
    Error::Unavailable("the watch ended without a reason".to_owned())
}

async fn list(store: &dyn Store, prefix: &Prefix, sink: &impl Sink) -> Result<Revision> {
    let (items, revision) = list_all(store, prefix).await?;
    if !sink.reset(revision, items) {
        return Err(Error::Unavailable(format!(
            "it is at revision {revision}, but was later before; if it was restored from a backup, restart every service"
        )));
    }
    Ok(revision)
}

/// Everything under a prefix, as it is at one revision.
pub async fn list_all(store: &dyn Store, prefix: &Prefix) -> Result<(Vec<Kv>, Revision)> {
    let mut page = store.list(prefix, PageRequest { limit: PAGE, ..PageRequest::default() }).await?;
    let revision = page.revision;
    let mut items = page.items;
    while page.more {
        let after = items.last().map(|kv| kv.key.clone());
        page = store.list(prefix, PageRequest { limit: PAGE, after, revision: Some(revision) }).await?;
        items.append(&mut page.items);
    }
    Ok((items, revision))
}
