//! What is wrong with an object, field by field.
//!
//! Every check reports all that it finds: a user mends a manifest once, not five times. The texts follow Kubernetes'
//! (`spec.replicas: Invalid value: -1: must be greater than or equal to 0`), so that people and programs that know them
//! read these as well.

use std::fmt;

/// Where a value stands in an object: `spec.template.spec.containers[0].resources.requests[cpu]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path of fields, such as `spec.template`.
    pub fn of(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// A field of the value here.
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self(field.to_owned()) } else { Self(format!("{self}.{field}")) }
    }

    /// An element of the list here.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{self}[{index}]"))
    }

    /// A value of the map here.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{self}[{key}]"))
    }

    /// The value that this is a field of; None for an element of a list or map, and for the object itself.
    pub fn parent(&self) -> Option<Self> {
        let (parent, field) = self.0.rsplit_once('.')?;
        let is_field = !field.contains(['[', ']']);
        is_field.then(|| Self(parent.to_owned()))
    }

    /// The path as text; empty for the object itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `other` or lies within it.
    pub fn is_within(&self, other: &FieldPath) -> bool {
        match self.0.strip_prefix(&other.0) {
            Some(rest) => other.0.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']),
            None => false,
        }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What sort of mistake it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// A value must be there and is not.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value may not be there, or may not be changed.
    Forbidden,
    /// The value stands there twice.
    Duplicate,
    /// The value is none of those that are possible.
    NotSupported,
    /// The value names something that does not exist.
    NotFound,
    /// The value is too long.
    TooLong,
    /// The value has the wrong type.
    TypeInvalid,
    /// There is no such field.
    Unknown,
    /// Kubernetes has this field; Berth does not have it yet.
    Unsupported,
}

impl ErrorKind {
    /// The name for programs; Kubernetes' cause type where it has one.
    pub const fn reason(self) -> &'static str {
        match self {
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::Unknown => "FieldUnknown",
            ErrorKind::Unsupported => "FieldNotSupported",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            ErrorKind::Required => "Required value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::NotFound => "Not found",
            ErrorKind::TooLong => "Too long",
            ErrorKind::Unknown => "Unknown field",
            ErrorKind::Unsupported => "Unsupported field",
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldError {
    /// Where.
    pub path: FieldPath,
    /// What sort.
    pub kind: ErrorKind,
    /// The value as JSON, where showing it helps.
    pub value: Option<String>,
    /// What is wrong and what would be right; may be empty where the kind says all.
    pub message: String,
}

impl FieldError {
    /// The error without its path: what stands beside the path in a list of violations.
    pub fn description(&self) -> String {
        let mut text = self.kind.words().to_owned();
        for part in self.value.as_deref().into_iter().chain([self.message.as_str()]).filter(|part| !part.is_empty()) {
            text.push_str(": ");
            text.push_str(part);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.0.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.description())
    }
}

impl std::error::Error for FieldError {}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, path: &FieldPath, kind: ErrorKind, value: Option<String>, message: impl Into<String>) {
        self.0.push(FieldError { path: path.clone(), kind, value, message: message.into() });
    }

    /// A value must be there.
    pub fn required(&mut self, path: &FieldPath, message: impl Into<String>) {
        self.push(path, ErrorKind::Required, None, message);
    }

    /// A value breaks a rule.
    pub fn invalid(&mut self, path: &FieldPath, value: impl Into<serde_json::Value>, message: impl Into<String>) {
        self.push(path, ErrorKind::Invalid, Some(value.into().to_string()), message);
    }

    /// A value may not be there.
    pub fn forbidden(&mut self, path: &FieldPath, message: impl Into<String>) {
        self.push(path, ErrorKind::Forbidden, None, message);
    }

    /// A value stands there twice.
    pub fn duplicate(&mut self, path: &FieldPath, value: impl Into<serde_json::Value>) {
        self.push(path, ErrorKind::Duplicate, Some(value.into().to_string()), "");
    }

    /// A value is none of `supported`.
    pub fn not_supported(&mut self, path: &FieldPath, value: &str, supported: &[&str]) {
        self.not_supported_because(path, value, supported, "");
    }

    /// A value is none of `supported`, with a word on why.
    pub fn not_supported_because(&mut self, path: &FieldPath, value: &str, supported: &[&str], why: &str) {
        let list: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        let mut message = format!("supported values: {}", list.join(", "));
        if !why.is_empty() {
            message.push_str("; ");
            message.push_str(why);
        }
        self.push(path, ErrorKind::NotSupported, Some(format!("{value:?}")), message);
    }

    /// A value names what does not exist.
    pub fn not_found(&mut self, path: &FieldPath, value: &str, message: impl Into<String>) {
        self.push(path, ErrorKind::NotFound, Some(format!("{value:?}")), message);
    }

    /// A value is too long.
    pub fn too_long(&mut self, path: &FieldPath, message: impl Into<String>) {
        self.push(path, ErrorKind::TooLong, None, message);
    }

    /// A value has the wrong type.
    pub fn type_invalid(&mut self, path: &FieldPath, value: String, message: impl Into<String>) {
        self.push(path, ErrorKind::TypeInvalid, Some(value), message);
    }

    /// There is no such field.
    pub fn unknown(&mut self, path: &FieldPath, message: impl Into<String>) {
        self.push(path, ErrorKind::Unknown, None, message);
    }

    /// Kubernetes has the field, Berth does not.
    pub fn unsupported(&mut self, path: &FieldPath) {
        self.push(path, ErrorKind::Unsupported, None, "not supported by Berth yet");
    }

    /// The same, and what to do instead.
    pub fn unsupported_because(&mut self, path: &FieldPath, why: &str) {
        self.push(path, ErrorKind::Unsupported, None, why);
    }

    /// Takes the mistakes of others in.
    pub fn extend(&mut self, others: Errors) {
        self.0.extend(others.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order of their paths, each once.
    pub fn into_vec(mut self) -> Vec<FieldError> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_kubernetes() {
        let mut errors = Errors::default();
        let spec = FieldPath::of("spec");
        errors.invalid(&spec.child("replicas"), -1, "must be greater than or equal to 0");
        errors.required(&spec.child("containers").index(0).child("image"), "");
        errors.not_supported(&spec.child("restartPolicy"), "Never", &["Always"]);
        let texts: Vec<_> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.containers[0].image: Required value",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                r#"spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
            ]
        );
    }

    #[test]
    fn within_means_a_whole_step() {
        let of = FieldPath::of;
        assert!(of("spec.a").is_within(&of("spec")));
        assert!(of("spec[0]").is_within(&of("spec")));
        assert!(!of("specific").is_within(&of("spec")));
        assert!(of("spec").is_within(&FieldPath::root()));
    }
}
