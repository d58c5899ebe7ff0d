//! What the manager remembers of volumes that are being made: nothing that matters after a restart.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use pb::objects::NodeSelector;
use tokio::time::Instant;

/// How long it is remembered.
const LASTS: Duration = Duration::from_secs(30);
/// Claims that are remembered at once; beyond it the oldest are forgotten first.
const MOST: usize = 4096;

/// By the claim's uid: what became of the last try.
#[derive(Default)]
pub(crate) struct Memory {
    tries: Mutex<BTreeMap<String, (Instant, Try)>>,
}

/// What became of a try to make a volume.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Try {
    /// It is there: a claim that is asked about again goes where its volume is.
    Made(Option<NodeSelector>),
    /// The driver refused for good. What it said.
    Refused(String),
}

impl Memory {
    pub(crate) fn note(&self, uid: &str, what: Try) {
        let mut tries = self.tries.lock();
        if tries.len() >= MOST {
            tries.retain(|_, (at, _)| at.elapsed() < LASTS);
        }
        if tries.len() >= MOST {
            let oldest = tries.iter().min_by_key(|(_, (at, _))| *at).map(|(uid, _)| uid.clone());
            oldest.and_then(|uid| tries.remove(&uid));
        }
        tries.insert(uid.to_owned(), (Instant::now(), what));
    }

    pub(crate) fn of(&self, uid: &str) -> Option<Try> {
        let tries = self.tries.lock();
        tries.get(uid).filter(|(at, _)| at.elapsed() < LASTS).map(|(_, what)| what.clone())
    }
}
