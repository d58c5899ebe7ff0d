//! What the API service knows of sets beyond any object: the two views, undoing, ordinals that go for good, previews.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::*;
use pb::{Object as _, ObjectExt, api::v1::*, objects::*};
use serde_json::{Value, json};
use tonic::Code;

over_both_stores!(
    the_version_shows_what_is_in_use,
    a_write_through_apps_keeps_what_it_does_not_show,
    apps_refuses_what_it_does_not_have,
    a_patch_speaks_of_the_whole_unless_it_says_otherwise,
    an_ordinal_goes_in_one_write,
    an_undo_goes_back_to_what_was,
    two_undos_at_once_end_at_a_revision_that_was,
    a_dry_run_tells_what_would_become_of_the_pods,
);

/// The documented set with Berth's own fields.
fn berth() -> Value {
    let mut set = web();
    set["apiVersion"] = json!("berth/v1");
    set["spec"]["paused"] = json!(true);
    set["spec"]["deletionOrder"] = json!("Ordered");
    set["spec"]["ordinals"] = json!({"reserved": [1]});
    set
}

async fn get(h: &Harness, api_version: &str) -> StatefulSet {
    let request =
        GetRequest { kind: "sts".into(), name: "web".into(), api_version: api_version.into(), ..Default::default() };
    StatefulSet::from_any(h.api().get(request).await.unwrap().into_inner().object.unwrap()).unwrap()
}

fn spec(set: &StatefulSet) -> StatefulSetSpec {
    set.spec.clone().unwrap()
}

async fn update(h: &Harness, set: StatefulSet) -> Result<StatefulSet, tonic::Status> {
    let request = UpdateRequest { object: Some(set.into_any()), ..Default::default() };
    Ok(StatefulSet::from_any(h.api().update(request).await?.into_inner().object.unwrap()).unwrap())
}

async fn patch(h: &Harness, r#type: PatchType, patch: Value) -> Result<StatefulSet, tonic::Status> {
    let request = PatchRequest {
        kind: "StatefulSet".into(),
        name: "web".into(),
        r#type: r#type.into(),
        patch: patch.to_string().into_bytes(),
        ..Default::default()
    };
    Ok(StatefulSet::from_any(h.api().patch(request).await?.into_inner().object.unwrap()).unwrap())
}

