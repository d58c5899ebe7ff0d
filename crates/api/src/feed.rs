//! Keeps a window in step with a prefix of the store: list once, then watch; list again only when the store has
//! forgotten the revision to go on from.

use std::sync::Arc;

use runtime::backoff::Backoff;
use store::{Error, Event, Key, Kv, PageRequest, Prefix, Result, Revision, Store, WatchItem, objects::Undecodable};
use tokio_stream::StreamExt;
use tracing::{info, warn};

use crate::window::{New, Window};

/// Values a page of the first list.
const PAGE: usize = 1000;

/// Reads a value of the store.
pub type Decode<V> = fn(&Kv) -> std::result::Result<V, Undecodable>;

/// Feeds a window for as long as it is polled.
pub async fn feed<V: Send + Sync + 'static>(
    store: Arc<dyn Store>,
    prefix: Prefix,
    window: Arc<Window<Key, V>>,
    decode: Decode<V>,
) {
    let mut after = None;
    let mut failures = 0;
    loop {
        let before = window.revision();
        let error = follow(&*store, &prefix, &window, decode, &mut after).await;
        failures = if window.revision() > before { 1 } else { failures + 1 };
        match error {
            Error::Compacted { .. } => {
                info!(%prefix, "the store has forgotten the revision to go on from; listing again");
                after = None;
            }
            error => warn!(%prefix, %error, failures, "the watch ended; going on from the last revision"),
        }
        tokio::time::sleep(Backoff::RECONNECT.after(failures)).await;
    }
}

/// Follows the store until it fails.
async fn follow<V>(
    store: &dyn Store,
    prefix: &Prefix,
    window: &Window<Key, V>,
    decode: Decode<V>,
    after: &mut Option<Revision>,
) -> Error {
    let from = match *after {
        Some(revision) => revision,
        None => match list(store, prefix, window, decode).await {
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
                window.apply(revision, events.into_iter().map(|event| change(event, decode)));
                *after = Some(revision);
            }
            Ok(WatchItem::Progress(revision)) => {
                window.progress(revision);
                *after = (*after).max(Some(revision));
            }
            Err(error) => return error,
        }
    }
    Error::Unavailable("the watch ended without a reason".to_owned())
}

async fn list<V>(store: &dyn Store, prefix: &Prefix, window: &Window<Key, V>, decode: Decode<V>) -> Result<Revision> {
    let all = all(store, prefix).await?;
    let revision = all.1;
    if !window.reset(revision, all.0.into_iter().map(|kv| (kv.key.clone(), decode(&kv)))) {
        let shown = window.revision();
        let problem = format!(
            "it is at revision {revision}, but was at {shown} before; if it was restored from a backup, restart every service"
        );
        return Err(Error::Unavailable(problem));
    }
    Ok(revision)
}

/// Everything under a prefix, as it is at one revision.
pub async fn all(store: &dyn Store, prefix: &Prefix) -> Result<(Vec<Kv>, Revision)> {
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

fn change<V>(event: Event, decode: Decode<V>) -> (Key, New<V>) {
    match event {
        Event::Put(kv) => {
            let new = match decode(&kv) {
                Ok(value) => New::Is(Arc::new(value)),
                Err(unknown) => New::Unknown(unknown),
            };
            (kv.key, new)
        }
        Event::Delete(key, _) => (key, New::Gone),
    }
}
