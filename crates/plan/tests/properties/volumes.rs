//! What sets do with the data in their claims: random stories, in which volumes grow slowly, are held, are lost and are
//! kept in snapshots; and short ones with one point each.

use check::Actor;
use pb::objects::{ClaimOperation, Condition, PersistentVolumeClaim, Quantity, StatefulSet, StatefulSetVolumePolicy};
use plan::statefulset::Op;
use proptest::prelude::*;

use crate::{Event, Shape, cluster::Cluster, event, happen, set, settle, settle_with, shape, stories::PLAIN};

const SIZES: [&str; 3] = ["1Gi", "2Gi", "3Gi"];
const STORAGE: &str = "storage";

/// What happens to volumes.
#[derive(Clone, Debug)]
enum Storage {
    /// Something that happens to sets anyway.
    Other(Event),
    /// The user wants this size at least.
    Grow(usize),
    Label(u32),
    Policy(bool, bool),
    /// The volume of an ordinal has grown, but for its filesystem if it says so.
    Grown(u32, bool),
    /// The data of an ordinal is being moved.
    Hold(u32),
    Release(u32),
    Lose(u32),
    Find(u32),
    /// Snapshots become ready, and restores are done.
    Tend,
}

fn story() -> impl Strategy<Value = Vec<Storage>> {
    let ordinal = || 0..5u32;
    let storage = prop_oneof![
        2 => (0..SIZES.len()).prop_map(Storage::Grow),
        1 => (0..3u32).prop_map(Storage::Label),
        1 => any::<(bool, bool)>().prop_map(|(recreate, save)| Storage::Policy(recreate, save)),
        3 => (ordinal(), any::<bool>()).prop_map(|(ordinal, at_start)| Storage::Grown(ordinal, at_start)),
        1 => ordinal().prop_map(Storage::Hold),
        2 => ordinal().prop_map(Storage::Release),
        1 => ordinal().prop_map(Storage::Lose),
        1 => ordinal().prop_map(Storage::Find),
        2 => Just(Storage::Tend),
    ];
    let any = prop_oneof![2 => event().prop_map(Storage::Other), 1 => storage];
    prop::collection::vec(any, 0..60)
}

/// A set with two claims for each pod.
fn stored(shape: &Shape) -> Cluster {
    let mut set = set(shape);
    let spec = set.spec.get_or_insert_default();
    let mut template = spec.volume_claim_templates[0].clone();
    resize(&mut template, "1Gi");
    let mut other = template.clone();
    other.metadata.get_or_insert_default().name = "wal".to_owned();
    spec.volume_claim_templates = vec![template, other];
    Cluster::new(set)
}

fn resize(claim: &mut PersistentVolumeClaim, size: &str) {
    let requests = &mut claim.spec.get_or_insert_default().resources.get_or_insert_default().requests;
    requests.insert(STORAGE.to_owned(), Quantity { value: size.to_owned() });
}

fn claims(ordinal: u32) -> [String; 2] {
    ["data", "wal"].map(|template| format!("{template}-web-{ordinal}"))
}

fn user(cluster: &mut Cluster, change: impl FnOnce(&mut pb::objects::StatefulSetSpec)) {
    let change = |set: &mut StatefulSet| change(set.spec.get_or_insert_default());
    cluster.commit(Actor::User, |cluster| cluster.change_set(change));
}

fn each(cluster: &mut Cluster, ordinal: u32, change: impl Fn(&mut PersistentVolumeClaim)) {
    for name in claims(ordinal) {
        cluster.commit(Actor::Other, |cluster| cluster.change_claim(&name, &change));
    }
}

