//! A rollout that fails, and what the controller makes of it.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use pb::{Object, ObjectExt, objects::*};
use store::MemStore;
use support::{Rig, history, set};

type Sets = BTreeMap<String, StatefulSet>;
type Pods = BTreeMap<String, Pod>;

/// A user gives the set another template; with the label `slow` its pods never become ready.
async fn roll(rig: &Rig, image: &'static str, slow: bool) {
    rig.change("web", |set: &mut StatefulSet| {
        set.meta_mut().generation += 1;
        let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
        template.spec.as_mut().unwrap().containers[0].image = image.into();
        let labels = &mut template.metadata.as_mut().unwrap().labels;
        labels.remove("slow");
        labels.extend(slow.then(|| ("slow".to_owned(), "yes".to_owned())));
    })
    .await;
}

fn image(set: &StatefulSet) -> &str {
    let template = set.spec.as_ref().unwrap().template.as_ref().unwrap();
    &template.spec.as_ref().unwrap().containers[0].image
}

fn reason<'a>(set: &'a StatefulSet, kind: &str) -> &'a str {
    let conditions = set.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().find(|condition| condition.r#type == kind).map_or("", |condition| &condition.reason)
}

async fn complete(rig: &Rig) {
    rig.until("web is complete", |sets: &Sets| {
        let set = &sets["web"];
        let observed = set.status.as_ref().map_or(0, |status| status.observed_generation);
        observed == set.meta().generation && reason(set, "Progressing") == "Complete"
    })
    .await;
}

async fn rig(auto_revert: bool) -> (Rig, MemStore) {
    let store = MemStore::new();
    let rig = Rig::start(Arc::new(store.clone()));
    let mut web = set("web", 2);
    let spec = web.spec.as_mut().unwrap();
    (spec.progress_deadline_seconds, spec.auto_revert) = (Some(1), auto_revert);
    rig.put(&web).await;
    complete(&rig).await;
    (rig, store)
}

#[tokio::test]
async fn a_rollout_that_misses_its_deadline_goes_back_and_heals() {
    let (rig, store) = rig(true).await;
    let before: StatefulSet = rig.get("web").await.unwrap();
    roll(&rig, "broken", true).await;
    rig.until("the template is set back", |sets: &Sets| {
        let status = sets["web"].status.clone().unwrap_or_default();
        image(&sets["web"]) == "i" && !status.failed_revision.is_empty()
    })
    .await;
    complete(&rig).await;
    let set: StatefulSet = rig.get("web").await.unwrap();
    let status = set.status.clone().unwrap();
    assert_eq!(set.meta().generation, before.meta().generation + 2, "a revert is a change like any other");
    assert_eq!(status.update_revision, before.status.unwrap().update_revision, "the old revision is used again");
    assert_eq!(reason(&set, "Degraded"), "RolloutReverted");
    assert_eq!(status.blocked_on, None);
    for pod in rig.list::<Pod>().await.into_values() {
        assert_eq!(pod.meta().labels["controller-revision-hash"], status.update_revision);
    }
    rig.until("people are told", |events: &BTreeMap<String, Event>| {
        events.values().any(|event| event.reason == "RolloutReverted" && event.r#type == "Warning")
    })
    .await;

    // It stays there, and a controller that starts anew writes nothing to it.
    let settled = store.revision();
    rig.stop().await;
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&support::set("other", 1)).await;
    rig.complete("other", 1).await;
    let written = history(&store, settled).await;
    assert!(!written.values().flatten().any(|key| key.ends_with("/statefulsets/default/web")), "{written:#?}");
    rig.stop().await;
}

#[tokio::test]
async fn without_auto_revert_the_missed_deadline_is_told_and_nothing_else_is_done() {
    let (rig, _) = rig(false).await;
    roll(&rig, "broken", true).await;
    rig.until("the deadline is missed", |sets: &Sets| {
        reason(&sets["web"], "Progressing") == "ProgressDeadlineExceeded"
            && reason(&sets["web"], "Degraded") == "ProgressDeadlineExceeded"
    })
    .await;
    let set: StatefulSet = rig.get("web").await.unwrap();
    assert_eq!(image(&set), "broken");
    let blocked = set.status.unwrap().blocked_on.unwrap();
    assert_eq!((blocked.ordinal, blocked.reason.as_str()), (Some(1), "NotReady"));
    rig.until("people are told once", |events: &BTreeMap<String, Event>| {
        let told: Vec<_> = events.values().filter(|event| event.reason == "ProgressDeadlineExceeded").collect();
        matches!(told[..], [event] if event.count == 1)
    })
    .await;
    // Nobody has to delete pods by hand (#67250).
    roll(&rig, "fixed", false).await;
    complete(&rig).await;
    rig.until("all pods are there", |pods: &Pods| pods.values().all(|pod| !pod.is_terminating())).await;
    rig.stop().await;
}
