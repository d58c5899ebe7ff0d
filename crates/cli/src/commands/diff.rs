//! `berth diff`: what an apply would change in objects, and what that would do to pods.
//!
//! Both sides are the API service's: what is stored, and what would be stored. What the service writes by itself (uid,
//! revisions, times, status) is left out. The exit code is that of `diff`: 0 without a difference, 1 with one, more
//! than 1 if something went wrong.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use pb::{
    Kind,
    api::v1::{ApplyResult, Object as AnyObject},
};
use serde_json::Value;

use super::apply::{self, Validate};
use crate::{
    client::Client,
    manifest,
    output::{self, unified},
};

/// Flags of `berth diff`.
#[derive(clap::Args, Debug)]
#[command(after_help = "The exit code is 0 without a difference, 1 with one, and greater than 1 after an error.")]
pub struct Args {
    /// A file of YAML or JSON, a folder of such files, or - for standard input
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Look into the folder's folders too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// What to do with fields that Berth does not know or not support
    #[arg(long, value_enum, default_value_t)]
    validate: Validate,
}

/// Something went wrong: neither "the same" nor "different".
const TROUBLE: u8 = 2;

/// Metadata that the API service writes.
const SERVERS: [&str; 7] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
];
/// Annotations that the API service writes.
const SERVERS_ANNOTATIONS: [&str; 2] = ["berth.dev/last-applied-configuration", runtime::trace::ANNOTATION];

/// Compares.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    match compare(&client, &args).await {
        Ok(text) if text.is_empty() => Ok(ExitCode::SUCCESS),
        Ok(text) => {
            print!("{text}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(TROUBLE))
        }
    }
}

async fn compare(client: &Client, args: &Args) -> Result<String> {
    let sources = manifest::read(&args.filename, args.recursive)?;
    let results = apply::send(client, &sources, true, args.validate).await?;
    let differences = results.iter().map(difference).collect::<Result<Vec<_>>>()?;
    let plans = results.iter().map(apply::foreseen);
    Ok(differences.into_iter().chain(plans).collect())
}

/// What differs between an object as it is stored and as it would be.
fn difference(result: &ApplyResult) -> Result<String> {
    let Some((kind, after)) = result.object.as_ref().and_then(|object| Some((object.kind()?, object))) else {
        return Ok(String::new());
    };
    let mut before = result.before.as_ref().map(bare).transpose()?;
    let mut after_json = bare(after)?;
    if kind == Kind::Secret {
        hide(before.as_mut(), &mut after_json);
    }
    let before = before.map(|json| output::yaml(&json)).transpose()?.unwrap_or_default();
    let meta = after.meta();
    let place = if meta.namespace.is_empty() { String::new() } else { format!("{}/", meta.namespace) };
    let called = format!("{place}{}", output::called(kind, &meta.name));
    Ok(unified(&before, &output::yaml(&after_json)?, &format!("stored/{called}"), &format!("applied/{called}")))
}

/// An object without what the API service writes.
fn bare(object: &AnyObject) -> Result<Value> {
    let mut json = output::to_json(object)?;
    if let Some(fields) = json.as_object_mut() {
        fields.remove("status");
    }
    let templates = json.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut);
    for template in templates.into_iter().flatten().filter_map(Value::as_object_mut) {
        template.remove("status");
    }
    if let Some(meta) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        SERVERS.iter().for_each(|field| drop(meta.remove(*field)));
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            SERVERS_ANNOTATIONS.iter().for_each(|key| drop(annotations.remove(*key)));
            if annotations.is_empty() {
                meta.remove("annotations");
            }
        }
    }
    Ok(json)
}

/// The values of a secret are not shown, only whether they differ.
fn hide(before: Option<&mut Value>, after: &mut Value) {
    let mut nothing = Value::Null;
    let before = before.unwrap_or(&mut nothing);
    let old = before.get("data").cloned().unwrap_or_default();
    let new = after.get("data").cloned().unwrap_or_default();
    let mask = |side: &mut Value, other: &Value, name: &str| {
        for (key, value) in side.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
            let changed = other.get(key).is_some_and(|other| other != value);
            *value = Value::from(if changed { format!("*** ({name})") } else { "***".to_owned() });
        }
    };
    mask(before, &new, "before");
    mask(after, &old, "after");
}

#[cfg(test)]
mod tests {
    use pb::api::v1::ForeseenStep;
    use serde_json::json;

    use super::*;

    fn set(replicas: i32, generation: i64) -> AnyObject {
        let json = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7", "generation": generation,
                "annotations": {"berth.dev/last-applied-configuration": replicas.to_string()}},
            "spec": {"replicas": replicas, "serviceName": "nginx"},
            "status": {"replicas": generation},
        });
        AnyObject::from_json(Kind::StatefulSet, json).unwrap()
    }

    #[test]
    fn what_the_service_writes_is_no_difference() {
        let result =
            |before, object| ApplyResult { before: Some(before), object: Some(object), ..ApplyResult::default() };
        assert_eq!(difference(&result(set(3, 1), set(3, 2))).unwrap(), "");
        assert_eq!(
            difference(&result(set(3, 1), set(5, 2))).unwrap(),
            "--- stored/default/statefulset.apps/web\n\
             +++ applied/default/statefulset.apps/web\n\
             @@ -4,5 +4,5 @@\n   name: web\n   namespace: default\n spec:\n-  replicas: 3\n+  replicas: 5\n   serviceName: nginx\n"
        );
        let new = difference(&ApplyResult { object: Some(set(3, 1)), ..ApplyResult::default() }).unwrap();
        assert!(new.contains("@@ -0,0 +1,8 @@\n+apiVersion: apps/v1\n") && !new.contains("uid"), "{new}");
    }

    #[test]
    fn secrets_stay_secret() {
        let secret = |value: &str| {
            let json = json!({"metadata": {"name": "s"}, "data": {"key": value, "same": "c2FtZQ=="}});
            AnyObject::from_json(Kind::Secret, json).unwrap()
        };
        let result =
            ApplyResult { before: Some(secret("b2xk")), object: Some(secret("bmV3")), ..ApplyResult::default() };
        let shown = difference(&result).unwrap();
        assert!(
            shown.contains("-  key: '*** (before)'\n+  key: '*** (after)'\n")
                || shown.contains("-  key: \"*** (before)\"\n+  key: \"*** (after)\"\n"),
            "{shown}"
        );
        assert!(!shown.contains("b2xk") && !shown.contains("bmV3") && !shown.contains("c2FtZQ"), "{shown}");
    }

    #[test]
    fn pods_are_told_in_order() {
        let step = |action: &str, pod: &str, why: &str| ForeseenStep {
            pod: pod.into(),
            action: action.into(),
            why: why.into(),
        };
        let result = ApplyResult {
            object: Some(set(3, 2)),
            outcome: "configured".into(),
            foreseen: vec![
                step("replace", "web-2", "it is at revision web-a, not web-b"),
                step("create", "web-10", "it is missing"),
            ],
            held_back: "web-0: partition 1 keeps it".into(),
            ..ApplyResult::default()
        };
        assert_eq!(
            apply::foreseen(&result),
            "statefulset.apps/web would, in this order:\n  \
             replace   web-2    it is at revision web-a, not web-b\n  \
             create    web-10   it is missing\n\
             statefulset.apps/web would hold back:\n  \
             web-0: partition 1 keeps it\n"
        );
        let unchanged = ApplyResult { outcome: "unchanged".into(), ..result };
        assert_eq!(apply::foreseen(&unchanged), "");
    }
}
