//! The table of Kubernetes' fields in `docs/fields.md`: what Berth does with each of them.
//!
//! `fields/kubernetes.json` says which fields there are, and a sample of each. What Berth does with a field is found out:
//! a manifest with the sample in it is read as the API service reads it. So the table cannot say what is not so.
//! A field that Berth has and the list lacks is a finding too.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use model::decode::{self, Mode};
use pb::{
    Kind,
    schema::{self, Message, Shape},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

const KUBERNETES: &str = include_str!("fields/kubernetes.json");
const HEAD: &str = "\
# Fields of pods and sets

Every field of Kubernetes' v1 PodSpec and apps/v1 StatefulSetSpec, and what Berth does with it. Written by `make bless`: each
line was found out by giving a manifest with that field to the code that reads manifests; `make check` sees to it that the
table is not stale.

- **supported**: does what it does in Kubernetes, within what the note says.
- **taken**: asks for what is so anyway; accepted, nothing to do.
- **refused**: Berth answers with this error. There is no silence: `--validate=warn` makes a warning of it.
- **planned**: refused for now.

What Berth adds to a set stands in [statefulset.md](statefulset.md), where it decides otherwise in
[deviations.md](deviations.md).
";

/// A message of Kubernetes.
#[derive(Deserialize)]
struct Described {
    /// Its heading, if that is not its name.
    title: Option<String>,
    /// The least that it needs to be valid.
    least: Map<String, Value>,
    /// Fields of which one can be set.
    #[serde(default)]
    alternatives: Vec<String>,
    /// A sample of each field: a value, `$one` or `$list` of a message, `$values` that are tried one after the other, or
    /// a `value` that stands `$with` others.
    fields: BTreeMap<String, Value>,
    /// What is to be said of fields.
    #[serde(default)]
    notes: BTreeMap<String, String>,
    /// Whether other fields are described elsewhere.
    #[serde(default)]
    partial: bool,
}

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Supported,
    Taken,
    Refused(String),
}

/// Makes a manifest around a value, and says where the value stands in it.
struct Place<'p> {
    kind: Kind,
    around: &'p dyn Fn(Value) -> Value,
    pointer: String,
    path: String,
}

/// Writes the table, or checks it.
pub fn check(file: &Path, bless: bool) -> Result<Vec<String>> {
    let (table, mut findings) = table()?;
    if bless {
        fs::write(file, table).with_context(|| format!("write {}", file.display()))?;
    } else if fs::read_to_string(file).unwrap_or_default() != table {
        findings.push("docs/fields.md does not say what is so: `make bless` writes it anew".to_owned());
    }
    Ok(findings)
}

fn table() -> Result<(String, Vec<String>)> {
    let known: BTreeMap<String, Described> = serde_json::from_str(KUBERNETES).context("fields/kubernetes.json")?;
    let mut writer = Writer { known: &known, text: HEAD.to_owned(), findings: Vec::new() };
    for (kind, version) in [(Kind::Pod, "v1"), (Kind::StatefulSet, "apps/v1")] {
        let around =
            |spec: Value| json!({"apiVersion": version, "kind": kind.name(), "metadata": {"name": "x"}, "spec": spec});
        let place = Place { kind, around: &around, pointer: "/spec".to_owned(), path: "spec".to_owned() };
        let spec = schema::of(kind).field("spec").and_then(|field| message(field.shape));
        writer.message(kind.name(), &place, spec, 2)?;
    }
    Ok((writer.text, writer.findings))
}

fn message(shape: Shape) -> Option<&'static Message> {
    match shape {
        Shape::Message(message) => Some(message),
        _ => None,
    }
}

struct Writer<'k> {
    known: &'k BTreeMap<String, Described>,
    text: String,
    findings: Vec<String>,
}

