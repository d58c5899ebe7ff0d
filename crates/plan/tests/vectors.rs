//! One decision each: which pods are left after one plan, with `maxUnavailable` (MU-1 to MU-5, MU-7).
//!
//! The tables are those with which Kubernetes tests its own update step. Parallel agrees with every row. Under
//! OrderedReady a broken pod that is outdated is replaced although nothing else moves (#67250); such rows name what
//! Kubernetes leaves beside what Berth does.

#![allow(clippy::expect_used, reason = "a table that cannot be read fails the test")]

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use model::{
    identity::{ModRevision, NodeName, Ordinal, RevisionName, SetName},
    ordinals::Ordinals,
    revision::TemplateBytes,
};
use plan::statefulset::{
    Control, MaxUnavailable, Op, Phase, PodView, Policy, RevisionView, SetView, Snapshot, Status, Strategy, plan,
};

const MIN_READY: u32 = 30;

/// How a pod of the old revision fares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Available,
    /// Running, not ready.
    Broken,
    /// Ready, but not for minReadySeconds.
    Young,
    Terminating,
}

struct Set {
    policy: Policy,
    replicas: u32,
    max: MaxUnavailable,
    partition: u32,
}

fn name() -> SetName {
    SetName::from("web")
}

fn old() -> RevisionName {
    "web-old".into()
}

fn new() -> RevisionName {
    "web-new".into()
}

fn revision(name: RevisionName, number: i64, template: &str) -> RevisionView {
    RevisionView {
        uid: name.as_str().into(),
        at: ModRevision(1),
        number,
        control: Control::Ours,
        selected: true,
        template: TemplateBytes::new(template.to_owned()),
        equivalent: template == "new",
        created: Timestamp::UNIX_EPOCH,
        name,
    }
}

fn pod(ordinal: u32, revision: RevisionName, state: State, now: Timestamp) -> PodView {
    let since = match state {
        State::Available | State::Terminating => Some(now - SignedDuration::from_secs(600)),
        State::Young => Some(now - SignedDuration::from_secs(1)),
        State::Broken => None,
    };
    let name = name().pod(Ordinal(ordinal));
    PodView {
        uid: name.as_str().into(),
        at: ModRevision(1),
        control: Control::Ours,
        selected: true,
        terminating: state == State::Terminating,
        revision: Some(revision),
        overrides: String::new(),
        name_label: Some(name.clone()),
        volumes: [].into(),
        phase: Phase::Running,
        ready_since: since,
        node: Some(NodeName::from("n")),
        trouble: String::new(),
        name,
    }
}

impl Set {
    fn snapshot(&self, pods: Vec<PodView>) -> Snapshot {
        let count = i32::try_from(pods.len()).expect("few pods");
        Snapshot {
            now: now(),
            set: SetView {
                name: name(),
                uid: "S".into(),
                ordinals: Ordinals { count: self.replicas, ..Ordinals::default() },
                policy: self.policy,
                strategy: Strategy::Rolling { partition: Some(self.partition), max_unavailable: Some(self.max) },
                min_ready_seconds: MIN_READY,
                template: TemplateBytes::new("new".to_owned()),
                status: Status { current: count, current_revision: Some(old()), ..Status::default() },
                ..SetView::default()
            },
            pods,
            claims: [].into(),
            revisions: vec![revision(old(), 1, "old"), revision(new(), 2, "new")],
            service_exists: true,
            budgets: Vec::new(),
            snapshots: [].into(),
        }
    }

    /// The pods that one plan leaves, if all are at the old revision and `down` are not available.
    fn left(&self, down: &[(u32, State)]) -> BTreeSet<u32> {
        let state =
            |ordinal: u32| down.iter().find(|(o, _)| *o == ordinal).map_or(State::Available, |(_, state)| *state);
        let pods = (0..self.replicas).map(|ordinal| pod(ordinal, old(), state(ordinal), now()));
        let deleted = deleted(&self.snapshot(pods.collect()));
        (0..self.replicas).filter(|ordinal| !deleted.contains(ordinal)).collect()
    }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24)
}

fn deleted(snapshot: &Snapshot) -> BTreeSet<u32> {
    let ordinal = |op: &Op| match op {
        Op::DeletePod { ordinal, .. } => Some(ordinal.0),
        _ => None,
    };
    plan(snapshot).actions.iter().filter_map(|action| ordinal(&action.op)).collect()
}

/// `P/5/2/3` is Parallel, 5 pods, maxUnavailable 2, partition 3.
fn set(text: &str) -> Set {
    let mut parts = text.split('/');
    let policy = if parts.next() == Some("P") { Policy::Parallel } else { Policy::OrderedReady };
    let mut number = || parts.next().map(|part| part.parse::<u32>().expect("a number"));
    let (replicas, max) = (number().expect("replicas"), number().expect("maxUnavailable"));
    Set { policy, replicas, max: MaxUnavailable::Count(max), partition: number().unwrap_or(0) }
}

/// `3t 4 2m`: 3 is terminating, 4 not ready, 2 ready for too short a time.
fn states(text: &str) -> Vec<(u32, State)> {
    let state = |word: &str| {
        let (number, state) = match word.chars().last() {
            Some('t') => (&word[..word.len() - 1], State::Terminating),
            Some('m') => (&word[..word.len() - 1], State::Young),
            _ => (word, State::Broken),
        };
        (number.parse().expect("an ordinal"), state)
    };
    text.split_whitespace().map(state).collect()
}

