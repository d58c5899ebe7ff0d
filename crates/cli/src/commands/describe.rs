//! `berth describe`: one object in full, for people, with its events.

use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;
use pb::{
    Kind,
    api::v1::{ListRequest, Object as AnyObject},
    schema::{self, Field, Form, Message, Shape},
};
use serde_json::{Map, Value};

use crate::{
    age,
    client::Client,
    output::{self, table::Table},
    target,
};

/// Flags of `berth describe`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What: `pod web-0`, `sts/web`, or a kind for all of its objects
    #[arg(required = true, value_name = "KIND [NAME...] | KIND/NAME")]
    what: Vec<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
}

/// Where values begin.
const VALUES: usize = 20;

/// Describes.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let mut objects = Vec::new();
    for target in target::targets(&args.what)? {
        match &target.name {
            Some(name) => objects.push(client.get(target.kind, name).await?),
            None => {
                let list = ListRequest {
                    kind: target.kind.name().to_owned(),
                    namespace: client.namespace_of(target.kind),
                    label_selector: args.selector.clone(),
                    ..ListRequest::default()
                };
                objects.extend(client.list(list).await?.0);
            }
        }
    }
    for (at, object) in objects.iter().enumerate() {
        let events = events(&client, object).await?;
        let gap = if at > 0 { "\n\n" } else { "" };
        print!("{gap}{}{}", described(object, Timestamp::now())?, events);
    }
    Ok(ExitCode::SUCCESS)
}

/// An object as indented text.
fn described(object: &AnyObject, now: Timestamp) -> Result<String> {
    let meta = object.meta();
    let mut out = String::new();
    line(&mut out, 0, "Name", &meta.name);
    if !meta.namespace.is_empty() {
        line(&mut out, 0, "Namespace", &meta.namespace);
    }
    if let Some(born) = &meta.creation_timestamp {
        line(
            &mut out,
            0,
            "Created",
            &format!("{} ({} ago)", to_the_second(&born.to_string()), age::since(Some(born), now)),
        );
    }
    if let Some(end) = &meta.deletion_timestamp {
        let grace = meta.deletion_grace_period_seconds.unwrap_or(0);
        line(&mut out, 0, "Terminating", &format!("until {end} (grace period {grace}s)"));
    }
    for (title, map) in [("Labels", &meta.labels), ("Annotations", &meta.annotations)] {
        // What apply remembers repeats the object.
        let shown: Vec<_> = map.iter().filter(|(key, _)| !key.ends_with("/last-applied-configuration")).collect();
        if shown.is_empty() {
            line(&mut out, 0, title, "<none>");
        }
        for (at, (key, value)) in shown.iter().enumerate() {
            line(&mut out, 0, if at == 0 { title } else { "" }, &format!("{key}={value}"));
        }
    }
    for owner in meta.owner_references.iter().filter(|owner| owner.controller == Some(true)) {
        line(&mut out, 0, "Controlled By", &format!("{}/{}", owner.kind, owner.name));
    }
    let Some(kind) = object.kind() else { return Ok(out) };
    if let Value::Object(mut fields) = output::to_json(object)? {
        fields.retain(|key, _| !["apiVersion", "kind", "metadata"].contains(&key.as_str()));
        if let (Kind::Secret, Some(Value::Object(data))) = (kind, fields.get_mut("data")) {
            data.values_mut().for_each(hide);
        }
        block(&mut out, 0, Some(schema::of(kind)), &fields);
    }
    Ok(out)
}

fn line(out: &mut String, depth: usize, title: &str, value: &str) {
    let width = VALUES.saturating_sub(2 * depth);
    aligned(out, depth, width, title, value);
}

/// `title:` and, `width` characters behind its start, the value.
fn aligned(out: &mut String, depth: usize, width: usize, title: &str, value: &str) {
    let head = if title.is_empty() { String::new() } else { format!("{title}:") };
    let pad = width.saturating_sub(head.chars().count()).max(1);
    out.push_str(&format!("{}{head}{}{value}\n", "  ".repeat(depth), " ".repeat(pad)));
}

/// A secret's value is told by its size.
fn hide(value: &mut Value) {
    let size = value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4);
    *value = Value::from(format!("{size} bytes"));
}

