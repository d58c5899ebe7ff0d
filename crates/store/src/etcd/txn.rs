//! Transactions, and the way out of an unknown result.
//!
//! A transaction is one request. When its answer is lost it may have taken effect, may take effect later, or never.
//! What can be told, from facts that cannot change any more:
//!
//! - *It has taken effect* if one of the values it puts stands or stood under its key, written after the newest
//!   revision that this process had seen when it began. Values are recognisable (an object carries its uid and its own
//!   content), and a transaction is all or nothing, so one value is enough. What stands now is read first; what was
//!   overwritten or deleted since is found in the history, by a watch over the revisions in question. Every revision
//!   has an event somewhere, so the history is complete when its last revision has come.
//! - *It has not taken effect yet* if a key that it changes has not been changed since it began, or the history does
//!   not show it. That alone settles nothing: the request may still be on its way.
//! - *It never will* if, besides, one of its guards can never hold again: an object has another revision than guarded,
//!   or is gone. Revisions do not come back. (A guard that a key is absent can hold again, so it does not count.)
//! - *It may be sent again* if it puts its own guards out of force ([`spends_its_guards`]): of two copies at most one
//!   takes effect. One window remains for creations under [`Guard::Absent`] alone: the first copy lands after the
//!   history was read, somebody deletes the object, and the second copy creates it again, all within one round trip.
//!   What appears is what the planner wanted a moment before; it plans again from there.
//!
//! Everything else is [`Error::Unknown`]: above all deletions that happened, for they carry nothing by which to
//! tell ours from another's, and changes without any guard of their own that have not happened yet.

use std::collections::{BTreeMap, BTreeSet};

use etcd_client::{Compare, CompareOp, EventType, PutOptions, TxnOp, WatchOptions};

use super::{
    failure::Failure,
    kv,
    link::{Attempts, Link, Links},
};
use crate::{Error, Guard, Key, Kv, LeaseId, Op, Result, Revision, Txn, TxnOutcome};

/// So many events of history are read at most.
const HISTORY: usize = 50_000;

/// Makes changes under conditions.
pub(super) async fn commit(links: &Links, txn: &Txn) -> Result<TxnOutcome> {
    txn.check()?;
    // Revision 1 is that of an empty etcd, the only one without an event.
    let began = links.seen().max(1);
    let mut attempts = links.attempts();
    // Why it may have taken effect without our knowing.
    let mut doubt: Option<String> = None;
    loop {
        let link = links.current();
        let failure = match attempts.run(&link, link.kv().txn(request(txn))).await {
            Ok(answer) => {
                let revision = answer.header().map_or(0, |header| header.revision());
                links.saw(revision);
                match &doubt {
                    _ if answer.succeeded() => return Ok(TxnOutcome::Committed(revision)),
                    None => return Ok(TxnOutcome::Conflict),
                    // This copy was refused, perhaps because an earlier one took effect.
                    Some(why) => return settle(links, txn, began, why, &mut attempts).await?.outcome(why),
                }
            }
            Err(Failure::LeaseEnded) => return Err(ended_lease(links, txn).await),
            Err(failure @ (Failure::NotSent(_) | Failure::Busy(_) | Failure::Lost(_))) => failure,
            Err(failure) => {
                return Err(match doubt {
                    Some(why) => Error::Unknown(format!("{why}; sent again, it was refused: {failure}")),
                    None => Error::Refused(failure.to_string()),
                });
            }
        };
        links.leave(&link, &failure).await;
        if let Failure::Lost(why) = &failure
            && !txn.ops.is_empty()
        {
            tracing::debug!(why, "the answer to a transaction was lost; reading back");
            doubt = Some(why.clone());
        }
        if let Some(why) = &doubt {
            match settle(links, txn, began, why, &mut attempts).await? {
                Finding::NotYet if spends_its_guards(txn) => {}
                finding => return finding.outcome(why),
            }
        }
        if !attempts.again().await {
            return Err(match doubt {
                Some(why) => Error::Unknown(why),
                None => Error::Unavailable(failure.to_string()),
            });
        }
    }
}

