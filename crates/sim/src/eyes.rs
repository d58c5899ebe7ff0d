//! What a process sees: the controller's own caches, each of which lags as the simulation will.

use controller::caches::{Caches, Source};
use runtime::{Cache, cache::by_hand, feed::Sink};
use store::{Kv, MemStore, PageRequest, Prefix, Revision, objects::Undecodable};

use crate::chance::Chance;

/// Caches that see more only when they are told to look.
pub struct Eyes {
    store: MemStore,
    feeds: Vec<Feed>,
    /// What they see.
    pub caches: Caches,
}

/// A watch of one prefix, and how far it has come.
struct Feed {
    prefix: Prefix,
    seen: Revision,
    sink: Box<dyn Sink>,
}

impl Eyes {
    /// Eyes that see the present.
    pub fn open(store: &MemStore) -> Self {
        let mut feeds = Vec::new();
        let caches = Caches::of(&mut Feeder { feeds: &mut feeds });
        let mut eyes = Self { store: store.clone(), feeds, caches };
        eyes.open_anew();
        eyes
    }

    /// Lists everything, as a process does that starts.
    pub fn open_anew(&mut self) {
        self.feeds.iter_mut().for_each(|feed| feed.list(&self.store));
    }

    /// Lets one cache see more, perhaps all that there is.
    pub fn look(&mut self, chance: &mut Chance) {
        let now = self.store.revision();
        let which = chance.below(self.feeds.len());
        if let Some(feed) = self.feeds.get_mut(which) {
            let behind = usize::try_from(now - feed.seen).unwrap_or(0);
            let further = if chance.one_in(2) { behind } else { chance.below(behind + 1) };
            feed.follow(&self.store, feed.seen + Revision::try_from(further).unwrap_or(0));
        }
    }

    /// Lets all caches see everything.
    pub fn look_at_all(&mut self) {
        let now = self.store.revision();
        self.feeds.iter_mut().for_each(|feed| feed.follow(&self.store, now));
    }
}

impl Feed {
    /// Takes the changes up to a revision. If some of them are forgotten it lists, and sees the present.
    fn follow(&mut self, store: &MemStore, to: Revision) {
        if to <= self.seen {
            return;
        }
        let Ok(changes) = store.inspect(|model| model.changes(&self.prefix, self.seen)) else {
            return self.list(store);
        };
        for (revision, events) in changes.into_iter().take_while(|(revision, _)| *revision <= to) {
            self.sink.apply(revision, events);
        }
        self.sink.progress(to);
        self.seen = to;
    }

    fn list(&mut self, store: &MemStore) {
        let (mut items, mut request) = (Vec::new(), PageRequest::default());
        while let Ok(page) = store.inspect(|model| model.list(&self.prefix, &request)) {
            request.after = page.items.last().map(|kv| kv.key.clone());
            items.extend(page.items);
            if !page.more {
                break;
            }
        }
        let now = store.revision();
        if self.sink.reset(now, items) {
            self.seen = now;
        }
    }
}

struct Feeder<'a> {
    feeds: &'a mut Vec<Feed>,
}

impl Source for Feeder<'_> {
    fn reflect<V, F>(&mut self, prefix: Prefix, decode: F) -> Cache<V>
    where
        V: Send + Sync + 'static,
        F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
    {
        let (cache, sink) = by_hand(decode);
        self.feeds.push(Feed { prefix, seen: 0, sink: Box::new(sink) });
        cache
    }
}
