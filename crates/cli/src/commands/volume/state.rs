//! A claim in few words: what is being done with it, how large it is, where its volume is. Pure.

use pb::{
    ObjectExt,
    objects::{ClaimOperation, Condition, PersistentVolume, PersistentVolumeClaim, Quantity},
};

use super::bytes;

/// What is being done with a claim's data, if anything is.
pub fn operation(claim: &PersistentVolumeClaim) -> Option<&ClaimOperation> {
    claim.status.as_ref()?.operation.as_ref()
}

/// Whether an operation has ended.
pub fn has_ended(operation: &ClaimOperation) -> bool {
    matches!(operation.phase.as_str(), "Done" | "Failed")
}

/// A condition of a claim that holds.
pub fn holds<'a>(claim: &'a PersistentVolumeClaim, kind: &str) -> Option<&'a Condition> {
    let mut conditions = claim.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|condition| condition.r#type == kind && condition.status == "True")
}

/// What is up with a claim, in one word or two: the most important first.
pub fn word(claim: &PersistentVolumeClaim) -> String {
    if claim.is_terminating() {
        return "Terminating".to_owned();
    }
    if holds(claim, "VolumeLost").is_some() {
        return "Lost".to_owned();
    }
    if let Some(operation) = operation(claim).filter(|operation| !has_ended(operation)) {
        let what = if operation.r#type == "Move" { "Moving" } else { "Restoring" };
        return match (operation.phase.as_str(), bytes::percent(operation.done_bytes, operation.total_bytes)) {
            ("Waiting", _) => format!("{what} (waits)"),
            (_, Some(percent)) => format!("{what} {percent}%"),
            (_, None) => what.to_owned(),
        };
    }
    let status = claim.status.clone().unwrap_or_default();
    match status.allocated_resource_statuses.get("storage").map(String::as_str) {
        Some("ControllerResizeInfeasible" | "NodeResizeInfeasible") => return "CannotGrow".to_owned(),
        Some("NodeResizePending" | "NodeResizeInProgress") => return "GrowsOnStart".to_owned(),
        Some(_) => return "Growing".to_owned(),
        None => {}
    }
    if holds(claim, "FileSystemResizePending").is_some() {
        return "GrowsOnStart".to_owned();
    }
    if holds(claim, "Resizing").is_some() {
        return "Growing".to_owned();
    }
    if status.phase.is_empty() { "Pending".to_owned() } else { status.phase }
}

/// How large the volume is, and how large it shall be if that is something else.
pub fn size(claim: &PersistentVolumeClaim) -> String {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let wanted = resources.and_then(|resources| resources.requests.get("storage"));
    let has = claim.status.as_ref().and_then(|status| status.capacity.get("storage"));
    match (has, wanted) {
        (None, None) => String::new(),
        (None, Some(wanted)) => format!("({})", wanted.value),
        (Some(has), Some(wanted)) if is_less(has, wanted) => format!("{} -> {}", has.value, wanted.value),
        (Some(has), _) => has.value.clone(),
    }
}

fn is_less(a: &Quantity, b: &Quantity) -> bool {
    let amount = |one: &Quantity| one.value.parse::<model::quantity::Quantity>().ok();
    amount(a).zip(amount(b)).is_some_and(|(a, b)| a < b)
}

/// From where a volume can be reached: the values of the labels that its nodes have.
pub fn reach(volume: &PersistentVolume) -> String {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return "<any>".to_owned() };
    let expressions = required.node_selector_terms.iter().flat_map(|term| &term.match_expressions);
    let values: Vec<_> = expressions.flat_map(|expression| expression.values.iter().map(String::as_str)).collect();
    if values.is_empty() { "<some>".to_owned() } else { values.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(status: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "www-web-0"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_most_important_word_comes_first() {
        let cases = [
            (json!({}), "Pending"),
            (json!({"phase": "Bound"}), "Bound"),
            (json!({"phase": "Bound", "operation": {"type": "Move", "phase": "Waiting"}}), "Moving (waits)"),
            (
                json!({"phase": "Bound", "operation": {
                    "type": "Move", "phase": "Copying", "doneBytes": 30, "totalBytes": 40,
                }}),
                "Moving 75%",
            ),
            (json!({"phase": "Bound", "operation": {"type": "Restore", "phase": "Copying"}}), "Restoring"),
            (json!({"phase": "Bound", "operation": {"type": "Restore", "phase": "Done"}}), "Bound"),
            (json!({"phase": "Bound", "conditions": [{"type": "Resizing", "status": "True"}]}), "Growing"),
            (
                json!({"phase": "Bound", "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}}),
                "CannotGrow",
            ),
            (
                json!({"phase": "Bound", "conditions": [
                    {"type": "FileSystemResizePending", "status": "True"}, {"type": "VolumeLost", "status": "True"},
                ]}),
                "Lost",
            ),
        ];
        for (status, expected) in cases {
            assert_eq!(word(&claim(status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn a_size_that_grows_says_to_what() {
        assert_eq!(size(&claim(json!({}))), "(2Gi)");
        assert_eq!(size(&claim(json!({"capacity": {"storage": "1Gi"}}))), "1Gi -> 2Gi");
        assert_eq!(size(&claim(json!({"capacity": {"storage": "2048Mi"}}))), "2048Mi");
    }
}