/// What reading back found.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// It took effect at this revision.
    Applied(Revision),
    /// It has not taken effect and cannot any more.
    Never,
    /// It has not taken effect, but may.
    NotYet,
    /// Not to be told.
    Open(&'static str),
}

impl Finding {
    fn outcome(self, why: &str) -> Result<TxnOutcome> {
        match self {
            Finding::Applied(revision) => Ok(TxnOutcome::Committed(revision)),
            Finding::Never => Ok(TxnOutcome::Conflict),
            Finding::NotYet => Err(Error::Unknown(format!("{why}; it has not happened so far, but may"))),
            Finding::Open(what) => Err(Error::Unknown(format!("{why}; {what}"))),
        }
    }
}

/// Reads back until a member answers.
async fn settle(links: &Links, txn: &Txn, began: Revision, why: &str, attempts: &mut Attempts) -> Result<Finding> {
    loop {
        let link = links.current();
        match read_back(links, &link, txn, began, attempts).await {
            Ok(finding) => {
                tracing::debug!(?finding, why, "read back");
                return Ok(finding);
            }
            Err(failure) => {
                links.leave(&link, &failure).await;
                if !attempts.again().await {
                    return Err(Error::Unknown(format!("{why}; reading back failed: {failure}")));
                }
            }
        }
    }
}

async fn read_back(
    links: &Links,
    link: &Link,
    txn: &Txn,
    began: Revision,
    attempts: &mut Attempts,
) -> std::result::Result<Finding, Failure> {
    let present = look(links, link, txn, attempts).await?;
    match judge(txn, began, &present) {
        Judgement::Found(finding) => Ok(finding),
        Judgement::SeeHistory if present.revision <= began => Ok(absent_from_history(txn, &present)),
        Judgement::SeeHistory => {
            let left = attempts.left();
            Ok(match tokio::time::timeout(left, history(link, txn, began, present.revision)).await {
                Err(_) => Finding::Open("the history could not be read in time"),
                Ok(Err(error)) => return Err(Failure::of(error, &link.endpoint)),
                Ok(Ok(Past::Applied(revision))) => Finding::Applied(revision),
                Ok(Ok(Past::Deleted)) => Finding::Open("what it deletes is gone, but that may be another's doing"),
                Ok(Ok(Past::Untouched)) => absent_from_history(txn, &present),
                Ok(Ok(Past::Gone)) => Finding::Open("the history has been compacted"),
                Ok(Ok(Past::TooLong)) => Finding::Open("too much has happened since to look through"),
            })
        }
    }
}

/// What the keys of a transaction are now.
struct Present {
    revision: Revision,
    keys: BTreeMap<Key, Kv>,
}

async fn look(links: &Links, link: &Link, txn: &Txn, attempts: &mut Attempts) -> std::result::Result<Present, Failure> {
    let guarded = txn.guards.iter().filter_map(|guard| match guard {
        Guard::ModRevision(key, _) | Guard::CreateRevision(key, _) => Some(key),
        Guard::Absent(_) | Guard::PrefixNotNewer(..) => None,
    });
    let keys: BTreeSet<&Key> = txn.ops.iter().map(Op::key).chain(guarded).collect();
    let keys: Vec<&Key> = keys.into_iter().collect();
    let mut present = Present { revision: 0, keys: BTreeMap::new() };
    // In several reads if need be: each finding rests on facts that later reads cannot undo.
    for part in keys.chunks(Txn::MAX) {
        let gets: Vec<TxnOp> = part.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
        let read = etcd_client::Txn::new().and_then(gets);
        let answer = attempts.run(link, link.kv().txn(read)).await?;
        present.revision = answer.header().map_or(0, |header| header.revision());
        links.saw(present.revision);
        for response in answer.0.responses {
            if let Some(etcd_client::proto::PbTxnOpResponse::ResponseRange(range)) = response.response {
                present.keys.extend(range.kvs.into_iter().map(kv).map(|kv| (kv.key.clone(), kv)));
            }
        }
    }
    Ok(present)
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Found(Finding),
    SeeHistory,
}

