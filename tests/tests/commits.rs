//! How many sequential commits an ordinal costs, counted from the store's own history.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use store::{Event, Prefix, Revision, Store, WatchItem};
use tests::{
    client::{NAMESPACE, is_ready, set_manifest},
    control::ControlPlane,
};

const ORDINALS: i32 = 20;

/// Every revision after `since` up to the present one, with the keys that it changed.
async fn history(store: &dyn Store, since: Revision) -> Result<BTreeMap<Revision, Vec<String>>> {
    let now = store.list(&Prefix::all(), store::PageRequest { limit: 1, ..Default::default() }).await?.revision;
    let mut watch = store.watch(&Prefix::all(), since).await?;
    let mut history = BTreeMap::new();
    let read = async {
        while let Some(item) = watch.next().await {
            let WatchItem::Events(revision, events) = item? else { continue };
            let keys = events.iter().map(|event| match event {
                Event::Put(kv) => kv.key.to_string(),
                Event::Delete(key, _) => format!("{key} (deleted)"),
            });
            history.insert(revision, keys.collect());
            if revision >= now {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    // Revisions that changed nothing under our root (leases) may end the history early: a silent watch ends it too.
    if let Ok(read) = tokio::time::timeout(Duration::from_secs(2), read).await {
        read?;
    }
    Ok(history)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinal_costs_two_sequential_commits() -> Result<()> {
    let plane = ControlPlane::start(5).await?;
    let store = plane.etcd.store().await?;
    let since = store.list(&Prefix::all(), store::PageRequest { limit: 1, ..Default::default() }).await?.revision;
    let (_, from) = plane.client.list::<pb::objects::Pod>("").await?;

    plane.client.apply(&[set_manifest("two", ORDINALS)]).await?;
    let last = format!("two-{}", ORDINALS - 1);
    plane
        .client
        .follow_pods("app=two", &from, Duration::from_secs(60), |heard| {
            heard.pod.metadata.as_ref().is_some_and(|meta| meta.name == last) && is_ready(&heard.pod)
        })
        .await?;

    let history = history(&store, since).await?;
    let mut before = 0;
    for ordinal in 0..ORDINALS {
        let pod = format!("/berth/pods/{NAMESPACE}/two-{ordinal}");
        let claim = format!("/berth/persistentvolumeclaims/{NAMESPACE}/www-two-{ordinal}");
        let of = |key: &str| -> Vec<Revision> {
            history.iter().filter(|(_, keys)| keys.iter().any(|k| k == key)).map(|(revision, _)| *revision).collect()
        };
        let [created, ready] = of(&pod)[..] else {
            bail!("two-{ordinal} was written at revisions {:?}, not twice:\n{history:#?}", of(&pod));
        };
        assert_eq!(of(&claim), [created], "the claim of two-{ordinal} is written with its pod, and never again");
        let together = &history[&created];
        assert!(
            together.iter().any(|key| key.starts_with("/berth/persistentvolumes/")),
            "the volume of two-{ordinal} is written with its pod: {together:?}"
        );
        assert!(before < created, "two-{ordinal} was created before its predecessor was ready");
        before = ready;
    }
    let on_path = 2 * usize::try_from(ORDINALS)?;
    let aside: BTreeMap<String, usize> = history
        .values()
        .filter(|keys| !keys.iter().any(|key| key.starts_with("/berth/pods/")))
        .flatten()
        .fold(BTreeMap::new(), |mut count, key| {
            let kind = key.split('/').nth(2).unwrap_or_default().to_owned();
            *count.entry(kind).or_default() += 1;
            count
        });
    println!("{ORDINALS} ordinals: {on_path} commits in sequence (2 an ordinal); beside them, by kind: {aside:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_system_writes_nothing() -> Result<()> {
    let plane = ControlPlane::start(3).await?;
    let store = plane.etcd.store().await?;
    let (_, from) = plane.client.list::<pb::objects::Pod>("").await?;
    plane.client.apply(&[set_manifest("still", 3)]).await?;
    plane
        .client
        .follow_pods("app=still", &from, Duration::from_secs(60), |heard| {
            heard.pod.metadata.as_ref().is_some_and(|meta| meta.name == "still-2") && is_ready(&heard.pod)
        })
        .await?;
    // Coalesced writes (the set's status, events) may still come; then there must be silence for longer than any timer
    // that a settled system could have.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut revision = 0;
    loop {
        let now = store.list(&Prefix::all(), store::PageRequest { limit: 1, ..Default::default() }).await?.revision;
        if now == revision {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let noise = history(&store, revision - 5).await.context("read what was written")?;
            bail!("the system still writes after a minute: {noise:#?}");
        }
        revision = now;
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
}
