//! Evicting a pod: a deletion that asks disruption budgets first.
//!
//! Everything is read from the store as it is now, and the deletion compares what it rests on: that the pod, the healthy
//! pods that stay and the budgets are still as they were read. No counter is kept, so two evictions at once, here or
//! through another replica, can never take one pod too many: one of them reads again and finds the budget spent.
//!
//! An eviction never forgets a pod whose node has not said that it is gone.

use std::{collections::BTreeSet, time::Duration};

use model::leaving::because;
use pb::{
    Kind, Object,
    api::v1::{DeleteRequest, EvictRequest, EvictResponse, Object as AnyObject, object::Object as Variant},
    objects::*,
};
use plan::{
    budget::{self, Budget, Grounds},
    statefulset::PodAt,
};
use store::{Guard, Key, Op, PageRequest, Prefix, Revision, Txn, objects};

use crate::{
    Shared,
    caches::Stored,
    delete::marked,
    error::{Error, Result, Violation, called},
    object::now,
    write::{DEFAULT_NAMESPACE, Outcome},
};

/// How often an eviction is decided again when others change what it rests on at the same time.
const ATTEMPTS: usize = 8;
/// How long the event about an eviction stays.
const TOLD_FOR: Duration = Duration::from_secs(3600);
/// Why, in Kubernetes' word.
const BY_EVICTION: &str = "EvictionByEvictionAPI";

/// What an eviction is decided from, all of one namespace and one revision.
struct Seen {
    budgets: Vec<Budget>,
    revision: Revision,
}

impl Shared {
    /// Evicts a pod as far as disruption budgets allow it.
    pub async fn evict(&self, request: EvictRequest) -> Result<EvictResponse> {
        if let Some(seconds) = request.grace_period_seconds.filter(|seconds| *seconds < 0) {
            let why = Violation::value("gracePeriodSeconds", seconds, "must be greater than or equal to 0");
            return Err(Error::Invalid(vec![why]));
        }
        let namespace = if request.namespace.is_empty() { DEFAULT_NAMESPACE } else { &request.namespace };
        let what = called(Kind::Pod, namespace, &request.pod);
        for _ in 0..ATTEMPTS {
            let old = self.read(Kind::Pod, namespace, &request.pod).await?;
            let old = old.ok_or_else(|| Error::not_found(Kind::Pod, namespace, &request.pod))?;
            check_uid(&old, &request.uid, &what)?;
            let new = evicted(&old, &request)?;
            let seen = self.seen(namespace).await?;
            let grounds = budget::may_go(&seen.budgets, &request.pod.as_str().into(), &BTreeSet::new());
            let grounds = grounds.map_err(|refusal| Error::Disruption {
                what: what.clone(),
                budget: called(Kind::PodDisruptionBudget, namespace, &refusal.budget),
                why: refusal.to_string(),
                advice: refusal.advice(),
            })?;
            if request.dry_run || new == old.object {
                return Ok(answer(new, false));
            }
            let guards = guards(namespace, grounds, seen.revision);
            match self.replace_under(Kind::Pod, &old, new, guards).await? {
                Some(outcome) => {
                    let gone = matches!(outcome, Outcome::Gone(_));
                    self.tell_eviction(&old).await;
                    return Ok(answer(if gone { old.object } else { outcome.object() }, gone));
                }
                None => continue,
            }
        }
        Err(Error::contended(&what))
    }

    /// The budgets of a namespace, counted from its pods and sets.
    async fn seen(&self, namespace: &str) -> Result<Seen> {
        let (budgets, revision) = self.all::<PodDisruptionBudget>(namespace, None).await?;
        if budgets.is_empty() {
            return Ok(Seen { budgets: Vec::new(), revision });
        }
        let (pods, _) = self.all::<Pod>(namespace, Some(revision)).await?;
        let (sets, _) = self.all::<StatefulSet>(namespace, Some(revision)).await?;
        let (pods, sets): (Vec<_>, Vec<_>) = (pods.iter().collect(), sets.iter().collect());
        let budgets = budgets.iter().map(|budget| Budget::of(budget, &pods, &sets)).collect();
        Ok(Seen { budgets, revision })
    }

