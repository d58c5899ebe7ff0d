//! What `model` says of input, in the words of this service.

use model::{
    decode::{self, Mode},
    error::FieldError,
    validate,
};
use pb::api::v1::{FieldValidation, Object as AnyObject};
use serde_json::Value;

use crate::error::{Error, Result, Violation};

impl From<FieldError> for Violation {
    fn from(error: FieldError) -> Self {
        Self::new(error.path.as_str(), error.description())
    }
}

fn all_or_nothing(errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Error::Invalid(errors.into_iter().map(Violation::from).collect())) }
}

/// Reads a manifest: an object with its defaults, and what was dropped from it.
pub fn decode(manifest: &Value, validation: FieldValidation) -> Result<(AnyObject, Vec<String>)> {
    let mode = match validation {
        FieldValidation::Unspecified | FieldValidation::Strict => Mode::Strict,
        FieldValidation::Warn => Mode::Warn,
    };
    decode::manifest(manifest, mode).map_err(|errors| Error::Invalid(errors.into_iter().map(Violation::from).collect()))
}

/// Fills in the defaults.
pub fn default(object: &mut AnyObject) {
    model::default::object(object);
}

/// Whether an object may be made.
pub fn create(object: &AnyObject) -> Result<()> {
    all_or_nothing(validate::create(object))
}

/// Whether the status of an object may become that of another.
pub fn status(old: &AnyObject, new: &AnyObject) -> Result<()> {
    all_or_nothing(validate::status(old, new))
}

/// Whether an object may become another.
pub fn update(old: &AnyObject, new: &AnyObject) -> Result<()> {
    all_or_nothing(validate::update(old, new))
}
