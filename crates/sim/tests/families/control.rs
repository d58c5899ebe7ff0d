//! Pods come, go and come back.

use pb::{Object, objects::*};
use sim::script::Story;

use crate::hold;

const ALL: &str = "data-web-0 data-web-1 data-web-2";

fn start(spec: &mut StatefulSetSpec, at: i32) {
    spec.ordinals = Some(StatefulSetOrdinals { start: at, ..StatefulSetOrdinals::default() });
}

#[test]
fn creates_pods() {
    hold(&Story::new("creates pods").create(3).settle().pods("web-0:1 web-1:1 web-2:1").claims(ALL).revisions("1:1"));
}

#[test]
fn creates_one_pod_after_the_other_or_all_at_once() {
    hold(
        &Story::new("one step")
            .create(3)
            .sync()
            .pods_if(|case| if case.parallel { "web-0:1! web-1:1! web-2:1!" } else { "web-0:1!" })
            .nodes()
            .sync()
            .pods_if(|case| if case.parallel { "web-0:1 web-1:1 web-2:1" } else { "web-0:1 web-1:1!" })
            .settle(),
    );
}

#[test]
fn scales_up() {
    hold(&Story::new("scales up").create(1).settle().scale(4).settle().pods("web-0:1 web-1:1 web-2:1 web-3:1"));
}

#[test]
fn scales_down() {
    let story = Story::new("scales down").create(3).settle().scale(0).settle().pods("");
    hold(&story.claims_if(|case| if case.delete_when_scaled { "" } else { ALL }).scale(1).settle().pods("web-0:1"));
}

#[test]
fn replaces_pods() {
    hold(
        &Story::new("replaces pods")
            .create(3)
            .settle()
            .mark()
            .delete_pods(&["web-2"])
            .settle()
            .kept("web-0 web-1")
            .mark()
            .delete_pods(&["web-0", "web-1"])
            .settle()
            .kept("web-2")
            .pods("web-0:1 web-1:1 web-2:1")
            .claims(ALL),
    );
}

#[test]
fn a_pod_in_the_middle_comes_back_before_a_higher_one_is_made() {
    hold(
        &Story::new("middle first")
            .only(|case| !case.parallel)
            .create(2)
            .settle()
            .scale(3)
            .delete_pods(&["web-0"])
            .nodes()
            .sync()
            .pods("web-0:1! web-1:1")
            .settle(),
    );
}

fn ended(name: &'static str, phase: &'static str) -> Story {
    Story::new(name)
        .create(3)
        .settle()
        .mark()
        .end("web-1", phase)
        .settle()
        .kept("web-0 web-2")
        .pods("web-0:1 web-1:1 web-2:1")
        .claims(ALL)
}

#[test]
fn recreates_a_failed_pod() {
    hold(&ended("failed", "Failed"));
}

#[test]
fn recreates_a_succeeded_pod() {
    hold(&ended("succeeded", "Succeeded"));
}

#[test]
fn recreates_a_pod_that_failed_before_it_was_ready() {
    hold(&Story::new("fails at once").create(3).sync().end("web-0", "Failed").settle().pods("web-0:1 web-1:1 web-2:1"));
}

#[test]
fn a_pod_that_finds_no_node_is_made_and_waits() {
    hold(
        &Story::new("no node")
            .then("no node takes pods", |stage| stage.cordon(true))
            .create(2)
            .rest()
            .pods_if(|case| if case.parallel { "web-0:1! web-1:1!" } else { "web-0:1!" })
            .then("nodes take pods", |stage| stage.cordon(false))
            .settle()
            .pods("web-0:1 web-1:1"),
    );
}

#[test]
fn repairs_the_identity_of_a_pod() {
    let label = "statefulset.kubernetes.io/pod-name";
    hold(
        &Story::new("identity")
            .create(2)
            .settle()
            .mark()
            .then("web-1 loses its label", move |stage| {
                stage.edit::<Pod>("web-1", |pod| drop(pod.metadata.get_or_insert_default().labels.remove(label)));
            })
            .settle()
            .kept("web-0 web-1")
            .expect("the label is back", move |stage| {
                let back =
                    stage.pod("web-1").is_some_and(|pod| pod.metadata.unwrap_or_default().labels.contains_key(label));
                if back { Ok(()) } else { Err("it is not".to_owned()) }
            }),
    );
}

