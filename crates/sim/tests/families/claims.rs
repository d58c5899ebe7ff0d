//! Claims: kept, or given up by the retention policy, and never by accident.

use pb::{ObjectExt, objects::*};
use plan::gc::Propagation;
use sim::script::{Case, Story};

use crate::hold;

const ALL: &str = "data-web-0 data-web-1 data-web-2";
const FIRST: &str = "data-web-0";

fn retention(spec: &mut StatefulSetSpec, deleted: &str, scaled: &str) {
    spec.persistent_volume_claim_retention_policy =
        Some(PersistentVolumeClaimRetentionPolicy { when_deleted: deleted.to_owned(), when_scaled: scaled.to_owned() });
}

fn after_scale_down(case: Case) -> &'static str {
    if case.delete_when_scaled { FIRST } else { ALL }
}

fn after_deletion(case: Case) -> &'static str {
    if case.delete_with_set { "" } else { ALL }
}

#[test]
fn claims_go_with_pods_that_are_scaled_away_only_if_the_policy_says_so() {
    let story = Story::new("scaled away").create(3).settle().scale(1).settle().claims_if(after_scale_down);
    hold(&story.scale(3).settle().claims(ALL));
}

/// RET-3: a pod that goes for any other reason never takes its claim along.
#[test]
fn claims_stay_when_pods_are_deleted_fail_or_are_updated() {
    hold(
        &Story::new("pods go")
            .create(3)
            .settle()
            .delete_pods(&["web-1"])
            .settle()
            .claims(ALL)
            .end("web-2", "Failed")
            .settle()
            .claims(ALL)
            .image("2")
            .settle()
            .claims(ALL)
            .expect("none was ever made anew", |stage| {
                let all = stage.all::<PersistentVolumeClaim>();
                let bound =
                    all.iter().all(|claim| claim.spec.as_ref().is_some_and(|spec| !spec.volume_name.is_empty()));
                if bound { Ok(()) } else { Err("a claim has no volume".to_owned()) }
            }),
    );
}

/// RET-4: the claim of a pod that was scaled away goes; the new pod waits for a new claim.
#[test]
fn a_pod_that_comes_back_does_not_get_the_claim_that_is_about_to_go() {
    hold(
        &Story::new("stale claim")
            .create(2)
            .settle()
            .scale(1)
            .sync()
            .nodes()
            .pods("web-0:1")
            .scale(2)
            .sync()
            .pods_if(|case| if case.delete_when_scaled { "web-0:1" } else { "web-0:1 web-1:1!" })
            .settle()
            .pods("web-0:1 web-1:1")
            .claims("data-web-0 data-web-1"),
    );
}

/// RET-4: a claim of a pod that is still there is put back.
#[test]
fn a_pod_that_is_wanted_again_before_it_is_gone_keeps_its_claim() {
    hold(
        &Story::new("wanted again")
            .create(2)
            .settle()
            .mark()
            .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
            .scale(1)
            .rest()
            .scale(2)
            .rest()
            .pods("web-0:1 web-1:1~")
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .settle()
            .kept("web-0")
            .claims("data-web-0 data-web-1"),
    );
}

#[test]
fn claims_go_with_the_set_only_if_the_policy_says_so() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        hold(
            &Story::new("set deleted")
                .create(3)
                .settle()
                .delete_set(propagation)
                .rest()
                .pods("")
                .claims_if(after_deletion)
                .revisions("")
                .create(3)
                .settle()
                .pods("web-0:1 web-1:1 web-2:1")
                .claims(ALL),
        );
    }
}

/// The set is made anew before the old one's pods and claims are gone: it inherits no deletion (I27).
#[test]
fn a_set_that_is_made_anew_at_once_starts_from_nothing() {
    hold(
        &Story::new("made anew")
            .create(2)
            .settle()
            .mark()
            .delete_set(Propagation::Background)
            .create(2)
            .settle()
            .kept("")
            .pods("web-0:1 web-1:1")
            .claims("data-web-0 data-web-1"),
    );
}

/// RET-9, DEL-3.
#[test]
fn orphans_keep_their_claims_and_are_adopted_with_them() {
    hold(
        &Story::new("orphans")
            .create(3)
            .settle()
            .mark()
            .delete_set(Propagation::Orphan)
            .rest()
            .pods("web-0:1 web-1:1 web-2:1")
            .claims(ALL)
            .create(3)
            .settle()
            .kept("web-0 web-1 web-2")
            .claims(ALL)
            .scale(1)
            .settle()
            .claims_if(after_scale_down)
            .delete_set(Propagation::Background)
            .rest()
            .claims_if(|case| match case {
                Case { delete_with_set: true, .. } if case.delete_when_scaled => "",
                Case { delete_with_set: true, .. } => "",
                Case { delete_when_scaled: true, .. } => FIRST,
                _ => ALL,
            }),
    );
}