fn ordinals(text: &str) -> BTreeSet<u32> {
    text.split_whitespace().map(|word| word.parse().expect("an ordinal")).collect()
}

#[test]
fn parallel_leaves_the_pods_of_the_table() {
    for (case, down, left) in [
        ("P/1/1", "0", ""),
        ("P/3/1", "2", "0 1"),
        ("P/5/2", "3 4", "0 1 2"),
        ("P/3/1", "2t", "0 1 2"),
        ("P/5/3", "4t 3", "0 1 4"),
        ("P/3/1", "2m", "0 1"),
        ("P/5/3", "3t 4", "0 1 3"),
        ("P/5/1/2", "4", "0 1 2 3"),
        ("P/5/1/2", "2", "0 1 3 4"),
        ("P/5/2/3", "3 4", "0 1 2"),
        ("P/5/1/2", "1", "0 1 2 3 4"),
        ("P/5/2/3", "1 4", "0 1 2 3"),
        ("P/4/2", "0 1", "2 3"),
        ("P/5/3", "0 1", "2 3"),
    ] {
        assert_eq!(set(case).left(&states(down)), ordinals(left), "{case} {{{down}}}");
    }
}

/// Rows whose third and fourth column differ are the healing of #67250. In rows marked with a star Kubernetes' table asks
/// the update step alone; a whole sync stops before it, at the lowest pod that is not available.
#[test]
fn ordered_ready_leaves_what_kubernetes_leaves_but_for_the_broken_pod_that_it_heals() {
    for (case, down, in_kubernetes, left) in [
        ("O/1/1", "0", "0", ""),
        ("O/3/1", "2", "0 1 2", "0 1"),
        ("O/5/2", "4", "0 1 2 3 *", "0 1 2 3"),
        ("O/3/1", "2t", "0 1 2", "0 1 2"),
        ("O/5/3", "3 4t", "0 1 2 4 *", "0 1 2 4"),
        ("O/3/1", "2m", "0 1 2", "0 1"),
        ("O/5/3", "3t 4", "0 1 2 3 *", "0 1 2 3 4"),
        ("O/5/1/2", "4", "0 1 2 3 4", "0 1 2 3"),
    ] {
        let set = set(case);
        assert_eq!(set.left(&states(down)), ordinals(left), "{case} {{{down}}}, Kubernetes leaves {in_kubernetes}");
    }
}

/// The rest of the way is only for pods in the update range: below the partition nothing is healed.
#[test]
fn a_broken_pod_below_the_partition_is_left_alone() {
    for policy in ["P", "O"] {
        assert_eq!(set(&format!("{policy}/5/1/2")).left(&states("1")), ordinals("0 1 2 3 4"), "{policy}");
    }
}

#[test]
fn percentages_round_down_and_are_at_least_one() {
    for (percent, replicas, deleted) in
        [(50, 5, 2), (50, 4, 2), (20, 4, 1), (1, 3, 1), (34, 3, 1), (67, 3, 2), (100, 3, 3)]
    {
        for policy in [Policy::Parallel, Policy::OrderedReady] {
            let set = Set { policy, replicas, max: MaxUnavailable::Percent(percent), partition: 0 };
            let left = u32::try_from(set.left(&[]).len()).expect("few pods");
            assert_eq!(replicas - left, deleted, "{percent}% of {replicas}, {policy:?}");
        }
    }
}

/// Six pods, partition 3, maxUnavailable 2: 5 and 4 go first. Then Parallel takes 3 as soon as one of them is back,
/// OrderedReady when both are.
#[test]
fn the_third_pod_goes_when_the_budget_lets_it() {
    for (policy, with_one_back) in [(Policy::Parallel, "3"), (Policy::OrderedReady, "")] {
        let set = Set { policy, replicas: 6, max: MaxUnavailable::Count(2), partition: 3 };
        assert_eq!(set.left(&[]), ordinals("0 1 2 3"), "{policy:?}");
        let pods = |five: State| {
            let rest = (0..4).map(|ordinal| pod(ordinal, old(), State::Available, now()));
            rest.chain([pod(4, new(), State::Available, now()), pod(5, new(), five, now())]).collect()
        };
        assert_eq!(deleted(&set.snapshot(pods(State::Broken))), ordinals(with_one_back), "{policy:?}, 4 is back");
        assert_eq!(deleted(&set.snapshot(pods(State::Available))), ordinals("3"), "{policy:?}, both are back");
    }
}

/// Six pods, maxUnavailable 2: as many go as are not on their way out already, wherever those are. Kubernetes asks its
/// update step alone; in a whole plan OrderedReady waits for every pod that is terminating.
#[test]
fn terminating_pods_use_up_the_budget() {
    for terminating in ["", "5", "3", "4", "5 4", "5 3", "4 3", "5 4 3", "2", "1"] {
        let down: Vec<_> = ordinals(terminating).into_iter().map(|ordinal| (ordinal, State::Terminating)).collect();
        let budget = 2usize.saturating_sub(down.len());
        for (policy, due) in [(Policy::Parallel, budget), (Policy::OrderedReady, if down.is_empty() { 2 } else { 0 })] {
            let set = Set { policy, replicas: 6, max: MaxUnavailable::Count(2), partition: 3 };
            assert_eq!(6 - set.left(&down).len(), due, "{policy:?} {{{terminating}}}");
        }
    }
}
