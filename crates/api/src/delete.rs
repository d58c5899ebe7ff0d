//! Asking for an object to go.
//!
//! What goes at once and what waits: a pod that a node may run waits for that node to say that it has stopped; an
//! object with finalizers waits for whoever put them there; a set goes at once unless its dependents shall go first or
//! stay (DEL-1 to DEL-3), or its pods go in order (deletionOrder). The controller and its garbage collector do what is
//! waited for.

use pb::{
    Kind,
    api::v1::{DeleteRequest, DeleteResponse, Object as AnyObject, Propagation},
    objects::{Pod, StatefulSet, Time},
};
use plan::statefulset::stamp::ORDERED_DELETION;
use store::{Guard, Op, Prefix, objects::Undecodable};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation, called, parse_kind},
    object::{FOREGROUND, ORPHAN, may_go, meta_mut, now},
    volumes::owned_by_users,
    write::DEFAULT_NAMESPACE,
};

/// How often a deletion is decided again when others change the object at the same time.
const ATTEMPTS: usize = 5;
/// Seconds that a pod may take to stop unless it says otherwise.
const DEFAULT_GRACE: i64 = 30;

/// What deletion makes of an object: the same object means that nothing is left to ask for.
pub fn marked(old: &Stored, request: &DeleteRequest, now: Time) -> Result<AnyObject> {
    let mut new = old.object.clone();
    let grace = match old.typed::<Pod>() {
        Some(pod) => pod_grace(pod, request),
        None => 0,
    };
    let ordered = old.typed::<StatefulSet>().map(wants_order);
    let meta = meta_mut(&mut new)?;
    if let Some(ordered) = ordered {
        hold(&mut meta.finalizers, request.propagation(), ordered);
    }
    // A second request may shorten the time that a pod has, never lengthen it.
    let shorter = meta.deletion_grace_period_seconds.is_none_or(|left| grace < left);
    if meta.deletion_timestamp.is_none() || shorter {
        meta.deletion_timestamp = Some(Time { seconds: now.seconds + grace, nanos: 0 });
        meta.deletion_grace_period_seconds = Some(grace);
    }
    Ok(new)
}

/// Whether the pods of a set go one after the other when it is deleted.
fn wants_order(set: &StatefulSet) -> bool {
    set.spec.as_ref().is_some_and(|spec| spec.deletion_order == "Ordered")
}

/// What keeps a set that is to be deleted. Pods that stay need no order, also if an order was begun: orphaning a set
/// that is already on its way saves the pods that are left.
fn hold(finalizers: &mut Vec<String>, propagation: Propagation, ordered: bool) {
    if propagation == Propagation::Orphan {
        finalizers.retain(|finalizer| finalizer != ORDERED_DELETION && finalizer != FOREGROUND);
    }
    let orphaned = propagation == Propagation::Orphan || finalizers.iter().any(|finalizer| finalizer == ORPHAN);
    let wanted = [
        (ORPHAN, propagation == Propagation::Orphan),
        (FOREGROUND, propagation == Propagation::Foreground),
        (ORDERED_DELETION, ordered && !orphaned),
    ];
    for (finalizer, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
        if !finalizers.iter().any(|have| have == finalizer) {
            finalizers.push(finalizer.to_owned());
        }
    }
}

/// Seconds that a pod has to stop; 0 for one that no node can have started.
fn pod_grace(pod: &Pod, request: &DeleteRequest) -> i64 {
    let spec = pod.spec.as_ref();
    if spec.is_none_or(|spec| spec.node_name.is_empty()) {
        return 0;
    }
    let own = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE);
    // The pod's own 0 is a wish for SIGKILL, not for being forgotten: its node still has to say that it is gone.
    request.grace_period_seconds.unwrap_or(own.max(1))
}