#[test]
fn the_status_counts_what_is_there() {
    let ready = |count: i32| {
        move |stage: &mut sim::script::Stage| {
            let status = stage.status();
            let counts = (status.replicas, status.ready_replicas, status.available_replicas);
            if counts == (3, count, count) { Ok(()) } else { Err(format!("{counts:?}")) }
        }
    };
    hold(
        &Story::new("status")
            .create(3)
            .settle()
            .expect("3 ready", ready(3))
            .unready("web-1")
            .rest()
            .expect("2 ready", ready(2))
            .ready()
            .settle()
            .expect("3 ready", ready(3)),
    );
}

/// PodRecreateDeleteFailure: the pod that ended does not go.
#[test]
fn a_pod_that_ended_and_does_not_go_keeps_its_name() {
    hold(
        &Story::new("does not go")
            .create(3)
            .settle()
            .mark()
            .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
            .end("web-1", "Failed")
            .rest()
            .pods("web-0:1 web-1:1!x~ web-2:1")
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .settle()
            .kept("web-0 web-2"),
    );
}

/// NewRevisionDeletePodFailure: the pods that a new revision replaces do not go.
#[test]
fn a_new_revision_waits_for_a_pod_that_does_not_go() {
    hold(
        &Story::new("old pod does not go")
            .create(3)
            .settle()
            .then("web-2 does not stop", |stage| stage.stubborn("web-2", true))
            .image("2")
            .rest()
            .pods("web-0:1 web-1:1 web-2:1~")
            .then("web-2 stops", |stage| stage.stubborn("web-2", false))
            .settle()
            .pods("web-0:2 web-1:2 web-2:2"),
    );
}

#[test]
fn a_pod_that_does_not_go_holds_the_scale_down() {
    hold(
        &Story::new("scale-down held")
            .create(3)
            .settle()
            .then("web-2 does not stop", |stage| stage.stubborn("web-2", true))
            .scale(1)
            .rest()
            .pods_if(|case| if case.parallel { "web-0:1 web-2:1~" } else { "web-0:1 web-1:1 web-2:1~" })
            .then("web-2 stops", |stage| stage.stubborn("web-2", false))
            .settle()
            .pods("web-0:1"),
    );
}

#[test]
fn a_pod_that_is_deleted_is_made_again_only_when_it_is_gone() {
    hold(
        &Story::new("termination")
            .create(2)
            .settle()
            .mark()
            .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
            .delete_pods(&["web-1"])
            .rest()
            .pods("web-0:1 web-1:1~")
            .kept("web-0 web-1")
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .settle()
            .kept("web-0"),
    );
}

#[test]
fn makes_the_claim_of_a_pending_pod_again() {
    hold(
        &Story::new("claim of a pending pod")
            .then("no node takes pods", |stage| stage.cordon(true))
            .create(1)
            .rest()
            .claims("data-web-0")
            .then("the claim is lost", |stage| stage.remove::<PersistentVolumeClaim>("data-web-0"))
            .rest()
            .claims("data-web-0")
            .then("nodes take pods", |stage| stage.cordon(false))
            .settle(),
    );
}

#[test]
fn starts_at_an_ordinal() {
    hold(
        &Story::new("start")
            .create_with("2 from 3", |spec| {
                spec.replicas = Some(2);
                start(spec, 3);
            })
            .settle()
            .pods("web-3:1 web-4:1")
            .scale(3)
            .settle()
            .pods("web-3:1 web-4:1 web-5:1")
            .scale(1)
            .settle()
            .pods("web-3:1"),
    );
}

