//! Watches that go on: an explicit machine with one step.
//!
//! etcd sends responses over a stream that ends whenever a connection does, and may send one revision in several
//! pieces. A consumer of this module sees each revision once, whole and in order, whatever happens below; it hears of
//! trouble only when the revisions it still needs are gone.
//!
//! Rules that live here:
//! - A revision is told when no further piece of it can come, and nothing at or before a revision that was told is
//!   told again. (etcd before 3.4.25 repeats events and goes back in time.)
//! - Opening at revision N is safe only if N-1 can still be read: etcd before 3.4.36 leaves out a deletion at exactly
//!   the compacted revision. So every opening is followed by such a read.
//! - A stream is left at once when the store moves to another member, and when nothing comes for too long.

use std::{collections::VecDeque, sync::Arc};

use etcd_client::{GetOptions, WatchOptions, proto::PbEvent};
use futures::StreamExt;
use tokio::{sync::watch, time::Instant};

use super::{
    failure::Failure,
    key, kv,
    link::{Link, Links, pauses},
};
use crate::{Error, Event, Prefix, Result, Revision, WatchItem, WatchStream};

/// The longest pause before a stream is opened again.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// A watch after a revision.
pub(super) fn open(links: Arc<Links>, prefix: Prefix, after: Revision) -> WatchStream {
    let watcher = Watcher {
        moves: links.moves(),
        links,
        prefix,
        told: after.max(0),
        group: Group::default(),
        ready: VecDeque::new(),
        pauses: pauses(LONGEST_PAUSE),
        state: State::Closed,
    };
    let items = futures::stream::unfold(watcher, |mut watcher| async move {
        loop {
            if let Some(item) = watcher.ready.pop_front() {
                return Some((item, watcher));
            }
            if matches!(watcher.state, State::Ended) {
                return None;
            }
            watcher.step().await;
        }
    });
    items.boxed()
}

/// Where a watch is with etcd.
enum State {
    /// No stream. Next: open one on the link in use.
    Closed,
    /// The last stream failed. Next: pause, so that a store in trouble is not flooded.
    Failed,
    /// etcd was asked for the stream. Next: its confirmation, and the read that shows that nothing is missing.
    Opening(Open),
    /// Events come.
    Watching(Open),
    /// The revisions needed are gone, or etcd refuses. Nothing comes any more.
    Ended,
}

struct Open {
    link: Arc<Link>,
    stream: etcd_client::WatchStream,
}

struct Watcher {
    links: Arc<Links>,
    moves: watch::Receiver<Arc<Link>>,
    prefix: Prefix,
    /// Everything up to here has been told, or stands in `ready`.
    told: Revision,
    group: Group,
    ready: VecDeque<Result<WatchItem>>,
    pauses: backon::ExponentialBackoff,
    state: State,
}

