//! What the server owns in an object of any kind, and what counts as a change of its spec.

use jiff::Timestamp;
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::*,
};
use runtime::trace;

/// The finalizer that keeps a set until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps a set until its dependents are let go.
pub const ORPHAN: &str = "orphan";
/// The finalizer that keeps a claim while a pod uses it.
pub const CLAIM_IN_USE: &str = "kubernetes.io/pvc-protection";

/// The finalizer that keeps a volume while a claim is bound to it. The volume manager removes it.
pub const VOLUME_IN_USE: &str = "kubernetes.io/pv-protection";

/// Now, to the second: the form in which objects carry times.
pub fn now() -> Time {
    Time { seconds: Timestamp::now().as_second(), nanos: 0 }
}

/// Metadata that can be written; an error on an empty message.
pub fn meta_mut(object: &mut AnyObject) -> crate::error::Result<&mut ObjectMeta> {
    object.meta_mut().ok_or_else(|| crate::error::Error::field("object", "Required value"))
}

/// Takes the status out.
pub fn clear_status(object: &mut AnyObject) {
    match &mut object.object {
        Some(Variant::StatefulSet(o)) => o.status = None,
        Some(Variant::Pod(o)) => o.status = None,
        Some(Variant::PersistentVolumeClaim(o)) => o.status = None,
        Some(Variant::PersistentVolume(o)) => o.status = None,
        Some(Variant::Node(o)) => o.status = None,
        Some(Variant::Namespace(o)) => o.status = None,
        Some(Variant::PodDisruptionBudget(o)) => o.status = None,
        Some(Variant::VolumeAttachment(o)) => o.status = None,
        Some(Variant::VolumeSnapshot(o)) => o.status = None,
        _ => {}
    }
}

/// Makes the status of one object that of the other. Both are of the same kind.
pub fn copy_status(from: &AnyObject, to: &mut AnyObject) {
    match (&from.object, &mut to.object) {
        (Some(Variant::StatefulSet(from)), Some(Variant::StatefulSet(to))) => to.status.clone_from(&from.status),
        (Some(Variant::Pod(from)), Some(Variant::Pod(to))) => to.status.clone_from(&from.status),
        (Some(Variant::PersistentVolumeClaim(from)), Some(Variant::PersistentVolumeClaim(to))) => {
            to.status.clone_from(&from.status);
        }
        (Some(Variant::PersistentVolume(from)), Some(Variant::PersistentVolume(to))) => {
            to.status.clone_from(&from.status);
        }
        (Some(Variant::Node(from)), Some(Variant::Node(to))) => to.status.clone_from(&from.status),
        (Some(Variant::Namespace(from)), Some(Variant::Namespace(to))) => to.status.clone_from(&from.status),
        (Some(Variant::PodDisruptionBudget(from)), Some(Variant::PodDisruptionBudget(to))) => {
            to.status.clone_from(&from.status);
        }
        (Some(Variant::VolumeAttachment(from)), Some(Variant::VolumeAttachment(to))) => {
            to.status.clone_from(&from.status);
        }
        (Some(Variant::VolumeSnapshot(from)), Some(Variant::VolumeSnapshot(to))) => {
            to.status.clone_from(&from.status);
        }
        _ => {}
    }
}

/// Whether two objects differ in anything but metadata, status and the view (apiVersion) that they were written in.
pub fn spec_differs(a: &AnyObject, b: &AnyObject) -> bool {
    let bare = |object: &AnyObject| {
        let mut bare = object.clone();
        clear_status(&mut bare);
        if let Some(meta) = bare.meta_mut() {
            *meta = ObjectMeta::default();
        }
        if let Some(Variant::StatefulSet(set)) = &mut bare.object {
            set.api_version.clear();
        }
        bare.stamp_type();
        bare
    };
    bare(a) != bare(b)
}

/// Gives a new object what the server owns (VAL-8): uid, creation time, generation 1, no status yet. The client's own
/// are not looked at. A name is completed from generateName.
pub fn born(object: &mut AnyObject) -> crate::error::Result<()> {
    clear_status(object);
    object.stamp_type();
    let kind = object.kind();
    let meta = meta_mut(object)?;
    let uid = uuid::Uuid::new_v4();
    if meta.name.is_empty() && !meta.generate_name.is_empty() {
        let tail: String = uid.simple().to_string().chars().take(5).collect();
        meta.name = format!("{}{tail}", meta.generate_name);
    }
    meta.uid = uid.to_string();
    meta.creation_timestamp = Some(now());
    meta.generation = 1;
    meta.resource_version.clear();
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    let protection = match kind {
        Some(Kind::PersistentVolumeClaim) => Some(CLAIM_IN_USE),
        Some(Kind::PersistentVolume) => Some(VOLUME_IN_USE),
        _ => None,
    };
    if let Some(protection) = protection.filter(|wanted| !meta.finalizers.iter().any(|has| has == wanted)) {
        meta.finalizers.push(protection.to_owned());
    }
    own_trace(kind, meta, trace::current());
    Ok(())
}

