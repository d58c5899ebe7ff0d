//! Uids of claims whose creation was tried and did not come to pass.
//!
//! A driver knows a volume by its claim's uid. A creation that is tried again under the same uid finds the volume that
//! an earlier try made, instead of leaving it behind and making another.
//!
//! Must never: give a uid that a claim in the store ever had. So a uid is taken out before its claim is written, and put
//! back only when it surely was not. It is only a help: without it the volume manager finds the volumes that no claim ever came for.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use store::Key;

/// Claims that are remembered at most.
const MOST: usize = 1024;

/// How long a uid is tried again. After that something about it may be in the way.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// How long a uid is tried again when the store refuses what rests on it. Less than it takes the volume manager to
/// take a volume of this uid for one that nobody came for.
const LONGEST_REFUSED: SignedDuration = SignedDuration::from_secs(50);

#[derive(Debug)]
struct Try {
    uid: String,
    since: Timestamp,
}

/// What was tried. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tried(Arc<Mutex<BTreeMap<Key, Try>>>);

impl Tried {
    /// The uid under which the claim is to be created: that of an earlier try, else this fresh one.
    pub fn uid(&self, claim: Key, fresh: &str, now: Timestamp) -> String {
        let mut tries = self.0.lock();
        tries.retain(|_, tried| now.duration_since(tried.since) < LONGEST);
        if tries.len() >= MOST && !tries.contains_key(&claim) {
            let oldest = tries.iter().min_by_key(|(_, tried)| tried.since).map(|(key, _)| key.clone());
            oldest.and_then(|key| tries.remove(&key));
        }
        tries.entry(claim).or_insert_with(|| Try { uid: fresh.to_owned(), since: now }).uid.clone()
    }

    /// Takes out what is about to be written.
    pub fn take(&self, claims: &[Key]) -> Taken {
        let mut tries = self.0.lock();
        Taken(claims.iter().filter_map(|claim| tries.remove_entry(claim)).collect())
    }

    /// The store refused to write what was taken.
    pub fn refused(&self, taken: Taken, now: Timestamp) {
        let still = taken.0.into_iter().filter(|(_, tried)| now.duration_since(tried.since) < LONGEST_REFUSED);
        self.0.lock().extend(still);
    }
}

/// Uids that may be in the store by now.
#[derive(Debug)]
#[must_use]
pub struct Taken(Vec<(Key, Try)>);

#[cfg(test)]
mod tests {
    use pb::Kind;

    use super::*;

    fn claim(name: &str) -> Key {
        Key::object(Kind::PersistentVolumeClaim, "default", name)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_creation_that_was_not_written_is_tried_again_under_the_same_uid() {
        let tried = Tried::default();
        assert_eq!(tried.uid(claim("www-0"), "first", at(0)), "first");
        assert_eq!(tried.uid(claim("www-0"), "second", at(5)), "first", "no answer about its volume");
        let taken = tried.take(&[claim("www-0"), claim("unheard-of")]);
        tried.refused(taken, at(10));
        assert_eq!(tried.uid(claim("www-0"), "third", at(10)), "first");
        assert_eq!(tried.uid(claim("www-1"), "other", at(10)), "other");
    }

    #[test]
    fn a_uid_that_may_have_been_written_is_never_given_again() {
        let tried = Tried::default();
        tried.uid(claim("www-0"), "first", at(0));
        drop(tried.take(&[claim("www-0")]));
        assert_eq!(tried.uid(claim("www-0"), "second", at(1)), "second");
    }

    #[test]
    fn a_uid_that_leads_nowhere_is_given_up() {
        let tried = Tried::default();
        tried.uid(claim("www-0"), "first", at(0));
        tried.refused(tried.take(&[claim("www-0")]), at(50));
        assert_eq!(tried.uid(claim("www-0"), "second", at(50)), "second");
        assert_eq!(tried.uid(claim("www-0"), "third", at(350)), "third");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let tried = Tried::default();
        for k in 0..i64::try_from(2 * MOST).unwrap() {
            tried.uid(claim(&format!("c{k}")), "uid", Timestamp::from_millisecond(k).unwrap());
        }
        assert_eq!(tried.0.lock().len(), MOST);
    }
}
