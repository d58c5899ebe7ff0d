//! What every store does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use store::{
    Error, Event, Guard, Key, Kv, LeaseId, Op, PageRequest, Prefix, Revision, Store, Txn, TxnOutcome, WatchItem,
    WatchStream,
};

use crate::Subject;

/// Longer than anything here may take; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn key(name: &str) -> Key {
    Key::from_raw(format!("/berth/pods/default/{name}"))
}

pub fn pods() -> Prefix {
    Prefix::from_raw("/berth/pods/")
}

pub fn put(name: &str, value: &str) -> Op {
    Op::Put(key(name), Bytes::copy_from_slice(value.as_bytes()), None)
}

fn put_on(name: &str, value: &str, lease: LeaseId) -> Op {
    Op::Put(key(name), Bytes::copy_from_slice(value.as_bytes()), Some(lease))
}

pub fn delete(name: &str) -> Op {
    Op::Delete(key(name))
}

pub fn txn(guards: impl Into<Vec<Guard>>, ops: impl Into<Vec<Op>>) -> Txn {
    Txn { guards: guards.into(), ops: ops.into() }
}

/// Makes changes that must succeed; their revision.
pub async fn commit(store: &Arc<dyn Store>, guards: impl Into<Vec<Guard>>, ops: impl Into<Vec<Op>>) -> Revision {
    match store.txn(txn(guards, ops)).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict => panic!("a guard did not hold"),
    }
}

async fn conflicts(store: &Arc<dyn Store>, guards: impl Into<Vec<Guard>>) {
    let before = all(store).await;
    let outcome = store.txn(txn(guards, [put("a", "changed"), put("new", "changed"), delete("b")])).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Conflict);
    assert_eq!(all(store).await, before, "a conflict changed something");
}

pub async fn get(store: &Arc<dyn Store>, name: &str) -> Option<Kv> {
    store.get(&key(name)).await.unwrap()
}

pub async fn all(store: &Arc<dyn Store>) -> (Vec<Kv>, Revision) {
    let page = store.list(&Prefix::all(), PageRequest::default()).await.unwrap();
    assert!(!page.more);
    (page.items, page.revision)
}

/// The next changes of a watch.
pub async fn changes(watch: &mut WatchStream) -> (Revision, Vec<Event>) {
    loop {
        let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch is silent");
        match item.expect("a watch ended").unwrap() {
            WatchItem::Events(revision, events) => return (revision, events),
            WatchItem::Progress(_) => {}
        }
    }
}

async fn watch_error(store: &Arc<dyn Store>, after: Revision) -> Error {
    let mut watch = store.watch(&pods(), after).await.unwrap();
    let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch is silent");
    let error = item.expect("a watch ended").expect_err("a watch from before the compaction");
    assert!(watch.next().await.is_none(), "a watch goes on after an error");
    error
}

/// Short form of events: what, which key, value.
pub fn brief(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Put(kv) => format!("{}={}", kv.key.name(), String::from_utf8_lossy(&kv.value)),
            Event::Delete(key, _) => format!("-{}", key.name()),
        })
        .collect()
}

pub async fn absent_guard(s: Subject) {
    commit(&s.store, [Guard::Absent(key("a"))], [put("a", "1"), put("b", "1")]).await;
    conflicts(&s.store, [Guard::Absent(key("a"))]).await;
    conflicts(&s.store, [Guard::Absent(key("c")), Guard::Absent(key("a"))]).await;
    commit(&s.store, [], [delete("a")]).await;
    commit(&s.store, [Guard::Absent(key("a"))], [put("a", "2")]).await;
}

pub async fn mod_revision_guard(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    let second = commit(&s.store, [Guard::ModRevision(key("a"), first)], [put("a", "2")]).await;
    conflicts(&s.store, [Guard::ModRevision(key("a"), first)]).await;
    conflicts(&s.store, [Guard::ModRevision(key("a"), second + 1)]).await;
    conflicts(&s.store, [Guard::ModRevision(key("a"), second), Guard::ModRevision(key("b"), second)]).await;
    commit(&s.store, [Guard::ModRevision(key("a"), second)], [delete("a")]).await;
    conflicts(&s.store, [Guard::ModRevision(key("a"), second)]).await;
}

pub async fn create_revision_guard(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    commit(&s.store, [], [put("a", "2")]).await;
    commit(&s.store, [Guard::CreateRevision(key("a"), first)], [put("a", "3")]).await;
    conflicts(&s.store, [Guard::CreateRevision(key("a"), first + 1)]).await;
    commit(&s.store, [], [delete("a")]).await;
    conflicts(&s.store, [Guard::CreateRevision(key("a"), first)]).await;
    commit(&s.store, [], [put("a", "4")]).await;
    conflicts(&s.store, [Guard::CreateRevision(key("a"), first)]).await;
}

