//! Short stories with one point each.

use check::Actor;
use pb::objects::StatefulSet;
use plan::statefulset::Op;

use crate::{Bound, Event, Shape, cluster::Cluster, happen, set, settle};

pub const PLAIN: Shape = Shape {
    parallel: false,
    on_delete: false,
    recreate: false,
    partition: None,
    max_unavailable: None,
    window: None,
    delete_with_set: false,
    delete_when_scaled: false,
    min_ready: 0,
};

pub fn settled(shape: &Shape) -> Cluster {
    let mut cluster = Cluster::new(set(shape));
    settle(&mut cluster);
    cluster
}

/// Lets an event happen right before the first action of a kind, and says whether the action came to be.
fn disturbed(cluster: &mut Cluster, event: &Event, kind: fn(&Op) -> bool) -> bool {
    let planned = cluster.plan();
    let at = planned.actions.iter().position(|action| kind(&action.op)).expect("the plan has such an action");
    let before = cluster.pod_names().len() + cluster.terminating();
    cluster.sync(Some((at, &mut |cluster: &mut Cluster| happen(cluster, event))));
    cluster.pod_names().len() + cluster.terminating() > before
}

fn waits(cluster: &Cluster) -> Vec<String> {
    cluster.plan().waits.iter().map(ToString::to_string).collect()
}

#[test]
fn a_predecessor_that_turns_unready_after_the_plan_stops_the_creation() {
    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Scale(4));
    assert!(!disturbed(&mut cluster, &Event::Unready(0), |op| matches!(op, Op::CreatePod(_))));
}

#[test]
fn a_peer_that_turns_unready_after_the_plan_stops_the_update() {
    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Template(1));
    assert!(!disturbed(&mut cluster, &Event::Unready(0), |op| matches!(op, Op::DeletePod { .. })));
}

#[test]
fn a_set_that_is_scaled_up_again_after_the_plan_loses_nothing() {
    for delete_when_scaled in [false, true] {
        let mut cluster = settled(&Shape { delete_when_scaled, ..PLAIN });
        happen(&mut cluster, &Event::Scale(2));
        assert!(!disturbed(&mut cluster, &Event::Scale(3), |op| matches!(op, Op::DeletePod { .. })));
        assert!(cluster.plan().actions.iter().all(|action| !matches!(action.op, Op::DeletePod { .. })));
    }
}

#[test]
fn an_update_with_a_budget_of_two_takes_two_at_once() {
    let mut cluster = settled(&Shape { max_unavailable: Some(Bound::Count(2)), ..PLAIN });
    happen(&mut cluster, &Event::Template(1));
    happen(&mut cluster, &Event::Sync);
    assert_eq!(cluster.terminating(), 2);
    settle(&mut cluster);
}

#[test]
fn two_controllers_make_one_pod() {
    let mut cluster = Cluster::new(set(&PLAIN));
    let at = cluster.plan().actions.iter().position(|action| matches!(action.op, Op::CreatePod(_)));
    let mut second = |cluster: &mut Cluster| happen(cluster, &Event::Sync);
    cluster.sync(Some((at.expect("the first pod is due"), &mut second)));
    assert_eq!(cluster.pod_names(), ["web-0"]);
}

#[test]
fn claims_stay_when_the_set_shrinks_and_go_only_by_policy() {
    for delete_when_scaled in [false, true] {
        let mut cluster = settled(&Shape { delete_when_scaled, ..PLAIN });
        happen(&mut cluster, &Event::Scale(1));
        settle(&mut cluster);
        let left = if delete_when_scaled { vec!["data-web-0"] } else { vec!["data-web-0", "data-web-1", "data-web-2"] };
        assert_eq!(cluster.claim_names(), left);
    }
}

#[test]
fn going_back_to_a_template_uses_its_revision_again() {
    let mut cluster = settled(&PLAIN);
    let first = cluster.plan().status.current_revision;
    happen(&mut cluster, &Event::Template(1));
    settle(&mut cluster);
    cluster.commit(Actor::User, |cluster| {
        cluster.change_set(|set: &mut StatefulSet| {
            set.spec.get_or_insert_default().template.get_or_insert_default().spec.get_or_insert_default().containers
                [0]
            .image = "i".to_owned();
        });
    });
    let plan = cluster.plan();
    assert!(plan.actions.iter().any(|action| matches!(action.op, Op::RenumberRevision { number: 3, .. })));
    settle(&mut cluster);
    assert_eq!(cluster.plan().status.current_revision, first);
}

#[test]
fn a_wait_says_who_waits_for_whom() {
    let mut cluster = Cluster::new(set(&PLAIN));
    happen(&mut cluster, &Event::Sync);
    assert_eq!(
        waits(&cluster),
        ["web-0 is Pending and not ready", "web-1 is not created yet: web-0 has to be ready and available first"]
    );

    let mut cluster = settled(&PLAIN);
    assert_eq!(waits(&cluster), [""; 0], "a settled set waits for nothing");
    happen(&mut cluster, &Event::DeletePod(1));
    assert_eq!(waits(&cluster), ["web-1 is being deleted and has to be gone before it is made anew"]);

    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Unready(0));
    happen(&mut cluster, &Event::Scale(2));
    assert_eq!(
        waits(&cluster),
        ["web-0 is Running and not ready", "web-2 is to go, but first web-0 has to be ready and available"]
    );

    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::DeleteClaim(2));
    happen(&mut cluster, &Event::DeletePod(2));
    happen(&mut cluster, &Event::Kubelet(2));
    assert_eq!(
        waits(&cluster),
        ["web-2 cannot be made: its claim data-web-2 is being deleted; a new one follows when it is gone"]
    );
    assert!(cluster.plan().is_obstructed());
}