/// A set carries the trace of the request that last changed what it shall be, so that those who act on it can go on with
/// it. The annotation is the server's: a client's own is not looked at.
fn own_trace(kind: Option<Kind>, meta: &mut ObjectMeta, trace: Option<String>) {
    if kind != Some(Kind::StatefulSet) {
        return;
    }
    match trace {
        Some(trace) => drop(meta.annotations.insert(trace::ANNOTATION.to_owned(), trace)),
        None => drop(meta.annotations.remove(trace::ANNOTATION)),
    }
}

/// Gives a changed object what the server owns, from the object as it was: identity, times, status, and a generation
/// that moves on spec changes alone (VAL-U3).
pub fn changed(old: &AnyObject, new: &mut AnyObject) -> crate::error::Result<()> {
    copy_status(old, new);
    new.stamp_type();
    let was = old.meta();
    let meta = meta_mut(new)?;
    meta.uid.clone_from(&was.uid);
    meta.generate_name.clone_from(&was.generate_name);
    meta.creation_timestamp = was.creation_timestamp;
    meta.deletion_timestamp = was.deletion_timestamp;
    meta.deletion_grace_period_seconds = was.deletion_grace_period_seconds;
    meta.resource_version.clone_from(&was.resource_version);
    meta.generation = was.generation;
    let before = was.annotations.get(trace::ANNOTATION).cloned();
    let moved = spec_differs(old, new);
    let kind = new.kind();
    let meta = meta_mut(new)?;
    if moved {
        meta.generation += 1;
    }
    own_trace(kind, meta, if moved { trace::current() } else { before });
    Ok(())
}

/// Whether a terminating object has nothing left to wait for: nobody must agree any more, and, if it is a pod, its
/// containers are known to be gone (a grace period of 0).
pub fn may_go(object: &AnyObject) -> bool {
    let meta = object.meta();
    let stopped = object.kind() != Some(Kind::Pod) || meta.deletion_grace_period_seconds == Some(0);
    meta.deletion_timestamp.is_some() && meta.finalizers.is_empty() && stopped
}

#[cfg(test)]
mod tests {
    use pb::Object;

    use super::*;

    fn set(replicas: i32) -> AnyObject {
        StatefulSet {
            metadata: Some(ObjectMeta { name: "web".into(), generation: 3, uid: "u".into(), ..Default::default() }),
            spec: Some(StatefulSetSpec { replicas: Some(replicas), ..Default::default() }),
            status: Some(StatefulSetStatus { replicas: 2, ..Default::default() }),
            ..Default::default()
        }
        .into_any()
    }

    #[test]
    fn the_generation_moves_on_spec_changes_alone() {
        let old = set(1);
        let mut labelled = old.clone();
        labelled.meta_mut().unwrap().labels.insert("a".into(), "b".into());
        clear_status(&mut labelled);
        changed(&old, &mut labelled).unwrap();
        assert_eq!(labelled.meta().generation, 3);
        let mut scaled = set(2);
        scaled.meta_mut().unwrap().uid = "forged".into();
        clear_status(&mut scaled);
        changed(&old, &mut scaled).unwrap();
        assert_eq!((scaled.meta().generation, scaled.meta().uid.as_str()), (4, "u"));
        let Some(Variant::StatefulSet(scaled)) = scaled.object else { panic!() };
        assert_eq!(scaled.status.unwrap().replicas, 2);
    }

    #[test]
    fn a_pod_waits_for_its_node_and_for_finalizers() {
        let pod = |grace, finalizer: Option<&str>| {
            let metadata = ObjectMeta {
                deletion_timestamp: Some(now()),
                deletion_grace_period_seconds: Some(grace),
                finalizers: finalizer.map(str::to_owned).into_iter().collect(),
                ..Default::default()
            };
            Pod { metadata: Some(metadata), ..Default::default() }.into_any()
        };
        assert!(!may_go(&pod(30, None)));
        assert!(!may_go(&pod(0, Some("x"))));
        assert!(may_go(&pod(0, None)));
    }
}
