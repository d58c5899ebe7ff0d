//! The three-way merge of apply: what the user wants now, what the user wanted last, what is there.
//!
//! - What the user wants is so.
//! - What the user wanted last and does not name any more goes.
//! - Everything else (defaults, what others set) stays.
//!
//! Maps are merged key by key; lists are the user's as a whole. Defaults inside lists come back because defaulting runs
//! after the merge, so an unchanged manifest merges into an unchanged object.

use serde_json::{Map, Value};

/// The annotation that holds what the user applied last.
pub const LAST_APPLIED: &str = "berth.dev/last-applied-configuration";

/// What is there, changed as little as what the user wants demands.
pub fn three_way(last: Option<&Value>, want: &Value, live: &Value) -> Value {
    let (Value::Object(want), Value::Object(live)) = (want, live) else { return want.clone() };
    let nothing = Map::new();
    let last = last.and_then(Value::as_object).unwrap_or(&nothing);
    let mut merged = live.clone();
    merged.retain(|key, _| want.contains_key(key) || !last.contains_key(key));
    for (key, value) in want {
        let there = live.get(key).unwrap_or(&Value::Null);
        merged.insert(key.clone(), three_way(last.get(key), value, there));
    }
    Value::Object(merged)
}

/// A manifest as it is remembered: without nulls (which mean absent), without status and the memory itself.
pub fn remembered(manifest: &Value) -> Value {
    let mut kept = without_nulls(manifest);
    if let Some(object) = kept.as_object_mut() {
        object.remove("status");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(LAST_APPLIED);
            }
            // Preconditions of one apply, not wishes.
            metadata.remove("resourceVersion");
            metadata.remove("uid");
        }
    }
    kept
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_user_wants_is_so_and_what_others_set_stays() {
        let last = json!({"spec": {"replicas": 3, "paused": true}, "metadata": {"labels": {"a": "1", "b": "2"}}});
        let want = json!({"spec": {"paused": true}, "metadata": {"labels": {"a": "9"}}});
        let live = json!({
            "spec": {"replicas": 5, "paused": true, "policy": "OrderedReady"},
            "metadata": {"labels": {"a": "1", "b": "2", "theirs": "x"}, "uid": "u"},
            "status": {"replicas": 5},
        });
        let expected = json!({
            "spec": {"paused": true, "policy": "OrderedReady"},
            "metadata": {"labels": {"a": "9", "theirs": "x"}, "uid": "u"},
            "status": {"replicas": 5},
        });
        assert_eq!(three_way(Some(&last), &want, &live), expected);
    }

    #[test]
    fn a_number_that_the_user_never_named_stays() {
        let want = json!({"spec": {"a": 1}});
        let live = json!({"spec": {"a": 1, "replicas": 7}});
        assert_eq!(three_way(Some(&want), &want, &live), live);
        assert_eq!(three_way(None, &want, &live), live);
    }

    #[test]
    fn lists_are_the_users_as_a_whole() {
        let live = json!({"c": [{"name": "a", "defaulted": true}, {"name": "b"}]});
        assert_eq!(three_way(None, &json!({"c": [{"name": "a"}]}), &live), json!({"c": [{"name": "a"}]}));
    }

    #[test]
    fn nulls_and_preconditions_are_not_remembered() {
        let manifest = json!({
            "metadata": {"name": "web", "resourceVersion": "7", "creationTimestamp": null, "annotations": {LAST_APPLIED: "x"}},
            "status": {},
        });
        assert_eq!(remembered(&manifest), json!({"metadata": {"name": "web", "annotations": {}}}));
    }
}
