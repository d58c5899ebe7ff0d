//! What fields an object may have, as data: for code that must name every field that is unknown or of the wrong type,
//! and for code that compares objects field by field.
//!
//! Generated from the descriptors of `proto/` at build time; nothing is parsed at run time.

use crate::Kind;

/// A message and its fields.
#[derive(Debug)]
pub struct Message {
    /// Its bare name, such as "PodSpec".
    pub name: &'static str,
    /// Its fields, in the order of the `.proto`.
    pub fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Whether it holds one value or many.
    pub form: Form,
    /// What a value is.
    pub shape: Shape,
}

/// Whether a field holds one value or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value.
    One,
    /// A JSON array of values.
    List,
    /// A JSON object whose keys are the user's.
    Map,
}

/// What a value is in JSON.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// true or false.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A string.
    Text,
    /// A string of base64.
    Bytes,
    /// A string in RFC 3339.
    Time,
    /// A string or a number.
    Quantity,
    /// A string or a whole number of 32 bits.
    IntOrString,
    /// An object with these fields.
    Message(&'static Message),
}

impl Message {
    /// The field of this JSON name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The fields of a kind.
pub fn of(kind: Kind) -> &'static Message {
    match kind {
        Kind::StatefulSet => &tables::STATEFUL_SET,
        Kind::ControllerRevision => &tables::CONTROLLER_REVISION,
        Kind::Pod => &tables::POD,
        Kind::Service => &tables::SERVICE,
        Kind::PersistentVolumeClaim => &tables::PERSISTENT_VOLUME_CLAIM,
        Kind::PersistentVolume => &tables::PERSISTENT_VOLUME,
        Kind::StorageClass => &tables::STORAGE_CLASS,
        Kind::ConfigMap => &tables::CONFIG_MAP,
        Kind::Secret => &tables::SECRET,
        Kind::Node => &tables::NODE,
        Kind::Namespace => &tables::NAMESPACE,
        Kind::Event => &tables::EVENT,
        Kind::PodDisruptionBudget => &tables::POD_DISRUPTION_BUDGET,
        Kind::VolumeAttachment => &tables::VOLUME_ATTACHMENT,
        Kind::CsiDriver => &tables::CSI_DRIVER,
        Kind::VolumeSnapshot => &tables::VOLUME_SNAPSHOT,
        Kind::PriorityClass => &tables::PRIORITY_CLASS,
    }
}

/// One static for each message, named after it.
pub mod tables {
    use super::{Field, Form, Message, Shape};

    include!(concat!(env!("OUT_DIR"), "/schema.rs"));
}
