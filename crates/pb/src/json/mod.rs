//! Serde for what is not a plain object in Kubernetes' JSON, and the helpers that the generated code names.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::objects::{IntOrString, Quantity, Time, int_or_string::Kind as IntOrStringKind};

pub(crate) mod bytes_map;

/// Reads a value of which null means the default, as Kubernetes does.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether a value is not worth printing.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a text is what a field of bytes takes.
pub fn is_base64(text: &str) -> bool {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).is_ok()
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.value)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(value) => Ok(Self { value }),
            serde_json::Value::Number(number) => Ok(Self { value: number.to_string() }),
            other => Err(de::Error::custom(format!("a quantity is a string or a number, not {other}"))),
        }
    }
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            Some(IntOrStringKind::IntValue(number)) => serializer.serialize_i32(*number),
            Some(IntOrStringKind::StringValue(text)) => serializer.serialize_str(text),
            None => serializer.serialize_i32(0),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected an integer of 32 bits or a string")]
        enum Either {
            Int(i32),
            Text(String),
        }
        let kind = match Either::deserialize(deserializer)? {
            Either::Int(number) => IntOrStringKind::IntValue(number),
            Either::Text(text) => IntOrStringKind::StringValue(text),
        };
        Ok(Self { kind: Some(kind) })
    }
}

impl IntOrString {
    /// A plain number.
    pub fn int(value: i32) -> Self {
        Self { kind: Some(IntOrStringKind::IntValue(value)) }
    }

    /// A text.
    pub fn text(value: impl Into<String>) -> Self {
        Self { kind: Some(IntOrStringKind::StringValue(value.into())) }
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(IntOrStringKind::IntValue(number)) => number.fmt(f),
            Some(IntOrStringKind::StringValue(text)) => text.fmt(f),
            None => f.write_str("0"),
        }
    }
}

impl From<&str> for Quantity {
    fn from(value: &str) -> Self {
        Self { value: value.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::objects::StatefulSet;

    #[test]
    fn a_manifest_comes_back_as_it_went_in() {
        let manifest = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "nginx"}},
                "template": {
                    "metadata": {"labels": {"app": "nginx"}},
                    "spec": {"containers": [{
                        "name": "nginx", "image": "nginx",
                        "ports": [{"containerPort": 80, "name": "web"}],
                        "resources": {"requests": {"cpu": "500m"}},
                        "readinessProbe": {"httpGet": {"path": "/", "port": "web"}},
                        "livenessProbe": {"tcpSocket": {"port": 80}},
                    }]},
                },
                "updateStrategy": {"rollingUpdate": {"maxUnavailable": "25%", "partition": 0}},
            },
            "status": {"replicas": 0, "availableReplicas": 0},
        });
        let set: StatefulSet = serde_json::from_value(manifest.clone()).unwrap();
        assert_eq!(serde_json::to_value(&set).unwrap(), manifest);
    }

    #[test]
    fn null_means_absent() {
        let set: StatefulSet =
            serde_json::from_value(json!({"metadata": {"name": "web", "creationTimestamp": null}, "spec": null}))
                .unwrap();
        assert!(set.spec.is_none());
    }
}
