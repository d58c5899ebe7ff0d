//! How far a drain has come: which pods are still to be asked, which are held, which only have to stop. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use runtime::backoff::Backoff;

/// How long a refused eviction waits before it is tried without anything having changed.
const HELD: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15) };

/// A pod: namespace and name.
pub type PodKey = (String, String);

/// What became of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It will go.
    Asked,
    /// It is gone.
    Gone,
    /// Not now, and why.
    Held(String),
}

/// The pods that are still there.
#[derive(Debug, Default)]
pub struct Progress {
    pods: BTreeMap<PodKey, Left>,
    /// Those that the present listing of a watch has not shown yet.
    unseen: BTreeSet<PodKey>,
}

#[derive(Debug)]
struct Left {
    uid: String,
    /// Whether it has been asked to go.
    asked: bool,
    /// How often it was refused.
    refusals: u32,
    /// When to ask next.
    due: Instant,
    /// The last refusal.
    why: String,
}

impl Progress {
    /// Takes in a pod that shall go.
    pub fn add(&mut self, pod: PodKey, uid: &str, now: Instant) {
        let left = Left { uid: uid.to_owned(), asked: false, refusals: 0, due: now, why: String::new() };
        self.pods.insert(pod, left);
    }

    /// Whether no pod is left.
    pub fn is_done(&self) -> bool {
        self.pods.is_empty()
    }

    /// Pods that are to be asked now, with their uids.
    pub fn due(&self, now: Instant) -> Vec<(PodKey, String)> {
        let due = self.pods.iter().filter(|(_, left)| !left.asked && left.due <= now);
        due.map(|(pod, left)| (pod.clone(), left.uid.clone())).collect()
    }

    /// When the next pod is to be asked though nothing changed.
    pub fn next(&self) -> Option<Instant> {
        self.pods.values().filter(|left| !left.asked).map(|left| left.due).min()
    }

    /// Notes an answer; gives the reason of a refusal if it is a new one.
    pub fn answered(&mut self, pod: &PodKey, answer: Answer, now: Instant) -> Option<String> {
        let left = self.pods.get_mut(pod)?;
        match answer {
            Answer::Asked => left.asked = true,
            Answer::Gone => drop(self.pods.remove(pod)),
            Answer::Held(why) => {
                left.refusals += 1;
                left.due = now + HELD.after(left.refusals);
                if left.why != why {
                    left.why.clone_from(&why);
                    return Some(why);
                }
            }
        }
        None
    }

    /// Something changed that refusals rest on: those that are held are asked again at once.
    pub fn stirred(&mut self, now: Instant) {
        self.pods.values_mut().filter(|left| !left.asked).for_each(|left| left.due = now);
    }

    /// A pod of this uid is there. True if the one that shall go is gone therefore: the name has passed on.
    pub fn seen(&mut self, pod: &PodKey, uid: &str) -> bool {
        self.unseen.remove(pod);
        let passed_on = self.pods.get(pod).is_some_and(|left| left.uid != uid);
        passed_on && self.pods.remove(pod).is_some()
    }

    /// A pod is gone; true if it is one that should.
    pub fn gone(&mut self, pod: &PodKey) -> bool {
        self.pods.remove(pod).is_some()
    }

    /// Everything is told anew from here.
    pub fn anew(&mut self) {
        self.unseen = self.pods.keys().cloned().collect();
    }

    /// All that is there has been told: what was not among it is gone.
    pub fn current(&mut self) -> Vec<PodKey> {
        let missed = std::mem::take(&mut self.unseen);
        missed.into_iter().filter(|pod| self.pods.remove(pod).is_some()).collect()
    }

    /// What is left, and why, one line each.
    pub fn left(&self) -> Vec<String> {
        let line = |((namespace, name), left): (&PodKey, &Left)| match (left.asked, left.why.as_str()) {
            (true, _) => format!("pod {namespace}/{name} is stopping"),
            (false, "") => format!("pod {namespace}/{name} was not asked yet"),
            (false, why) => why.to_owned(),
        };
        self.pods.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PodKey {
        ("default".to_owned(), name.to_owned())
    }

    fn names(due: Vec<(PodKey, String)>) -> Vec<String> {
        due.into_iter().map(|((_, name), _)| name).collect()
    }

    #[test]
    fn a_held_pod_is_asked_again_later_and_later_or_when_something_changes() {
        let now = Instant::now();
        let mut progress = Progress::default();
        ["a", "b"].iter().for_each(|name| progress.add(key(name), "u", now));
        assert_eq!(names(progress.due(now)), ["a", "b"]);
        assert_eq!(progress.answered(&key("a"), Answer::Asked, now), None);
        let held = || Answer::Held("the budget".to_owned());
        assert_eq!(progress.answered(&key("b"), held(), now).as_deref(), Some("the budget"));
        assert_eq!(names(progress.due(now)), [""; 0]);
        assert_eq!(progress.next(), Some(now + Duration::from_secs(1)));
        // The same reason is told once, and the waits grow up to a bound.
        for _ in 0..10 {
            assert_eq!(progress.answered(&key("b"), held(), now), None);
        }
        assert_eq!(progress.next(), Some(now + Duration::from_secs(15)));
        progress.stirred(now);
        assert_eq!(names(progress.due(now)), ["b"]);
        assert_eq!(progress.left(), ["pod default/a is stopping", "the budget"]);
        assert!(progress.gone(&key("a")) && !progress.gone(&key("c")));
        progress.answered(&key("b"), Answer::Gone, now);
        assert!(progress.is_done());
    }

    #[test]
    fn a_pod_is_gone_when_its_name_passes_on_or_a_new_listing_lacks_it() {
        let now = Instant::now();
        let mut progress = Progress::default();
        ["a", "b", "c"].iter().for_each(|name| progress.add(key(name), "old", now));
        assert!(!progress.seen(&key("a"), "old"));
        assert!(progress.seen(&key("a"), "new"));
        progress.anew();
        progress.seen(&key("b"), "old");
        assert_eq!(progress.current(), [key("c")]);
        assert!(progress.current().is_empty());
        assert!(!progress.is_done());
    }
}