/// The fields of an object, plain values lined up. Without a message the keys are the user's and stay as they are.
fn block(out: &mut String, depth: usize, message: Option<&'static Message>, fields: &Map<String, Value>) {
    let title = |key: &str| if message.is_some() { title(key) } else { key.to_owned() };
    let shown: Vec<_> = fields.iter().filter(|(_, value)| !is_empty(value)).collect();
    let widest = shown.iter().filter(|(_, value)| is_plain(value)).map(|(key, _)| title(key).chars().count()).max();
    let width = widest.unwrap_or(0) + 3;
    for (key, value) in shown {
        let field = message.and_then(|message| message.field(key));
        let inner = match field {
            Some(Field { form: Form::One | Form::List, shape: Shape::Message(message), .. }) => Some(*message),
            _ => None,
        };
        match value {
            Value::String(time) if matches!(field, Some(Field { shape: Shape::Time, .. })) => {
                aligned(out, depth, width, &title(key), &to_the_second(time));
            }
            value if is_plain(value) => aligned(out, depth, width, &title(key), &plain(value)),
            Value::Array(items) if inner.is_some_and(|message| message.name == "Condition") => {
                conditions(out, depth, items);
            }
            Value::Object(blocked) if inner.is_some_and(|message| message.name == "StatefulSetBlockedOn") => {
                aligned(out, depth, width, &title(key), &blocked_on(blocked));
            }
            Value::Array(items) => {
                out.push_str(&format!("{}{}:\n", "  ".repeat(depth), title(key)));
                items.iter().for_each(|item| element(out, depth + 1, inner, item));
            }
            Value::Object(fields) => {
                out.push_str(&format!("{}{}:\n", "  ".repeat(depth), title(key)));
                block(out, depth + 1, inner, fields);
            }
            _ => {}
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Whether a value stands on its title's line.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Object(_) => false,
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        _ => true,
    }
}

/// An element of a list stands under its name, if it has one.
fn element(out: &mut String, depth: usize, message: Option<&'static Message>, item: &Value) {
    let Value::Object(fields) = item else { return };
    let name = fields.get("name").or_else(|| fields.get("metadata")?.get("name")).and_then(Value::as_str);
    out.push_str(&format!("{}{}:\n", "  ".repeat(depth), name.unwrap_or("-")));
    let mut rest = fields.clone();
    rest.remove("name");
    block(out, depth + 1, message, &rest);
}

fn conditions(out: &mut String, depth: usize, items: &[Value]) {
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let mut table = Table::new(["Type", "Status", "Since", "Reason", "Message"]);
    for item in items {
        let since = to_the_second(&text(item, "lastTransitionTime"));
        table.push([text(item, "type"), text(item, "status"), since, text(item, "reason"), text(item, "message")]);
    }
    out.push_str(&format!("{}Conditions:\n", "  ".repeat(depth)));
    for row in table.to_string().lines() {
        out.push_str(&format!("{}{row}\n", "  ".repeat(depth + 1)));
    }
}

/// What a set waits for, on one line: the ordinal, why, since when.
fn blocked_on(blocked: &Map<String, Value>) -> String {
    let text = |key: &str| blocked.get(key).and_then(Value::as_str).unwrap_or_default();
    let ordinal = blocked.get("ordinal").map_or("the set".to_owned(), |ordinal| format!("ordinal {ordinal}"));
    format!("{ordinal}: {} since {}", text("reason"), to_the_second(text("since")))
}

/// A time without its fraction of a second.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.replace('\n', "\\n"),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// podManagementPolicy -> Pod Management Policy
fn title(key: &str) -> String {
    let mut out = String::new();
    for (at, c) in key.char_indices() {
        let after_lower = key[..at].ends_with(|c: char| c.is_ascii_lowercase());
        if c.is_ascii_uppercase() && after_lower {
            out.push(' ');
        }
        out.push(if at == 0 { c.to_ascii_uppercase() } else { c });
    }
    out
}

/// The events about an object, under their title.
pub async fn events(client: &Client, object: &AnyObject) -> Result<String> {
    let Some(kind) = object.kind() else { return Ok(String::new()) };
    let meta = object.meta();
    let list = ListRequest {
        kind: Kind::Event.name().to_owned(),
        namespace: meta.namespace.clone(),
        field_selector: format!("involvedObject.kind={kind},involvedObject.name={}", meta.name),
        ..ListRequest::default()
    };
    let (mut events, _) = client.list(list).await?;
    let key = |event: &AnyObject| {
        let event = <pb::objects::Event as pb::Object>::peek(event);
        event.and_then(|event| event.last_timestamp).map_or((0, 0), |time| (time.seconds, time.nanos))
    };
    events.sort_by_key(key);
    if events.is_empty() {
        return Ok(format!("{:VALUES$}<none>\n", "Events:"));
    }
    let now = Timestamp::now();
    let mut table = Table::new(["Age", "Type", "Reason", "From", "Message"]);
    for event in events.iter().filter_map(<pb::objects::Event as pb::Object>::peek) {
        let last = age::since(event.last_timestamp.as_ref(), now);
        let times = if event.count > 1 { format!("{last} (x{})", event.count) } else { last };
        let from = event.source.as_ref().map_or(String::new(), |source| source.component.clone());
        table.push([times, event.r#type.clone(), event.reason.clone(), from, event.message.trim().to_owned()]);
    }
    let rows: String = table.to_string().lines().map(|row| format!("  {row}\n")).collect();
    Ok(format!("Events:\n{rows}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_well() {
        let set = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "nginx"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "podManagementPolicy": "OrderedReady", "selector": {"matchLabels": {"app": "nginx"}}},
            "status": {"blockedOn": {"ordinal": 1, "reason": "NotReady", "since": "2026-01-01T00:00:30.25Z"}, "conditions": [{"type": "Available", "status": "True", "lastTransitionTime": "2026-01-01T00:00:30Z"}]},
        });
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let text = described(&AnyObject::from_json(Kind::StatefulSet, set).unwrap(), now).unwrap();
        assert!(text.starts_with("Name:               web\nNamespace:          default\nCreated:            2026-01-01T00:00:00Z (60s ago)\nLabels:             app=nginx\nAnnotations:        <none>\n"), "{text}");
        assert!(text.contains("\n  Pod Management Policy:  OrderedReady\n  Replicas:               3\n"), "{text}");
        assert!(text.contains("\n    Match Labels:\n      app:  nginx\n"), "{text}");
        assert!(text.contains("  Blocked On:          ordinal 1: NotReady since 2026-01-01T00:00:30Z\n"), "{text}");
        assert!(text.contains("  Type        Status   Since                  Reason   Message\n"), "{text}");
    }

    #[test]
    fn titles() {
        assert_eq!(title("podManagementPolicy"), "Pod Management Policy");
        assert_eq!(title("podIP"), "Pod IP");
    }
}
