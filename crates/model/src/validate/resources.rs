//! Amounts of CPU, memory and storage.

use std::collections::BTreeMap;

use pb::objects::Quantity as Written;

use crate::{
    error::{Errors, FieldPath},
    quantity::Quantity,
};

/// What a container may ask for.
const OF_A_CONTAINER: [&str; 2] = ["cpu", "memory"];

/// Checks an amount; gives it if it is sound and not negative.
pub(super) fn quantity(written: &Written, path: &FieldPath, errors: &mut Errors) -> Option<Quantity> {
    match Quantity::try_from(written) {
        Err(broken) => errors.invalid(path, written.value.as_str(), broken.to_string()),
        Ok(amount) if amount.is_negative() => {
            errors.invalid(path, written.value.as_str(), "must be greater than or equal to 0");
        }
        Ok(amount) => return Some(amount),
    }
    None
}

/// Checks what a container requests and is limited to.
pub(super) fn container(
    requests: &BTreeMap<String, Written>,
    limits: &BTreeMap<String, Written>,
    path: &FieldPath,
    errors: &mut Errors,
) {
    for (field, amounts) in [("requests", requests), ("limits", limits)] {
        for name in amounts.keys().filter(|name| !OF_A_CONTAINER.contains(&name.as_str())) {
            let why = "others are not supported by Berth yet: leave them out";
            errors.not_supported_because(&path.child(field).key(name), name, &OF_A_CONTAINER, why);
        }
    }
    within(requests, limits, path, errors);
}

/// Checks that amounts are sound, and requests within limits.
pub(super) fn within(
    requests: &BTreeMap<String, Written>,
    limits: &BTreeMap<String, Written>,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let mut bounds = BTreeMap::new();
    for (name, limit) in limits {
        bounds.insert(name, quantity(limit, &path.child("limits").key(name), errors));
    }
    for (name, request) in requests {
        let amount = quantity(request, &path.child("requests").key(name), errors);
        if let (Some(amount), Some(Some(limit))) = (amount, bounds.get(name))
            && amount > *limit
        {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(&path.child("requests"), request.value.as_str(), why);
        }
    }
}
