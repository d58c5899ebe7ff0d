//! How far the rollout of a set is: a pure function of the set and its pods.
//!
//! The set's status is the controller's word, the pods are what is so now. Both must agree: a status that has not
//! caught up with a pod that was just deleted does not count as done.

use std::collections::BTreeMap;

use model::{
    identity::{Ordinal, SetName},
    ordinals::Ordinals,
};
use pb::{
    ObjectExt,
    objects::{Condition, Pod, StatefulSet, StatefulSetStatus},
};

use crate::{commands::holds, output::pod_reason};

/// Where a pod says which revision it is of.
const REVISION: &str = "controller-revision-hash";
/// The reason that the condition Progressing gives for a missed deadline.
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What is waited for.
    Waiting(String),
    /// What was reached.
    Done(String),
    /// It missed its deadline. Whoever waits for it waits in vain, unless somebody does something.
    Failed(String),
    /// It cannot be followed.
    Impossible(String),
}

/// Judges a set by its status and its pods, keyed by name.
pub fn judge(set: &StatefulSet, pods: &BTreeMap<String, Pod>) -> Progress {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    if set.is_terminating() {
        return Progress::Impossible(format!("{} is being deleted", set.name()));
    }
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    if strategy.r#type == "OnDelete" {
        let why = "rollout status is only available for the update strategy RollingUpdate: with OnDelete nothing rolls by itself";
        return Progress::Impossible(why.to_owned());
    }
    let generation = set.metadata.as_ref().map_or(0, |meta| meta.generation);
    if status.observed_generation < generation {
        return Progress::Waiting("Waiting for the controller to take note of the change...".to_owned());
    }
    let partition = strategy.rolling_update.and_then(|rolling| rolling.partition).unwrap_or(0);
    let ordinals = Ordinals::of(&spec);
    let name = SetName::from(set.name());
    let replicas = spec.replicas.unwrap_or(1);
    let state = State { set: &name, ordinals, partition, replicas, status: &status, pods };
    if let Some(missed) = missed_deadline(&status) {
        let why =
            format!("{} missed its progress deadline: {}; `berth why sts/{0}` says more", set.name(), missed.message);
        return Progress::Failed(why);
    }
    match (state.unfinished(), status.failed_revision.as_str()) {
        (Some(reason), "") if spec.paused => Progress::Waiting(format!(
            "{reason} The rollout is paused; `berth rollout resume sts/{}` goes on with it",
            set.name()
        )),
        (Some(reason), "") => Progress::Waiting(reason),
        (Some(reason), failed) => {
            Progress::Waiting(format!("Revision {failed} missed its deadline, going back: {reason}"))
        }
        (None, "") => Progress::Done(state.done()),
        (None, failed) => Progress::Failed(format!(
            "revision {failed} missed its progress deadline; {} is back at revision {}, complete",
            set.name(),
            status.update_revision
        )),
    }
}

/// What the controller says of the deadline when it was missed.
fn missed_deadline(status: &StatefulSetStatus) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.r#type == "Progressing" && condition.reason == DEADLINE_EXCEEDED)
}

struct State<'a> {
    set: &'a SetName,
    ordinals: Ordinals,
    replicas: i32,
    partition: i32,
    status: &'a StatefulSetStatus,
    pods: &'a BTreeMap<String, Pod>,
}

impl State<'_> {
    /// The first thing that is not as it shall be.
    fn unfinished(&self) -> Option<String> {
        let Self { status, replicas, .. } = self;
        let ready = self.names().filter(|name| self.pods.get(name).is_some_and(is_ready)).count();
        let so_far = format!("{ready} of {replicas} ready");
        for name in self.names() {
            match self.pods.get(&name) {
                None => return Some(format!("Waiting for {name} to be created, {so_far}...")),
                Some(pod) if pod.is_terminating() => return Some(format!("Waiting for {name} to stop, {so_far}...")),
                Some(pod) if !is_ready(pod) => {
                    return Some(format!("Waiting for {name} to be ready ({}), {so_far}...", pod_reason(pod)));
                }
                Some(_) => {}
            }
        }
        let expected: Vec<_> = self.names().collect();
        if let Some(extra) = self.pods.values().rev().find(|pod| !expected.iter().any(|name| name == pod.name())) {
            return Some(format!("Waiting for {} to be gone...", extra.name()));
        }
        // The status also counts what a pod was overridden with, which its revision does not tell.
        let updated = self.updated().min(usize::try_from(status.updated_replicas).unwrap_or(0));
        if updated < self.to_update() {
            let revision = &status.update_revision;
            return Some(format!("Waiting: {updated} of {} pods are at revision {revision}...", self.to_update()));
        }
        if status.ready_replicas < *replicas || status.available_replicas < *replicas || status.replicas != *replicas {
            return Some(format!("Waiting for pods to be available, {} of {replicas}...", status.available_replicas));
        }
        None
    }

    fn done(&self) -> String {
        let revision = &self.status.update_revision;
        match self.partition {
            0 => format!("statefulset rolling update complete {} pods at revision {revision}...", self.replicas),
            partition => format!(
                "partitioned roll out complete: {} pods at revision {revision}, pods below partition {partition} keep theirs",
                self.updated()
            ),
        }
    }

    /// The names that the set's pods shall have.
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.ordinals.iter().map(|ordinal: Ordinal| self.set.pod(ordinal).to_string())
    }

    fn to_update(&self) -> usize {
        usize::try_from((self.replicas - self.partition).max(0)).unwrap_or(0)
    }

    fn updated(&self) -> usize {
        let names = self.names().skip(usize::try_from(self.partition).unwrap_or(0));
        names.filter(|name| self.pods.get(name).is_some_and(|pod| self.at_update_revision(pod))).count()
    }

    fn at_update_revision(&self, pod: &Pod) -> bool {
        let label = pod.metadata.as_ref().and_then(|meta| meta.labels.get(REVISION));
        label.is_some_and(|revision| *revision == self.status.update_revision)
    }
}

