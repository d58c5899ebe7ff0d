//! From a manifest to an object: every field must be known and of its type.
//!
//! The manifest is walked against the schema of its kind. What does not fit is reported and cut out, and the walk goes
//! on, so that one answer names every mistake; what is left is decoded, defaulted and validated, and those mistakes
//! join the answer. A complaint that only follows from something cut out is dropped.

use pb::{
    Kind,
    api::v1::Object as AnyObject,
    schema::{self, Field, Form, Message, Shape},
};
use serde_json::{Map, Value};

use crate::{
    default,
    error::{ErrorKind, Errors, FieldError, FieldPath},
    unsupported, validate, view,
};

/// What to do with a field that Berth does not know or not support.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Refuse it.
    #[default]
    Strict,
    /// Drop it, and warn.
    Warn,
}

/// Reads a manifest: an object with its defaults, valid for creation, and the warnings.
///
/// `metadata.namespace` may be empty: the front door knows the request's. The object's status and what the server gives
/// (uid, revision, times) are kept as they came; it is the front door that drops them.
pub fn manifest(json: &Value, mode: Mode) -> Result<(AnyObject, Vec<String>), Vec<FieldError>> {
    let Read { object, mut errors, warnings } = read(json, mode);
    if let Some(mut object) = object {
        default::object(&mut object);
        let follows = |error: &FieldError| errors.iter().any(|cut: &FieldError| follows_from(error, cut));
        let more: Vec<_> = validate::create(&object).into_iter().filter(|error| !follows(error)).collect();
        errors.extend(more);
        if errors.is_empty() {
            return Ok((object, warnings));
        }
    }
    errors.sort();
    Err(errors)
}

/// What could be read of a manifest.
struct Read {
    object: Option<AnyObject>,
    errors: Vec<FieldError>,
    warnings: Vec<String>,
}

fn read(json: &Value, mode: Mode) -> Read {
    let mut walk = Walk { errors: Errors::default(), warnings: Vec::new(), mode, apps: false };
    let object = walk.object(json);
    Read { object, errors: walk.errors.into_vec(), warnings: walk.warnings }
}

/// Whether `error` only follows from `cut`: a value that did not fit and is missing now, or the only one of several
/// fields that somebody chose, which Berth does not have.
fn follows_from(error: &FieldError, cut: &FieldError) -> bool {
    match cut.kind {
        ErrorKind::TypeInvalid => error.path.is_within(&cut.path) || cut.path.is_within(&error.path),
        ErrorKind::Unsupported | ErrorKind::Unknown => {
            let choice = matches!(error.kind, ErrorKind::Required | ErrorKind::Invalid);
            choice && cut.path.parent().is_some_and(|parent| parent == error.path)
        }
        _ => false,
    }
}

struct Walk {
    errors: Errors,
    warnings: Vec<String>,
    mode: Mode,
    /// Whether this is a set in the view without what Berth adds.
    apps: bool,
}

impl Walk {
    fn object(&mut self, json: &Value) -> Option<AnyObject> {
        let root = FieldPath::root();
        let Value::Object(fields) = json else {
            self.errors.type_invalid(&root, shown(json), "a manifest is an object with apiVersion, kind and metadata");
            return None;
        };
        let kind = self.kind(fields)?;
        let version = fields.get("apiVersion").and_then(Value::as_str);
        self.apps = kind == Kind::StatefulSet && version == Some(view::APPS);
        let clean = self.message(schema::of(kind), fields, &root);
        match AnyObject::from_json(kind, Value::Object(clean)) {
            Ok(mut object) => {
                object.stamp_type();
                Some(object)
            }
            // The walk lets nothing pass that does not decode; should it ever, the manifest is refused all the same.
            Err(error) => {
                self.errors.type_invalid(&root, String::new(), error.to_string());
                None
            }
        }
    }

