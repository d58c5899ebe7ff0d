//! Replays what Kubernetes' own API server says of manifests: the same fields, the same kinds of errors, the same
//! defaults. The cases come from the folder named by `ORACLE_DIR`, or from the project's copy under `tests/oracle`.
//!
//! Where Berth answers otherwise on purpose, a named predicate says so; everything else must agree.

#![allow(clippy::expect_used, reason = "a test that cannot read its cases fails")]
#![allow(clippy::ptr_arg, reason = "every explanation has the same signature")]

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use model::{
    decode::{self, Mode},
    error::{ErrorKind, FieldError},
    validate,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    id: String,
    label: String,
    gates: Gates,
    new: Value,
    old: Option<Value>,
    valid: bool,
    #[serde(default)]
    errors: Vec<Expected>,
    decode_error: Option<String>,
    defaulted: Option<Value>,
}

#[derive(Deserialize)]
struct Gates {
    max_unavailable: bool,
}

#[derive(Deserialize)]
struct Expected {
    field: String,
    r#type: String,
}

/// A field and what sort of mistake it holds, as both sides tell it.
type Answer = Vec<(String, String)>;

enum Verdict {
    Agree,
    Deviate(String),
    Differ(String),
}

#[test]
fn validation_agrees_with_kubernetes() {
    let mut agree = 0;
    let mut deviate: BTreeMap<String, usize> = BTreeMap::new();
    let mut differ = Vec::new();
    for line in fs::read_to_string(folder().join("validation.jsonl")).expect("the recorded cases").lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        match judge(&case) {
            Verdict::Agree => agree += 1,
            Verdict::Deviate(name) => *deviate.entry(name).or_default() += 1,
            Verdict::Differ(how) => differ.push(format!("{} ({}): {how}", case.id, case.label)),
        }
    }
    println!("agree {agree}");
    for (name, count) in &deviate {
        println!("deviate({name}) {count}");
    }
    println!("differ {}\n{}", differ.len(), differ.join("\n"));
    assert!(differ.is_empty());
    assert!(agree > 0, "there were no cases");
}

fn folder() -> PathBuf {
    match env::var_os("ORACLE_DIR") {
        Some(folder) => folder.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle"),
    }
}

