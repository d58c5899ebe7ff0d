//! Maps of bytes, which are base64 in JSON.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serializer, de, ser::SerializeMap};

pub(crate) fn serialize<S: Serializer>(map: &BTreeMap<String, Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut out = serializer.serialize_map(Some(map.len()))?;
    for (key, value) in map {
        out.serialize_entry(key, &STANDARD.encode(value))?;
    }
    out.end()
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<u8>>, D::Error> {
    let texts = Option::<BTreeMap<String, String>>::deserialize(deserializer)?.unwrap_or_default();
    let decode = |(key, text): (String, String)| match STANDARD.decode(&text) {
        Ok(bytes) => Ok((key, bytes)),
        Err(error) => Err(de::Error::custom(format!("the value of {key} is not base64: {error}"))),
    };
    texts.into_iter().map(decode).collect()
}
