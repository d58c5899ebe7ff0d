//! Short stories of what a set can have beyond apps/v1: a window, reserved ordinals, overrides, a pause, Recreate.

use plan::statefulset::{Op, PodView};

use crate::{
    Bound, Event, Shape,
    cluster::Cluster,
    happen, set, settle,
    stories::{PLAIN, settled},
};

fn sync(cluster: &mut Cluster) {
    happen(cluster, &Event::Sync);
}

/// One step of every node.
fn nodes(cluster: &mut Cluster) {
    happen(cluster, &Event::Kubelets);
}

fn all(cluster: &mut Cluster, events: &[Event]) {
    events.iter().for_each(|event| happen(cluster, event));
}

fn images(cluster: &Cluster) -> Vec<String> {
    let image = |pod: &PodView| cluster.image_of(pod.revision.as_ref().map(|name| name.as_str()).unwrap_or_default());
    cluster.snapshot().pods.iter().map(image).collect()
}

fn uids(cluster: &Cluster) -> Vec<String> {
    cluster.snapshot().pods.iter().map(|pod| pod.uid.to_string()).collect()
}

fn waits(cluster: &Cluster) -> Vec<String> {
    cluster.plan().waits.iter().map(ToString::to_string).collect()
}

#[test]
fn as_many_pods_start_at_a_time_as_the_window_lets() {
    let mut cluster = Cluster::new(set(&Shape { window: Some(2), ..PLAIN }));
    happen(&mut cluster, &Event::Scale(5));
    sync(&mut cluster);
    assert_eq!(cluster.pod_names(), ["web-0", "web-1"]);
    assert_eq!(waits(&cluster)[2], "web-2 is not created yet: web-0 has to be ready and available first");
    // The higher one comes first: one more may start, and no more.
    happen(&mut cluster, &Event::Kubelet(1));
    happen(&mut cluster, &Event::Kubelet(1));
    sync(&mut cluster);
    assert_eq!(cluster.pod_names(), ["web-0", "web-1", "web-2"]);
    sync(&mut cluster);
    assert_eq!(cluster.pod_names().len(), 3);
    // A gap below is filled before anything above.
    happen(&mut cluster, &Event::DeletePod(1));
    nodes(&mut cluster);
    nodes(&mut cluster);
    sync(&mut cluster);
    assert_eq!(cluster.pod_names(), ["web-0", "web-1", "web-2", "web-3"]);
    settle(&mut cluster);
}

#[test]
fn a_window_makes_no_scale_down_and_no_update_hurry() {
    let mut cluster = settled(&Shape { window: Some(3), ..PLAIN });
    all(&mut cluster, &[Event::Unready(0), Event::Scale(1)]);
    sync(&mut cluster);
    assert_eq!(cluster.terminating(), 0, "web-0 is not available");
    all(&mut cluster, &[Event::Kubelets, Event::Sync]);
    assert_eq!(cluster.terminating(), 1, "one at a time");
}

#[test]
fn reserved_ordinals_are_left_out_and_count_for_no_index() {
    let mut cluster = settled(&Shape { partition: Some(2), ..PLAIN });
    happen(&mut cluster, &Event::Reserve(vec![1]));
    settle(&mut cluster);
    assert_eq!(cluster.pod_names(), ["web-0", "web-2", "web-3"]);
    happen(&mut cluster, &Event::Template(1));
    settle(&mut cluster);
    assert_eq!(images(&cluster), ["i", "i", "i:1"], "index 2 is ordinal 3");
}

#[test]
fn an_override_replaces_the_pod_of_its_ordinal_alone() {
    let mut cluster = settled(&PLAIN);
    let before = uids(&cluster);
    let revisions = cluster.snapshot().revisions.len();
    happen(&mut cluster, &Event::Override(1, 7));
    assert_eq!(cluster.plan().status.updated, 2, "one pod is outdated");
    settle(&mut cluster);
    let after = uids(&cluster);
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    assert_ne!(after[1], before[1]);
    assert_eq!(cluster.snapshot().revisions.len(), revisions, "overrides are no part of a revision");
    // The partition protects from overrides too.
    let mut cluster = settled(&Shape { partition: Some(2), ..PLAIN });
    happen(&mut cluster, &Event::Override(1, 7));
    settle(&mut cluster);
    assert_eq!(uids(&cluster), before);
}

#[test]
fn a_pause_keeps_every_pod_at_what_it_is() {
    for shape in [PLAIN, Shape { parallel: true, ..PLAIN }, Shape { recreate: true, ..PLAIN }] {
        let mut cluster = settled(&shape);
        let before = uids(&cluster);
        all(&mut cluster, &[Event::Pause(true), Event::Template(1)]);
        settle(&mut cluster);
        assert_eq!(uids(&cluster), before);
        assert_eq!(waits(&cluster)[0], "web-0 is outdated and is replaced when you resume the set (paused)");
        // Scaling goes on, and what dies comes back as it was: nobody has the new template yet.
        all(&mut cluster, &[Event::Scale(4), Event::DeletePod(1)]);
        settle(&mut cluster);
        assert_eq!(images(&cluster), ["i"; 4]);
        happen(&mut cluster, &Event::Pause(false));
        settle(&mut cluster);
        assert_eq!(images(&cluster), ["i:1"; 4]);
    }
}