fn judge(case: &Case) -> Verdict {
    // Kubernetes drops what it does not know in these cases, and so do they not tell about unknown fields.
    let (ours, defaulted) = match &case.old {
        None => match decode::manifest(&case.new, Mode::Warn) {
            Ok((object, _)) => (Vec::new(), Some(object.to_json().expect("JSON"))),
            Err(errors) => (errors, None),
        },
        Some(old) => (update(old, &case.new), None),
    };
    let theirs = answer(case.errors.iter().map(|e| (e.field.clone(), e.r#type.clone())));
    if case.decode_error.is_some() {
        // A refusal as a whole there, a field here.
        return match ours.first() {
            Some(_) => Verdict::Agree,
            None => Verdict::Differ("decoded".to_owned()),
        };
    }
    if answers(&ours) == theirs && case.valid == ours.is_empty() {
        return match (&case.defaulted, defaulted) {
            (Some(theirs), Some(ours)) => defaults(theirs, &ours),
            _ => Verdict::Agree,
        };
    }
    let (mut rest_of_theirs, mut rest_of_ours) = (theirs.clone(), ours.clone());
    let mut names = Vec::new();
    for (name, explain) in DEVIATIONS {
        let before = (rest_of_theirs.clone(), rest_of_ours.clone());
        explain(case, &mut rest_of_theirs, &mut rest_of_ours);
        if before != (rest_of_theirs.clone(), rest_of_ours.clone()) {
            names.push(*name);
        }
    }
    if !names.is_empty() && rest_of_theirs == answers(&rest_of_ours) {
        return Verdict::Deviate(names.join("+"));
    }
    let ours: Vec<_> = ours.iter().map(ToString::to_string).collect();
    Verdict::Differ(format!("Kubernetes {theirs:?}, Berth {ours:?}"))
}

fn answer(errors: impl Iterator<Item = (String, String)>) -> Answer {
    let mut all: Vec<_> = errors.collect();
    all.sort();
    all.dedup();
    all
}

fn update(old: &Value, new: &Value) -> Vec<FieldError> {
    let read = |json: &Value| {
        let mut object = pb::api::v1::Object::from_json(pb::Kind::StatefulSet, json.clone()).expect("JSON of a set");
        model::default::object(&mut object);
        object
    };
    validate::update(&read(old), &read(new))
}

/// Takes out of both answers what a deviation explains.
type Explain = fn(&Case, theirs: &mut Answer, ours: &mut Vec<FieldError>);

/// Where Berth answers otherwise on purpose, with the reason.
const DEVIATIONS: &[(&str, Explain)] = &[
    ("immutable_field_is_named", immutable_field_is_named),
    ("claim_templates_grow", claim_templates_grow),
    ("one_error_for_one_mistake", one_error_for_one_mistake),
    ("path_is_whole", path_is_whole),
    ("template_is_checked_beside_a_broken_selector", template_is_checked_beside_a_broken_selector),
    ("max_unavailable_is_in_force", max_unavailable_is_in_force),
    ("no_name_overflows_later", no_name_overflows_later),
    ("name_is_generated_later", name_is_generated_later),
    ("claim_template_is_named", claim_template_is_named),
    ("refused_until_supported", refused_until_supported),
    ("recreate_is_a_strategy", recreate_is_a_strategy),
];

/// The immutable field that changed is named, where Kubernetes says `spec` and lists what may change.
fn immutable_field_is_named(_: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    let fixed = |e: &FieldError| e.kind == ErrorKind::Forbidden && e.path.as_str().starts_with("spec.");
    if ours.iter().any(fixed) && take(theirs, "spec", "FieldValueForbidden") {
        ours.retain(|e| !fixed(e));
    }
}

/// Claim templates may grow and be labelled otherwise (VCT-1): where nothing else that is fixed has changed, nothing is
/// wrong here. By the two sets alone.
fn claim_templates_grow(case: &Case, theirs: &mut Answer, _: &mut Vec<FieldError>) {
    let Some(old) = &case.old else { return };
    if old["spec"]["volumeClaimTemplates"] == case.new["spec"]["volumeClaimTemplates"] {
        return;
    }
    let fixed = |set: &Value| {
        let mut spec = set["spec"].clone();
        for field in ["replicas", "ordinals", "template", "updateStrategy", "minReadySeconds", "revisionHistoryLimit"] {
            spec[field] = Value::Null;
        }
        spec["persistentVolumeClaimRetentionPolicy"] = Value::Null;
        for template in spec["volumeClaimTemplates"].as_array_mut().into_iter().flatten() {
            template["metadata"]["labels"] = Value::Null;
            template["metadata"]["annotations"] = Value::Null;
            template["spec"]["resources"]["requests"]["storage"] = Value::Null;
        }
        spec
    };
    let sizes = |set: &Value| {
        let templates = set["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        let size = |template: &Value| {
            let written = template["spec"]["resources"]["requests"]["storage"].as_str();
            written.and_then(|written| written.parse::<model::quantity::Quantity>().ok())
        };
        templates.iter().map(size).collect::<Vec<_>>()
    };
    let grown = sizes(old).iter().zip(&sizes(&case.new)).all(|(was, is)| was <= is);
    if grown && fixed(old) == fixed(&case.new) {
        take(theirs, "spec", "FieldValueForbidden");
    }
}

/// A claim that grows is allowed here and forbidden there, and the rule says which: no recording has one.
#[test]
fn a_grown_claim_template_deviates_by_its_name() {
    let line = fs::read_to_string(folder().join("validation.jsonl")).expect("the recorded cases");
    let cases = line.lines().map(|line| serde_json::from_str::<Case>(line).expect("a case"));
    let forbidden = |case: &Case| case.errors.iter().any(|e| e.field == "spec" && e.r#type == "FieldValueForbidden");
    let mut case = cases.into_iter().find(|case| case.old.is_some() && forbidden(case)).expect("such a case");
    case.new = case.old.clone().expect("an old set");
    let resized = |case: &mut Case, size: &str| {
        case.new["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = size.into();
    };
    resized(&mut case, "2Gi");
    assert!(matches!(judge(&case), Verdict::Deviate(name) if name == "claim_templates_grow"));
    resized(&mut case, "1Mi");
    assert!(matches!(judge(&case), Verdict::Deviate(name) if name == "immutable_field_is_named"), "it shrinks");
}

/// One mistake gives one error: what only follows from a missing or broken selector is not told as well.
fn one_error_for_one_mistake(_: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    let selector = |kind| move |(f, k): &(String, String)| f == "spec.selector" && k == kind;
    let told = |path: &str| ours.iter().any(|e| e.path.as_str() == path);
    if theirs.iter().any(|(field, _)| field.starts_with("spec.selector.")) && !told("spec.selector") {
        theirs.retain(|e| !selector("FieldValueInvalid")(e));
    }
    if theirs.iter().any(selector("FieldValueRequired")) && !told("spec.template.metadata.labels") {
        take(theirs, "spec.template.metadata.labels", "FieldValueInvalid");
    }
}

/// A template's labels are at metadata.labels, a claim's size is at resources.requests, a strategy's name is its type.
fn path_is_whole(_: &Case, theirs: &mut Answer, _: &mut Vec<FieldError>) {
    let whole = theirs.drain(..).map(|(field, kind)| {
        let field = field
            .replace("spec.template.labels", "spec.template.metadata.labels")
            .replace("spec.template.annotations", "spec.template.metadata.annotations")
            .replace("spec.resources[storage]", "spec.resources.requests[storage]");
        let field = if field == "spec.updateStrategy" { format!("{field}.type") } else { field };
        (field, kind)
    });
    *theirs = answer(whole.collect::<Vec<_>>().into_iter());
}

/// Kubernetes looks at the template's labels only if the selector is sound.
fn template_is_checked_beside_a_broken_selector(_: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    if theirs.iter().any(|(field, _)| field.starts_with("spec.selector")) {
        let path = "spec.template.metadata.labels";
        let known = theirs.iter().any(|(field, _)| field == path);
        ours.retain(|e| known || e.path.as_str() != path);
    }
}

/// `maxUnavailable` is always in force: without Kubernetes' gate it is dropped there, checked here.
fn max_unavailable_is_in_force(case: &Case, _: &mut Answer, ours: &mut Vec<FieldError>) {
    if !case.gates.max_unavailable {
        ours.retain(|e| e.path.as_str() != "spec.updateStrategy.rollingUpdate.maxUnavailable");
    }
}

/// A set's name leaves room for the ordinal and the revision's hash (#64023).
fn no_name_overflows_later(case: &Case, _: &mut Answer, ours: &mut Vec<FieldError>) {
    let length = case.new["metadata"]["name"].as_str().map_or(0, str::len);
    if (53..=63).contains(&length) {
        ours.retain(|e| e.path.as_str() != "metadata.name");
    }
}

/// The front door completes a generateName after these checks.
fn name_is_generated_later(case: &Case, theirs: &mut Answer, _: &mut Vec<FieldError>) {
    if case.new["metadata"]["generateName"].is_string() {
        take(theirs, "metadata.name", "FieldValueRequired");
    }
}

/// A claim template without a name is named itself, not the volume that it would become.
fn claim_template_is_named(_: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    let template = |e: &FieldError| {
        let path = e.path.as_str();
        path.starts_with("spec.volumeClaimTemplates[") && path.ends_with("].metadata.name")
    };
    if ours.iter().any(template) {
        theirs.retain(|(path, _)| {
            let volume = path.starts_with("spec.template.spec.volumes[");
            !(volume && (path.ends_with("].name") || path.ends_with(".claimName")))
        });
        ours.retain(|e| !template(e));
    }
}

/// What Berth cannot do yet is refused, never ignored.
fn refused_until_supported(_: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    let known = theirs.clone();
    ours.retain(|e| {
        let not_yet = e.message.contains("not supported by Berth yet") || e.message.contains("never pulled");
        !not_yet || known.iter().any(|(field, _)| *field == e.path.as_str())
    });
}

/// A set may be updated by Recreate (KEP-3541), with or without Berth's own fields.
fn recreate_is_a_strategy(case: &Case, theirs: &mut Answer, ours: &mut Vec<FieldError>) {
    if case.new["spec"]["updateStrategy"]["type"] == "Recreate" {
        take(theirs, "spec.updateStrategy", "FieldValueInvalid");
        take(theirs, "spec.updateStrategy.type", "FieldValueInvalid");
        ours.retain(|e| e.path.as_str() != "spec.updateStrategy.rollingUpdate");
    }
}

fn take(answer: &mut Answer, field: &str, kind: &str) -> bool {
    let before = answer.len();
    answer.retain(|(f, k)| !(f == field && k == kind));
    answer.len() < before
}

fn answers(errors: &[FieldError]) -> Answer {
    answer(errors.iter().map(|e| (e.path.to_string(), e.kind.reason().to_owned())))
}

/// Whether both sides wrote the same defaults.
fn defaults(theirs: &Value, ours: &Value) -> Verdict {
    let mut theirs = theirs.clone();
    let mut ours = ours.clone();
    // Given by the server when it accepts the object, after the defaults.
    remove(&mut theirs, &["metadata", "generation"]);
    // What Berth has no field for, since it knows no other value.
    remove(&mut theirs, &["spec", "template", "spec", "dnsPolicy"]);
    remove(&mut theirs, &["spec", "template", "spec", "schedulerName"]);
    for list in ["containers", "initContainers"] {
        for container in theirs["spec"]["template"]["spec"][list].as_array_mut().into_iter().flatten() {
            remove(container, &["terminationMessagePath"]);
            remove(container, &["terminationMessagePolicy"]);
            // Images are loaded, never pulled.
            if container["imagePullPolicy"] == "Always" {
                container["imagePullPolicy"] = "IfNotPresent".into();
            }
        }
    }
    let pointer = "/spec/updateStrategy/rollingUpdate/maxUnavailable";
    let path = ["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"];
    let mut name = None;
    match (theirs.pointer(pointer), ours.pointer(pointer)) {
        (None, Some(_)) => {
            name = Some("max_unavailable_is_in_force");
            remove(&mut ours, &path);
        }
        (Some(one), None) if *one == 1 => {
            name = Some("max_unavailable_is_not_defaulted");
            remove(&mut theirs, &path);
        }
        _ => {}
    }
    match (differences(&theirs, &ours, ""), name) {
        (none, None) if none.is_empty() => Verdict::Agree,
        (none, Some(name)) if none.is_empty() => Verdict::Deviate(name.to_owned()),
        (some, _) => Verdict::Differ(format!("defaults: {}", some.join("; "))),
    }
}

fn remove(value: &mut Value, path: &[&str]) {
    if let [field, rest @ ..] = path
        && let Some(fields) = value.as_object_mut()
    {
        if rest.is_empty() {
            fields.remove(*field);
        } else if let Some(inner) = fields.get_mut(*field) {
            remove(inner, rest);
        }
    }
}

fn differences(theirs: &Value, ours: &Value, path: &str) -> Vec<String> {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let of = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or_default();
            keys.into_iter().flat_map(|k| differences(&of(a, k), &of(b, k), &format!("{path}.{k}"))).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().flat_map(|(i, (a, b))| differences(a, b, &format!("{path}[{i}]"))).collect()
        }
        (a, b) if a == b => Vec::new(),
        // Printed there, absent here: a zero either way.
        (a, Value::Null) if *a == 0 || *a == "" || *a == false => Vec::new(),
        (a, b) => vec![format!("{path}: Kubernetes {a}, Berth {b}")],
    }
}