pub async fn prefix_guard(s: Subject) {
    // Nothing is newer than any revision, not even where there is nothing.
    commit(&s.store, [Guard::PrefixNotNewer(pods(), 0)], [put("a", "1"), put("b", "1")]).await;
    let seen = commit(&s.store, [], [put("a", "2")]).await;
    let other = Op::Put(Key::from_raw("/berth/podsecurity/x"), Bytes::new(), None);
    commit(&s.store, [], [other]).await;
    commit(&s.store, [Guard::PrefixNotNewer(pods(), seen)], []).await;
    conflicts(&s.store, [Guard::PrefixNotNewer(pods(), seen - 1)]).await;
    conflicts(&s.store, [Guard::PrefixNotNewer(pods(), 0)]).await;
    conflicts(&s.store, [Guard::PrefixNotNewer(pods(), -1)]).await;
    conflicts(&s.store, [Guard::PrefixNotNewer(Prefix::from_raw("/berth/nothing/"), -1)]).await;
    // Deletions are not noticed.
    commit(&s.store, [], [delete("b")]).await;
    commit(&s.store, [Guard::PrefixNotNewer(pods(), seen)], [put("a", "3")]).await;
    conflicts(&s.store, [Guard::PrefixNotNewer(pods(), seen)]).await;
}

pub async fn guards_without_a_present(s: Subject) {
    commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    for revision in [-1, 0] {
        conflicts(&s.store, [Guard::ModRevision(key("missing"), revision)]).await;
        conflicts(&s.store, [Guard::CreateRevision(key("missing"), revision)]).await;
    }
    conflicts(&s.store, [Guard::ModRevision(key("missing"), 1)]).await;
    conflicts(&s.store, [Guard::CreateRevision(key("missing"), 1)]).await;
}

pub async fn conflict_changes_nothing(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    let guards = [
        Guard::Absent(key("c")),
        Guard::ModRevision(key("a"), first),
        Guard::CreateRevision(key("b"), first),
        Guard::PrefixNotNewer(pods(), first),
    ];
    conflicts(&s.store, [guards.as_slice(), &[Guard::Absent(key("a"))]].concat()).await;
    conflicts(&s.store, [guards.as_slice(), &[Guard::ModRevision(key("b"), first + 1)]].concat()).await;
    let second = commit(&s.store, guards, [put("a", "2"), put("c", "1"), delete("b")]).await;
    let (items, revision) = all(&s.store).await;
    assert_eq!(revision, second);
    let brief: Vec<_> = items.iter().map(|kv| (kv.key.name(), kv.create_revision, kv.mod_revision)).collect();
    assert_eq!(brief, [("a", first, second), ("c", second, second)]);
}

pub async fn one_revision_per_transaction(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1"), put("c", "1")]).await;
    let second = commit(&s.store, [], [put("a", "2"), delete("b"), put("d", "1")]).await;
    assert_eq!(second, first + 1);
    let a = get(&s.store, "a").await.unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.value.as_ref(), a.lease), (first, second, b"2".as_ref(), None));
    assert_eq!(get(&s.store, "b").await, None);
    let d = get(&s.store, "d").await.unwrap();
    assert_eq!((d.create_revision, d.mod_revision), (second, second));
}

pub async fn nothing_to_do_takes_no_revision(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1")]).await;
    assert_eq!(commit(&s.store, [], []).await, first);
    assert_eq!(commit(&s.store, [Guard::ModRevision(key("a"), first)], [delete("missing")]).await, first);
    assert_eq!(commit(&s.store, [], [put("a", "1")]).await, first + 1, "the same value again is a write");
}