impl Watcher {
    /// From one state to the next; what there is to tell goes to `ready`.
    async fn step(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Closed => self.ask().await,
            State::Failed => {
                let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
                tokio::time::sleep(pause).await;
                State::Closed
            }
            State::Opening(open) => self.confirm(open).await,
            State::Watching(open) => self.receive(open).await,
            State::Ended => State::Ended,
        };
    }

    async fn ask(&mut self) -> State {
        // A piece of a revision from the stream before will come again as a whole.
        self.group = Group::default();
        self.moves.mark_unchanged();
        let link = self.links.current();
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.told.saturating_add(1))
            .with_progress_notify()
            .with_fragment();
        let mut watcher = link.watcher();
        let asked = watcher.watch(self.prefix.as_str(), Some(options));
        match tokio::time::timeout(self.links.config.attempt, asked).await {
            Ok(Ok(stream)) => State::Opening(Open { link, stream }),
            Ok(Err(error)) => self.failed(&link, Failure::of(error, &link.endpoint)).await,
            Err(_) => self.failed(&link, Failure::timeout(&link.endpoint)).await,
        }
    }

    async fn confirm(&mut self, mut open: Open) -> State {
        let link = open.link.clone();
        let confirmed = async {
            let created = open.stream.message().await?;
            if self.told > 0 && created.as_ref().is_some_and(|created| created.created() && !created.canceled()) {
                let options = GetOptions::new().with_revision(self.told).with_count_only();
                link.kv().get("/", Some(options)).await?;
            }
            Ok(created)
        };
        match tokio::time::timeout(self.links.config.attempt, confirmed).await {
            Err(_) => self.failed(&link, Failure::timeout(&link.endpoint)).await,
            Ok(Err(error)) => match Failure::of(error, &link.endpoint) {
                // A watch may wait for a revision that is to come.
                Failure::Future => State::Watching(open),
                failure => self.failed(&link, failure).await,
            },
            Ok(Ok(None)) => self.failed(&link, Failure::Lost(format!("{} closed the watch", link.endpoint))).await,
            Ok(Ok(Some(response))) => self.take(open, response).await,
        }
    }

    async fn receive(&mut self, mut open: Open) -> State {
        let link = open.link.clone();
        let idle = Instant::now() + self.links.config.watch_idle;
        tokio::select! {
            biased;
            moved = self.moves.changed() => {
                // The sender lives in `links`, so it cannot be gone.
                debug_assert!(moved.is_ok());
                State::Closed
            }
            message = open.stream.message() => match message {
                Ok(Some(response)) => self.take(open, response).await,
                Ok(None) => self.failed(&link, Failure::Lost(format!("{} closed the watch", link.endpoint))).await,
                Err(error) => self.failed(&link, Failure::of(error, &link.endpoint)).await,
            },
            () = tokio::time::sleep_until(idle) => {
                tracing::debug!(prefix = %self.prefix, "a watch heard nothing for long; opening it again");
                State::Closed
            }
        }
    }

    /// What a response of etcd says.
    async fn take(&mut self, open: Open, response: etcd_client::WatchResponse) -> State {
        let response = response.0;
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled {
            if response.compact_revision > 0 {
                return self.compacted(response.compact_revision);
            }
            let why = format!("{} cancelled the watch: {}", open.link.endpoint, response.cancel_reason);
            return self.failed(&open.link, Failure::Lost(why)).await;
        }
        self.pauses = pauses(LONGEST_PAUSE);
        if !response.events.is_empty() {
            self.links.saw(header);
            let whole = self.group.take(response.events, response.fragment);
            for (revision, events) in whole {
                if revision > self.told {
                    self.told = revision;
                    self.ready.push_back(Ok(WatchItem::Events(revision, events)));
                }
            }
        } else if !response.created && self.group.is_empty() && header > self.told {
            self.told = header;
            self.ready.push_back(Ok(WatchItem::Progress(header)));
        }
        State::Watching(open)
    }

    fn compacted(&mut self, oldest: Revision) -> State {
        self.ready.push_back(Err(Error::Compacted { requested: self.told.saturating_add(1), oldest }));
        State::Ended
    }

    /// After trouble with a stream.
    async fn failed(&mut self, link: &Link, failure: Failure) -> State {
        match failure {
            Failure::Compacted => self.compacted(0),
            Failure::Refused(why) => {
                self.ready.push_back(Err(Error::Refused(why)));
                State::Ended
            }
            failure => {
                tracing::debug!(prefix = %self.prefix, after = self.told, %failure, "a watch was interrupted");
                self.links.leave(link, &failure).await;
                State::Failed
            }
        }
    }
}

/// Puts pieces of revisions together.
#[derive(Default)]
struct Group {
    revision: Revision,
    events: Vec<Event>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Takes a piece in, and gives the revisions that are whole now. The last one is not while `more` is to come.
    fn take(&mut self, pieces: Vec<PbEvent>, more: bool) -> Vec<(Revision, Vec<Event>)> {
        let mut whole = Vec::new();
        for piece in pieces {
            // An event without a key is none.
            let Some(of) = piece.kv else { continue };
            if of.mod_revision != self.revision {
                self.give(&mut whole);
                self.revision = of.mod_revision;
            }
            self.events.push(if piece.r#type == etcd_client::EventType::Delete as i32 {
                Event::Delete(key(of.key), of.mod_revision)
            } else {
                Event::Put(kv(of))
            });
        }
        if !more {
            self.give(&mut whole);
        }
        whole
    }

    fn give(&mut self, whole: &mut Vec<(Revision, Vec<Event>)>) {
        if !self.events.is_empty() {
            whole.push((self.revision, std::mem::take(&mut self.events)));
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::{EventType, proto::PbKeyValue};

    use super::*;

    fn piece(name: &str, revision: Revision) -> PbEvent {
        let kv = PbKeyValue { key: name.into(), mod_revision: revision, ..PbKeyValue::default() };
        PbEvent { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None }
    }

    /// Revisions and how many events each has.
    fn take(group: &mut Group, pieces: &[Revision], more: bool) -> Vec<(Revision, usize)> {
        let pieces = pieces.iter().enumerate().map(|(i, revision)| piece(&format!("k{i}"), *revision)).collect();
        group.take(pieces, more).into_iter().map(|(revision, events)| (revision, events.len())).collect()
    }

    #[test]
    fn revisions_are_given_whole() {
        let mut group = Group::default();
        assert_eq!(take(&mut group, &[2, 2, 3], false), [(2, 2), (3, 1)]);
        assert!(group.is_empty());
        // In pieces: the end of one revision shows only in the next, or in the last piece.
        assert_eq!(take(&mut group, &[4, 5, 5], true), [(4, 1)]);
        assert_eq!(take(&mut group, &[5], true), []);
        assert_eq!(take(&mut group, &[5, 6], true), [(5, 4)]);
        assert_eq!(take(&mut group, &[7], false), [(6, 1), (7, 1)]);
        assert!(group.is_empty());
    }
}