    /// All objects of a type in a namespace, from the store itself, as of one revision.
    async fn all<T: Object>(&self, namespace: &str, at: Option<Revision>) -> Result<(Vec<T>, Revision)> {
        let prefix = Prefix::namespace(T::KIND, namespace);
        let mut request = PageRequest { revision: at, ..PageRequest::default() };
        let mut all = Vec::new();
        // Each page is behind the one before, so this ends.
        loop {
            let page = self.store.list(&prefix, request).await?;
            for kv in &page.items {
                all.push(objects::decode(kv)?);
            }
            let revision = at.unwrap_or(page.revision);
            match page.items.last().filter(|_| page.more) {
                Some(last) => {
                    request =
                        PageRequest { after: Some(last.key.clone()), revision: Some(revision), ..Default::default() };
                }
                None => return Ok((all, revision)),
            }
        }
    }

    /// Tells people of an eviction. It has happened by then, so a failure is only noted.
    async fn tell_eviction(&self, pod: &Stored) {
        let told = async {
            let lease = self.store.grant_lease(TOLD_FOR).await?;
            let event = eviction_event(pod.object.meta());
            let guards = vec![objects::absent(&event)];
            let ops = vec![Op::Put(Key::of(&event), objects::encode(&event), Some(lease))];
            self.store.txn(Txn { guards, ops }).await
        };
        if let Err(error) = told.await {
            tracing::debug!(%error, pod = %pod.key, "the event about an eviction was not written");
        }
    }
}

fn check_uid(old: &Stored, wanted: &str, what: &str) -> Result<()> {
    let uid = &old.object.meta().uid;
    if wanted.is_empty() || wanted == uid {
        return Ok(());
    }
    Err(Error::Conflict(format!("the precondition does not hold: {what} has uid {uid}, not {wanted}")))
}

/// The pod on its way out, with the reason among its conditions.
fn evicted(old: &Stored, request: &EvictRequest) -> Result<AnyObject> {
    // 0 would forget the pod at once, with its node none the wiser.
    let grace_period_seconds = request.grace_period_seconds.map(|seconds| seconds.max(1));
    let mut new = marked(old, &DeleteRequest { grace_period_seconds, ..DeleteRequest::default() }, now())?;
    if let Some(Variant::Pod(pod)) = &mut new.object
        && old.object.meta().deletion_timestamp.is_none()
    {
        because(pod, BY_EVICTION, "asked to go by an eviction", now());
    }
    Ok(new)
}

/// What the transaction compares. Of the budgets none may be newer than what was read: also one that has just come to
/// be counts.
fn guards(namespace: &str, grounds: Grounds, revision: Revision) -> Vec<Guard> {
    let seen = |seen: &PodAt| (Key::object(Kind::Pod, namespace, seen.pod.as_str()), seen.at.0);
    let pods = Prefix::namespace(Kind::Pod, namespace);
    let mut guards = Guard::unchanged(grounds.pods.iter().map(seen).collect(), |_| (pods, revision));
    guards.push(Guard::PrefixNotNewer(Prefix::namespace(Kind::PodDisruptionBudget, namespace), revision));
    guards
}

fn answer(pod: AnyObject, gone: bool) -> EvictResponse {
    EvictResponse { pod: Pod::from_any(pod).ok(), gone }
}

fn eviction_event(pod: &ObjectMeta) -> Event {
    let uid = uuid::Uuid::new_v4();
    let tail: String = uid.simple().to_string().chars().take(16).collect();
    let now = now();
    let mut event = Event {
        metadata: Some(ObjectMeta {
            name: format!("{}.{tail}", pod.name),
            namespace: pod.namespace.clone(),
            uid: uid.to_string(),
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        }),
        involved_object: Some(ObjectReference {
            kind: Kind::Pod.name().to_owned(),
            api_version: Kind::Pod.api_version().to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..ObjectReference::default()
        }),
        reason: "Evicted".to_owned(),
        message: "asked to go by an eviction; every disruption budget allowed it".to_owned(),
        source: Some(EventSource { component: "api".to_owned(), host: String::new() }),
        first_timestamp: Some(now),
        last_timestamp: Some(now),
        count: 1,
        r#type: "Normal".to_owned(),
        ..Event::default()
    };
    event.stamp_type();
    event
}
