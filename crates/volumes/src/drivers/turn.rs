//! Turns: at most one CSI call per volume is in flight (I4), whatever the call is for.
//!
//! Whoever calls a driver about a volume holds the volume's turn from before the call until its outcome is known or
//! given up. Waiters are bounded by the callers: each worker waits for one volume at a time, and requests for the same
//! creation wait for the one that runs.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// A volume, before and after its driver has given it an id. Snapshots have the key of the volume that they are of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VolumeKey {
    /// Name of the driver.
    pub(crate) driver: String,
    /// Name of the persistent volume, as `pvc-<uid>`.
    pub(crate) name: String,
}

impl VolumeKey {
    pub(crate) fn new(driver: &str, name: &str) -> Self {
        Self { driver: driver.to_owned(), name: name.to_owned() }
    }
}

type Lock = Arc<tokio::sync::Mutex<()>>;

/// Whose turn it is. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Turns {
    locks: Arc<Mutex<BTreeMap<VolumeKey, Lock>>>,
}

impl Turns {
    /// Waits for a volume's turn.
    pub(crate) async fn take(&self, volume: &VolumeKey) -> Turn {
        let lock = Arc::clone(self.locks.lock().entry(volume.clone()).or_default());
        // Made before waiting, so that one who stops waiting leaves no lock behind.
        let mut turn = Turn { turns: self.clone(), key: volume.clone(), lock: Some(Arc::clone(&lock)), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

/// A volume's turn; over when dropped.
pub(crate) struct Turn {
    turns: Turns,
    key: VolumeKey,
    lock: Option<Lock>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut locks = self.turns.locks.lock();
        drop(self.guard.take());
        drop(self.lock.take());
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests say what they expect")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_volume_has_one_turn_at_a_time_and_leaves_nothing_behind() {
        let (turns, key) = (Turns::default(), VolumeKey::new("local", "pvc-1"));
        let first = turns.take(&key).await;
        let other = turns.take(&VolumeKey::new("local", "pvc-2")).await;
        let late = tokio::time::timeout(Duration::from_millis(50), turns.take(&key)).await;
        assert!(late.is_err(), "two turns of one volume");
        drop(other);
        let next = tokio::spawn({
            let (turns, key) = (turns.clone(), key.clone());
            async move { drop(turns.take(&key).await) }
        });
        tokio::task::yield_now().await;
        drop(first);
        next.await.unwrap();
        assert!(turns.locks.lock().is_empty());
    }
}
