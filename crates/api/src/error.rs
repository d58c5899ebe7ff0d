//! Why a request was not done, and the one place where that becomes a gRPC status.
//!
//! Every status says what to do next. Bad input carries a `google.rpc.BadRequest` with one violation for each error.

use std::time::Duration;

use pb::Kind;
use store::{Revision, objects::Undecodable};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::window::{Behind, Lagged};

/// A result of the API service.
pub type Result<T> = std::result::Result<T, Error>;

/// When to ask again for an eviction that a budget holds back, unless a watch tells before.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// One thing that is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, as a path such as `spec.replicas`.
    pub field: String,
    /// What is wrong, such as `Invalid value: -1: must be greater than or equal to 0`.
    pub description: String,
}

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The input is wrong. Never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Violation>),
    /// There is no such object.
    #[error("{what} not found{hint}")]
    NotFound {
        /// Such as `pod default/web-0`.
        what: String,
        /// What to do about it, if that can be said.
        hint: String,
    },
    /// There is such an object already.
    #[error("{0} already exists; update or apply it instead")]
    AlreadyExists(String),
    /// Somebody else was faster, or a precondition does not hold.
    #[error("{0}")]
    Conflict(String),
    /// The state of things forbids it, whoever asks.
    #[error("{0}")]
    Refused(String),
    /// A disruption budget holds a pod back for now.
    #[error("{what} is not evicted: {why}; {advice}")]
    Disruption {
        /// The pod, such as `pod default/web-0`.
        what: String,
        /// The budget, such as `poddisruptionbudget default/web`.
        budget: String,
        /// What the budget demands and what there is.
        why: String,
        /// What to do about it.
        advice: String,
    },
    /// The revision to go on from is not known any more, or not yet.
    #[error("{0}; list again and watch from the revision of the list")]
    Expired(String),
    /// A stored value is not an object.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// This service cannot answer now.
    #[error("{0}")]
    Unavailable(String),
    /// A mistake of Berth.
    #[error("{0}; this is a bug in Berth, please report it")]
    Bug(String),
}

impl Violation {
    /// One thing that is wrong.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }

    /// A value that cannot be.
    pub fn value(field: impl Into<String>, value: impl std::fmt::Debug, why: impl std::fmt::Display) -> Self {
        Self::new(field, format!("Invalid value: {value:?}: {why}"))
    }

    /// The same within a document of many.
    pub fn within(mut self, document: &str) -> Self {
        self.field = format!("{document}: {}", self.field);
        self
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// How an object is called in messages.
pub fn called(kind: Kind, namespace: &str, name: &str) -> String {
    let kind_name = kind.name().to_ascii_lowercase();
    if kind.namespaced() { format!("{kind_name} {namespace}/{name}") } else { format!("{kind_name} {name}") }
}

impl Error {
    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, description)])
    }

    /// No such object.
    pub fn not_found(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::NotFound { what: called(kind, namespace, name), hint: String::new() }
    }

    /// The object changed between reading and writing, again and again.
    pub fn contended(what: &str) -> Self {
        Self::Conflict(format!("{what} was changed by others at the same time; read it again and retry"))
    }
}

impl From<Lagged> for Error {
    fn from(lagged: Lagged) -> Self {
        let Lagged { requested, oldest } = lagged;
        Self::Expired(format!("changes after revision {requested} are no longer remembered (oldest is {oldest})"))
    }
}

impl From<Behind> for Error {
    fn from(behind: Behind) -> Self {
        let Behind { shown, written } = behind;
        Self::Unavailable(format!(
            "the cache shows revision {shown}, but revision {written} was written through this service; the store is slow or cut off, retry"
        ))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Invalid(violations) => {
                let violations = violations.into_iter().map(|v| FieldViolation::new(v.field, v.description));
                let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
                Status::with_error_details(Code::InvalidArgument, text, details)
            }
            Error::NotFound { .. } => Status::not_found(text),
            Error::AlreadyExists(_) => Status::already_exists(text),
            Error::Conflict(_) => Status::aborted(text),
            Error::Refused(_) => Status::failed_precondition(text),
            Error::Disruption { budget, why, .. } => {
                let mut details = ErrorDetails::with_quota_failure_violation(budget, why);
                details.set_retry_info(Some(ASK_AGAIN));
                Status::with_error_details(Code::ResourceExhausted, text, details)
            }
            Error::Expired(_) => Status::out_of_range(text),
            Error::Undecodable(_) => Status::data_loss(text),
            Error::Store(error) => match error {
                store::Error::Compacted { .. } => Status::out_of_range(text),
                store::Error::Unavailable(_) => Status::unavailable(text),
                store::Error::Unknown(_) => {
                    Status::unknown(format!("{text}; read the object to see whether the change was made"))
                }
                store::Error::LeaseEnded(_) => Status::not_found(text),
                store::Error::Refused(_) => Status::failed_precondition(text),
            },
            Error::Unavailable(_) => Status::unavailable(text),
            Error::Bug(_) => Status::internal(text),
        }
    }
}

/// A revision as text, from a client.
pub fn parse_revision(field: &str, text: &str) -> Result<Revision> {
    let parsed = text.parse().ok().filter(|revision| *revision >= 0);
    parsed.ok_or_else(|| {
        Error::Invalid(vec![Violation::value(field, text, "must be a resourceVersion that this service has given out")])
    })
}

/// A kind as text, from a client.
pub fn parse_kind(text: &str) -> Result<Kind> {
    text.parse().map_err(|error: pb::UnknownKind| Error::Invalid(vec![Violation::value("kind", text, error)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_carries_every_violation() {
        let error = Error::Invalid(vec![
            Violation::value("spec.replicas", -1, "must be greater than or equal to 0").within("statefulset/web"),
            Violation::new("spec.serviceName", "Required value"),
        ]);
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        let found = status.get_error_details().bad_request().unwrap().field_violations.clone();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].field, "statefulset/web: spec.replicas");
        assert_eq!(found[0].description, "Invalid value: -1: must be greater than or equal to 0");
        assert!(status.message().contains("spec.serviceName: Required value"));
    }
}