impl Writer<'_> {
    /// One table, and those of the messages in it.
    fn message(&mut self, name: &str, place: &Place<'_>, schema: Option<&'static Message>, depth: usize) -> Result<()> {
        let known = self.known;
        let described = known.get(name).with_context(|| format!("fields/kubernetes.json describes no {name}"))?;
        let title = described.title.as_deref().unwrap_or(name);
        let marks = "#".repeat(depth);
        write!(self.text, "\n{marks} {title}\n\n`{}`\n\n| field | state | note |\n|---|---|---|\n", place.path)?;
        let mut below = Vec::new();
        for (field, sample) in &described.fields {
            let mut note = described.notes.get(field).map_or("", String::as_str);
            let inner = sample.get("$one").or_else(|| sample.get("$list")).and_then(Value::as_str);
            for (value, with) in samples(known, sample)? {
                let state = state(place, described, field, &value, &with)?;
                let shown = sample.get("$values").map(|_| value);
                self.row(field, shown.as_ref(), &state, std::mem::take(&mut note))?;
            }
            below.extend(inner.map(|inner| (field, inner, sample.get("$list").is_some())));
        }
        self.complete(name, described, schema);
        for (field, inner, is_list) in below {
            let wrap = |value: Value| if is_list { json!([value]) } else { value };
            let around = |value: Value| (place.around)(filled(described, field, wrap(value), &Map::new()));
            let (index, brackets) = if is_list { ("/0", "[]") } else { ("", "") };
            let place = Place {
                kind: place.kind,
                around: &around,
                pointer: format!("{}/{field}{index}", place.pointer),
                path: format!("{}.{field}{brackets}", place.path),
            };
            let schema = schema.and_then(|schema| schema.field(field)).and_then(|field| message(field.shape));
            self.message(inner, &place, schema, 3)?;
        }
        Ok(())
    }

    /// A line.
    fn row(&mut self, field: &str, value: Option<&Value>, state: &State, note: &str) -> Result<()> {
        let name = match value {
            None => format!("`{field}`"),
            Some(Value::String(text)) => format!("`{field}: {}`", if text.is_empty() { "\"\"" } else { text }),
            Some(other) => format!("`{field}: {}`", serde_json::to_string(other)?),
        };
        let (word, error) = match state {
            State::Supported => ("supported", String::new()),
            State::Taken => ("taken", String::new()),
            State::Refused(why) => {
                let word = if why.contains("by Berth yet") { "planned" } else { "refused" };
                // A text with backticks stands between two.
                (word, if why.contains('`') { format!("`` {why} ``") } else { format!("`{why}`") })
            }
        };
        let note = [error.as_str(), note].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        writeln!(self.text, "| {name} | {word} | {} |", note.replace('|', "\\|"))?;
        Ok(())
    }

    /// Whether every field that Berth has is described.
    fn complete(&mut self, name: &str, described: &Described, schema: Option<&'static Message>) {
        let Some(schema) = schema.filter(|_| !described.partial) else { return };
        for field in schema.fields.iter().filter(|field| !described.fields.contains_key(field.name)) {
            if !model::view::is_own(schema.name, field.name) {
                self.findings.push(format!("fields/kubernetes.json: {name} lacks {:?}, which Berth has", field.name));
            }
        }
    }
}

/// The values that a field is tried with, and what stands beside each.
fn samples(known: &BTreeMap<String, Described>, sample: &Value) -> Result<Vec<(Value, Map<String, Value>)>> {
    let least = |name: &str| {
        let described = known.get(name).with_context(|| format!("fields/kubernetes.json describes no {name}"))?;
        Ok::<_, anyhow::Error>(Value::Object(described.least.clone()))
    };
    let siblings = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(name) = sample.get("$one").and_then(Value::as_str) {
        return Ok(vec![(least(name)?, Map::new())]);
    }
    if let Some(name) = sample.get("$list").and_then(Value::as_str) {
        return Ok(vec![(json!([least(name)?]), Map::new())]);
    }
    if let Some(values) = sample.get("$values").and_then(Value::as_array) {
        let with = |value: &Value| siblings(sample.get("with").and_then(|with| with.get(value.as_str()?)));
        return Ok(values.iter().map(|value| (value.clone(), with(value))).collect());
    }
    if let Some(value) = sample.get("value").filter(|_| sample.get("$with").is_some()) {
        return Ok(vec![(value.clone(), siblings(sample.get("$with")))]);
    }
    Ok(vec![(sample.clone(), Map::new())])
}

/// The least of a message with a field set, and others beside it.
fn filled(described: &Described, field: &str, value: Value, with: &Map<String, Value>) -> Value {
    let mut all = described.least.clone();
    if described.alternatives.iter().any(|other| other == field) {
        all.retain(|other, _| !described.alternatives.contains(other));
    }
    all.extend(with.clone());
    all.insert(field.to_owned(), value);
    Value::Object(all)
}

/// What becomes of a field that is set so.
fn state(
    place: &Place<'_>,
    described: &Described,
    field: &str,
    value: &Value,
    with: &Map<String, Value>,
) -> Result<State> {
    let manifest = (place.around)(filled(described, field, value.clone(), with));
    match decode::manifest(&manifest, Mode::Strict) {
        Ok((object, _)) => {
            let read = object.to_json()?;
            let kept = read.pointer(&format!("{}/{field}", place.pointer)).is_some_and(|kept| !kept.is_null());
            let empty = matches!(value.as_str(), Some(""));
            Ok(if kept || empty { State::Supported } else { State::Taken })
        }
        Err(errors) => {
            let mut texts: Vec<_> = errors.iter().map(model::error::FieldError::description).collect();
            texts.dedup();
            Ok(State::Refused(texts.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_what_the_code_makes_of_it() {
        let (text, findings) = table().unwrap();
        assert_eq!(findings, [""; 0]);
        for line in [
            "| `tolerations` | supported |  |",
            "| `operator: Near` | refused |",
            "| `hostNetwork` | refused | `Unsupported field: pods have networks",
            "| `overhead` | planned | `Unsupported field: not supported by Berth yet` |",
            "| `procMount: Default` | taken |  |",
        ] {
            let there = text.lines().any(|one| one.starts_with(line));
            assert_eq!(there, !line.contains("Near"), "{line}");
        }
    }
}
