//! The exact pods, claims and revisions that a set gets.
//!
//! Fields that Berth does not have are left out on both sides: both go through the same messages.

use jiff::Timestamp;
use model::revision::TemplateBytes;
use pb::objects::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet};
use plan::statefulset::{NewClaim, Objects, Op, Snapshot, stamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::compare::Outcome;

/// A set as the controller saw it, and what it made.
#[derive(Deserialize)]
pub struct Made {
    pub label: String,
    set: Value,
    pods: Option<Vec<Value>>,
    claims: Option<Vec<Value>>,
    claims_updated: Option<Vec<Value>>,
    revision: Option<Value>,
}

pub fn compare(made: &Made) -> Outcome {
    match difference(made) {
        Ok(()) => Outcome::Agree,
        Err(difference) => Outcome::Differ(difference),
    }
}

fn difference(made: &Made) -> Result<(), String> {
    let Some(recorded) = &made.revision else { return scaled_down(made) };
    let set: StatefulSet = object(&made.set)?;
    let objects = Objects { set: &set, pods: &[], claims: &[], revisions: &[], service_exists: true, budgets: &[] };
    let mut snapshot = Snapshot::of(Timestamp::UNIX_EPOCH, objects);
    // Names come from the bytes of the whole template, fields that Berth lacks included.
    snapshot.set.template = TemplateBytes::from_json(&made.set["spec"]["template"]);
    let plan = plan::statefulset::plan(&snapshot);

    let (mut pods, mut claims) = (Vec::new(), Vec::new());
    let mut claim = |new: &NewClaim| claims.extend(stamp::claim(&set, new));
    for action in &plan.actions {
        match &action.op {
            Op::CreateRevision { name, number, .. } => {
                let planned = stamp::revision(&set, name.as_str(), *number);
                let mut expected: ControllerRevision = object(&without_data(recorded))?;
                expected.data.clone_from(&planned.data);
                same("revision", stamped(expected), planned)?;
            }
            Op::CreateClaim(new) => claim(new),
            Op::CreatePod(new) => {
                new.claims.iter().for_each(&mut claim);
                let template = set.spec.clone().unwrap_or_default().template.unwrap_or_default();
                pods.push(stamp::pod(&set, &template, new));
            }
            _ => {}
        }
    }
    let expected: Vec<Pod> = objects_of(made.pods.as_ref())?;
    same("pods", expected, pods)?;

    // Where reads see the sync's own writes, owners come in a second write; Berth makes the claim with them.
    let expected = made.claims_updated.as_ref().or(made.claims.as_ref());
    let mut expected: Vec<PersistentVolumeClaim> = objects_of(expected)?;
    let by_name = |claim: &PersistentVolumeClaim| claim.metadata.clone().unwrap_or_default().name;
    expected.iter_mut().filter_map(|claim| claim.metadata.as_mut()).for_each(|meta| meta.uid.clear());
    expected.sort_by_key(by_name);
    claims.sort_by_key(by_name);
    // Berth's own note of whose the claim is.
    for meta in claims.iter_mut().filter_map(|claim| claim.metadata.as_mut()) {
        if meta.annotations.remove(stamp::MADE_FOR_ANNOTATION).is_none() {
            return Err(format!("{} does not say for whom it was made", meta.name));
        }
    }
    same("claims", expected, claims)
}

/// Two pods more than wanted, with one claim each: what their claims' owners become.
fn scaled_down(made: &Made) -> Result<(), String> {
    let set: StatefulSet = object(&made.set)?;
    let pods = (0..3).map(|ordinal| running(&set, ordinal)).collect::<Result<Vec<_>, _>>()?;
    let expected: Vec<PersistentVolumeClaim> = objects_of(made.claims_updated.as_ref())?;
    let mut claims = expected.clone();
    claims.iter_mut().filter_map(|claim| claim.metadata.as_mut()).for_each(|meta| meta.owner_references.clear());
    let snapshot = Snapshot::of(
        Timestamp::UNIX_EPOCH,
        Objects {
            set: &set,
            pods: &pods.iter().collect::<Vec<_>>(),
            claims: &claims.iter().collect::<Vec<_>>(),
            revisions: &[],
            service_exists: true,
            budgets: &[],
        },
    );
    for action in plan::statefulset::plan(&snapshot).actions {
        let Op::UpdateClaimOwners { claim, owners } = action.op else { continue };
        let meta =
            claims.iter_mut().filter_map(|claim| claim.metadata.as_mut()).find(|meta| meta.name == claim.as_str());
        let meta = meta.ok_or_else(|| format!("{claim} is not among the recorded claims"))?;
        meta.owner_references = stamp::owner_references(&meta.owner_references, &owners);
    }
    same("claims", expected, claims)
}

fn running(set: &StatefulSet, ordinal: u32) -> Result<Pod, String> {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-{ordinal}"), "uid": format!("p{ordinal}"), "resourceVersion": "1",
            "labels": {"app": "web", "statefulset.kubernetes.io/pod-name": format!("web-{ordinal}")},
            "ownerReferences": [stamp::controller(set)],
        },
        "spec": {
            "nodeName": "n", "containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-web-{ordinal}")}}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1969-01-01T00:00:00Z"}],
        },
    });
    object(&pod)
}

fn objects_of<T: pb::Object>(values: Option<&Vec<Value>>) -> Result<Vec<T>, String> {
    values.into_iter().flatten().map(|value| object(value).map(stamped)).collect()
}

fn object<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_json::from_value(without_empty_status(value)).map_err(|error| format!("{error}: {value}"))
}

/// The recording leaves kind and version of what was made open.
fn stamped<T: pb::Object>(mut object: T) -> T {
    object.stamp_type();
    object
}

fn without_data(revision: &Value) -> Value {
    let mut revision = revision.clone();
    revision.as_object_mut().and_then(|fields| fields.remove("data"));
    revision
}

fn without_empty_status(object: &Value) -> Value {
    let mut object = object.clone();
    if object["status"].as_object().is_some_and(serde_json::Map::is_empty) {
        object.as_object_mut().and_then(|fields| fields.remove("status"));
    }
    object
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, recorded: T, planned: T) -> Result<(), String> {
    if recorded == planned { Ok(()) } else { Err(format!("{what}\n  recorded {recorded:?}\n  planned  {planned:?}")) }
}
