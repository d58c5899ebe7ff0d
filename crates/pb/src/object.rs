//! What all objects have in common, for code that handles any of them.

use crate::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::*,
};

/// An object of one kind.
pub trait Object:
    prost::Message + Default + Clone + PartialEq + serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static
{
    /// Its kind.
    const KIND: Kind;

    /// Its metadata; empty if there is none.
    fn meta(&self) -> &ObjectMeta;

    /// Its metadata, made if there is none.
    fn meta_mut(&mut self) -> &mut ObjectMeta;

    /// Writes its apiVersion (if empty) and kind.
    fn stamp_type(&mut self);

    /// As one of any kind.
    fn into_any(self) -> AnyObject;

    /// Back from one of any kind; gives the object back if it is of another kind.
    fn from_any(any: AnyObject) -> Result<Self, Box<AnyObject>>;

    /// A look at one of any kind; None if the object is of another kind.
    fn peek(any: &AnyObject) -> Option<&Self>;
}

/// Short ways to an object's metadata.
pub trait ObjectExt: Object {
    /// metadata.name
    fn name(&self) -> &str {
        &self.meta().name
    }

    /// metadata.namespace
    fn namespace(&self) -> &str {
        &self.meta().namespace
    }

    /// metadata.uid
    fn uid(&self) -> &str {
        &self.meta().uid
    }

    /// Whether deletion was asked for.
    fn is_terminating(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    /// metadata.resourceVersion as the store's revision; 0 for an object that is not stored.
    fn mod_revision(&self) -> i64 {
        self.meta().resource_version.parse().unwrap_or(0)
    }
}

impl<T: Object> ObjectExt for T {}

/// What stands in for metadata that is absent.
static NO_META: ObjectMeta = ObjectMeta {
    name: String::new(),
    generate_name: String::new(),
    namespace: String::new(),
    uid: String::new(),
    resource_version: String::new(),
    generation: 0,
    creation_timestamp: None,
    deletion_timestamp: None,
    deletion_grace_period_seconds: None,
    labels: std::collections::BTreeMap::new(),
    annotations: std::collections::BTreeMap::new(),
    owner_references: Vec::new(),
    finalizers: Vec::new(),
};

macro_rules! objects {
    ($($kind:ident),* $(,)?) => {
        $(
            impl Object for $kind {
                const KIND: Kind = Kind::$kind;

                fn meta(&self) -> &ObjectMeta {
                    self.metadata.as_ref().unwrap_or(&NO_META)
                }

                fn meta_mut(&mut self) -> &mut ObjectMeta {
                    self.metadata.get_or_insert_default()
                }

                fn stamp_type(&mut self) {
                    if self.api_version.is_empty() {
                        self.api_version = Kind::$kind.api_version().to_owned();
                    }
                    self.kind = Kind::$kind.name().to_owned();
                }

                fn into_any(self) -> AnyObject {
                    AnyObject { object: Some(Variant::$kind(self)) }
                }

                fn from_any(any: AnyObject) -> Result<Self, Box<AnyObject>> {
                    match any.object {
                        Some(Variant::$kind(object)) => Ok(object),
                        object => Err(Box::new(AnyObject { object })),
                    }
                }

                fn peek(any: &AnyObject) -> Option<&Self> {
                    match &any.object {
                        Some(Variant::$kind(object)) => Some(object),
                        _ => None,
                    }
                }
            }
        )*

        impl AnyObject {
            /// Its kind; None if the message is empty.
            pub fn kind(&self) -> Option<Kind> {
                match &self.object {
                    $(Some(Variant::$kind(_)) => Some(Kind::$kind),)*
                    None => None,
                }
            }

            /// Its metadata; empty if there is none.
            pub fn meta(&self) -> &ObjectMeta {
                match &self.object {
                    $(Some(Variant::$kind(object)) => object.meta(),)*
                    None => &NO_META,
                }
            }

            /// Its metadata, made if there is none; None if the message is empty.
            pub fn meta_mut(&mut self) -> Option<&mut ObjectMeta> {
                match &mut self.object {
                    $(Some(Variant::$kind(object)) => Some(object.meta_mut()),)*
                    None => None,
                }
            }

            /// Writes its apiVersion (if empty) and kind.
            pub fn stamp_type(&mut self) {
                match &mut self.object {
                    $(Some(Variant::$kind(object)) => object.stamp_type(),)*
                    None => {}
                }
            }

            /// Its Kubernetes JSON; null if the message is empty.
            pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
                match &self.object {
                    $(Some(Variant::$kind(object)) => serde_json::to_value(object),)*
                    None => Ok(serde_json::Value::Null),
                }
            }

            /// From Kubernetes JSON of a known kind. Unknown fields are dropped: whoever must not drop them looks first.
            pub fn from_json(kind: Kind, json: serde_json::Value) -> Result<Self, serde_json::Error> {
                match kind {
                    $(Kind::$kind => Ok(serde_json::from_value::<$kind>(json)?.into_any()),)*
                }
            }

            /// The object's bytes as the store keeps them: without the wrapper.
            pub fn encode_object(&self) -> Vec<u8> {
                match &self.object {
                    $(Some(Variant::$kind(object)) => prost::Message::encode_to_vec(object),)*
                    None => Vec::new(),
                }
            }

            /// The object from the bytes that the store keeps.
            pub fn decode_object(kind: Kind, bytes: &[u8]) -> Result<Self, prost::DecodeError> {
                match kind {
                    $(Kind::$kind => Ok(<$kind as prost::Message>::decode(bytes)?.into_any()),)*
                }
            }
        }
    };
}

objects!(
    StatefulSet,
    ControllerRevision,
    Pod,
    Service,
    PersistentVolumeClaim,
    PersistentVolume,
    StorageClass,
    ConfigMap,
    Secret,
    Node,
    Namespace,
    Event,
    PodDisruptionBudget,
    VolumeAttachment,
    CsiDriver,
    VolumeSnapshot,
    PriorityClass,
);