/// RET-5: the policy can change at any time.
#[test]
fn the_policy_that_counts_is_the_present_one() {
    hold(
        &Story::new("policy changes")
            .unsteady_claims()
            .create(3)
            .settle()
            .change("keep all", |spec| retention(spec, "Retain", "Retain"))
            .settle()
            .scale(2)
            .settle()
            .claims(ALL)
            .change("give up when scaled", |spec| retention(spec, "Retain", "Delete"))
            .settle()
            .claims(ALL)
            .scale(1)
            .settle()
            .claims("data-web-0 data-web-2")
            .change("give up with the set", |spec| retention(spec, "Delete", "Retain"))
            .settle()
            .delete_set(Propagation::Background)
            .rest()
            .claims("data-web-2"),
    );
}

/// RET-7: what somebody else controls is never given up.
#[test]
fn a_claim_that_somebody_else_controls_stays() {
    hold(
        &Story::new("foreign controller")
            .unsteady_claims()
            .create(2)
            .settle()
            .then("data-web-1 gets another controller", |stage| {
                stage.edit::<PersistentVolumeClaim>("data-web-1", |claim| {
                    claim.metadata.get_or_insert_default().owner_references = vec![OwnerReference {
                        api_version: "example.com/v1".to_owned(),
                        kind: "Backup".to_owned(),
                        name: "nightly".to_owned(),
                        uid: "b".to_owned(),
                        controller: Some(true),
                        ..OwnerReference::default()
                    }];
                });
            })
            .settle()
            .scale(1)
            .settle()
            .claims("data-web-0 data-web-1")
            .delete_set(Propagation::Background)
            .rest()
            .claims_if(|case| if case.delete_with_set { "data-web-1" } else { "data-web-0 data-web-1" }),
    );
}

/// PVC-5, PVC-12.
#[test]
fn a_claim_that_is_deleted_goes_with_its_pod_and_comes_back_with_the_next() {
    hold(
        &Story::new("claim deleted")
            .create(2)
            .settle()
            .then("data-web-1 is deleted", |stage| stage.delete_claim("data-web-1"))
            .rest()
            .claims("data-web-0 data-web-1~")
            .delete_pods(&["web-1"])
            .settle()
            .pods("web-0:1 web-1:1")
            .claims("data-web-0 data-web-1"),
    );
}

/// PVC-4, RET-6: a claim of the right name is used as it is.
#[test]
fn a_claim_that_was_there_before_is_used() {
    hold(
        &Story::new("claim before the set")
            .then("data-web-1 is there", |stage| {
                let claim = PersistentVolumeClaim {
                    metadata: Some(ObjectMeta {
                        name: "data-web-1".to_owned(),
                        namespace: stage.namespace().to_owned(),
                        uid: "mine".to_owned(),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(PersistentVolumeClaimSpec::default()),
                    ..PersistentVolumeClaim::default()
                };
                stage.put(&claim);
            })
            .create(2)
            .settle()
            .claims("data-web-0 data-web-1")
            .expect("it is the one that was there", |stage| {
                let uid = stage.get::<PersistentVolumeClaim>("data-web-1").map(|claim| claim.uid().to_owned());
                if uid.as_deref() == Some("mine") { Ok(()) } else { Err(format!("{uid:?}")) }
            })
            .scale(1)
            .settle()
            .claims_if(|case| if case.delete_when_scaled { FIRST } else { "data-web-0 data-web-1" }),
    );
}

/// RET-8: a reference to an earlier set of the same name is left alone, and the pod waits until the claim is gone.
#[test]
fn a_claim_of_an_earlier_set_goes_before_its_pod_comes() {
    hold(
        &Story::new("claim of an earlier set")
            .create(1)
            .settle()
            .then("data-web-1 belongs to an earlier set", |stage| {
                let claim = PersistentVolumeClaim {
                    metadata: Some(ObjectMeta {
                        name: "data-web-1".to_owned(),
                        namespace: stage.namespace().to_owned(),
                        uid: "earlier".to_owned(),
                        owner_references: vec![OwnerReference {
                            api_version: "apps/v1".to_owned(),
                            kind: "StatefulSet".to_owned(),
                            name: "web".to_owned(),
                            uid: "before".to_owned(),
                            controller: Some(true),
                            block_owner_deletion: Some(true),
                        }],
                        ..ObjectMeta::default()
                    }),
                    spec: Some(PersistentVolumeClaimSpec::default()),
                    ..PersistentVolumeClaim::default()
                };
                stage.put(&claim);
            })
            .scale(2)
            .collect()
            .settle()
            .pods("web-0:1 web-1:1")
            .claims("data-web-0 data-web-1")
            .expect("it is a new one", |stage| {
                let uid = stage.get::<PersistentVolumeClaim>("data-web-1").map(|claim| claim.uid().to_owned());
                if uid.as_deref() == Some("earlier") { Err("it is the old one".to_owned()) } else { Ok(()) }
            }),
    );
}

#[test]
fn a_pod_that_fails_while_it_is_scaled_away_takes_its_claim_along_by_policy() {
    hold(
        &Story::new("fails and condemned")
            .create(2)
            .settle()
            .scale(1)
            .end("web-1", "Failed")
            .settle()
            .claims_if(|case| if case.delete_when_scaled { FIRST } else { "data-web-0 data-web-1" }),
    );
}