#[test]
fn a_pause_in_the_middle_freezes_the_frontier() {
    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Template(1));
    all(&mut cluster, &[Event::Sync, Event::Kubelets, Event::Sync, Event::Kubelets, Event::Kubelets]);
    assert_eq!(images(&cluster), ["i", "i", "i:1"]);
    all(
        &mut cluster,
        &[Event::Pause(true), Event::DeletePod(0), Event::Kubelets, Event::DeletePod(2), Event::Kubelets],
    );
    // web-2 is gone and nobody shows the new template: it comes back at the old one.
    settle(&mut cluster);
    assert_eq!(images(&cluster), ["i", "i", "i"]);

    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Template(1));
    all(&mut cluster, &[Event::Sync, Event::Kubelets, Event::Sync, Event::Kubelets, Event::Kubelets]);
    all(&mut cluster, &[Event::Pause(true), Event::DeletePod(0), Event::Scale(4)]);
    settle(&mut cluster);
    assert_eq!(images(&cluster), ["i", "i", "i:1", "i:1"], "below the frontier old, above it new");
}

#[test]
fn a_paused_set_does_not_heal() {
    let mut cluster = settled(&PLAIN);
    all(&mut cluster, &[Event::Template(9), Event::Sync, Event::Kubelets, Event::Sync, Event::Kubelets]);
    all(&mut cluster, &[Event::Pause(true), Event::Template(1), Event::Sync]);
    assert_eq!(cluster.terminating(), 0);
    all(&mut cluster, &[Event::Pause(false), Event::Sync]);
    assert_eq!(cluster.terminating(), 1);
    settle(&mut cluster);
}

#[test]
fn recreate_takes_all_old_pods_away_before_any_new_one_comes() {
    for parallel in [false, true] {
        let mut cluster = settled(&Shape { recreate: true, parallel, ..PLAIN });
        // Also such as are out of range, whether they are well or not.
        all(&mut cluster, &[Event::Unready(1), Event::Template(1), Event::Scale(2), Event::Sync]);
        assert_eq!(cluster.terminating(), 3);
        happen(&mut cluster, &Event::Kubelet(0));
        sync(&mut cluster);
        assert_eq!(cluster.pod_names(), ["web-1", "web-2"]);
        let waits = waits(&cluster);
        let older = "web-0 is not created yet: web-1 is outdated and has to be gone first (Recreate)";
        assert!(waits.contains(&older.to_owned()), "{waits:?}");
        nodes(&mut cluster);
        sync(&mut cluster);
        assert_eq!(cluster.pod_names().len(), if parallel { 2 } else { 1 }, "then the policy decides");
        settle(&mut cluster);
        assert_eq!(images(&cluster), ["i:1"; 2]);
        assert_eq!(cluster.claim_names().len(), 3, "claims stay");
    }
}

#[test]
fn several_broken_pods_heal_together_in_a_window() {
    let mut cluster = Cluster::new(set(&Shape { window: Some(3), ..PLAIN }));
    all(&mut cluster, &[Event::Template(9), Event::Sync, Event::Kubelets, Event::Kubelets]);
    assert_eq!(images(&cluster), ["i:9"; 3]);
    all(&mut cluster, &[Event::Template(1), Event::Sync]);
    assert_eq!(cluster.terminating(), 3);
    settle(&mut cluster);
}

/// A pod that is down and outdated goes while its peers change: it does not matter what they do. One that is only
/// outdated waits for them.
#[test]
fn what_heals_rests_on_itself_alone() {
    let guards = |cluster: &Cluster| {
        let plan = cluster.plan();
        let deletion = plan.actions.iter().find(|action| matches!(action.op, Op::DeletePod { .. }));
        deletion.map(|action| action.guards.len()).expect("a pod is to go")
    };
    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Template(1));
    assert_eq!(guards(&cluster), 3, "the set, the pod, its peers");
    all(&mut cluster, &[Event::Unready(1)]);
    assert_eq!(guards(&cluster), 2, "the set, the pod");
}

/// Under Parallel no update makes more pods unavailable than the bound, or than there were before (MU-5).
#[test]
fn a_bound_in_percent_holds() {
    let mut cluster = settled(&Shape { parallel: true, max_unavailable: Some(Bound::Percent(50)), ..PLAIN });
    all(&mut cluster, &[Event::Scale(5)]);
    settle(&mut cluster);
    all(&mut cluster, &[Event::Template(1), Event::Sync]);
    assert_eq!(cluster.terminating(), 2, "half of five, rounded down");
    sync(&mut cluster);
    assert_eq!(cluster.terminating(), 2);
    settle(&mut cluster);
}
