//! Revisions of a set's template: what their names are made of.
//!
//! A revision stores a pod template and is named `<set>-<hash>`, where the hash is Kubernetes' own: FNV-1, 32 bits, over
//! the bytes of the template and the decimal collision count, spelled in an alphabet without vowels (REV-3). The same
//! template of the same set so has the same name wherever it is computed, and a second writer runs into the first one's
//! object instead of making a twin.

use std::fmt;

use crate::identity::{RevisionName, SetName};

/// A pod template as canonical bytes: equal bytes mean an equal template (REV-9).
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateBytes(Vec<u8>);

impl TemplateBytes {
    /// Takes bytes that are canonical already.
    pub fn new(canonical: impl Into<Vec<u8>>) -> Self {
        Self(canonical.into())
    }

    /// From a template in Kubernetes' JSON: keys in order, no space, wrapped as Kubernetes stores a revision's data.
    pub fn from_json(template: &serde_json::Value) -> Self {
        let mut template = sorted(template);
        if let serde_json::Value::Object(fields) = &mut template {
            fields.insert("$patch".to_owned(), "replace".into());
            template = sorted(&template);
        }
        Self(format!(r#"{{"spec":{{"template":{}}}}}"#, escaped(&template.to_string())).into_bytes())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of the revision that stores this template of `set`, after `collisions` names were found taken by
    /// other templates (REV-3).
    pub fn revision_name(&self, set: &SetName, collisions: u32) -> RevisionName {
        let hash = RevisionHash::of(self, collisions);
        let set: String = set.as_str().chars().take(LONGEST_SET_PREFIX).collect();
        RevisionName::from(format!("{set}-{hash}"))
    }
}

impl fmt::Debug for TemplateBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Characters of the set's name that a revision's name keeps.
const LONGEST_SET_PREFIX: usize = 223;

/// Digits of the hash: neither vowels nor characters that look alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash in a revision's name; at most ten characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevisionHash(u32);

impl RevisionHash {
    /// The hash of a template.
    pub fn of(template: &TemplateBytes, collisions: u32) -> Self {
        let fnv = |hash: u32, byte: &u8| hash.wrapping_mul(16_777_619) ^ u32::from(*byte);
        let hash = template.0.iter().fold(2_166_136_261, fnv);
        Self(collisions.to_string().as_bytes().iter().fold(hash, fnv))
    }
}

impl fmt::Display for RevisionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string().bytes().try_for_each(|digit| {
            let at = usize::from(digit) % ALPHABET.len();
            write!(f, "{}", char::from(ALPHABET[at]))
        })
    }
}

/// The same value with the keys of every object in order, whatever order the map type keeps.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let ordered: std::collections::BTreeMap<_, _> = fields.iter().collect();
            Value::Object(ordered.into_iter().map(|(key, field)| (key.clone(), sorted(field))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        plain => plain.clone(),
    }
}

/// Go's encoder escapes these, and the hash is over its bytes.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_order_and_html_is_escaped() {
        let json = serde_json::json!({"spec": {"b": "1 < 2", "a": [{"z": 1, "y": null}]}});
        assert_eq!(
            format!("{:?}", TemplateBytes::from_json(&json)),
            r#"{"spec":{"template":{"$patch":"replace","spec":{"a":[{"y":null,"z":1}],"b":"1 \u003c 2"}}}}"#
        );
    }

    #[test]
    fn a_collision_changes_the_name() {
        let template = TemplateBytes::new("{}");
        let set = SetName::from("web");
        assert_ne!(template.revision_name(&set, 0), template.revision_name(&set, 1));
        assert!(template.revision_name(&"x".repeat(300).as_str().into(), 0).as_str().len() <= 234);
    }
}
