//! What a window takes from the store.

use std::sync::Arc;

use runtime::feed::Sink;
use store::{Event, Key, Kv, Revision, objects::Undecodable};

use crate::window::{New, Window};

/// Reads a value of the store.
pub type Decode<V> = fn(&Kv) -> std::result::Result<V, Undecodable>;

/// Feeds a window.
pub struct WindowSink<V> {
    /// The window.
    pub window: Arc<Window<Key, V>>,
    /// Reads a value of it.
    pub decode: Decode<V>,
}

impl<V: Send + Sync + 'static> Sink for WindowSink<V> {
    fn reset(&self, revision: Revision, items: Vec<Kv>) -> bool {
        self.window.reset(revision, items.into_iter().map(|kv| (kv.key.clone(), (self.decode)(&kv))))
    }

    fn apply(&self, revision: Revision, events: Vec<Event>) {
        self.window.apply(revision, events.into_iter().map(|event| change(event, self.decode)));
    }

    fn progress(&self, revision: Revision) {
        self.window.progress(revision);
    }
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
