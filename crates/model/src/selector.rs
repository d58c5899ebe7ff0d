//! Selectors: which objects are meant, by their labels or by some of their fields.
//!
//! Label selectors come in two forms, the struct in a spec and the text on a command line; both become a [`Selector`].
//! As in Kubernetes, no selector at all selects nothing, and an empty one selects everything; `key!=value` and
//! `key notin (...)` also hold where the label is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::{LabelSelector, LabelSelectorRequirement},
};

use crate::names;

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The label has one of these values.
    In(BTreeSet<String>),
    /// The label has none of these values, or is missing.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

/// A label and what must hold for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What must hold.
    pub condition: Condition,
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.condition {
            Condition::In(values) => value.is_some_and(|v| values.contains(v)),
            Condition::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
        }
    }
}

/// A query over labels: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// A text or struct is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadSelector(String);

impl Selector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects what has all these labels.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            condition: Condition::In([value.clone()].into()),
        };
        Self { requirements: labels.iter().map(equals).collect() }
    }

    /// From the struct in a spec.
    pub fn of(selector: &LabelSelector) -> Result<Self, BadSelector> {
        let mut all = Self::of_labels(&selector.match_labels);
        for expression in &selector.match_expressions {
            all.requirements.push(requirement(expression)?);
        }
        Ok(all)
    }

    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether everything is meant.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements; all must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

fn requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, BadSelector> {
    let values = || expression.values.iter().cloned().collect::<BTreeSet<_>>();
    let condition = match (expression.operator.as_str(), expression.values.is_empty()) {
        ("In", false) => Condition::In(values()),
        ("NotIn", false) => Condition::NotIn(values()),
        ("Exists", true) => Condition::Exists,
        ("DoesNotExist", true) => Condition::DoesNotExist,
        ("In" | "NotIn", true) => return Err(BadSelector(format!("{}: In and NotIn need values", expression.key))),
        ("Exists" | "DoesNotExist", false) => {
            return Err(BadSelector(format!("{}: Exists and DoesNotExist take no values", expression.key)));
        }
        (other, _) => return Err(BadSelector(format!("{}: there is no operator {other:?}", expression.key))),
    };
    Ok(Requirement { key: expression.key.clone(), condition })
}