pub async fn delete_and_make_again(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1")]).await;
    commit(&s.store, [], [put("a", "2")]).await;
    commit(&s.store, [], [delete("a")]).await;
    let again = commit(&s.store, [Guard::Absent(key("a"))], [put("a", "3")]).await;
    let kv = get(&s.store, "a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (again, again));
    let past = PageRequest { revision: Some(first), ..PageRequest::default() };
    let page = s.store.list(&pods(), past).await.unwrap();
    assert_eq!(page.items[0].value.as_ref(), b"1");
}

pub async fn limits_are_refused(s: Subject) {
    let refused = |txn: Txn| {
        let store = s.store.clone();
        async move {
            let error = store.txn(txn).await.expect_err("more than a store takes");
            assert!(matches!(error, Error::Refused(_)), "{error:?}");
        }
    };
    let names: Vec<String> = (0..=Txn::MAX).map(|i| format!("n{i:04}")).collect();
    refused(txn([], names.iter().map(|name| put(name, "x")).collect::<Vec<_>>())).await;
    refused(txn(names.iter().map(|name| Guard::Absent(key(name))).collect::<Vec<_>>(), [])).await;
    refused(txn([], [put("a", "1"), put("a", "2")])).await;
    refused(txn([], [put("a", "1"), delete("a")])).await;
    refused(txn([], [put("a", &"x".repeat(1536 * 1024))])).await;
    assert_eq!(all(&s.store).await.0, []);
    // As much as is allowed goes through, in guards and in changes.
    let some = &names[..Txn::MAX];
    let revision = commit(
        &s.store,
        some.iter().map(|name| Guard::Absent(key(name))).collect::<Vec<_>>(),
        some.iter().map(|name| put(name, "x")).collect::<Vec<_>>(),
    )
    .await;
    let (items, _) = all(&s.store).await;
    assert_eq!(items.len(), Txn::MAX);
    assert!(items.iter().all(|kv| kv.mod_revision == revision));
    commit(&s.store, [], [put("a", &"x".repeat(Txn::MAX_BYTES - 64))]).await;
}

pub async fn pages_are_pinned(s: Subject) {
    for i in 0..25 {
        commit(&s.store, [], [put(&format!("n{i:02}"), "old")]).await;
    }
    let mut page = PageRequest { limit: 10, ..PageRequest::default() };
    let mut names = Vec::new();
    let mut lengths = Vec::new();
    loop {
        let got = s.store.list(&pods(), page.clone()).await.unwrap();
        assert!(page.revision.is_none_or(|revision| revision == got.revision));
        assert!(got.items.iter().all(|kv| kv.value.as_ref() == b"old"));
        lengths.push(got.items.len());
        names.extend(got.items.iter().map(|kv| kv.key.name().to_owned()));
        if !got.more {
            break;
        }
        page.revision = Some(got.revision);
        page.after = got.items.last().map(|kv| kv.key.clone());
        // Between pages the world turns.
        commit(&s.store, [], [put("n00", "new"), put("n24", "new"), put("n10a", "new"), delete("n15")]).await;
    }
    assert_eq!(lengths, [10, 10, 5]);
    assert_eq!(names, (0..25).map(|i| format!("n{i:02}")).collect::<Vec<_>>());
    let exact = PageRequest { limit: 25, ..page };
    assert!(!s.store.list(&pods(), PageRequest { after: None, ..exact }).await.unwrap().more);
}

pub async fn pages_at_odd_revisions(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1")]).await;
    let at = |revision| PageRequest { revision: Some(revision), ..PageRequest::default() };
    for revision in [-1, 0, first + 1, i64::MAX] {
        let error = s.store.list(&pods(), at(revision)).await.expect_err("no such revision");
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
    }
    // Behind the prefix, and before it.
    for (after, expected) in [("/berth/q", 0), ("/berth/pods/default/a", 0), ("/a", 1), ("/berth/pods/default/A", 1)] {
        let page = PageRequest { after: Some(Key::from_raw(after)), ..PageRequest::default() };
        let page = s.store.list(&pods(), page).await.unwrap();
        assert_eq!((page.items.len(), page.revision, page.more), (expected, first, false), "after {after}");
    }
}

pub async fn watch_tells_everything_once(s: Subject) {
    let start = commit(&s.store, [], [put("a", "0")]).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    let store = s.store.clone();
    let writer = tokio::spawn(async move {
        let mut revisions = Vec::new();
        for i in 0..200 {
            revisions.push(commit(&store, [], [put("a", &i.to_string())]).await);
        }
        revisions
    });
    let mut told = Vec::new();
    for i in 0..200 {
        let (revision, events) = changes(&mut watch).await;
        assert_eq!(brief(&events), [format!("a={i}")]);
        assert!(matches!(&events[0], Event::Put(kv) if kv.mod_revision == revision && kv.create_revision == start));
        told.push(revision);
    }
    assert_eq!(told, writer.await.unwrap());
}

pub async fn watch_from_the_past(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    let second = commit(&s.store, [], [delete("a"), put("c", "1")]).await;
    let third = commit(&s.store, [], [put("a", "2")]).await;
    for (after, expected) in [
        (0, vec![first, second, third]),
        (first - 1, vec![first, second, third]),
        (first, vec![second, third]),
        (second, vec![third]),
    ] {
        let mut watch = s.store.watch(&pods(), after).await.unwrap();
        for revision in expected {
            assert_eq!(changes(&mut watch).await.0, revision);
        }
    }
    let mut watch = s.store.watch(&pods(), first).await.unwrap();
    let (_, events) = changes(&mut watch).await;
    assert_eq!(events[0], Event::Delete(key("a"), second));
    assert_eq!(brief(&events), ["-a", "c=1"]);
}

pub async fn watch_keeps_transactions_whole(s: Subject) {
    let start = commit(&s.store, [], [put("start", "")]).await;
    let mut live = s.store.watch(&pods(), start).await.unwrap();
    // Larger in sum than etcd puts in one piece, in many operations and in order of the operations.
    let value = "x".repeat(11 * 1024);
    let names: Vec<String> = (0..Txn::MAX).rev().map(|i| format!("n{i:03}")).collect();
    let ops: Vec<Op> = names.iter().map(|name| put(name, &value)).collect();
    let mut revisions = Vec::new();
    for _ in 0..4 {
        revisions.push(commit(&s.store, [], ops.clone()).await);
    }
    let mut late = s.store.watch(&pods(), start).await.unwrap();
    for watch in [&mut live, &mut late] {
        for expected in &revisions {
            let (revision, events) = changes(watch).await;
            assert_eq!(revision, *expected);
            let told: Vec<&str> = events
                .iter()
                .map(|event| match event {
                    Event::Put(kv) => kv.key.name(),
                    Event::Delete(..) => panic!("nothing was deleted"),
                })
                .collect();
            assert_eq!(told, names);
        }
    }
}

pub async fn watch_of_the_future(s: Subject) {
    let now = commit(&s.store, [], [put("a", "0")]).await;
    let mut watch = s.store.watch(&pods(), now + 2).await.unwrap();
    let mut control = s.store.watch(&pods(), now).await.unwrap();
    for i in 1..=4 {
        commit(&s.store, [], [put("a", &i.to_string())]).await;
        assert_eq!(changes(&mut control).await.0, now + i);
    }
    assert_eq!(changes(&mut watch).await.0, now + 3);
    assert_eq!(changes(&mut watch).await.0, now + 4);
}

pub async fn watch_of_a_prefix_is_no_neighbours(s: Subject) {
    let neighbour = |value: &str| Op::Put(Key::from_raw("/berth/podsecurity/x"), value.to_owned().into(), None);
    let start = commit(&s.store, [], [neighbour("0")]).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    commit(&s.store, [], [neighbour("1")]).await;
    let both = commit(&s.store, [], [neighbour("2"), put("a", "1")]).await;
    let (revision, events) = changes(&mut watch).await;
    assert_eq!((revision, brief(&events)), (both, vec!["a=1".to_owned()]));
}

pub async fn compaction(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1"), put("b", "1")]).await;
    let second = commit(&s.store, [], [put("a", "2")]).await;
    let third = commit(&s.store, [], [delete("b")]).await;
    let fourth = commit(&s.store, [], [put("a", "3")]).await;
    s.compact(third).await.unwrap();

    let at = |revision| PageRequest { revision: Some(revision), ..PageRequest::default() };
    for revision in [first, second] {
        let error = s.store.list(&pods(), at(revision)).await.expect_err("a compacted revision");
        assert!(matches!(error, Error::Compacted { requested, .. } if requested == revision), "{error:?}");
    }
    assert_eq!(s.store.list(&pods(), at(third)).await.unwrap().items.len(), 1);
    for after in [0, first, second] {
        let error = watch_error(&s.store, after).await;
        assert!(matches!(error, Error::Compacted { requested, .. } if requested == after + 1), "{after}: {error:?}");
    }
    let mut watch = s.store.watch(&pods(), third).await.unwrap();
    assert_eq!(changes(&mut watch).await.0, fourth);
    assert_eq!(get(&s.store, "a").await.unwrap().create_revision, first);
    commit(&s.store, [Guard::ModRevision(key("a"), fourth), Guard::Absent(key("b"))], [put("b", "2")]).await;

    assert!(matches!(s.compact(third).await, Err(Error::Compacted { .. })));
    assert!(matches!(s.compact(fourth + 10).await, Err(Error::Refused(_))));
}

/// A watch that starts at the compacted revision itself would miss a deletion in it (etcd before 3.4.36).
pub async fn compaction_at_the_edge_of_a_watch(s: Subject) {
    let first = commit(&s.store, [], [put("a", "1")]).await;
    let gone = commit(&s.store, [], [delete("a")]).await;
    commit(&s.store, [], [put("b", "1")]).await;
    s.compact(gone).await.unwrap();
    assert!(matches!(watch_error(&s.store, first).await, Error::Compacted { .. }));
}

pub async fn lease_end_deletes_and_is_told(s: Subject) {
    let lease = s.store.grant_lease(Duration::from_millis(1500)).await.unwrap();
    let start = commit(&s.store, [], [put_on("b", "1", lease), put_on("a", "1", lease), put("c", "1")]).await;
    assert_eq!(get(&s.store, "a").await.unwrap().lease, Some(lease));
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    s.pass(Duration::from_secs(2));
    let (revision, events) = changes(&mut watch).await;
    assert_eq!(revision, start + 1, "the end of a lease is one change");
    assert_eq!(brief(&events), ["-a", "-b"]);
    assert_eq!(all(&s.store).await.0.len(), 1);
    assert!(matches!(s.store.renew_lease(lease).await, Err(Error::LeaseEnded(ended)) if ended == lease));
}

pub async fn lease_renewal(s: Subject) {
    let lease = s.store.grant_lease(Duration::from_secs(2)).await.unwrap();
    let other = s.store.grant_lease(Duration::from_secs(2)).await.unwrap();
    let start = commit(&s.store, [], [put_on("kept", "1", lease), put_on("left", "1", other)]).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    // While one is renewed, the other ends.
    let mut gone = None;
    while gone.is_none() {
        assert_eq!(s.store.renew_lease(lease).await.unwrap(), Duration::from_secs(2));
        s.pass(Duration::from_millis(500));
        tokio::select! {
            change = changes(&mut watch) => gone = Some(change),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    let (revision, events) = gone.unwrap();
    assert_eq!((revision, brief(&events)), (start + 1, vec!["-left".to_owned()]), "renewing writes nothing");
    assert!(s.store.renew_lease(lease).await.is_ok());
}

pub async fn lease_revoked(s: Subject) {
    let lease = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let start = commit(&s.store, [], [put_on("a", "1", lease), put_on("b", "1", lease)]).await;
    s.store.revoke_lease(lease).await.unwrap();
    let (items, revision) = all(&s.store).await;
    assert_eq!((items.len(), revision), (0, start + 1));
    assert!(matches!(s.store.renew_lease(lease).await, Err(Error::LeaseEnded(_))));
    s.store.revoke_lease(lease).await.unwrap();
    // The end of a lease without keys is no change.
    let empty = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    s.store.revoke_lease(empty).await.unwrap();
    assert_eq!(all(&s.store).await.1, start + 1);
}

pub async fn lease_that_ended_takes_no_keys(s: Subject) {
    let start = commit(&s.store, [], [put("a", "1")]).await;
    let lease = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    s.store.revoke_lease(lease).await.unwrap();
    let put = txn([Guard::ModRevision(key("a"), start)], [put("a", "2"), put_on("b", "1", lease), delete("a2")]);
    let error = s.store.txn(put).await.expect_err("the lease has ended");
    assert!(matches!(error, Error::LeaseEnded(ended) if ended == lease), "{error:?}");
    let (items, revision) = all(&s.store).await;
    assert_eq!((items.len(), revision), (1, start), "half a transaction");
    // A guard that does not hold comes first.
    let put = txn([Guard::Absent(key("a"))], [put_on("b", "1", lease)]);
    assert_eq!(s.store.txn(put).await.unwrap(), TxnOutcome::Conflict);
}

pub async fn lease_moves_with_the_last_put(s: Subject) {
    let first = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let second = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    commit(&s.store, [], [put_on("a", "1", first), put_on("b", "1", first), put_on("c", "1", first)]).await;
    commit(&s.store, [], [put_on("a", "2", second), put("b", "2")]).await;
    s.store.revoke_lease(first).await.unwrap();
    let names: Vec<String> = all(&s.store).await.0.iter().map(|kv| kv.key.name().to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
    s.store.revoke_lease(second).await.unwrap();
    assert_eq!(all(&s.store).await.0.len(), 1);
}

pub async fn values_are_bytes(s: Subject) {
    let value = Bytes::from((0..=255).collect::<Vec<u8>>());
    commit(&s.store, [], [Op::Put(key("a"), value.clone(), None), Op::Put(key("b"), Bytes::new(), None)]).await;
    assert_eq!(get(&s.store, "a").await.unwrap().value, value);
    assert_eq!(get(&s.store, "b").await.unwrap().value, Bytes::new());
}