fn is_ready(pod: &Pod) -> bool {
    !pod.is_terminating() && pod.status.as_ref().is_some_and(|status| holds(&status.conditions, "Ready"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(status: Value) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
            "status": status,
        }))
        .unwrap()
    }

    fn complete() -> Value {
        json!({"observedGeneration": 2, "replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2, "updateRevision": "web-b"})
    }

    fn pods(pods: &[(&str, &str, &str)]) -> BTreeMap<String, Pod> {
        let pod = |(name, ready, revision): &(&str, &str, &str)| {
            let json = json!({
                "metadata": {"name": name, "labels": {REVISION: revision}},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            });
            (name.to_string(), serde_json::from_value(json).unwrap())
        };
        pods.iter().map(pod).collect()
    }

    fn waiting(set: &StatefulSet, pods: &BTreeMap<String, Pod>) -> String {
        match judge(set, pods) {
            Progress::Waiting(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn done_needs_both_the_status_and_the_pods() {
        let all = pods(&[("web-0", "True", "web-b"), ("web-1", "True", "web-b")]);
        assert!(matches!(judge(&set(complete()), &all), Progress::Done(_)));
        let behind = json!({"observedGeneration": 1});
        assert!(waiting(&set(behind), &all).contains("take note"));
        let mut lagging = complete();
        lagging["availableReplicas"] = json!(1);
        assert!(waiting(&set(lagging), &all).contains("available, 1 of 2"));

        let one = pods(&[("web-0", "True", "web-b")]);
        assert_eq!(waiting(&set(complete()), &one), "Waiting for web-1 to be created, 1 of 2 ready...");
        let unready = pods(&[("web-0", "True", "web-b"), ("web-1", "False", "web-b")]);
        assert_eq!(waiting(&set(complete()), &unready), "Waiting for web-1 to be ready (Running), 1 of 2 ready...");
        let extra = pods(&[("web-0", "True", "web-b"), ("web-1", "True", "web-b"), ("web-2", "True", "web-b")]);
        assert_eq!(waiting(&set(complete()), &extra), "Waiting for web-2 to be gone...");
        let old = pods(&[("web-0", "True", "web-a"), ("web-1", "True", "web-b")]);
        assert!(waiting(&set(complete()), &old).contains("1 of 2 pods are at revision web-b"));
    }

    #[test]
    fn a_missed_deadline_is_a_failure_and_so_is_what_was_reverted() {
        let all = pods(&[("web-0", "True", "web-b"), ("web-1", "True", "web-b")]);
        let condition = |reason, status| {
            let message = "1 of 2 pods are at revision web-b";
            json!([{"type": "Progressing", "status": status, "reason": reason, "message": message}])
        };
        let mut stuck = complete();
        stuck["conditions"] = condition("ProgressDeadlineExceeded", "False");
        assert!(
            matches!(judge(&set(stuck), &all), Progress::Failed(text) if text.contains("missed its progress deadline"))
        );
        let mut reverted = complete();
        (reverted["failedRevision"], reverted["conditions"]) = (json!("web-c"), condition("Complete", "True"));
        let text = "revision web-c missed its progress deadline; web is back at revision web-b, complete";
        assert_eq!(judge(&set(reverted.clone()), &all), Progress::Failed(text.to_owned()));
        let one = pods(&[("web-0", "True", "web-b")]);
        assert!(
            waiting(&set(reverted), &one)
                .starts_with("Revision web-c missed its deadline, going back: Waiting for web-1")
        );
    }

    #[test]
    fn reserved_ordinals_are_not_waited_for() {
        let mut set = set(complete());
        let numbering = set.spec.as_mut().unwrap().ordinals.get_or_insert_default();
        numbering.reserved = vec![pb::objects::IntOrString::int(1)];
        let all = pods(&[("web-0", "True", "web-b"), ("web-2", "True", "web-b")]);
        assert!(matches!(judge(&set, &all), Progress::Done(_)));
    }

    #[test]
    fn a_pause_and_what_was_overridden_are_waited_for() {
        let old = pods(&[("web-0", "True", "web-a"), ("web-1", "True", "web-b")]);
        let mut paused = set(complete());
        paused.spec.as_mut().unwrap().paused = true;
        assert_eq!(
            waiting(&paused, &old),
            "Waiting: 1 of 2 pods are at revision web-b... The rollout is paused; `berth rollout resume sts/web` goes on with it"
        );
        let mut overridden = complete();
        overridden["updatedReplicas"] = json!(1);
        let all = pods(&[("web-0", "True", "web-b"), ("web-1", "True", "web-b")]);
        assert!(waiting(&set(overridden), &all).contains("1 of 2 pods are at revision web-b"));
    }

    #[test]
    fn a_partition_keeps_the_lower_ones() {
        let mut partial = set(complete());
        partial.spec.as_mut().unwrap().update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap().partition =
            Some(1);
        let mixed = pods(&[("web-0", "True", "web-a"), ("web-1", "True", "web-b")]);
        assert!(matches!(judge(&partial, &mixed), Progress::Done(text) if text.contains("1 pods at revision web-b")));
    }
}