    fn kind(&mut self, fields: &Map<String, Value>) -> Option<Kind> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let (kind, api_version) = (FieldPath::of("kind"), FieldPath::of("apiVersion"));
        let names = Kind::ALL.map(Kind::name);
        let Some(known) = Kind::ALL.into_iter().find(|k| k.name() == text("kind")) else {
            match text("kind") {
                "" => self.errors.required(&kind, format!("one of {}", names.join(", "))),
                other => self.errors.not_supported(&kind, other, &names),
            }
            if text("apiVersion").is_empty() {
                self.errors.required(&api_version, "such as apps/v1 for a StatefulSet or v1 for a Service");
            }
            return None;
        };
        let versions = api_versions(known);
        match text("apiVersion") {
            "" => self.errors.required(&api_version, format!("for a {known}: {}", versions.join(" or "))),
            version if versions.contains(&version) => return Some(known),
            version => self.errors.not_supported(&api_version, version, versions),
        }
        Some(known)
    }

    fn message(
        &mut self,
        message: &'static Message,
        fields: &Map<String, Value>,
        path: &FieldPath,
    ) -> Map<String, Value> {
        let mut clean = Map::new();
        for (name, value) in fields {
            let at = path.child(name);
            match message.field(name) {
                Some(_) if self.apps && !value.is_null() && view::is_own(message.name, name) => self.own(&at),
                Some(field) => {
                    if let Some(value) = self.field(field, value, &at) {
                        clean.insert(name.clone(), value);
                    }
                }
                None => self.stranger(message, name, value, &at),
            }
        }
        clean
    }

    /// A field that Berth adds, where only the others may stand.
    fn own(&mut self, path: &FieldPath) {
        match self.mode {
            Mode::Strict => self.errors.forbidden(path, view::ADVICE),
            Mode::Warn => self.warnings.push(format!("field {path} was dropped: {}", view::ADVICE)),
        }
    }

    /// A field that the message does not have.
    fn stranger(&mut self, message: &Message, name: &str, value: &Value, path: &FieldPath) {
        let known = unsupported::is_known(message.name, name);
        if known && unsupported::says_what_is_so(message.name, name, value) {
            return;
        }
        match (self.mode, known) {
            (Mode::Strict, true) => match unsupported::instead(message.name, name) {
                Some(advice) => self.errors.unsupported_because(path, advice),
                None => self.errors.unsupported(path),
            },
            (Mode::Strict, false) => self.errors.unknown(path, advice(message, name)),
            (Mode::Warn, true) => self.warnings.push(format!("field {path} was dropped: not supported by Berth yet")),
            (Mode::Warn, false) => {
                self.warnings.push(format!("unknown field {path} was dropped{}", warned(message, name)))
            }
        }
    }

    fn field(&mut self, field: &'static Field, value: &Value, path: &FieldPath) -> Option<Value> {
        match (field.form, value) {
            (_, Value::Null) => None,
            (Form::One, value) => self.value(field.shape, value, path),
            (Form::List, Value::Array(items)) => {
                let clean = items.iter().enumerate().map(|(index, item)| {
                    // A stand-in keeps the indices of the others right.
                    self.value(field.shape, item, &path.index(index)).unwrap_or_else(|| stand_in(field.shape))
                });
                Some(Value::Array(clean.collect()))
            }
            (Form::Map, Value::Object(entries)) => {
                let clean = entries.iter().filter_map(|(key, entry)| {
                    self.value(field.shape, entry, &path.key(key)).map(|entry| (key.clone(), entry))
                });
                Some(Value::Object(clean.collect()))
            }
            (Form::List, other) => self.wrong(path, other, "a list"),
            (Form::Map, other) => self.wrong(path, other, "an object"),
        }
    }

    fn value(&mut self, shape: Shape, value: &Value, path: &FieldPath) -> Option<Value> {
        let fits = match (shape, value) {
            (Shape::Message(message), Value::Object(fields)) => {
                return Some(Value::Object(self.message(message, fields, path)));
            }
            (Shape::Bool, Value::Bool(_)) | (Shape::Text, Value::String(_)) => true,
            (Shape::Quantity | Shape::IntOrString, Value::String(_)) | (Shape::Quantity, Value::Number(_)) => true,
            (Shape::Int32 | Shape::IntOrString, Value::Number(n)) => {
                n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            (Shape::Int64, Value::Number(n)) => n.as_i64().is_some(),
            (Shape::Time, Value::String(text)) => text.parse::<pb::objects::Time>().is_ok(),
            (Shape::Bytes, Value::String(text)) => pb::json::is_base64(text),
            _ => false,
        };
        if fits { Some(value.clone()) } else { self.wrong(path, value, expected(shape)) }
    }

    fn wrong(&mut self, path: &FieldPath, value: &Value, expected: &str) -> Option<Value> {
        self.errors.type_invalid(path, shown(value), format!("must be {expected}, not {}", found(value)));
        None
    }
}

/// The versions under which manifests of a kind may come.
fn api_versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::StatefulSet => &["apps/v1", "berth/v1"],
        Kind::ControllerRevision => &["apps/v1"],
        Kind::StorageClass | Kind::VolumeAttachment | Kind::CsiDriver => &["storage.k8s.io/v1"],
        Kind::VolumeSnapshot => &["snapshot.storage.k8s.io/v1"],
        Kind::PriorityClass => &["scheduling.k8s.io/v1"],
        Kind::PodDisruptionBudget => &["policy/v1"],
        _ => &["v1"],
    }
}

fn stand_in(shape: Shape) -> Value {
    match shape {
        Shape::Message(_) => Value::Object(Map::new()),
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => Value::from(0),
        Shape::Text | Shape::Bytes | Shape::Quantity => Value::from(""),
        Shape::Time => Value::from("1970-01-01T00:00:00Z"),
    }
}

fn expected(shape: Shape) -> &'static str {
    match shape {
        Shape::Bool => "true or false",
        Shape::Int32 => "a whole number of 32 bits",
        Shape::Int64 => "a whole number of 64 bits",
        Shape::Text => "a string",
        Shape::Bytes => "a string of base64",
        Shape::Time => "a time such as 2026-01-31T12:00:00Z",
        Shape::Quantity => "a quantity such as 500m or 1Gi",
        Shape::IntOrString => "a whole number or a string",
        Shape::Message(_) => "an object",
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean (quote it to make it a string)",
        Value::Number(_) => "a number such as this (quote it if a string is meant)",
        Value::String(_) => "this string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value for an error message, cut to a readable length.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// The field that was probably meant.
fn advice(message: &Message, name: &str) -> String {
    let close = |field: &Field| {
        if field.name.eq_ignore_ascii_case(name) { 0 } else { strsim::osa_distance(field.name, name) }
    };
    let best = message.fields.iter().map(|field| (close(field), field.name)).min();
    match best {
        Some((distance, field)) if distance <= 1 + name.len() / 5 => format!("did you mean {field:?}?"),
        _ => String::new(),
    }
}

fn warned(message: &Message, name: &str) -> String {
    match advice(message, name) {
        text if text.is_empty() => text,
        text => format!(": {text}"),
    }
}
