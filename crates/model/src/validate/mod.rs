//! Whether an object may be created, and whether one may become another (VAL).
//!
//! Every check looks at everything and reports all that it finds. Objects come here with their defaults. The rules are
//! Kubernetes'; what Berth cannot do yet is refused here, never ignored. Uniqueness and the existence of other objects
//! are not looked at: a single object is all there is.

mod affinity;
mod berth;
mod budget;
mod container;
mod dns;
mod env;
mod grow;
mod immutable;
mod lifecycle;
mod lived;
mod meta;
mod pod;
mod priority;
mod resources;
mod security;
mod service;
mod small;
mod spread;
mod statefulset;
mod status;
mod storage;
mod taint;
mod toleration;
mod volume;

use pb::api::v1::{Object as AnyObject, object::Object as Variant};

pub use taint::OUT_OF_SERVICE;

use crate::error::{Errors, FieldError, FieldPath};

/// Every reason why the object may not be created; none if it may.
pub fn create(object: &AnyObject) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let Some(kind) = object.kind() else {
        errors.required(&FieldPath::root(), "the message holds no object");
        return errors.into_vec();
    };
    meta::create(kind, object.meta(), &mut errors);
    content(object, Occasion::Create, &mut errors);
    errors.into_vec()
}

/// Every reason why `old` may not become `new`; none if it may. Both have their defaults, and the front door has filled
/// in what the server gives (uid, creation time). Names are not looked at again: they cannot have changed.
pub fn update(old: &AnyObject, new: &AnyObject) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if old.kind() != new.kind() {
        errors.invalid(&FieldPath::of("kind"), new.kind().map_or("", |kind| kind.name()), "field is immutable");
        return errors.into_vec();
    }
    meta::update(old.meta(), new.meta(), &mut errors);
    content(new, Occasion::Update, &mut errors);
    immutable::check(old, new, &mut errors);
    if let (Some(Variant::StatefulSet(old)), Some(Variant::StatefulSet(new))) = (&old.object, &new.object) {
        grow::templates(old, new, &mut errors);
    }
    if let (Some(Variant::Pod(old)), Some(Variant::Pod(new))) = (&old.object, &new.object) {
        lived::check(old, new, &mut errors);
    }
    if let (Some(Variant::Service(old)), Some(Variant::Service(new))) = (&old.object, &new.object) {
        service::update(old, new, &mut errors);
    }
    if let (Some(Variant::PersistentVolumeClaim(old)), Some(Variant::PersistentVolumeClaim(new))) =
        (&old.object, &new.object)
    {
        storage::claim_update(old, new, &mut errors);
    }
    errors.into_vec()
}

/// Every reason why the status of `new` may not take the place of that of `old`; none if it may.
pub fn status(old: &AnyObject, new: &AnyObject) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if let (Some(Variant::StatefulSet(old)), Some(Variant::StatefulSet(new))) = (&old.object, &new.object) {
        status::set(old, new, &mut errors);
    }
    errors.into_vec()
}

/// What the object is checked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Create,
    /// Parts that cannot have changed are not held against the object: rules may have become stricter since.
    Update,
}

fn content(object: &AnyObject, occasion: Occasion, errors: &mut Errors) {
    match &object.object {
        Some(Variant::StatefulSet(set)) => statefulset::check(set, occasion, errors),
        Some(Variant::ControllerRevision(revision)) => small::controller_revision(revision, errors),
        Some(Variant::Pod(pod)) => {
            let (spec, at) = (pod.spec.clone().unwrap_or_default(), FieldPath::of("spec"));
            pod::spec(&spec, &[], &at, errors);
            pod::names(&spec, &at, errors);
        }
        Some(Variant::Service(service)) => service::check(service, errors),
        Some(Variant::PersistentVolumeClaim(claim)) => storage::claim(claim, errors),
        Some(Variant::PersistentVolume(volume)) => storage::volume(volume, errors),
        Some(Variant::StorageClass(class)) => storage::class(class, errors),
        Some(Variant::VolumeAttachment(attachment)) => storage::attachment(attachment, errors),
        Some(Variant::CsiDriver(driver)) => storage::driver(driver, errors),
        Some(Variant::VolumeSnapshot(snapshot)) => storage::snapshot(snapshot, errors),
        Some(Variant::ConfigMap(map)) => small::config_map(map, errors),
        Some(Variant::Secret(secret)) => small::secret(secret, errors),
        Some(Variant::Node(node)) => small::node(node, errors),
        Some(Variant::Event(event)) => small::event(event, errors),
        Some(Variant::PodDisruptionBudget(budget)) => budget::check(budget, errors),
        Some(Variant::PriorityClass(class)) => priority::class(class, errors),
        Some(Variant::Namespace(_)) | None => {}
    }
}

/// One of a few texts.
fn one_of(value: &str, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, format!("one of {}", supported.join(", ")));
    } else if !supported.contains(&value) {
        errors.not_supported(path, value, supported);
    }
}

/// A number that counts something.
fn not_negative(value: impl Into<i64>, path: &FieldPath, errors: &mut Errors) {
    let value = value.into();
    if value < 0 {
        errors.invalid(path, value, "must be greater than or equal to 0");
    }
}

/// A text that follows a rule of `names`.
fn named(value: &str, rule: fn(&str) -> Result<(), &'static str>, path: &FieldPath, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, "");
    } else if let Err(broken) = rule(value) {
        errors.invalid(path, value, broken);
    }
}

#[cfg(test)]
mod pod_tests;
#[cfg(test)]
mod tests;