/// What the present says about a transaction that began when `began` was the newest revision known.
fn judge(txn: &Txn, began: Revision, present: &Present) -> Judgement {
    for op in &txn.ops {
        if let Op::Put(key, value, lease) = op
            && let Some(kv) = present.keys.get(key)
            && kv.mod_revision > began
            && kv.value == value
            && kv.lease == *lease
        {
            return Judgement::Found(Finding::Applied(kv.mod_revision));
        }
    }
    let untouched = txn.ops.iter().any(|op| {
        let Some(kv) = present.keys.get(op.key()) else { return false };
        let guarded = txn.guards.iter().any(|guard| match (op, guard) {
            (_, Guard::ModRevision(key, revision)) => key == op.key() && kv.mod_revision == *revision,
            (Op::Delete(_), Guard::CreateRevision(key, revision)) => key == op.key() && kv.create_revision == *revision,
            _ => false,
        });
        guarded
            || match op {
                Op::Put(..) => kv.mod_revision <= began,
                Op::Delete(_) => kv.create_revision <= began,
            }
    });
    if untouched { Judgement::Found(absent_from_history(txn, present)) } else { Judgement::SeeHistory }
}

/// The finding for a transaction that has not taken effect.
fn absent_from_history(txn: &Txn, present: &Present) -> Finding {
    let dead = txn.guards.iter().any(|guard| match guard {
        Guard::ModRevision(key, revision) => {
            *revision <= present.revision && present.keys.get(key).is_none_or(|kv| kv.mod_revision != *revision)
        }
        Guard::CreateRevision(key, revision) => {
            *revision <= present.revision && present.keys.get(key).is_none_or(|kv| kv.create_revision != *revision)
        }
        Guard::Absent(_) | Guard::PrefixNotNewer(..) => false,
    });
    if dead { Finding::Never } else { Finding::NotYet }
}

/// Whether a transaction that took effect makes one of its own guards fail, so that a second copy does nothing.
fn spends_its_guards(txn: &Txn) -> bool {
    txn.guards.iter().any(|guard| {
        txn.ops.iter().any(|op| match (guard, op) {
            (Guard::Absent(key), Op::Put(put, ..)) => key == put,
            (Guard::ModRevision(key, _), op) => key == op.key(),
            (Guard::CreateRevision(key, _), Op::Delete(deleted)) => key == deleted,
            (Guard::PrefixNotNewer(prefix, _), Op::Put(put, ..)) => prefix.contains(put),
            _ => false,
        })
    })
}

/// What the history says about a transaction.
enum Past {
    Applied(Revision),
    /// It has nothing but deletions, and some of them happened.
    Deleted,
    Untouched,
    Gone,
    TooLong,
}

/// Looks for a transaction in the revisions after `began`, up to `last`.
async fn history(
    link: &Link,
    txn: &Txn,
    began: Revision,
    last: Revision,
) -> std::result::Result<Past, etcd_client::Error> {
    let puts: BTreeMap<&str, (&[u8], i64)> = txn
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Put(key, value, lease) => Some((key.as_str(), (value.as_ref(), lease_id(*lease)))),
            Op::Delete(_) => None,
        })
        .collect();
    let deletes: BTreeSet<&str> =
        txn.ops.iter().filter(|op| matches!(op, Op::Delete(_))).map(|op| op.key().as_str()).collect();
    let options = WatchOptions::new().with_all_keys().with_start_revision(began + 1).with_fragment();
    let mut stream = link.watcher().watch(Vec::new(), Some(options)).await?;
    let mut read = 0;
    while let Some(response) = stream.message().await? {
        if response.canceled() {
            return Ok(Past::Gone);
        }
        let newest = response.events().last().and_then(|event| event.kv()).map_or(0, |kv| kv.mod_revision());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = kv.key_str() else { continue };
            match event.event_type() {
                EventType::Put if puts.get(key) == Some(&(kv.value(), kv.lease())) => {
                    return Ok(Past::Applied(kv.mod_revision()));
                }
                EventType::Delete if puts.is_empty() && deletes.contains(key) => return Ok(Past::Deleted),
                _ => {}
            }
        }
        read += response.events().len();
        if newest > last || (newest == last && !response.0.fragment) {
            return Ok(Past::Untouched);
        }
        if read > HISTORY {
            return Ok(Past::TooLong);
        }
    }
    Err(etcd_client::Error::WatchError("the history ended early".to_owned()))
}

