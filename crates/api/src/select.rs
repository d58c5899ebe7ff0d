//! What a reader selects: labels and fields, in Kubernetes' text form.

use model::selector::{BadSelector, FieldSelector, Selector};
use pb::{Kind, api::v1::Object as AnyObject};

use crate::error::{Error, Result, Violation};

/// A selection of objects of one kind.
#[derive(Clone, Debug)]
pub struct Selection {
    labels: Selector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads both selectors; all that is wrong with either is one answer. Empty texts select everything.
    pub fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self> {
        let wrong = |field: &str, text: &str, error: &BadSelector| Violation::value(field, text, error);
        match (labels.parse(), FieldSelector::parse(kind, fields)) {
            (Ok(labels), Ok(fields)) => Ok(Self { labels, fields }),
            (labels_read, fields_read) => {
                let first = labels_read.err().map(|error| wrong("labelSelector", labels, &error));
                let second = fields_read.err().map(|error| wrong("fieldSelector", fields, &error));
                Err(Error::Invalid(first.into_iter().chain(second).collect()))
            }
        }
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &AnyObject) -> bool {
        self.labels.matches(&object.meta().labels) && self.fields.matches(object)
    }
}
