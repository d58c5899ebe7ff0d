//! Watching: changes in order of their revisions, without gap or repetition (I15), through the eyes of a selection.
//!
//! All watchers of a kind read one log at their own pace; a watcher has no buffer that could grow. One that falls
//! behind the log ends with OUT_OF_RANGE and lists again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};
use model::view::View;
use pb::api::v1::{EventType, WatchRequest, WatchResponse};
use store::{Key, PageRequest, Prefix, Revision};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    Shared,
    caches::{KindWindow, Stored},
    error::{Error, Result, parse_kind, parse_revision},
    select::Selection,
    view,
    window::{Change, Follower, New, starting_with},
};

/// Between bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(10);

/// What a change of an object is to a selection: coming into it is ADDED, leaving it is DELETED.
pub fn seen(was: bool, is: bool) -> Option<EventType> {
    match (was, is) {
        (false, true) => Some(EventType::Added),
        (true, true) => Some(EventType::Modified),
        (true, false) => Some(EventType::Deleted),
        (false, false) => None,
    }
}

/// What a watcher looks at.
struct Scope {
    prefix: Prefix,
    selection: Selection,
    view: View,
}

/// An event that is to be told. It shares the object with the cache until then.
struct Pending {
    event: EventType,
    stored: Option<Arc<Stored>>,
    /// Where to resume; None where that is nowhere yet.
    resume: Option<Revision>,
}

impl Pending {
    fn bookmark(revision: Revision) -> Self {
        Self { event: EventType::Bookmark, stored: None, resume: Some(revision) }
    }

    fn told(self, view: View) -> WatchResponse {
        WatchResponse {
            r#type: self.event.into(),
            object: self.stored.map(|stored| view::shown(view, stored.object.clone())),
            resource_version: self.resume.map(|revision| revision.to_string()).unwrap_or_default(),
        }
    }
}

impl Scope {
    /// What a change is to this watcher; None if nothing.
    fn tell(&self, change: &Change<Key, Stored>) -> Result<Option<Pending>> {
        if !self.prefix.contains(&change.key) {
            return Ok(None);
        }
        let (old, new) = match &change.new {
            New::Is(stored) => (change.old.as_ref(), Some(stored)),
            New::Gone => (change.old.as_ref(), None),
            New::Unknown(unknown) => return Err(unknown.clone().into()),
        };
        let matches =
            |stored: Option<&Arc<Stored>>| stored.is_some_and(|stored| self.selection.matches(&stored.object));
        let Some(event) = seen(matches(old), matches(new)) else { return Ok(None) };
        let stored = if event == EventType::Deleted { old.cloned() } else { new.cloned() };
        Ok(Some(Pending { event, stored, resume: Some(change.revision) }))
    }
}

struct Watcher {
    scope: Scope,
    follower: Follower<Key, Stored>,
    ready: VecDeque<Pending>,
    bookmarks: Option<Interval>,
    /// The last revision that the client can resume from.
    told: Revision,
    stop: CancellationToken,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchResponse>> {
        while !self.ended {
            if let Some(pending) = self.ready.pop_front() {
                return Some(Ok(pending.told(self.scope.view)));
            }
            if let Err(error) = self.wait().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
        None
    }

    /// Waits until there is something to tell.
    async fn wait(&mut self) -> Result<()> {
        let bookmark = async {
            match &mut self.bookmarks {
                Some(interval) => drop(interval.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {
                Err(Error::Unavailable(format!("this API service is stopping; watch again from revision {}", self.told)))
            }
            changes = self.follower.next() => {
                let mut told = Vec::new();
                for change in changes? {
                    told.extend(self.scope.tell(&change)?);
                }
                self.ready.extend(resumable(told, self.told));
                self.told = self.follower.position();
                Ok(())
            }
            () = bookmark => {
                self.told = self.follower.position();
                self.ready.push_back(Pending::bookmark(self.told));
                Ok(())
            }
        }
    }
}

/// Says in each event where to resume. In the middle of a revision that is before it: what is left of the revision must
/// not be missed.
fn resumable(mut pending: Vec<Pending>, mut resume: Revision) -> Vec<Pending> {
    let revisions: Vec<_> = pending.iter().map(|pending| pending.resume).collect();
    for (at, pending) in pending.iter_mut().enumerate() {
        let ends_its_revision = revisions.get(at + 1) != Some(&pending.resume);
        if let Some(revision) = pending.resume.filter(|_| ends_its_revision) {
            resume = revision;
        }
        pending.resume = Some(resume);
    }
    pending
}

impl Shared {
    /// Starts a watch.
    pub async fn watch(&self, request: WatchRequest) -> Result<impl Stream<Item = Result<WatchResponse>> + use<>> {
        let kind = parse_kind(&request.kind)?;
        let prefix = Prefix::namespace(kind, &request.namespace);
        let selection = Selection::parse(kind, &request.label_selector, &request.field_selector)?;
        let scope = Scope { prefix, selection, view: view::parse(kind, &request.api_version)? };
        let window = self.caches.current(kind).await?.clone();
        let (ready, after) = if request.resource_version.is_empty() {
            existing(&window, &scope)?
        } else {
            let after = parse_revision("resourceVersion", &request.resource_version)?;
            self.check_revision(&window, &scope.prefix, after).await?;
            (VecDeque::new(), after)
        };
        let bookmarks = request.allow_bookmarks.then(|| {
            let mut interval = interval(BOOKMARKS);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval.reset();
            interval
        });
        let follower = Follower::new(window, after);
        let watcher = Watcher { scope, follower, ready, bookmarks, told: after, stop: self.stop.clone(), ended: false };
        Ok(stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) }))
    }

    /// Another replica may have shown the client more than this one shows yet: then the changes up to there are on
    /// their way. A revision that the store has never had is an error, not an eternal silence.
    async fn check_revision(&self, window: &KindWindow, prefix: &Prefix, after: Revision) -> Result<()> {
        if after <= window.revision() {
            return Ok(());
        }
        let now = self.store.list(prefix, PageRequest { limit: 1, ..PageRequest::default() }).await?.revision;
        if after <= now {
            return Ok(());
        }
        Err(Error::Expired(format!("the store is at revision {now} and has never been at {after}")))
    }
}

/// What exists, as ADDED, and a bookmark. Only the bookmark can be resumed from: before it, not everything was told.
fn existing(window: &KindWindow, scope: &Scope) -> Result<(VecDeque<Pending>, Revision)> {
    let (all, revision) = window.range(starting_with(&scope.prefix))?;
    let selected = all.into_iter().filter(|stored| scope.selection.matches(&stored.object));
    let added = |stored| Pending { event: EventType::Added, stored: Some(stored), resume: None };
    let mut ready: VecDeque<_> = selected.map(added).collect();
    ready.push_back(Pending::bookmark(revision));
    Ok((ready, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entering_and_leaving_a_selection() {
        assert_eq!(seen(false, true), Some(EventType::Added));
        assert_eq!(seen(true, true), Some(EventType::Modified));
        assert_eq!(seen(true, false), Some(EventType::Deleted));
        assert_eq!(seen(false, false), None);
    }

    #[test]
    fn the_middle_of_a_revision_resumes_before_it() {
        let event = |revision| Pending { event: EventType::Added, stored: None, resume: Some(revision) };
        let told = resumable(vec![event(5), event(7), event(7), event(7), event(9)], 3);
        let resume: Vec<_> = told.iter().map(|pending| pending.resume).collect();
        assert_eq!(resume, [Some(5), Some(5), Some(5), Some(7), Some(9)]);
    }
}
