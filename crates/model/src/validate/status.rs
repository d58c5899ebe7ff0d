//! Whether a status may take the place of another (STAT-12). Only counts that cannot be are refused: what is observed is
//! the observer's to say.

use pb::objects::{StatefulSet, StatefulSetStatus};

use super::not_negative;
use crate::error::{Errors, FieldPath};

pub(super) fn set(old: &StatefulSet, new: &StatefulSet, errors: &mut Errors) {
    let status = new.status.clone().unwrap_or_default();
    counts(&status, errors);
    let collisions = |status: Option<&StatefulSetStatus>| status.and_then(|status| status.collision_count).unwrap_or(0);
    let (before, now) = (collisions(old.status.as_ref()), status.collision_count.unwrap_or(0));
    if now < before {
        // Names of revisions would come back that belong to other templates (REV-8).
        errors.invalid(&FieldPath::of("status.collisionCount"), now, format!("cannot be decremented: it was {before}"));
    }
}

fn counts(status: &StatefulSetStatus, errors: &mut Errors) {
    let path = FieldPath::of("status");
    not_negative(status.observed_generation, &path.child("observedGeneration"), errors);
    not_negative(status.collision_count.unwrap_or(0), &path.child("collisionCount"), errors);
    not_negative(status.replicas, &path.child("replicas"), errors);
    let parts = [
        ("readyReplicas", status.ready_replicas),
        ("currentReplicas", status.current_replicas),
        ("updatedReplicas", status.updated_replicas),
        ("availableReplicas", status.available_replicas),
    ];
    for (field, count) in parts {
        let at = path.child(field);
        not_negative(count, &at, errors);
        if count > status.replicas {
            errors.invalid(&at, count, "cannot be greater than status.replicas");
        }
    }
    if status.available_replicas > status.ready_replicas {
        let at = path.child("availableReplicas");
        errors.invalid(&at, status.available_replicas, "cannot be greater than status.readyReplicas");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(old: StatefulSetStatus, new: StatefulSetStatus) -> Vec<String> {
        let with = |status| StatefulSet { status: Some(status), ..StatefulSet::default() };
        let mut errors = Errors::default();
        set(&with(old), &with(new), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn status(replicas: i32, ready: i32, available: i32) -> StatefulSetStatus {
        StatefulSetStatus {
            replicas,
            ready_replicas: ready,
            available_replicas: available,
            ..StatefulSetStatus::default()
        }
    }

    #[test]
    fn counts_that_can_be_are_taken() {
        assert_eq!(refusals(status(3, 3, 3), status(3, 2, 1)), [""; 0]);
        assert_eq!(refusals(status(3, 3, 3), StatefulSetStatus::default()), [""; 0]);
    }

    #[test]
    fn every_count_that_cannot_be_is_named() {
        let mut new = status(2, 3, -1);
        (new.current_replicas, new.updated_replicas, new.observed_generation) = (3, -2, -1);
        assert_eq!(
            refusals(status(0, 0, 0), new),
            [
                "status.availableReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.currentReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.observedGeneration: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.updatedReplicas: Invalid value: -2: must be greater than or equal to 0",
            ]
        );
        let more = refusals(status(0, 0, 0), status(3, 1, 2));
        assert_eq!(more, ["status.availableReplicas: Invalid value: 2: cannot be greater than status.readyReplicas"]);
    }

    #[test]
    fn the_count_of_collisions_never_falls() {
        let with = |count| StatefulSetStatus { collision_count: count, ..StatefulSetStatus::default() };
        let fell = ["status.collisionCount: Invalid value: 0: cannot be decremented: it was 2"];
        assert_eq!(refusals(with(Some(2)), with(None)), fell);
        assert_eq!(refusals(with(Some(2)), with(Some(2))), [""; 0]);
        assert_eq!(refusals(with(None), with(Some(-1))).len(), 2);
    }
}
