//! What is known of an object: what a cache shows or, where it shows nothing, what the store says.

use std::sync::Arc;

use plan::volume::Known;
use runtime::Cache;
use store::{Key, objects::decode};

use crate::Inner;

/// What is known of an object.
#[derive(Clone, Debug)]
pub(crate) enum Lookup<T> {
    Is(Arc<T>),
    Absent,
    Unreadable(String),
}

impl<T> Lookup<T> {
    pub(crate) fn known(&self) -> Known<'_, T> {
        match self {
            Self::Is(object) => Known::Is(object),
            Self::Absent => Known::Absent,
            Self::Unreadable(why) => Known::Unreadable(why),
        }
    }

    /// The object, if it is there and can be read.
    pub(crate) fn object(&self) -> Option<&Arc<T>> {
        match self {
            Self::Is(object) => Some(object),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }
}

impl Inner {
    /// Looks an object up. "Absent" is the store's own word, never a cache's: caches lag.
    pub(crate) async fn look_up<T: pb::Object>(&self, cache: &Cache<T>, key: &Key) -> store::Result<Lookup<T>> {
        match cache.get(key) {
            Some(object) => Ok(Lookup::Is(object)),
            None => self.read(key).await,
        }
    }

    /// Looks an object up in the store, whatever caches show.
    pub(crate) async fn read<T: pb::Object>(&self, key: &Key) -> store::Result<Lookup<T>> {
        Ok(match self.store.get(key).await? {
            None => Lookup::Absent,
            Some(kv) => match decode::<T>(&kv) {
                Ok(object) => Lookup::Is(Arc::new(object)),
                Err(error) => Lookup::Unreadable(error.to_string()),
            },
        })
    }
}