#[test]
fn moves_the_start_up_and_down() {
    hold(
        &Story::new("start moves")
            .create(3)
            .settle()
            .mark()
            .change("start 2", |spec| start(spec, 2))
            .settle()
            .pods("web-2:1 web-3:1 web-4:1")
            .kept("web-2")
            .claims_if(|case| match case.delete_when_scaled {
                true => "data-web-2 data-web-3 data-web-4",
                false => "data-web-0 data-web-1 data-web-2 data-web-3 data-web-4",
            })
            .change("start 1", |spec| start(spec, 1))
            .settle()
            .pods("web-1:1 web-2:1 web-3:1")
            .change("no start", |spec| spec.ordinals = None)
            .settle()
            .pods("web-0:1 web-1:1 web-2:1"),
    );
}

#[test]
fn leaves_out_reserved_ordinals() {
    hold(
        &Story::new("reserved")
            .create(3)
            .settle()
            .mark()
            .change("1 is reserved and one pod fewer wanted", |spec| {
                spec.replicas = Some(2);
                spec.ordinals =
                    Some(StatefulSetOrdinals { reserved: vec![IntOrString::int(1)], ..StatefulSetOrdinals::default() });
            })
            .settle()
            .pods("web-0:1 web-2:1")
            .kept("web-0 web-2")
            .scale(3)
            .settle()
            .pods("web-0:1 web-2:1 web-3:1"),
    );
}

#[test]
fn in_order_an_unready_pod_halts_scaling_both_ways() {
    hold(
        &Story::new("halts")
            .only(|case| !case.parallel)
            .create(2)
            .settle()
            .unready("web-0")
            .scale(3)
            .rest()
            .pods("web-0:1! web-1:1")
            .scale(1)
            .rest()
            .pods("web-0:1! web-1:1")
            .ready()
            .settle()
            .pods("web-0:1"),
    );
}

#[test]
fn in_order_a_broken_pod_out_of_range_goes_if_it_is_the_only_one() {
    hold(
        &Story::new("broken and condemned")
            .only(|case| !case.parallel)
            .create(2)
            .settle()
            .unready("web-1")
            .scale(1)
            .settle()
            .pods("web-0:1"),
    );
}

#[test]
fn all_at_once_runs_to_completion_with_unready_pods() {
    hold(
        &Story::new("burst")
            .only(|case| case.parallel)
            .broken("1")
            .create(3)
            .rest()
            .pods("web-0:1! web-1:1! web-2:1!")
            .scale(5)
            .rest()
            .pods("web-0:1! web-1:1! web-2:1! web-3:1! web-4:1!")
            .scale(0)
            .settle()
            .pods(""),
    );
}

#[test]
fn does_not_lock_up_when_a_predecessor_fails() {
    hold(
        &Story::new("predecessor fails")
            .create(1)
            .settle()
            .scale(2)
            .sync()
            .delete_pods(&["web-0"])
            .settle()
            .pods("web-0:1 web-1:1"),
    );
}

#[test]
fn a_window_lets_several_start() {
    hold(
        &Story::new("window")
            .only(|case| !case.parallel)
            .create_with("4, two at a time", |spec| {
                spec.replicas = Some(4);
                spec.max_concurrent_start = Some(2);
            })
            .rest()
            .pods("web-0:1 web-1:1 web-2:1 web-3:1")
            .scale(1)
            .settle(),
    );
}

#[test]
fn scaled_up_again_before_the_pods_are_gone() {
    hold(
        &Story::new("down and up")
            .create(3)
            .settle()
            .scale(1)
            .sync()
            .sync()
            .scale(3)
            .settle()
            .pods("web-0:1 web-1:1 web-2:1")
            .claims(ALL),
    );
}

#[test]
fn the_service_is_made_when_it_is_missing() {
    hold(
        &Story::new("service")
            .create(1)
            .settle()
            .then("the service is deleted", |stage| stage.remove::<Service>("web-svc"))
            .settle()
            .expect("it is there", |stage| match stage.get::<Service>("web-svc") {
                Some(service) if !service.meta().owner_references.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }),
    );
}
