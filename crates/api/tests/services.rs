//! Virtual addresses of Services: given, kept, unique, given back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::Harness;
use pb::{api::v1::*, objects::*};
use serde_json::{Value, json};
use store::{Key, Prefix};
use tonic::Code;

fn service(name: &str, mut spec: Value) -> Value {
    let fields = json!({"selector": {"app": "nginx"}, "ports": [{"port": 80}]});
    for (key, value) in fields.as_object().unwrap() {
        spec.as_object_mut().unwrap().entry(key).or_insert(value.clone());
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

async fn address(h: &Harness, name: &str) -> String {
    let spec = h.get::<Service>(name).await.unwrap().spec.unwrap();
    assert!(spec.cluster_ip.is_empty() || spec.cluster_ips == [spec.cluster_ip.clone()], "{spec:?}");
    spec.cluster_ip
}

/// The addresses that are held, with their holders.
async fn held(h: &Harness) -> BTreeSet<(String, String)> {
    let page = h.store.list(&Prefix::from_raw("/berth/clusterips/"), Default::default()).await.unwrap();
    page.items.iter().map(|kv| (kv.key.name().to_owned(), String::from_utf8(kv.value.to_vec()).unwrap())).collect()
}

#[tokio::test]
async fn a_service_is_given_an_address_keeps_it_and_gives_it_back() {
    let h = Harness::over_memory().await;
    h.apply(&[service("web", json!({}))]).await.unwrap();
    let first = address(&h, "web").await;
    assert!(first.starts_with("10.96.0."), "{first}");
    assert_eq!(held(&h).await, [(first.clone(), "default/web".to_owned())].into());

    let results = h.apply(&[service("web", json!({}))]).await.unwrap();
    assert_eq!(results[0].outcome, "unchanged");
    h.apply(&[service("web", json!({"ports": [{"port": 81}]}))]).await.unwrap();
    assert_eq!(address(&h, "web").await, first);
    // A replacement that leaves the address out, as a client would that never looked at it.
    let mut bare = h.get::<Service>("web").await.unwrap();
    let spec = bare.spec.as_mut().unwrap();
    spec.cluster_ip.clear();
    spec.cluster_ips.clear();
    let request = UpdateRequest { object: Some(pb::Object::into_any(bare)), ..Default::default() };
    h.api().update(request).await.unwrap();
    assert_eq!(address(&h, "web").await, first);

    let refused = h.apply(&[service("web", json!({"clusterIP": "10.96.0.30"}))]).await.unwrap_err();
    assert!(refused.message().contains("field is immutable"), "{refused:?}");

    h.delete("Service", "web").await.unwrap();
    assert_eq!(held(&h).await, BTreeSet::new());
}

#[tokio::test]
async fn an_address_that_a_user_chose_is_free_or_refused() {
    let h = Harness::over_memory().await;
    h.apply(&[service("web", json!({"clusterIP": "10.96.0.5"}))]).await.unwrap();
    let taken = h.apply(&[service("other", json!({"clusterIP": "10.96.0.5"}))]).await.unwrap_err();
    assert_eq!(taken.code(), Code::InvalidArgument);
    assert!(taken.message().contains("is the address of service default/web"), "{taken:?}");
    let outside = h.apply(&[service("other", json!({"clusterIP": "10.97.0.5"}))]).await.unwrap_err();
    assert!(outside.message().contains("must be an address of 10.96.0.0/27"), "{outside:?}");
    // What a user takes out of the manifest stays nevertheless: an address is for life.
    h.apply(&[service("web", json!({}))]).await.unwrap();
    assert_eq!(address(&h, "web").await, "10.96.0.5");
}

#[tokio::test]
async fn a_change_of_type_gives_the_address_back_and_takes_a_new_one() {
    let h = Harness::over_memory().await;
    h.apply(&[service("db", json!({}))]).await.unwrap();
    let external = json!({"type": "ExternalName", "externalName": "db.example.com"});
    h.apply(&[service("db", external.clone())]).await.unwrap();
    assert_eq!((address(&h, "db").await, held(&h).await), (String::new(), BTreeSet::new()));
    h.apply(&[service("db", json!({"type": "ClusterIP"}))]).await.unwrap();
    let again = address(&h, "db").await;
    assert_eq!(held(&h).await, [(again, "default/db".to_owned())].into());
    h.apply(&[service("headless", json!({"clusterIP": "None"}))]).await.unwrap();
    assert_eq!(held(&h).await.len(), 1);
}

#[tokio::test]
async fn many_at_once_get_different_addresses_until_there_are_none_left() {
    let h = Harness::over_memory().await;
    // A key whose Service is gone: it is taken over when all others are given out.
    let orphan = store::Op::Put(Key::cluster_ip("10.96.0.20".parse().unwrap()), "default/gone".into(), None);
    h.store.txn(store::Txn { guards: vec![], ops: vec![orphan] }).await.unwrap();
    let names: Vec<String> = (0..30).map(|n| format!("web-{n}")).collect();
    let making = names.iter().map(|name| {
        let manifest = service(name, json!({}));
        let h = &h;
        async move {
            // Replicas whose caches are behind choose the same now and then, and say so: then one asks again.
            loop {
                match h.apply(std::slice::from_ref(&manifest)).await {
                    Err(status) if status.code() == Code::Aborted => {}
                    other => break other.map(drop),
                }
            }
        }
    });
    for made in futures::future::join_all(making).await {
        made.unwrap();
    }
    let held = held(&h).await;
    assert_eq!(held.len(), 30, "{held:?}");
    let mut told = BTreeSet::new();
    for name in &names {
        told.insert((address(&h, name).await, format!("default/{name}")));
    }
    assert_eq!(told, held);

    let full = h.apply(&[service("late", json!({}))]).await.unwrap_err();
    assert_eq!(full.code(), Code::FailedPrecondition);
    assert!(full.message().contains("--service-cidr"), "{full:?}");
    h.delete("Service", "web-7").await.unwrap();
    h.apply(&[service("late", json!({}))]).await.unwrap();
}