async fn the_version_shows_what_is_in_use(h: &Harness) {
    let mut watch =
        h.watch(WatchRequest { kind: "sts".into(), api_version: "apps/v1".into(), ..Default::default() }).await;
    assert_eq!(next(&mut watch).await.r#type(), EventType::Bookmark);
    h.apply(&[nginx(), web()]).await.unwrap();
    assert_eq!(get(h, "").await.api_version, "apps/v1", "nothing of Berth's is in use");
    assert_eq!(get(h, "berth/v1").await.api_version, "berth/v1");
    h.apply(&[berth()]).await.unwrap();
    let whole = get(h, "").await;
    assert_eq!((whole.api_version.as_str(), spec(&whole).paused), ("berth/v1", true));
    let apps = get(h, "apps/v1").await;
    assert_eq!(apps.api_version, "apps/v1");
    assert_eq!((spec(&apps).paused, spec(&apps).deletion_order, spec(&apps).ordinals), (false, String::new(), None));
    assert_eq!(apps.metadata, whole.metadata);
    let list = ListRequest { kind: "sts".into(), api_version: "apps/v1".into(), ..Default::default() };
    assert_eq!(h.list(list).await.items, [apps.clone().into_any()]);
    next(&mut watch).await;
    assert_eq!(next(&mut watch).await.object, Some(apps.into_any()), "a watch has the same view");

    for (kind, version) in [("sts", "v2"), ("pod", "berth/v1")] {
        let request = ListRequest { kind: kind.into(), api_version: version.into(), ..Default::default() };
        let refused = h.api().list(request).await.unwrap_err();
        assert_eq!(violations(&refused)[0].0, "apiVersion", "{kind} {version}");
    }
}

async fn a_write_through_apps_keeps_what_it_does_not_show(h: &Harness) {
    h.apply(&[nginx(), berth()]).await.unwrap();
    let own = |set: &StatefulSet| {
        let spec = spec(set);
        (spec.paused, spec.deletion_order, spec.ordinals.unwrap_or_default().reserved)
    };
    let before = own(&get(h, "").await);

    // Update: what was read through the view is written back through it.
    let mut through = get(h, "apps/v1").await;
    through.spec.as_mut().unwrap().replicas = Some(4);
    let answer = update(h, through).await.unwrap();
    assert_eq!((answer.api_version.as_str(), spec(&answer).paused), ("apps/v1", false), "answered in the same view");
    let stored = get(h, "").await;
    assert_eq!((own(&stored), spec(&stored).replicas), (before.clone(), Some(4)));

    // Patch.
    patch(h, PatchType::Merge, json!({"apiVersion": "apps/v1", "spec": {"ordinals": {"start": 3}}})).await.unwrap();
    let stored = get(h, "").await;
    assert_eq!((own(&stored), spec(&stored).ordinals.unwrap().start), (before.clone(), 3));

    // Apply, of a manifest that never knew of Berth; applying the whole again takes back what it does not name.
    let results = h.apply(&[web()]).await.unwrap();
    assert_eq!(results[0].outcome, "configured");
    let stored = get(h, "").await;
    assert_eq!((own(&stored), spec(&stored).replicas), (before, Some(3)));
    assert_eq!(h.apply(&[web()]).await.unwrap()[0].outcome, "unchanged");
    let mut less = berth();
    less["spec"].as_object_mut().unwrap().remove("paused");
    h.apply(&[less]).await.unwrap();
    let stored = spec(&get(h, "").await);
    assert_eq!((stored.paused, stored.deletion_order.as_str()), (false, "Ordered"));

    // The status alone.
    let mut through = get(h, "").await;
    through.status = Some(StatefulSetStatus { complete_revision: "web-a".into(), ..Default::default() });
    let status = |set: StatefulSet| UpdateRequest {
        object: Some(set.into_any()),
        subresource: "status".into(),
        ..Default::default()
    };
    h.api().update(status(through)).await.unwrap();
    let mut through = get(h, "apps/v1").await;
    assert_eq!(through.status.as_ref().unwrap().complete_revision, "");
    through.status = Some(StatefulSetStatus { replicas: 2, ..Default::default() });
    h.api().update(status(through)).await.unwrap();
    let stored = get(h, "").await.status.unwrap();
    assert_eq!((stored.replicas, stored.complete_revision.as_str()), (2, "web-a"));
}

async fn apps_refuses_what_it_does_not_have(h: &Harness) {
    let mut manifest = berth();
    manifest["apiVersion"] = json!("apps/v1");
    let refused = h.apply(&[nginx(), manifest]).await.unwrap_err();
    let mut fields: Vec<_> =
        violations(&refused).into_iter().map(|(field, why)| (field, why.contains("apiVersion: berth/v1"))).collect();
    fields.sort();
    let expected = ["spec.deletionOrder", "spec.ordinals.reserved", "spec.paused"];
    assert_eq!(fields, expected.map(|field| (format!("statefulset/web: {field}"), true)));

    // Unless it is asked to drop it.
    let mut manifest = berth();
    manifest["apiVersion"] = json!("apps/v1");
    for manifest in [web(), manifest] {
        let request = ApplyRequest {
            manifests: vec![manifest.to_string().into_bytes()],
            field_validation: FieldValidation::Warn.into(),
            ..Default::default()
        };
        let result = h.api().apply(request).await.unwrap().into_inner().results.remove(0);
        let set = StatefulSet::from_any(result.object.unwrap()).unwrap();
        assert_eq!((result.outcome == "created", spec(&set).paused), (result.warnings.is_empty(), false));
    }

    h.apply(&[nginx(), web()]).await.unwrap();
    let mut typed = get(h, "").await;
    typed.spec.as_mut().unwrap().paused = true;
    let refused = update(h, typed.clone()).await.unwrap_err();
    assert_eq!(violations(&refused)[0].0, "spec.paused");
    typed.api_version = "apps/v2".into();
    assert_eq!(violations(&update(h, typed.clone()).await.unwrap_err())[0].0, "apiVersion");
    typed.api_version = String::new();
    assert_eq!(update(h, typed).await.unwrap().api_version, "berth/v1", "no version is the whole");
}

async fn a_patch_speaks_of_the_whole_unless_it_says_otherwise(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let paused = patch(h, PatchType::Merge, json!({"spec": {"paused": true}})).await.unwrap();
    assert_eq!((paused.api_version.as_str(), paused.meta().generation), ("berth/v1", 2));
    let refused =
        patch(h, PatchType::Merge, json!({"apiVersion": "apps/v1", "spec": {"paused": false}})).await.unwrap_err();
    assert_eq!(violations(&refused)[0].0, "spec.paused");
    let operations = json!([{"op": "test", "path": "/apiVersion", "value": "apps/v1"}, {"op": "replace", "path": "/spec/replicas", "value": 1}]);
    let apps = patch(h, PatchType::Json, operations).await.unwrap();
    assert_eq!((apps.api_version.as_str(), spec(&apps).replicas), ("apps/v1", Some(1)));
    assert!(spec(&get(h, "").await).paused);
    let resumed = patch(h, PatchType::Merge, json!({"spec": {"paused": null}})).await.unwrap();
    assert_eq!((resumed.api_version.as_str(), spec(&resumed).paused), ("apps/v1", false));
}

async fn an_ordinal_goes_in_one_write(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let remove = |ordinal| RemoveOrdinalRequest { name: "web".into(), ordinal, ..Default::default() };
    let dry = h.api().remove_ordinal(RemoveOrdinalRequest { dry_run: true, ..remove(1) }).await.unwrap().into_inner();
    assert_eq!(spec(&dry.set.unwrap()).replicas, Some(2));
    let before = get(h, "").await;
    assert_eq!(spec(&before).replicas, Some(3), "a dry run writes nothing");
    let set = h.api().remove_ordinal(remove(1)).await.unwrap().into_inner().set.unwrap();
    assert_eq!((spec(&set).replicas, set.api_version.as_str(), set.meta().generation), (Some(2), "berth/v1", 2));
    assert_eq!(spec(&set).ordinals.unwrap().reserved, [IntOrString::int(1)]);
    assert_eq!(get(h, "").await, set);

    let again = h.api().remove_ordinal(remove(1)).await.unwrap_err();
    assert_eq!(again.code(), Code::InvalidArgument);
    assert!(again.message().contains("web has the ordinals 0, 2"), "{}", again.message());
    let stale = RemoveOrdinalRequest { resource_version: before.meta().resource_version.clone(), ..remove(2) };
    assert_eq!(h.api().remove_ordinal(stale).await.unwrap_err().code(), Code::Aborted);
    let missing = RemoveOrdinalRequest { name: "db".into(), ..Default::default() };
    assert_eq!(h.api().remove_ordinal(missing).await.unwrap_err().code(), Code::NotFound);

    // Each of them counts once, however many come at the same time.
    let both = [0, 2].map(|ordinal| {
        let mut api = h.api();
        async move { api.remove_ordinal(remove(ordinal)).await }
    });
    assert!(futures::future::join_all(both).await.iter().all(Result::is_ok));
    assert_eq!(spec(&get(h, "").await).replicas, Some(0));
}

fn image(set: &StatefulSet) -> String {
    spec(set).template.unwrap().spec.unwrap().containers[0].image.clone()
}

/// Applies an image, and stores the revision that the controller would make of it.
async fn roll(h: &Harness, number: i64, image: &str) -> ControllerRevision {
    let mut manifest = web();
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    h.apply(&[nginx(), manifest]).await.unwrap();
    let set = get(h, "").await;
    h.create(plan::statefulset::stamp::revision(&set, &format!("web-{number}"), number)).await.unwrap()
}

async fn an_undo_goes_back_to_what_was(h: &Harness) {
    let undo = |to_revision| UndoRolloutRequest { name: "web".into(), to_revision, ..Default::default() };
    roll(h, 1, "nginx:1").await;
    let only = h.api().undo_rollout(undo(0)).await.unwrap_err();
    assert_eq!((only.code(), only.message().contains("its only revision is 1")), (Code::NotFound, true), "{only}");
    roll(h, 2, "nginx:2").await;
    roll(h, 3, "nginx:3").await;
    let dry = h.api().undo_rollout(UndoRolloutRequest { dry_run: true, ..undo(0) }).await.unwrap().into_inner();
    assert_eq!((dry.revision, image(&dry.set.unwrap())), (2, "nginx:2".to_owned()));
    assert_eq!(image(&get(h, "").await), "nginx:3");

    let done = h.api().undo_rollout(undo(0)).await.unwrap().into_inner();
    assert_eq!((done.revision, done.unchanged), (2, false));
    assert_eq!(image(&get(h, "").await), "nginx:2");
    let generation = get(h, "").await.meta().generation;
    let same = h.api().undo_rollout(undo(2)).await.unwrap().into_inner();
    assert!(same.unchanged);
    assert_eq!(get(h, "").await.meta().generation, generation, "nothing was written");
    assert_eq!(h.api().undo_rollout(undo(1)).await.unwrap().into_inner().revision, 1);
    assert_eq!(image(&get(h, "").await), "nginx:1");

    let missing = h.api().undo_rollout(undo(9)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("its revisions are 1, 2, 3"), "{}", missing.message());
    assert_eq!(h.api().undo_rollout(undo(-1)).await.unwrap_err().code(), Code::InvalidArgument);

    // A paused set is set back too, and keeps what Berth adds.
    patch(h, PatchType::Merge, json!({"spec": {"paused": true}})).await.unwrap();
    let paused = h.api().undo_rollout(undo(3)).await.unwrap().into_inner().set.unwrap();
    assert!(spec(&paused).paused && image(&paused) == "nginx:3");
}

async fn two_undos_at_once_end_at_a_revision_that_was(h: &Harness) {
    for number in 1..=3 {
        roll(h, number, &format!("nginx:{number}")).await;
    }
    let undos =
        [1, 2].map(|to_revision| {
            let mut api = h.api();
            async move {
                api.undo_rollout(UndoRolloutRequest { name: "web".into(), to_revision, ..Default::default() }).await
            }
        });
    for done in futures::future::join_all(undos).await {
        let done = done.unwrap().into_inner();
        assert_eq!(image(&done.set.unwrap()), format!("nginx:{}", done.revision), "the answer is what was written");
    }
    assert!(["nginx:1", "nginx:2"].contains(&image(&get(h, "").await).as_str()));
}

async fn a_dry_run_tells_what_would_become_of_the_pods(h: &Harness) {
    let apply = |manifest: Value| ApplyRequest {
        manifests: vec![manifest.to_string().into_bytes()],
        dry_run: true,
        ..Default::default()
    };
    let steps = |result: &ApplyResult| {
        result.foreseen.iter().map(|step| format!("{} {}", step.action, step.pod)).collect::<Vec<_>>()
    };
    h.apply(&[nginx()]).await.unwrap();
    let fresh = h.api().apply(apply(web())).await.unwrap().into_inner().results.remove(0);
    assert_eq!((fresh.outcome.as_str(), fresh.before.is_none()), ("created", true));
    assert_eq!(steps(&fresh), ["create web-0", "create web-1", "create web-2"]);

    let mut huge = web();
    (huge["spec"]["replicas"], huge["spec"]["podManagementPolicy"]) = (json!(i32::MAX), json!("Parallel"));
    let huge = h.api().apply(apply(huge)).await.unwrap().into_inner().results.remove(0);
    assert!(huge.foreseen.is_empty() && huge.held_back.starts_with("not foreseen"), "{}", huge.held_back);

    // All three run at revision 1.
    let revision = roll(h, 1, "nginx:1").await;
    let set = get(h, "").await;
    for ordinal in 0..3u32 {
        let new = plan::statefulset::NewPod {
            pod: format!("web-{ordinal}").as_str().into(),
            ordinal: model::identity::Ordinal(ordinal),
            revision: revision.name().into(),
            claims: Vec::new(),
            reused: Vec::new(),
            marks: false,
        };
        let template = spec(&set).template.unwrap();
        let pod = h.create(plan::statefulset::stamp::pod(&set, &template, &new)).await.unwrap();
        let ready = Condition {
            r#type: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            ..Default::default()
        };
        let status = PodStatus { phase: "Running".into(), conditions: vec![ready], ..Default::default() };
        let update = UpdateRequest {
            object: Some(Pod { status: Some(status), ..pod }.into_any()),
            subresource: "status".into(),
            ..Default::default()
        };
        h.api().update(update).await.unwrap();
    }
    let mut next = web();
    next["spec"]["template"]["spec"]["containers"][0]["image"] = json!("nginx:2");
    next["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
    let result = h.api().apply(apply(next)).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.outcome, "configured");
    assert_eq!(steps(&result), ["replace web-2", "replace web-1"]);
    assert!(result.held_back.contains("web-0") && result.held_back.contains("partition"), "{}", result.held_back);
    let before = StatefulSet::from_any(result.before.unwrap()).unwrap();
    assert_eq!(before, set, "as it is stored");
    assert_eq!(get(h, "").await, set, "a dry run writes nothing");
}