fn condition(claim: &mut PersistentVolumeClaim, kind: &str, since: Option<jiff::Timestamp>) {
    let conditions = &mut claim.status.get_or_insert_default().conditions;
    conditions.retain(|condition| condition.r#type != kind);
    conditions.extend(since.map(|since| Condition {
        r#type: kind.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(since.into()),
        ..Condition::default()
    }));
}

fn policy(recreate: bool, save: bool) -> StatefulSetVolumePolicy {
    StatefulSetVolumePolicy {
        on_node_lost: if recreate { "Recreate" } else { "Wait" }.to_owned(),
        recreate_after_seconds: recreate.then_some(60),
        snapshot_before_update: save,
        restore_on_revert: save,
    }
}

fn grown(claim: &mut PersistentVolumeClaim, at_start: bool) {
    if at_start {
        condition(claim, "FileSystemResizePending", Some(jiff::Timestamp::UNIX_EPOCH));
        return;
    }
    let requests = claim.spec.clone().unwrap_or_default().resources.unwrap_or_default().requests;
    claim.status.get_or_insert_default().capacity = requests;
    condition(claim, "FileSystemResizePending", None);
}

fn operate(claim: &mut PersistentVolumeClaim, phase: &str) {
    let status = claim.status.get_or_insert_default();
    status.operation.get_or_insert_with(|| ClaimOperation { r#type: "Move".to_owned(), ..Default::default() }).phase =
        phase.to_owned();
}

fn act(cluster: &mut Cluster, what: &Storage) {
    let now = cluster.now;
    match what {
        Storage::Other(event) => happen(cluster, event),
        Storage::Grow(size) => user(cluster, |spec| {
            for template in &mut spec.volume_claim_templates {
                let requests = template.spec.clone().unwrap_or_default().resources.unwrap_or_default().requests;
                let now = requests.get(STORAGE).map_or("", |size| size.value.as_str());
                resize(template, SIZES[*size].max(now));
            }
        }),
        Storage::Label(value) => user(cluster, |spec| {
            let labels = &mut spec.volume_claim_templates[0].metadata.get_or_insert_default().labels;
            labels.insert("tier".to_owned(), value.to_string());
        }),
        Storage::Policy(recreate, save) => user(cluster, |spec| spec.volume_policy = Some(policy(*recreate, *save))),
        Storage::Grown(ordinal, at_start) => each(cluster, *ordinal, |claim| grown(claim, *at_start)),
        // Held is what no pod has.
        Storage::Hold(ordinal) if !cluster.pod_names().contains(&format!("web-{ordinal}")) => {
            each(cluster, *ordinal, |claim| operate(claim, "Copying"));
        }
        Storage::Hold(_) => {}
        Storage::Release(ordinal) => each(cluster, *ordinal, |claim| {
            if claim.status.as_ref().is_some_and(|status| status.operation.is_some()) {
                operate(claim, "Failed");
            }
        }),
        Storage::Lose(ordinal) => each(cluster, *ordinal, |claim| condition(claim, "VolumeLost", Some(now))),
        Storage::Find(ordinal) => each(cluster, *ordinal, |claim| condition(claim, "VolumeLost", None)),
        Storage::Tend => tend(cluster),
    }
}

/// Snapshots become ready, and what was asked to be restored is.
fn tend(cluster: &mut Cluster) {
    cluster.commit(Actor::Other, |cluster| {
        for snapshot in cluster.snapshots.values_mut() {
            snapshot.status.get_or_insert_default().ready_to_use = true;
        }
    });
    for ordinal in 0..10 {
        each(cluster, ordinal, |claim| {
            let operation = claim.status.as_mut().and_then(|status| status.operation.as_mut());
            operation.into_iter().for_each(|operation| operation.phase = "Done".to_owned());
        });
    }
}

/// The volume manager and the nodes do what is due, until the set is as its user wants it.
fn settle_stored(cluster: &mut Cluster) {
    for ordinal in 0..10 {
        act(cluster, &Storage::Find(ordinal));
    }
    settle_with(cluster, |cluster| {
        tend(cluster);
        (0..10).for_each(|ordinal| act(cluster, &Storage::Grown(ordinal, false)));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_story_of_volumes_ends_well(shape in shape(), story in story()) {
        let mut cluster = stored(&shape);
        for what in &story {
            act(&mut cluster, what);
        }
        user(&mut cluster, |spec| spec.paused = false);
        settle_stored(&mut cluster);
        let plan = cluster.plan();
        prop_assert!(plan.actions.is_empty(), "a settled set writes nothing: {:?}", plan.actions);
        let set = cluster.snapshot().set;
        let partition = match set.strategy {
            plan::statefulset::Strategy::Rolling { partition, .. } => partition.unwrap_or(0),
            _ => 0,
        };
        for (index, ordinal) in (0..set.ordinals.count).zip(set.ordinals.iter()).skip(partition as usize) {
            let wanted = &set.claim_templates[0].size;
            let claim = cluster.snapshot().claims[&set.name.claim("data", ordinal)].clone();
            if claim.terminating {
                // It goes when its pod does.
                continue;
            }
            prop_assert!(claim.capacity >= *wanted, "index {index} has {:?} of {wanted:?}", claim.capacity);
        }
    }

    #[test]
    fn a_plan_about_volumes_is_the_same_whatever_the_order(shape in shape(), story in story()) {
        let mut cluster = stored(&shape);
        for what in &story {
            act(&mut cluster, what);
        }
        prop_assert_eq!(cluster.plan(), cluster.reversed_plan());
    }
}

fn settled(change: impl FnOnce(&mut pb::objects::StatefulSetSpec)) -> Cluster {
    let mut cluster = stored(&PLAIN);
    user(&mut cluster, change);
    settle(&mut cluster);
    cluster
}

/// What the next plans do, each line one plan: what a reader of the set's history would see.
fn history(cluster: &mut Cluster, plans: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..plans {
        let plan = cluster.sync(None);
        let done = plan.actions.iter().filter_map(|action| match &action.op {
            Op::FitClaim { claim, grow: true, .. } => Some(format!("grow {claim}")),
            Op::FitClaim { claim, .. } => Some(format!("label {claim}")),
            Op::CreateSnapshot(new) => {
                Some(format!("snapshot {} before {}", new.claim, cluster.image_of(new.before.as_str())))
            }
            Op::RestoreClaims { ordinal, .. } => Some(format!("restore {ordinal}")),
            Op::RecreateVolumes { ordinal, .. } => Some(format!("give up {ordinal}")),
            Op::CreatePod(new) => Some(format!("create {} of {}", new.pod, cluster.image_of(new.revision.as_str()))),
            Op::DeletePod { pod, .. } => Some(format!("delete {pod}")),
            Op::RevertTemplate { .. } => Some("revert".to_owned()),
            _ => None,
        });
        let done: Vec<_> = done.collect();
        if !done.is_empty() {
            lines.push(done.join(", "));
        }
    }
    lines
}

fn all_grown(cluster: &mut Cluster) {
    (0..5).for_each(|ordinal| act(cluster, &Storage::Grown(ordinal, false)));
}

fn waits(cluster: &Cluster) -> Vec<String> {
    cluster.plan().waits.iter().map(ToString::to_string).collect()
}

#[test]
fn claims_grow_from_the_top_one_ordinal_at_a_time() {
    let mut cluster = settled(|_| {});
    act(&mut cluster, &Storage::Grow(1));
    assert_eq!(history(&mut cluster, 3), ["grow data-web-2, grow wal-web-2"]);
    assert_eq!(cluster.sizes("data-web-2"), ("2Gi".to_owned(), "1Gi".to_owned()));
    assert_eq!(waits(&cluster)[0], "web-2 has to wait until claim data-web-2 has grown");
    let status = cluster.plan().status.volume_claims;
    assert_eq!((status[0].fitting, status[0].expanding.map(|ordinal| ordinal.0)), (0, Some(2)));
    all_grown(&mut cluster);
    assert_eq!(history(&mut cluster, 3), ["grow data-web-1, grow wal-web-1"]);
    // The rest is done when the pod starts: the next need not wait for that.
    act(&mut cluster, &Storage::Grown(1, true));
    assert_eq!(history(&mut cluster, 3), ["grow data-web-0, grow wal-web-0"]);
    all_grown(&mut cluster);
    assert_eq!(history(&mut cluster, 3), [""; 0]);
    assert!(cluster.plan().is_settled());
}

#[test]
fn a_pod_is_replaced_after_its_claims_have_grown() {
    let mut cluster = settled(|_| {});
    act(&mut cluster, &Storage::Grow(1));
    happen(&mut cluster, &Event::Template(1));
    assert_eq!(history(&mut cluster, 4), ["grow data-web-2, grow wal-web-2"]);
    all_grown(&mut cluster);
    let next = history(&mut cluster, 1);
    assert_eq!(next, ["delete web-2, grow data-web-1, grow wal-web-1"]);
}

#[test]
fn below_the_partition_and_while_paused_nothing_grows() {
    let mut cluster = settled(|spec| spec.paused = true);
    act(&mut cluster, &Storage::Grow(1));
    assert_eq!(history(&mut cluster, 2), [""; 0]);
    let mut cluster = Cluster::clone(&cluster);
    user(&mut cluster, |spec| {
        spec.paused = false;
        let rolling = spec.update_strategy.get_or_insert_default().rolling_update.get_or_insert_default();
        rolling.partition = Some(2);
    });
    assert_eq!(history(&mut cluster, 1), ["grow data-web-2, grow wal-web-2"]);
    all_grown(&mut cluster);
    assert_eq!(history(&mut cluster, 2), [""; 0]);
}

#[test]
fn what_a_person_made_stays_as_it_is() {
    let mut cluster = settled(|_| {});
    each(&mut cluster, 2, |claim| {
        claim.metadata.get_or_insert_default().annotations.clear();
    });
    act(&mut cluster, &Storage::Grow(1));
    assert_eq!(history(&mut cluster, 1), ["grow data-web-1, grow wal-web-1"]);
}

#[test]
fn a_claim_that_cannot_grow_stops_the_walk_and_not_the_update() {
    let mut cluster = settled(|_| {});
    act(&mut cluster, &Storage::Grow(1));
    happen(&mut cluster, &Event::Template(1));
    history(&mut cluster, 2);
    each(&mut cluster, 2, |claim| {
        let status = claim.status.get_or_insert_default();
        let step = "ControllerResizeInfeasible".to_owned();
        status.allocated_resource_statuses.insert(STORAGE.to_owned(), step);
    });
    assert_eq!(history(&mut cluster, 1), ["delete web-2"]);
    assert!(waits(&cluster).iter().any(|wait| wait.contains("cannot grow")), "{:?}", waits(&cluster));
}

#[test]
fn no_pod_gets_a_claim_that_is_held() {
    let mut cluster = settled(|_| {});
    happen(&mut cluster, &Event::DeletePod(1));
    happen(&mut cluster, &Event::Kubelet(1));
    act(&mut cluster, &Storage::Hold(1));
    assert_eq!(history(&mut cluster, 2), [""; 0]);
    assert!(waits(&cluster)[0].contains("nobody may use its claim data-web-1, its move is under way"));
    act(&mut cluster, &Storage::Release(1));
    assert_eq!(history(&mut cluster, 1), ["create web-1 of i"]);
}

#[test]
fn lost_volumes_are_given_up_together_and_only_when_the_policy_says_so() {
    let mut cluster = settled(|_| {});
    act(&mut cluster, &Storage::Lose(1));
    happen(&mut cluster, &Event::Unready(1));
    cluster.pass(10_000);
    assert_eq!(history(&mut cluster, 2), [""; 0]);
    assert!(waits(&cluster)[0].contains("has lost the volume of its claim data-web-1"), "{:?}", waits(&cluster));
    user(&mut cluster, |spec| spec.volume_policy = Some(policy(true, false)));
    // One pod of the two others is not more than half.
    happen(&mut cluster, &Event::Unready(2));
    assert_eq!(history(&mut cluster, 2), [""; 0]);
    happen(&mut cluster, &Event::Kubelet(2));
    assert_eq!(history(&mut cluster, 2), ["give up 1"]);
    happen(&mut cluster, &Event::Kubelets);
    happen(&mut cluster, &Event::Collect);
    assert_eq!(history(&mut cluster, 2), ["create web-1 of i"]);
}

#[test]
fn lost_volumes_are_given_up_only_after_the_time_that_is_set() {
    let mut cluster = settled(|spec| spec.volume_policy = Some(policy(true, false)));
    act(&mut cluster, &Storage::Lose(1));
    happen(&mut cluster, &Event::Unready(1));
    assert_eq!(history(&mut cluster, 2), [""; 0]);
    assert_eq!(cluster.plan().requeue_after, Some(std::time::Duration::from_secs(60)));
    cluster.pass(60);
    assert_eq!(history(&mut cluster, 1), ["give up 1"]);
}

#[test]
fn data_is_kept_between_two_revisions() {
    let mut cluster = settled(|spec| spec.volume_policy = Some(policy(false, true)));
    happen(&mut cluster, &Event::Template(1));
    assert_eq!(history(&mut cluster, 2), ["delete web-2"]);
    happen(&mut cluster, &Event::Kubelets);
    assert_eq!(history(&mut cluster, 3), ["snapshot data-web-2 before i:1, snapshot wal-web-2 before i:1"]);
    assert!(waits(&cluster)[0].contains("has to be in snapshot data-web-2-before-"), "{:?}", waits(&cluster));
    act(&mut cluster, &Storage::Tend);
    assert_eq!(history(&mut cluster, 1), ["create web-2 of i:1"]);
    // A restart at the same revision needs none.
    settle_stored(&mut cluster);
    let taken = cluster.snapshots.len();
    assert_eq!(taken, 6);
    happen(&mut cluster, &Event::DeletePod(1));
    settle_stored(&mut cluster);
    assert_eq!(cluster.snapshots.len(), taken);
    // A second rollout of a revision is not covered by the snapshots of the first.
    happen(&mut cluster, &Event::Template(2));
    settle_stored(&mut cluster);
    happen(&mut cluster, &Event::Template(1));
    settle_stored(&mut cluster);
    assert_eq!(cluster.snapshots.len(), 3 * taken);
}

#[test]
fn a_reverted_set_gets_back_the_data_of_before() {
    let mut cluster = settled(|spec| {
        spec.volume_policy = Some(policy(false, true));
        (spec.progress_deadline_seconds, spec.auto_revert) = (Some(60), true);
    });
    cluster.broken = vec!["i:1"];
    happen(&mut cluster, &Event::Template(1));
    history(&mut cluster, 2);
    happen(&mut cluster, &Event::Kubelets);
    history(&mut cluster, 2);
    act(&mut cluster, &Storage::Tend);
    assert_eq!(history(&mut cluster, 1), ["create web-2 of i:1"]);
    happen(&mut cluster, &Event::Kubelets);
    history(&mut cluster, 2);
    cluster.pass(61);
    assert_eq!(history(&mut cluster, 2), ["revert", "delete web-2"]);
    happen(&mut cluster, &Event::Kubelets);
    assert_eq!(history(&mut cluster, 3), ["restore 2"]);
    assert!(waits(&cluster)[0].contains("its restore from data-web-2-before-"), "{:?}", waits(&cluster));
    act(&mut cluster, &Storage::Tend);
    assert_eq!(history(&mut cluster, 1), ["create web-2 of i"]);
}
