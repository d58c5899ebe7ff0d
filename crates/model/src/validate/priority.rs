//! Priorities: classes, and what pods say of them.

use pb::objects::{PodSpec, PriorityClass};

use super::named;
use crate::{
    error::{Errors, FieldPath},
    names,
    priority::{LARGEST_OF_USERS, NEVER, PREEMPT, SYSTEM_PREFIX},
};

const POLICIES: [&str; 2] = [NEVER, PREEMPT];

pub(super) fn class(class: &PriorityClass, errors: &mut Errors) {
    let name = class.metadata.as_ref().map_or("", |meta| meta.name.as_str());
    if name.starts_with(SYSTEM_PREFIX) {
        let why =
            format!("names with prefix {SYSTEM_PREFIX:?} are reserved; the system's own classes exist without objects");
        errors.forbidden(&FieldPath::of("metadata.name"), why);
    }
    if class.value > LARGEST_OF_USERS {
        let why = format!("maximum allowed value of a user defined priority is {LARGEST_OF_USERS}");
        errors.forbidden(&FieldPath::of("value"), why);
    }
    policy(&class.preemption_policy, &FieldPath::of("preemptionPolicy"), errors);
}

/// What a pod or a template asks for.
pub(super) fn of_pod(spec: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    if !spec.priority_class_name.is_empty() {
        named(&spec.priority_class_name, names::dns_subdomain, &path.child("priorityClassName"), errors);
    }
    policy(&spec.preemption_policy, &path.child("preemptionPolicy"), errors);
}

fn policy(policy: &str, path: &FieldPath, errors: &mut Errors) {
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        errors.not_supported(path, policy, &POLICIES);
    }
}