impl Shared {
    /// Deletes an object, or starts to.
    pub async fn delete(&self, request: DeleteRequest) -> Result<DeleteResponse> {
        let kind = parse_kind(&request.kind)?;
        if request.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            let why = Violation::value(
                "gracePeriodSeconds",
                request.grace_period_seconds.unwrap_or_default(),
                "must be greater than or equal to 0",
            );
            return Err(Error::Invalid(vec![why]));
        }
        let namespace = if request.namespace.is_empty() { DEFAULT_NAMESPACE } else { &request.namespace };
        let what = called(kind, namespace, &request.name);
        let forced = request.grace_period_seconds == Some(0) && !request.dry_run;
        for _ in 0..ATTEMPTS {
            let old = match self.read(kind, namespace, &request.name).await {
                Err(Error::Undecodable(unknown)) if forced => return self.delete_undecodable(kind, &unknown).await,
                read => read?,
            };
            let old = old.ok_or_else(|| Error::not_found(kind, namespace, &request.name))?;
            owned_by_users(kind)?;
            self.check(&old, &request)?;
            let new = marked(&old, &request, now())?;
            let gone = may_go(&new);
            if request.dry_run || new == old.object {
                return Ok(DeleteResponse { object: Some(new), gone });
            }
            let done = if gone {
                let guards =
                    if kind == Kind::Namespace { self.empty_namespace(&request.name).await? } else { Vec::new() };
                self.remove(kind, &old, guards).await?.then(|| old.object.clone())
            } else {
                self.replace(kind, &old, new).await?.map(crate::write::Outcome::object)
            };
            if let Some(object) = done {
                return Ok(DeleteResponse { object: Some(object), gone });
            }
        }
        Err(Error::contended(&what))
    }

    /// Forgets what nobody can read: the only way to repair it, and never done unless it is forced.
    async fn delete_undecodable(&self, kind: Kind, unknown: &Undecodable) -> Result<DeleteResponse> {
        let guards = vec![Guard::ModRevision(unknown.key.clone(), unknown.revision)];
        match self.commit(kind, guards, vec![Op::Delete(unknown.key.clone())]).await? {
            Some(_) => Ok(DeleteResponse { object: None, gone: true }),
            None => Err(Error::contended(unknown.key.as_str())),
        }
    }

    fn check(&self, old: &Stored, request: &DeleteRequest) -> Result<()> {
        let meta = old.object.meta();
        let unlike = |field: &str, is: &str, wanted: &str| {
            if wanted.is_empty() || is == wanted {
                return Ok(());
            }
            let what = &request.name;
            Err(Error::Conflict(format!("the precondition does not hold: {what} has {field} {is}, not {wanted}")))
        };
        unlike("uid", &meta.uid, &request.uid)?;
        unlike("resourceVersion", &meta.resource_version, &request.resource_version)
    }

    /// The guards that nothing is in a namespace; an error that says what is.
    async fn empty_namespace(&self, name: &str) -> Result<Vec<Guard>> {
        if name == DEFAULT_NAMESPACE {
            return Err(Error::Refused(
                "namespace default cannot be deleted: objects without a namespace are in it".into(),
            ));
        }
        let mut guards = Vec::new();
        let mut left = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.namespaced()) {
            let (objects, revision) = self.caches.list(kind, name).await?;
            if !objects.is_empty() {
                left.push(format!("{} {}", objects.len(), kind.plural()));
            }
            guards.push(Guard::PrefixNotNewer(Prefix::namespace(kind, name), revision));
        }
        if left.is_empty() {
            return Ok(guards);
        }
        Err(Error::Refused(format!("namespace {name} is not empty ({}); delete what is in it first", left.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use pb::{Object, objects::*};

    use super::*;

    fn pod(node: &str, grace: Option<i64>) -> Stored {
        let pod = Pod {
            metadata: Some(ObjectMeta { name: "web-0".into(), namespace: "default".into(), ..Default::default() }),
            spec: Some(PodSpec {
                node_name: node.into(),
                termination_grace_period_seconds: grace,
                ..Default::default()
            }),
            ..Default::default()
        };
        let key = store::Key::of(&pod);
        Stored { key, object: pod.into_any(), create_revision: 1, mod_revision: 1 }
    }

    fn at(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    #[test]
    fn a_bound_pod_gets_its_grace_and_an_unbound_one_goes() {
        let bound = marked(&pod("n1", Some(10)), &DeleteRequest::default(), at(100)).unwrap();
        assert_eq!(bound.meta().deletion_timestamp, Some(at(110)));
        assert!(!may_go(&bound));
        assert!(!may_go(&marked(&pod("n1", Some(0)), &DeleteRequest::default(), at(100)).unwrap()));
        assert!(may_go(&marked(&pod("", Some(10)), &DeleteRequest::default(), at(100)).unwrap()));
        let forced = DeleteRequest { grace_period_seconds: Some(0), ..Default::default() };
        assert!(may_go(&marked(&pod("n1", Some(10)), &forced, at(100)).unwrap()));
    }

    #[test]
    fn what_keeps_a_set_follows_from_its_order_and_the_requests() {
        use Propagation::{Background, Foreground, Orphan};
        let after = |ordered, requests: &[Propagation]| {
            let mut finalizers = vec!["example.com/own".to_owned()];
            requests.iter().for_each(|propagation| hold(&mut finalizers, *propagation, ordered));
            finalizers.split_off(1)
        };
        assert_eq!(after(false, &[Background]), [""; 0]);
        assert_eq!(after(true, &[Background, Background]), [ORDERED_DELETION]);
        assert_eq!(after(true, &[Foreground]), [FOREGROUND, ORDERED_DELETION]);
        assert_eq!(after(true, &[Background, Foreground]), [ORDERED_DELETION, FOREGROUND]);
        assert_eq!(after(true, &[Foreground, Orphan]), [ORPHAN], "the pods that are left stay");
        assert_eq!(after(true, &[Orphan, Background]), [ORPHAN], "nothing is ordered to go that was let go");
    }

    #[test]
    fn a_second_request_shortens_but_never_lengthens() {
        let mut stored = pod("n1", Some(10));
        let with = |seconds| DeleteRequest { grace_period_seconds: Some(seconds), ..Default::default() };
        stored.object = marked(&stored, &with(20), at(100)).unwrap();
        assert_eq!(marked(&stored, &with(60), at(101)).unwrap(), stored.object);
        let shorter = marked(&stored, &with(5), at(102)).unwrap();
        assert_eq!(shorter.meta().deletion_timestamp, Some(at(107)));
    }
}
