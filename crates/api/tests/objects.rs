//! Users' side of the API service: create, read, change, apply, delete, list and watch.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::*;
use pb::{Object as _, ObjectExt, api::v1::*, objects::*};
use serde_json::json;
use store::{Key, Prefix};
use tonic::Code;

over_both_stores!(
    an_object_lives_and_dies,
    a_manifest_with_five_mistakes_changes_nothing,
    apply_creates_changes_and_leaves_alone,
    the_generation_counts_spec_changes,
    stale_writers_lose,
    pages_show_one_revision,
    a_watch_resumes_without_gap,
    a_watch_sees_its_selection,
    a_forgotten_revision_is_told,
    pods_stop_before_they_go,
    sets_go_as_asked,
    a_collection_goes_as_it_was_listed,
    a_set_whose_pods_go_in_order_stays_until_they_have,
    scale_changes_replicas_alone,
    why_names_what_holds_a_pod_up,
    no_accepted_update_is_lost,
);

async fn an_object_lives_and_dies(h: &Harness) {
    let made = h.create(config_map("a", &[])).await.unwrap();
    assert!(!made.uid().is_empty() && made.mod_revision() > 0 && made.meta().creation_timestamp.is_some());
    assert_eq!(h.get::<ConfigMap>("a").await.unwrap(), made);
    let again = h.create(config_map("a", &[])).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let mut elsewhere = config_map("a", &[]);
    elsewhere.metadata.as_mut().unwrap().namespace = "nowhere".into();
    let elsewhere = h.create(elsewhere).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
    assert!(elsewhere.message().contains("create the namespace first"), "{}", elsewhere.message());

    assert!(h.delete("configmap", "a").await.unwrap().gone);
    assert_eq!(h.get::<ConfigMap>("a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(h.delete("configmap", "a").await.unwrap_err().code(), Code::NotFound);
    let class = h.get::<StorageClass>("local").await.unwrap();
    assert_eq!(class.volume_binding_mode.as_deref(), Some("WaitForFirstConsumer"));
}

async fn a_manifest_with_five_mistakes_changes_nothing(h: &Harness) {
    let mut web = web();
    web["spec"]["replicas"] = json!(-1);
    web["spec"]["podManagementPolicy"] = json!("Random");
    web["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    web["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = json!("Always");
    web["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(0);
    let before = h.store.list(&Prefix::all(), Default::default()).await.unwrap();
    let status = h.apply(&[nginx(), web]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let found = violations(&status);
    let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
    for expected in [
        "statefulset/web: spec.replicas",
        "statefulset/web: spec.podManagementPolicy",
        "statefulset/web: spec.template.metadata.labels",
        "statefulset/web: spec.template.spec.containers[0].imagePolicy",
        "statefulset/web: spec.template.spec.containers[0].ports[0].containerPort",
    ] {
        assert!(fields.contains(&expected), "{expected} is missing in {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
    let replicas = found.iter().find(|(field, _)| field.ends_with("spec.replicas")).unwrap();
    assert_eq!(replicas.1, "Invalid value: -1: must be greater than or equal to 0");
    let after = h.store.list(&Prefix::all(), Default::default()).await.unwrap();
    assert_eq!(after.revision, before.revision, "the Service was good, but nothing may be written");
}

async fn apply_creates_changes_and_leaves_alone(h: &Harness) {
    let outcomes = |results: Vec<ApplyResult>| results.into_iter().map(|result| result.outcome).collect::<Vec<_>>();
    let both = [nginx(), web()];
    assert_eq!(outcomes(h.apply(&both).await.unwrap()), ["created", "created"]);
    let before = h.get::<StatefulSet>("web").await.unwrap();
    assert_eq!(outcomes(h.apply(&both).await.unwrap()), ["unchanged", "unchanged"]);
    assert_eq!(h.get::<StatefulSet>("web").await.unwrap(), before, "an unchanged apply writes nothing");

    // Somebody else scales; a manifest that never named replicas leaves that alone, one that did takes it back.
    let scale = UpdateScaleRequest { name: "web".into(), replicas: 7, ..Default::default() };
    h.api().update_scale(scale).await.unwrap();
    let mut labelled = web();
    labelled["metadata"]["labels"] = json!({"tier": "front"});
    labelled["spec"].as_object_mut().unwrap().remove("replicas");
    let results = h.apply(&[labelled.clone()]).await.unwrap();
    let set: StatefulSet = pb::Object::from_any(results[0].object.clone().unwrap()).unwrap();
    assert_eq!(results[0].outcome, "configured");
    assert_eq!(set.spec.unwrap().replicas, Some(1), "named last, not named now: back to the default");
    let scale = UpdateScaleRequest { name: "web".into(), replicas: 5, ..Default::default() };
    h.api().update_scale(scale).await.unwrap();
    assert_eq!(outcomes(h.apply(&[labelled]).await.unwrap()), ["unchanged"]);
    assert_eq!(h.get::<StatefulSet>("web").await.unwrap().spec.unwrap().replicas, Some(5));

    let mut immutable = web();
    immutable["spec"]["serviceName"] = json!("other");
    assert_eq!(h.apply(&[immutable]).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn the_generation_counts_spec_changes(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let patch = |body: serde_json::Value| PatchRequest {
        kind: "StatefulSet".into(),
        name: "web".into(),
        patch: body.to_string().into_bytes(),
        ..Default::default()
    };
    let generation = |response: PatchResponse| response.object.unwrap().meta().generation;
    let labels = h.api().patch(patch(json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap().into_inner();
    assert_eq!(generation(labels), 1);
    let scaled = h.api().patch(patch(json!({"spec": {"replicas": 5}}))).await.unwrap().into_inner();
    assert_eq!(generation(scaled), 2);
    let status = h.api().patch(patch(json!({"status": {"replicas": 9}}))).await.unwrap().into_inner();
    assert_eq!(generation(status), 2);
    let unknown = h.api().patch(patch(json!({"spec": {"replica": 5}}))).await.unwrap_err();
    assert_eq!(violations(&unknown)[0].0, "spec.replica");

    // The status goes by itself, and takes nothing else along.
    let mut set = h.get::<StatefulSet>("web").await.unwrap();
    set.status = Some(StatefulSetStatus { replicas: 2, ..Default::default() });
    set.spec.as_mut().unwrap().replicas = Some(99);
    let update =
        UpdateRequest { object: Some(pb::Object::into_any(set)), subresource: "status".into(), ..Default::default() };
    h.api().update(update).await.unwrap();
    let set = h.get::<StatefulSet>("web").await.unwrap();
    assert_eq!((set.status.unwrap().replicas, set.spec.unwrap().replicas), (2, Some(5)));
}

async fn stale_writers_lose(h: &Harness) {
    let first = h.create(config_map("a", &[])).await.unwrap();
    let mut second = first.clone();
    second.data.insert("key".into(), "1".into());
    let update =
        |object: &ConfigMap| UpdateRequest { object: Some(pb::Object::into_any(object.clone())), ..Default::default() };
    h.api().update(update(&second)).await.unwrap();
    second.data.insert("key".into(), "2".into());
    assert_eq!(h.api().update(update(&second)).await.unwrap_err().code(), Code::Aborted);
    // Without a revision the update is unconditional; with another uid it is about another object.
    second.meta_mut().resource_version.clear();
    h.api().update(update(&second)).await.unwrap();
    second.meta_mut().uid = "another".into();
    assert_eq!(h.api().update(update(&second)).await.unwrap_err().code(), Code::Aborted);
    let delete = DeleteRequest {
        kind: "ConfigMap".into(),
        name: "a".into(),
        resource_version: first.meta().resource_version.clone(),
        ..Default::default()
    };
    assert_eq!(h.api().delete(delete).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(h.get::<ConfigMap>("a").await.unwrap().data["key"], "2");
}

async fn pages_show_one_revision(h: &Harness) {
    for at in 0..7 {
        h.create(config_map(&format!("c{at}"), &[("even", if at % 2 == 0 { "yes" } else { "no" })])).await.unwrap();
    }
    let request = ListRequest { kind: "ConfigMap".into(), limit: 3, ..Default::default() };
    let first = h.list(request.clone()).await;
    h.delete("ConfigMap", "c5").await.unwrap();
    h.create(config_map("c9", &[])).await.unwrap();
    let mut names: Vec<_> = first.items.iter().map(name_of).collect();
    let (revision, mut go_on) = (first.resource_version, first.r#continue);
    while !go_on.is_empty() {
        let page = h.list(ListRequest { r#continue: go_on, ..request.clone() }).await;
        assert!(page.items.len() <= 3);
        assert_eq!(page.resource_version, revision);
        names.extend(page.items.iter().map(name_of));
        go_on = page.r#continue;
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);

    let selected = ListRequest { label_selector: "even=yes".into(), limit: 2, ..request.clone() };
    let first = h.list(selected.clone()).await;
    let second = h.list(ListRequest { r#continue: first.r#continue, ..selected.clone() }).await;
    let names: Vec<_> = first.items.iter().chain(&second.items).map(name_of).collect();
    assert_eq!(names, ["c0", "c2", "c4", "c6"]);
    let bad = ListRequest { label_selector: "a in b".into(), field_selector: "spec.x=1".into(), ..request };
    assert_eq!(violations(&h.api().list(bad).await.unwrap_err()).len(), 2);
}

async fn a_watch_resumes_without_gap(h: &Harness) {
    h.create(config_map("old", &[])).await.unwrap();
    let request = WatchRequest { kind: "ConfigMap".into(), ..Default::default() };
    let mut watch = h.watch(request.clone()).await;
    assert_eq!(told(&next(&mut watch).await).1, "old");
    let bookmark = next(&mut watch).await;
    assert_eq!(bookmark.r#type(), EventType::Bookmark);
    h.create(config_map("c0", &[])).await.unwrap();
    let (_, name, resume) = told(&next(&mut watch).await);
    assert_eq!(name, "c0");
    drop(watch);
    for at in 1..20 {
        h.create(config_map(&format!("c{at}"), &[])).await.unwrap();
    }
    h.delete("ConfigMap", "c3").await.unwrap();
    let mut watch = h.watch(WatchRequest { resource_version: resume, ..request }).await;
    let mut revision = 0;
    for at in 1..20 {
        let (event, name, resume) = told(&next(&mut watch).await);
        assert_eq!((event, name), (EventType::Added, format!("c{at}")));
        assert!(resume.parse::<i64>().unwrap() > revision);
        revision = resume.parse().unwrap();
    }
    let (event, name, _) = told(&next(&mut watch).await);
    assert_eq!((event, name.as_str()), (EventType::Deleted, "c3"));
}

async fn a_watch_sees_its_selection(h: &Harness) {
    let request = WatchRequest { kind: "ConfigMap".into(), label_selector: "app=a".into(), ..Default::default() };
    let mut watch = h.watch(request).await;
    assert_eq!(next(&mut watch).await.r#type(), EventType::Bookmark);
    h.create(config_map("x", &[("app", "b")])).await.unwrap();
    for (label, expected) in
        [("a", EventType::Added), ("a ", EventType::Modified), ("b", EventType::Deleted), ("a", EventType::Added)]
    {
        let patch = json!({"metadata": {"labels": {"app": label.trim()}}, "data": {"k": label}});
        let patch = PatchRequest {
            kind: "ConfigMap".into(),
            name: "x".into(),
            patch: patch.to_string().into_bytes(),
            ..Default::default()
        };
        h.api().patch(patch).await.unwrap();
        assert_eq!(told(&next(&mut watch).await).0, expected);
    }
}

async fn a_forgotten_revision_is_told(h: &Harness) {
    let watch = |revision: &str| WatchRequest {
        kind: "ConfigMap".into(),
        resource_version: revision.into(),
        ..Default::default()
    };
    for (revision, code) in [("0", Code::OutOfRange), ("999999999", Code::OutOfRange), ("x", Code::InvalidArgument)] {
        let status = match h.api().watch(watch(revision)).await {
            Err(status) => status,
            Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        };
        assert_eq!(status.code(), code, "{revision}: {}", status.message());
    }
}

async fn pods_stop_before_they_go(h: &Harness) {
    h.create(pod("unbound", "")).await.unwrap();
    assert!(h.delete("pod", "unbound").await.unwrap().gone, "no node can have started it");
    h.create(pod("bound", "n1")).await.unwrap();
    assert!(!h.delete("pod", "bound").await.unwrap().gone);
    let stopping = h.get::<Pod>("bound").await.unwrap();
    assert!(stopping.is_terminating());
    assert_eq!(stopping.meta().deletion_grace_period_seconds, Some(30));
    h.delete("pod", "bound").await.unwrap();
    assert_eq!(h.get::<Pod>("bound").await.unwrap(), stopping, "asking again changes nothing");
    let force =
        DeleteRequest { kind: "pod".into(), name: "bound".into(), grace_period_seconds: Some(0), ..Default::default() };
    assert!(h.api().delete(force).await.unwrap().into_inner().gone);
}

async fn sets_go_as_asked(h: &Harness) {
    for (propagation, finalizer) in [
        (Propagation::Foreground, Some("foregroundDeletion")),
        (Propagation::Orphan, Some("orphan")),
        (Propagation::Background, None),
    ] {
        h.apply(&[nginx(), web()]).await.unwrap();
        let request = DeleteRequest {
            kind: "sts".into(),
            name: "web".into(),
            propagation: propagation.into(),
            ..Default::default()
        };
        let dry = h.api().delete(DeleteRequest { dry_run: true, ..request.clone() }).await.unwrap().into_inner();
        assert_eq!(dry.gone, finalizer.is_none());
        let response = h.api().delete(request).await.unwrap().into_inner();
        assert_eq!(response.gone, finalizer.is_none());
        let Some(finalizer) = finalizer else { continue };
        let mut set = h.get::<StatefulSet>("web").await.unwrap();
        assert!(set.is_terminating());
        assert_eq!(set.meta().finalizers, [finalizer]);
        // The last finalizer takes the object with it.
        set.meta_mut().finalizers.clear();
        let update = UpdateRequest { object: Some(pb::Object::into_any(set)), ..Default::default() };
        h.api().update(update).await.unwrap();
        assert_eq!(h.get::<StatefulSet>("web").await.unwrap_err().code(), Code::NotFound);
    }
}

async fn a_collection_goes_as_it_was_listed(h: &Harness) {
    for name in ["a", "b", "c", "d"] {
        h.create(config_map(name, &[("app", "x")])).await.unwrap();
    }
    h.create(config_map("e", &[])).await.unwrap();
    let mut request = DeleteCollectionRequest {
        kind: "configmaps".into(),
        namespace: "default".into(),
        label_selector: "app=x".into(),
        limit: 1,
        ..Default::default()
    };
    let mut deleted = Vec::new();
    let mut remade = None;
    loop {
        let page = h.api().delete_collection(request.clone()).await.unwrap().into_inner();
        assert_eq!(usize::try_from(page.count), Ok(page.items.len()));
        deleted.extend(page.items.into_iter().map(|item| (item.name, item.gone)));
        if remade.is_none() {
            // One that was listed goes, one makes room for another of its name.
            h.delete("configmap", "b").await.unwrap();
            h.delete("configmap", "c").await.unwrap();
            remade = Some(h.create(config_map("c", &[("app", "x")])).await.unwrap());
        }
        if page.r#continue.is_empty() {
            break;
        }
        request.r#continue = page.r#continue;
    }
    assert_eq!(deleted, [("a".to_owned(), true), ("d".to_owned(), true)]);
    let left = h.list(ListRequest { kind: "ConfigMap".into(), ..Default::default() }).await;
    assert_eq!(left.items.iter().map(name_of).collect::<Vec<_>>(), ["c", "e"]);
    assert_eq!(h.get::<ConfigMap>("c").await.unwrap().uid(), remade.unwrap().uid());
    let nonsense = DeleteCollectionRequest { kind: "ConfigMap".into(), label_selector: "a in".into(), ..request };
    assert_eq!(h.api().delete_collection(nonsense).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn a_set_whose_pods_go_in_order_stays_until_they_have(h: &Harness) {
    let mut manifest = web();
    (manifest["apiVersion"], manifest["spec"]["deletionOrder"]) = (json!("berth/v1"), json!("Ordered"));
    h.apply(&[nginx(), manifest.clone()]).await.unwrap();
    let ask = async |propagation: Propagation| {
        let (kind, name, propagation) = ("sts".into(), "web".into(), propagation.into());
        let request = DeleteRequest { kind, name, propagation, ..Default::default() };
        let response = h.api().delete(request).await.unwrap().into_inner();
        assert!(!response.gone);
        response.object.unwrap().meta().clone()
    };
    let first = ask(Propagation::Background).await;
    assert_eq!(first.finalizers, ["berth.dev/ordered-deletion"]);
    assert_eq!(ask(Propagation::Background).await, first, "asking twice changes nothing");
    assert_eq!(ask(Propagation::Foreground).await.finalizers, ["berth.dev/ordered-deletion", "foregroundDeletion"]);
    // Applying a manifest in between neither saves the set nor frees it.
    manifest["spec"]["deletionOrder"] = json!("Parallel");
    h.apply(&[manifest]).await.unwrap();
    let set = h.get::<StatefulSet>("web").await.unwrap();
    assert!(set.is_terminating() && set.meta().finalizers.len() == 2);
    // Whoever wants the pods to stay wants no order.
    assert_eq!(ask(Propagation::Orphan).await.finalizers, ["orphan"]);
}

async fn scale_changes_replicas_alone(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let scale = h.api().get_scale(GetScaleRequest { name: "web".into(), ..Default::default() }).await.unwrap();
    let scale = scale.into_inner().scale.unwrap();
    assert_eq!((scale.spec_replicas, scale.selector.as_str()), (3, "app=nginx"));
    let request = UpdateScaleRequest {
        name: "web".into(),
        replicas: 5,
        resource_version: scale.metadata.unwrap().resource_version,
        ..Default::default()
    };
    let done = h.api().update_scale(request.clone()).await.unwrap().into_inner().scale.unwrap();
    assert_eq!(done.spec_replicas, 5);
    assert_eq!(h.api().update_scale(request).await.unwrap_err().code(), Code::Aborted);
    let negative = UpdateScaleRequest { name: "web".into(), replicas: -1, ..Default::default() };
    assert_eq!(h.api().update_scale(negative).await.unwrap_err().code(), Code::InvalidArgument);
    let stored = h.store.get(&Key::object(pb::Kind::StatefulSet, "default", "web")).await.unwrap().unwrap();
    let set: StatefulSet = store::objects::decode(&stored).unwrap();
    assert_eq!((set.meta().generation, set.spec.unwrap().replicas), (2, Some(5)));
}

async fn why_names_what_holds_a_pod_up(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let why = |name: &str| WhyRequest { name: name.into(), ..Default::default() };
    let answer = h.api().why(why("web")).await.unwrap().into_inner();
    assert!(answer.summary.starts_with("statefulset web has 0 of 3 replicas"), "{answer:#?}");
    // No controller runs here, and that is what is to be seen.
    let first = h.api().why(why("web-0")).await.unwrap().into_inner();
    assert_eq!(first.reasons[0].reason, "ControllerDue", "{first:#?}");
    assert_eq!(h.api().why(why("db")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(h.api().why(why("service/nginx")).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn no_accepted_update_is_lost(h: &Harness) {
    h.create(config_map("a", &[])).await.unwrap();
    let patch = |writer: usize, at: usize| {
        let key = format!("{writer}-{at}");
        let body = json!({"data": {key.as_str(): "x"}}).to_string().into_bytes();
        (key, PatchRequest { kind: "ConfigMap".into(), name: "a".into(), patch: body, ..Default::default() })
    };
    let writers = (0..8).map(|writer| async move {
        let mut accepted = Vec::new();
        for at in 0..10 {
            let (key, request) = patch(writer, at);
            match h.api().patch(request).await {
                // Accepted means seen by the very next read.
                Ok(_) => {
                    assert!(h.get::<ConfigMap>("a").await.unwrap().data.contains_key(&key));
                    accepted.push(key);
                }
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{}", status.message()),
            }
        }
        accepted
    });
    let accepted: Vec<_> = futures::future::join_all(writers).await.into_iter().flatten().collect();
    assert!(accepted.len() >= 40, "only {} of 80 were accepted", accepted.len());
    let stored = h.get::<ConfigMap>("a").await.unwrap();
    assert!(accepted.iter().all(|key| stored.data.contains_key(key)));
}