impl fmt::Display for Selector {
    /// The text form, which reads back as the same selector.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let texts = self.requirements.iter().map(|Requirement { key, condition }| match condition {
            Condition::In(values) if values.len() == 1 => format!("{key}={}", joined(values)),
            Condition::NotIn(values) if values.len() == 1 => format!("{key}!={}", joined(values)),
            Condition::In(values) => format!("{key} in ({})", joined(values)),
            Condition::NotIn(values) => format!("{key} notin ({})", joined(values)),
            Condition::Exists => key.clone(),
            Condition::DoesNotExist => format!("!{key}"),
        });
        f.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Selector {
    type Err = BadSelector;

    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`; an empty text selects everything.
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let requirements = split_terms(text)?.into_iter().map(term).collect::<Result<_, _>>()?;
        Ok(Self { requirements })
    }
}

/// Splits at the commas that stand outside of parentheses.
fn split_terms(text: &str) -> Result<Vec<&str>, BadSelector> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let (mut terms, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, char) in text.char_indices() {
        match char {
            '(' if !inside => inside = true,
            ')' if inside => inside = false,
            '(' | ')' => return Err(BadSelector(format!("unmatched {char:?} in selector {text:?}"))),
            ',' if !inside => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(BadSelector(format!("unmatched '(' in selector {text:?}")));
    }
    terms.push(&text[start..]);
    Ok(terms)
}

fn term(text: &str) -> Result<Requirement, BadSelector> {
    let text = text.trim();
    let (key, condition) = if let Some((key, value)) = text.split_once("!=") {
        (key, Condition::NotIn(one(value)?))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Condition::In(one(value)?))
    } else if let Some((head, values)) = text.split_once('(') {
        set_term(text, head, values)?
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Condition::DoesNotExist)
    } else {
        (text, Condition::Exists)
    };
    let key = key.trim();
    match names::label_key(key) {
        Ok(()) => Ok(Requirement { key: key.to_owned(), condition }),
        Err(why) => Err(BadSelector(format!("{key:?} in the selector is not a label: {why}"))),
    }
}

fn set_term<'t>(text: &str, head: &'t str, values: &str) -> Result<(&'t str, Condition), BadSelector> {
    let bad = || BadSelector(format!("{text:?} is not of the form `key in (a,b)` or `key notin (a,b)`"));
    let (key, operator) = head.trim().rsplit_once(char::is_whitespace).ok_or_else(bad)?;
    let values = values.trim().strip_suffix(')').ok_or_else(bad)?;
    let values = values.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
    match operator {
        "in" => Ok((key, Condition::In(values))),
        "notin" => Ok((key, Condition::NotIn(values))),
        _ => Err(bad()),
    }
}

fn one(text: &str) -> Result<BTreeSet<String>, BadSelector> {
    Ok([value(text)?].into())
}

fn value(text: &str) -> Result<String, BadSelector> {
    let text = text.trim();
    match names::label_value(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(why) => Err(BadSelector(format!("{text:?} in the selector is not a value of a label: {why}"))),
    }
}

/// A query over fields: all parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: &'static str,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// The fields by which objects of a kind can be selected.
    pub fn fields(kind: Kind) -> &'static [&'static str] {
        match kind {
            Kind::Pod => &["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"],
            Kind::Namespace | Kind::PersistentVolume => &["metadata.name", "status.phase"],
            Kind::PersistentVolumeClaim => &["metadata.name", "metadata.namespace", "status.phase"],
            Kind::VolumeAttachment => &["metadata.name", "spec.attacher", "spec.nodeName"],
            Kind::Node | Kind::StorageClass | Kind::CsiDriver => &["metadata.name"],
            Kind::Event => &[
                "metadata.name",
                "metadata.namespace",
                "involvedObject.kind",
                "involvedObject.name",
                "involvedObject.namespace",
                "involvedObject.uid",
                "reason",
                "type",
            ],
            _ => &["metadata.name", "metadata.namespace"],
        }
    }

    /// Reads `spec.nodeName=n1,status.phase!=Running` for objects of `kind`; an empty text selects everything.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, BadSelector> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let terms = parts.map(|part| field_term(kind, part)).collect::<Result<_, _>>()?;
        Ok(Self { terms })
    }

    /// Whether everything is meant.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether this object is meant.
    pub fn matches(&self, object: &AnyObject) -> bool {
        self.terms.iter().all(|term| (field_value(object, term.field) == term.value) == term.equal)
    }

    /// The value that the field must have, if the selector says so: a short cut to an index.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

fn field_term(kind: Kind, text: &str) -> Result<FieldTerm, BadSelector> {
    let (field, value, equal) = if let Some((field, value)) = text.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (field, value, true)
    } else {
        return Err(BadSelector(format!("{text:?} is not of the form `field=value` or `field!=value`")));
    };
    let known = FieldSelector::fields(kind);
    let field = field.trim();
    match known.iter().find(|known| **known == field) {
        Some(field) => Ok(FieldTerm { field, value: value.trim().to_owned(), equal }),
        None => {
            Err(BadSelector(format!("a {kind} cannot be selected by {field:?}; possible are {}", known.join(", "))))
        }
    }
}

fn field_value<'o>(object: &'o AnyObject, field: &str) -> &'o str {
    let text = match (field, &object.object) {
        ("metadata.name", _) => Some(&object.meta().name),
        ("metadata.namespace", _) => Some(&object.meta().namespace),
        ("spec.nodeName", Some(Variant::Pod(pod))) => pod.spec.as_ref().map(|spec| &spec.node_name),
        ("spec.nodeName", Some(Variant::VolumeAttachment(one))) => one.spec.as_ref().map(|spec| &spec.node_name),
        ("spec.attacher", Some(Variant::VolumeAttachment(one))) => one.spec.as_ref().map(|spec| &spec.attacher),
        ("status.phase", Some(Variant::Pod(pod))) => pod.status.as_ref().map(|status| &status.phase),
        ("status.phase", Some(Variant::Namespace(ns))) => ns.status.as_ref().map(|status| &status.phase),
        ("status.phase", Some(Variant::PersistentVolumeClaim(pvc))) => pvc.status.as_ref().map(|status| &status.phase),
        ("status.phase", Some(Variant::PersistentVolume(pv))) => pv.status.as_ref().map(|status| &status.phase),
        ("reason", Some(Variant::Event(event))) => Some(&event.reason),
        ("type", Some(Variant::Event(event))) => Some(&event.r#type),
        (_, Some(Variant::Event(event))) => event.involved_object.as_ref().and_then(|involved| match field {
            "involvedObject.kind" => Some(&involved.kind),
            "involvedObject.name" => Some(&involved.name),
            "involvedObject.namespace" => Some(&involved.namespace),
            "involvedObject.uid" => Some(&involved.uid),
            _ => None,
        }),
        _ => None,
    };
    text.map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use pb::{Object, objects::Pod};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn text_form_matches() {
        let selector: Selector = "app=nginx, tier!=web,zone in (a, b),gen notin (x),!old,new".parse().unwrap();
        let good = labels(&[("app", "nginx"), ("zone", "b"), ("new", "")]);
        assert!(selector.matches(&good));
        for (key, value) in [("app", "x"), ("tier", "web"), ("zone", "c"), ("gen", "x"), ("old", "")] {
            let mut bad = good.clone();
            bad.insert(key.into(), value.into());
            assert!(!selector.matches(&bad), "{key}={value}");
        }
        assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        assert!("".parse::<Selector>().unwrap().matches(&good));
    }

    #[test]
    fn bad_texts_say_what_is_wrong() {
        for text in ["a=b c", "=b", "a in b", "a in (b", "a) in (b", "a,,b", "a within (b)", "a b"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn fields() {
        let mut pod = Pod::default();
        pod.meta_mut().name = "web-0".into();
        pod.spec.get_or_insert_default().node_name = "n1".into();
        let pod = pod.into_any();
        let matches = |text| FieldSelector::parse(Kind::Pod, text).unwrap().matches(&pod);
        assert!(matches("spec.nodeName=n1,metadata.name==web-0,status.phase!=Running"));
        assert!(!matches("spec.nodeName!=n1"));
        let error = FieldSelector::parse(Kind::Service, "spec.nodeName=n1").unwrap_err().to_string();
        assert!(error.contains("metadata.name"), "{error}");
    }
}
