//! A new template reaches the pods.

use pb::objects::*;
use sim::script::{Stage, Story};

use crate::hold;

/// RollingUpdate with these bounds.
pub fn rolling(spec: &mut StatefulSetSpec, partition: Option<i32>, max_unavailable: Option<IntOrString>) {
    spec.update_strategy = Some(StatefulSetUpdateStrategy {
        r#type: "RollingUpdate".to_owned(),
        rolling_update: Some(RollingUpdateStatefulSetStrategy { partition, max_unavailable }),
    });
}

fn strategy(spec: &mut StatefulSetSpec, name: &str) {
    spec.update_strategy = Some(StatefulSetUpdateStrategy { r#type: name.to_owned(), rolling_update: None });
}

fn partition(at: i32) -> impl Fn(&mut StatefulSetSpec) + Send + Sync + 'static {
    move |spec| rolling(spec, Some(at), None)
}

/// The versions of status.currentRevision and status.updateRevision are the same, or not.
fn done(stage: &mut Stage) -> Result<(), String> {
    let status = stage.status();
    let same = status.current_revision == status.update_revision;
    if same { Ok(()) } else { Err(format!("{} is not {}", status.current_revision, status.update_revision)) }
}

#[test]
fn rolls_from_the_highest_pod_down() {
    hold(
        &Story::new("rolling update")
            .create(3)
            .settle()
            .orderly()
            .image("2")
            .sync()
            .pods("web-0:1 web-1:1 web-2:1~")
            .nodes()
            .sync()
            .nodes()
            .sync()
            .pods("web-0:1 web-1:1~ web-2:2")
            .settle()
            .pods("web-0:2 web-1:2 web-2:2")
            .expect("the update is complete", done),
    );
}

#[test]
fn on_delete_replaces_only_what_is_deleted() {
    hold(
        &Story::new("OnDelete")
            .create_with("3, OnDelete", |spec| strategy(spec, "OnDelete"))
            .settle()
            .mark()
            .image("2")
            .settle()
            .kept("web-0 web-1 web-2")
            .delete_pods(&["web-1"])
            .settle()
            .pods("web-0:1 web-1:2 web-2:1")
            .delete_pods(&["web-0", "web-2"])
            .settle()
            .pods("web-0:2 web-1:2 web-2:2")
            .expect("the update is complete", done),
    );
}

#[test]
fn a_partition_keeps_the_pods_below_it() {
    hold(
        &Story::new("canary")
            .create_with("3, partition 3", partition(3))
            .settle()
            .orderly()
            .mark()
            .image("2")
            .settle()
            .kept("web-0 web-1 web-2")
            .change("partition 2", partition(2))
            .settle()
            .pods("web-0:1 web-1:1 web-2:2")
            .kept("web-0 web-1")
            .change("partition 0", partition(0))
            .settle()
            .pods("web-0:2 web-1:2 web-2:2")
            .expect("the update is complete", done),
    );
}

/// REV-12: a pod comes back at the revision that its side of the partition has.
#[test]
fn a_pod_that_is_deleted_comes_back_on_its_side_of_the_partition() {
    hold(
        &Story::new("partition and deletion")
            .create_with("3, partition 1", partition(1))
            .settle()
            .image("2")
            .settle()
            .pods("web-0:1 web-1:2 web-2:2")
            .delete_pods(&["web-0", "web-2"])
            .settle()
            .pods("web-0:1 web-1:2 web-2:2")
            .change("partition 2", partition(2))
            .delete_pods(&["web-1"])
            .settle()
            .pods("web-0:1 web-1:1 web-2:2"),
    );
}

fn at_once(name: &'static str, bound: IntOrString) -> Story {
    Story::new(name)
        .create_with("4, maxUnavailable 2", move |spec| {
            spec.replicas = Some(4);
            rolling(spec, Some(0), Some(bound.clone()));
        })
        .settle()
        .image("2")
        .sync()
        .pods("web-0:1 web-1:1 web-2:1~ web-3:1~")
        .settle()
        .pods("web-0:2 web-1:2 web-2:2 web-3:2")
}

#[test]
fn as_many_go_at_once_as_max_unavailable_lets() {
    hold(&at_once("maxUnavailable 2", IntOrString::int(2)));
}

#[test]
fn a_share_rounds_down() {
    hold(&at_once("maxUnavailable 74%", IntOrString::text("74%")));
}

/// Kubernetes 137409: an old pod that is not available does not use up the budget for ever.
#[test]
fn an_unavailable_old_pod_does_not_hold_up_the_update() {
    hold(
        &Story::new("stale pod")
            .create_with("3, maxUnavailable 1", |spec| rolling(spec, Some(0), Some(IntOrString::int(1))))
            .settle()
            .unready("web-1")
            .image("2")
            .settle()
            .pods("web-0:2 web-1:2 web-2:2"),
    );
}

#[test]
fn a_pod_is_available_only_after_min_ready_seconds() {
    hold(
        &Story::new("minReadySeconds")
            .create_with("2, minReadySeconds 60", |spec| {
                spec.replicas = Some(2);
                spec.min_ready_seconds = 60;
            })
            .sync()
            .nodes()
            .sync()
            .pods_if(|case| if case.parallel { "web-0:1 web-1:1" } else { "web-0:1" })
            .expect("none is available", |stage| match stage.status().available_replicas {
                0 => Ok(()),
                other => Err(other.to_string()),
            })
            .settle()
            .expect("both are available", |stage| match stage.status().available_replicas {
                2 => Ok(()),
                other => Err(other.to_string()),
            })
            .orderly()
            .image("2")
            .settle()
            .pods("web-0:2 web-1:2"),
    );
}

/// Kubernetes 67250: setting the template right is enough.
#[test]
fn a_broken_update_heals_when_the_template_is_set_back() {
    hold(
        &Story::new("set back")
            .broken("2")
            .create(3)
            .settle()
            .mark()
            .image("2")
            .rest()
            .pods("web-0:1 web-1:1 web-2:2!")
            .kept("web-0 web-1")
            .image("1")
            .settle()
            .kept("web-0 web-1")
            .pods("web-0:1 web-1:1 web-2:1"),
    );
}

#[test]
fn a_broken_update_heals_when_the_template_is_mended() {
    hold(
        &Story::new("mended")
            .broken("2")
            .create(3)
            .settle()
            .image("2")
            .rest()
            .image("3")
            .settle()
            .pods("web-0:3 web-1:3 web-2:3"),
    );
}

#[test]
fn a_set_that_was_broken_from_the_beginning_heals() {
    hold(
        &Story::new("broken from the beginning")
            .broken("1")
            .create(3)
            .rest()
            .pods_if(|case| if case.parallel { "web-0:1! web-1:1! web-2:1!" } else { "web-0:1!" })
            .image("2")
            .settle()
            .pods("web-0:2 web-1:2 web-2:2"),
    );
}

/// UPD-5.
#[test]
fn a_template_that_changes_in_the_middle_starts_again_from_the_top() {
    hold(
        &Story::new("changes in the middle")
            .create(3)
            .settle()
            .image("2")
            .sync()
            .nodes()
            .sync()
            .nodes()
            .sync()
            .image("3")
            .settle()
            .pods("web-0:3 web-1:3 web-2:3"),
    );
}

#[test]
fn scaling_goes_before_updating() {
    hold(
        &Story::new("scaled and updated")
            .create(3)
            .settle()
            .change("1 pod of version 2", |spec| {
                spec.replicas = Some(1);
                sim::script::set_image(spec, "2");
            })
            .settle()
            .pods("web-0:2")
            .change("3 pods of version 3", |spec| {
                spec.replicas = Some(3);
                sim::script::set_image(spec, "3");
            })
            .settle()
            .pods("web-0:3 web-1:3 web-2:3"),
    );
}

#[test]
fn recreate_lets_all_go_before_any_comes() {
    hold(
        &Story::new("Recreate")
            .create_with("3, Recreate", |spec| strategy(spec, "Recreate"))
            .settle()
            .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
            .image("2")
            .sync()
            .pods("web-0:1~ web-1:1~ web-2:1~")
            .rest()
            .pods("web-1:1~")
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .settle()
            .pods("web-0:2 web-1:2 web-2:2")
            .claims("data-web-0 data-web-1 data-web-2")
            .expect("the update is complete", done),
    );
}

#[test]
fn recreate_heals_a_broken_version() {
    hold(
        &Story::new("Recreate heals")
            .broken("2")
            .create_with("3, Recreate", |spec| strategy(spec, "Recreate"))
            .settle()
            .image("2")
            .rest()
            .image("3")
            .settle()
            .pods("web-0:3 web-1:3 web-2:3"),
    );
}

#[test]
fn a_pause_holds_the_frontier() {
    hold(
        &Story::new("pause")
            .create_with("4, partition 2", |spec| {
                spec.replicas = Some(4);
                rolling(spec, Some(2), None);
            })
            .settle()
            .image("2")
            .settle()
            .change("pause, partition 0", |spec| {
                spec.paused = true;
                rolling(spec, Some(0), None);
            })
            .settle()
            .pods("web-0:1 web-1:1 web-2:2 web-3:2")
            .delete_pods(&["web-0", "web-3"])
            .settle()
            .pods("web-0:1 web-1:1 web-2:2 web-3:2")
            .scale(5)
            .settle()
            .pods("web-0:1 web-1:1 web-2:2 web-3:2 web-4:2")
            .change("resume", |spec| spec.paused = false)
            .settle()
            .pods("web-0:2 web-1:2 web-2:2 web-3:2 web-4:2"),
    );
}

#[test]
fn a_rollout_that_misses_its_deadline_goes_back() {
    hold(
        &Story::new("revert")
            .broken("2")
            .create_with("3, deadline 60 s, revert", |spec| {
                spec.progress_deadline_seconds = Some(60);
                spec.auto_revert = true;
            })
            .settle()
            .mark()
            .image("2")
            .rest()
            .pods("web-0:1 web-1:1 web-2:1")
            .kept("web-0 web-1")
            .expect("it says so", |stage| {
                let failed = stage.status().failed_revision;
                if failed.is_empty() { Err("failedRevision is empty".to_owned()) } else { Ok(()) }
            }),
    );
}

#[test]
fn an_override_replaces_only_its_pod() {
    hold(
        &Story::new("override")
            .create(3)
            .settle()
            .mark()
            .change("more memory for ordinal 1", |spec| {
                spec.overrides = vec![StatefulSetOverride {
                    ordinals: vec![IntOrString::int(1)],
                    node_selector: [("disk".to_owned(), "fast".to_owned())].into(),
                    ..StatefulSetOverride::default()
                }];
            })
            .then("every node has what it asks for", |stage| {
                for node in stage.all::<Node>() {
                    let mut node = node;
                    node.metadata.get_or_insert_default().labels.insert("disk".to_owned(), "fast".to_owned());
                    stage.put(&node);
                }
            })
            .settle()
            .kept("web-0 web-2")
            .revisions("1:1"),
    );
}

fn keep(spec: &mut PodDisruptionBudgetSpec, available: i32) {
    spec.min_available = Some(IntOrString::int(available));
    let labels = [("app".to_owned(), "web".to_owned())].into();
    spec.selector = Some(LabelSelector { match_labels: labels, ..LabelSelector::default() });
}

/// A disruption budget holds updates and scale-downs back, and nothing else.
#[test]
fn a_disruption_budget_is_kept() {
    hold(
        &Story::new("budget")
            .create(3)
            .then("3 are to be available", |stage| {
                let mut spec = PodDisruptionBudgetSpec::default();
                keep(&mut spec, 3);
                let (name, namespace) = ("web".to_owned(), stage.namespace().to_owned());
                let metadata = Some(ObjectMeta { name, namespace, uid: stage.uid(), ..ObjectMeta::default() });
                stage.put(&PodDisruptionBudget { metadata, spec: Some(spec), ..PodDisruptionBudget::default() });
            })
            .settle()
            .mark()
            .image("2")
            .rest()
            .kept("web-0 web-1 web-2")
            .scale(2)
            .rest()
            .kept("web-0 web-1 web-2")
            .then("2 are to be available", |stage| {
                stage.edit::<PodDisruptionBudget>("web", |budget| keep(budget.spec.get_or_insert_default(), 2));
            })
            .rest()
            .kept("web-0 web-1")
            .then("1 is to be available", |stage| {
                stage.edit::<PodDisruptionBudget>("web", |budget| keep(budget.spec.get_or_insert_default(), 1));
            })
            .settle()
            .pods("web-0:2 web-1:2"),
    );
}