fn lease_id(lease: Option<LeaseId>) -> i64 {
    lease.map_or(0, |lease| lease.0)
}

/// Which of the leases that a transaction puts values on has ended; etcd does not say.
async fn ended_lease(links: &Links, txn: &Txn) -> Error {
    let mut leases: Vec<LeaseId> = Vec::new();
    for op in &txn.ops {
        if let Op::Put(_, _, Some(lease)) = op
            && !leases.contains(lease)
        {
            leases.push(*lease);
        }
    }
    if let [only] = leases[..] {
        return Error::LeaseEnded(only);
    }
    for lease in leases {
        match links.ask(|link| async move { link.lease().time_to_live(lease.0, None).await }).await {
            Ok(answer) if answer.ttl() >= 0 => {}
            Ok(_) | Err(Failure::LeaseEnded) => return Error::LeaseEnded(lease),
            Err(failure) => return Error::Unavailable(format!("a lease has ended, but not told which: {failure}")),
        }
    }
    Error::Unavailable("a lease has ended, but not told which".to_owned())
}

/// The request of a transaction.
fn request(txn: &Txn) -> etcd_client::Txn {
    let compares: Vec<Compare> = txn.guards.iter().map(compare).collect();
    let ops: Vec<TxnOp> = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put(key, value, lease) => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(key.as_str(), value.as_ref(), options)
            }
            Op::Delete(key) => TxnOp::delete(key.as_str(), None),
        })
        .collect();
    etcd_client::Txn::new().when(compares).and_then(ops)
}

fn compare(guard: &Guard) -> Compare {
    match guard {
        Guard::Absent(key) => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        // To etcd a missing key has revision 0; to us such a guard cannot hold.
        Guard::ModRevision(key, revision) | Guard::CreateRevision(key, revision) if *revision <= 0 => {
            Compare::version(key.as_str(), CompareOp::Less, 0)
        }
        Guard::ModRevision(key, revision) => Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision),
        Guard::CreateRevision(key, revision) => Compare::create_revision(key.as_str(), CompareOp::Equal, *revision),
        Guard::PrefixNotNewer(prefix, revision) => {
            Compare::mod_revision(prefix.as_str(), CompareOp::Less, revision.saturating_add(1)).with_prefix()
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Prefix;

    const BEGAN: Revision = 10;
    const NOW: Revision = 20;

    fn key(name: &str) -> Key {
        Key::from_raw(name)
    }

    fn put(name: &str, value: &'static str) -> Op {
        Op::Put(key(name), Bytes::from_static(value.as_bytes()), None)
    }

    fn delete(name: &str) -> Op {
        Op::Delete(key(name))
    }

    fn stands(name: &str, value: &'static str, create_revision: Revision, mod_revision: Revision) -> Kv {
        let value = Bytes::from_static(value.as_bytes());
        Kv { key: key(name), value, create_revision, mod_revision, lease: None }
    }

    fn judged(guards: &[Guard], ops: &[Op], present: &[Kv]) -> Judgement {
        let txn = Txn { guards: guards.to_vec(), ops: ops.to_vec() };
        let keys = present.iter().map(|kv| (kv.key.clone(), kv.clone())).collect();
        judge(&txn, BEGAN, &Present { revision: NOW, keys })
    }

    #[test]
    fn a_value_of_ours_proves_it() {
        let applied = Judgement::Found(Finding::Applied(12));
        assert_eq!(judged(&[], &[put("a", "1")], &[stands("a", "1", 3, 12)]), applied);
        assert_eq!(judged(&[], &[delete("b"), put("a", "1")], &[stands("a", "1", 12, 12)]), applied);
        // Not one from before, not another value, not another lease.
        let untouched = Judgement::Found(Finding::NotYet);
        assert_eq!(judged(&[], &[put("a", "1")], &[stands("a", "1", 3, 10)]), untouched);
        assert_eq!(judged(&[], &[put("a", "1")], &[stands("a", "2", 3, 12)]), Judgement::SeeHistory);
        let leased = Op::Put(key("a"), Bytes::from_static(b"1"), Some(LeaseId(7)));
        assert_eq!(judged(&[], &[leased], &[stands("a", "1", 3, 12)]), Judgement::SeeHistory);
    }

    #[test]
    fn what_is_gone_or_changed_is_looked_up() {
        for (guard, op) in [
            (Guard::Absent(key("a")), put("a", "1")),
            (Guard::ModRevision(key("a"), 5), delete("a")),
            (Guard::CreateRevision(key("a"), 5), put("a", "1")),
        ] {
            assert_eq!(judged(&[guard], &[op], &[]), Judgement::SeeHistory);
        }
        // Made again since: the old one was deleted, perhaps by us.
        assert_eq!(judged(&[], &[delete("a")], &[stands("a", "2", 15, 15)]), Judgement::SeeHistory);
    }

    #[test]
    fn a_key_left_alone_proves_that_nothing_happened() {
        let (not_yet, never) = (Judgement::Found(Finding::NotYet), Judgement::Found(Finding::Never));
        let old = stands("a", "0", 3, 5);
        assert_eq!(judged(&[Guard::ModRevision(key("a"), 5)], &[put("a", "1")], std::slice::from_ref(&old)), not_yet);
        assert_eq!(judged(&[], &[delete("a")], &[stands("a", "0", 3, 15)]), not_yet);
        // A guarded revision newer than all that this process had seen.
        let newer = stands("a", "0", 3, 15);
        assert_eq!(judged(&[Guard::ModRevision(key("a"), 15)], &[put("a", "1")], &[newer]), not_yet);
        // Besides, another guard is dead for good.
        assert_eq!(
            judged(&[Guard::CreateRevision(key("leader"), 4)], &[put("a", "1")], std::slice::from_ref(&old)),
            never
        );
        assert_eq!(judged(&[Guard::ModRevision(key("a"), 4)], &[put("a", "1")], std::slice::from_ref(&old)), never);
        // That can come again, or is still to come.
        assert_eq!(judged(&[Guard::Absent(key("a"))], &[put("a", "1")], std::slice::from_ref(&old)), not_yet);
        assert_eq!(judged(&[Guard::ModRevision(key("b"), 25)], &[put("a", "1")], &[old]), not_yet);
    }

    #[test]
    fn only_what_spends_its_guards_may_be_sent_twice() {
        let spends = |guard: Guard, op: Op| spends_its_guards(&Txn { guards: vec![guard], ops: vec![op] });
        assert!(spends(Guard::Absent(key("a")), put("a", "1")));
        assert!(spends(Guard::ModRevision(key("a"), 5), put("a", "1")));
        assert!(spends(Guard::ModRevision(key("a"), 5), delete("a")));
        assert!(spends(Guard::CreateRevision(key("a"), 5), delete("a")));
        assert!(spends(Guard::PrefixNotNewer(Prefix::from_raw("a/"), 5), put("a/b", "1")));
        assert!(!spends(Guard::CreateRevision(key("a"), 5), put("a", "1")));
        assert!(!spends(Guard::Absent(key("a")), delete("a")));
        assert!(!spends(Guard::ModRevision(key("leader"), 5), put("a", "1")));
        assert!(!spends(Guard::PrefixNotNewer(Prefix::from_raw("a/"), 5), delete("a/b")));
    }
}
