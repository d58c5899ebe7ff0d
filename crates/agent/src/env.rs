//! The environment of a container, and `$(NAME)` in its command.
//!
//! Pure. A missing ConfigMap, Secret or key is an error with the variable's name, unless the reference is optional.

use std::collections::BTreeMap;

use model::names;
use pb::{
    agent::v1::PodBundle,
    objects::{Container, EnvFromSource, EnvSource, EnvVar, EnvVarSource, KeySelector, ObjectMeta, Pod},
};

use crate::fields::{self, Place};

/// Why the environment cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {variable} of container {container}: {problem}")]
pub struct BadEnv {
    container: String,
    variable: String,
    problem: String,
}

/// The variables of a container: those from whole objects in order, then those of its own, which win. `$(NAME)` in a value
/// stands for whatever came before it.
pub fn variables(bundle: &PodBundle, container: &Container, place: Place<'_>) -> Result<Vec<(String, String)>, BadEnv> {
    let mut found = Found::default();
    for source in &container.env_from {
        let bad = |problem| BadEnv { container: container.name.clone(), variable: whole(source), problem };
        for (name, value) in all_keys(bundle, source).map_err(bad)? {
            if names::env_name(&name).is_ok() {
                let bad = |problem| BadEnv { container: container.name.clone(), variable: name.clone(), problem };
                found.set(&name, value.map_err(bad)?);
            }
        }
    }
    for variable in &container.env {
        let bad = |problem| BadEnv { container: container.name.clone(), variable: variable.name.clone(), problem };
        let value = value(bundle, container, variable, place, &found.known).map_err(bad)?;
        if let Some(value) = value {
            found.set(&variable.name, value);
        }
    }
    Ok(found.order)
}

/// Names that objects in `envFrom` would give and that no variable may have: they are left out, and told.
pub fn skipped(bundle: &PodBundle, container: &Container) -> Vec<String> {
    let all = container.env_from.iter().filter_map(|source| all_keys(bundle, source).ok()).flatten();
    all.map(|(name, _)| name).filter(|name| names::env_name(name).is_err()).collect()
}

#[derive(Default)]
struct Found {
    known: BTreeMap<String, String>,
    order: Vec<(String, String)>,
}

impl Found {
    fn set(&mut self, name: &str, value: String) {
        self.known.insert(name.to_owned(), value.clone());
        self.order.retain(|(known, _)| known != name);
        self.order.push((name.to_owned(), value));
    }
}

/// How a source of many variables is called in an error.
fn whole(source: &EnvFromSource) -> String {
    format!("{}*", source.prefix)
}

/// A variable's name, and its value or why it has none.
type Named = (String, Result<String, String>);

/// All keys of an object with the prefix before them; none of an optional object that is not there.
fn all_keys(bundle: &PodBundle, source: &EnvFromSource) -> Result<Vec<Named>, String> {
    let named = |key: &str| format!("{}{key}", source.prefix);
    if let Some(wanted) = &source.config_map_ref {
        let map = bundle.config_maps.iter().find(|map| name_of(map.metadata.as_ref()) == wanted.name);
        let all = map.map(|map| map.data.iter().map(|(key, value)| (named(key), Ok(value.clone()))).collect());
        return object(all, wanted, "configMap");
    }
    if let Some(wanted) = &source.secret_ref {
        let secret = bundle.secrets.iter().find(|secret| name_of(secret.metadata.as_ref()) == wanted.name);
        let all = secret.map(|secret| {
            let values = secret.data.iter();
            values.map(|(key, bytes)| (named(key), text(key, &wanted.name, bytes))).collect()
        });
        return object(all, wanted, "secret");
    }
    Err("envFrom names no source that Berth supports: use configMapRef or secretRef".into())
}

fn object(all: Option<Vec<Named>>, wanted: &EnvSource, what: &str) -> Result<Vec<Named>, String> {
    match all {
        Some(all) => Ok(all),
        None if wanted.optional == Some(true) => Ok(Vec::new()),
        None => Err(format!("{what} {:?} does not exist; create it, and the container starts", wanted.name)),
    }
}

/// None for an optional reference to what is not there.
fn value(
    bundle: &PodBundle,
    container: &Container,
    variable: &EnvVar,
    place: Place<'_>,
    known: &BTreeMap<String, String>,
) -> Result<Option<String>, String> {
    let none = Pod::default();
    let pod = bundle.pod.as_ref().unwrap_or(&none);
    match &variable.value_from {
        None => Ok(Some(expand(&variable.value, known))),
        Some(EnvVarSource { field_ref: Some(field), .. }) => fields::of_pod(pod, &field.field_path, place).map(Some),
        Some(EnvVarSource { resource_field_ref: Some(field), .. }) => {
            fields::of_container(pod, Some(container), field, place).map(Some)
        }
        Some(EnvVarSource { config_map_key_ref: Some(key), .. }) => config_map_key(bundle, key),
        Some(EnvVarSource { secret_key_ref: Some(key), .. }) => secret_key(bundle, key),
        Some(_) => {
            Err("valueFrom names no source that Berth supports: use fieldRef, resourceFieldRef, configMapKeyRef \
                        or secretKeyRef"
                .into())
        }
    }
}

fn config_map_key(bundle: &PodBundle, key: &KeySelector) -> Result<Option<String>, String> {
    let map = bundle.config_maps.iter().find(|map| name_of(map.metadata.as_ref()) == key.name);
    let value = map.and_then(|map| map.data.get(&key.key).cloned());
    missing(value, key, "configMap", map.is_some())
}

fn secret_key(bundle: &PodBundle, key: &KeySelector) -> Result<Option<String>, String> {
    let secret = bundle.secrets.iter().find(|secret| name_of(secret.metadata.as_ref()) == key.name);
    let Some(bytes) = secret.and_then(|secret| secret.data.get(&key.key)) else {
        return missing(None, key, "secret", secret.is_some());
    };
    text(&key.key, &key.name, bytes).map(Some)
}

fn text(key: &str, secret: &str, bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map(str::to_owned);
    text.map_err(|_| format!("key {key:?} of secret {secret:?} is not text; mount it as a file instead"))
}

fn missing(value: Option<String>, key: &KeySelector, what: &str, there: bool) -> Result<Option<String>, String> {
    match value {
        Some(value) => Ok(Some(value)),
        None if key.optional == Some(true) => Ok(None),
        None if there => Err(format!("{what} {:?} has no key {:?}", key.name, key.key)),
        None => Err(format!("{what} {:?} does not exist; create it, and the container starts", key.name)),
    }
}

fn name_of(meta: Option<&ObjectMeta>) -> &str {
    meta.map_or("", |meta| meta.name.as_str())
}

/// Replaces `$(NAME)` by the variable's value. A name that is not known stays as it is; `$$` is a dollar sign.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables that a text refers to and that nobody knows.
pub fn unknown(text: &str, known: &BTreeMap<String, String>) -> Vec<String> {
    let escaped = text.replace("$$", "");
    let names = escaped.split("$(").skip(1).filter_map(|after| after.split_once(')')).map(|(name, _)| name.to_owned());
    names.filter(|name| !known.contains_key(name)).collect()
}

#[cfg(test)]
mod tests {
    use pb::objects::{ConfigMap, ObjectFieldSelector, Secret};

    use super::*;

    static NOTHING: BTreeMap<String, model::quantity::Quantity> = BTreeMap::new();
    const PLACE: Place<'_> =
        Place { node_name: "node-1", host_ip: "10.0.0.1", pod_ip: "10.77.0.5", allocatable: &NOTHING };

    fn plain(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: value.into(), value_from: None }
    }

    fn from(name: &str, source: EnvVarSource) -> EnvVar {
        EnvVar { name: name.into(), value: String::new(), value_from: Some(source) }
    }

    fn key(name: &str, key: &str, optional: bool) -> KeySelector {
        KeySelector { name: name.into(), key: key.into(), optional: Some(optional) }
    }

    fn field_ref(path: &str) -> EnvVarSource {
        let selector = ObjectFieldSelector { field_path: path.into(), ..Default::default() };
        EnvVarSource { field_ref: Some(selector), ..Default::default() }
    }

    fn bundle() -> PodBundle {
        let meta = |name: &str| ObjectMeta { name: name.into(), ..Default::default() };
        let labels = [("app".to_owned(), "nginx".to_owned())].into();
        PodBundle {
            pod: Some(Pod { metadata: Some(ObjectMeta { labels, ..meta("web-0") }), ..Default::default() }),
            config_maps: vec![ConfigMap {
                metadata: Some(meta("conf")),
                data: [("mode".to_owned(), "fast".to_owned()), ("a=b".to_owned(), "x".to_owned())].into(),
                ..Default::default()
            }],
            secrets: vec![Secret {
                metadata: Some(meta("pass")),
                data: [("word".to_owned(), b"xyz".to_vec()), ("raw".to_owned(), vec![0xff])].into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn of(env: Vec<EnvVar>) -> Result<Vec<(String, String)>, BadEnv> {
        variables(&bundle(), &Container { name: "main".into(), env, ..Default::default() }, PLACE)
    }

    #[test]
    fn takes_values_from_everywhere_and_expands_what_came_before() {
        let env = vec![
            from("POD", field_ref("metadata.name")),
            from("APP", field_ref("metadata.labels['app']")),
            from("MODE", EnvVarSource { config_map_key_ref: Some(key("conf", "mode", false)), ..Default::default() }),
            from("WORD", EnvVarSource { secret_key_ref: Some(key("pass", "word", false)), ..Default::default() }),
            from("NONE", EnvVarSource { secret_key_ref: Some(key("nowhere", "x", true)), ..Default::default() }),
            plain("ALL", "$(POD)/$(APP)/$(MODE)/$(LATER)/$$(POD)"),
            plain("LATER", "x"),
        ];
        let all: BTreeMap<_, _> = of(env).unwrap().into_iter().collect();
        assert_eq!(all["ALL"], "web-0/nginx/fast/$(LATER)/$(POD)");
        assert_eq!(all["WORD"], "xyz");
        assert!(!all.contains_key("NONE"));
    }

    fn whole(prefix: &str, map: &str, secret: &str, optional: bool) -> EnvFromSource {
        let source = |name: &str| (!name.is_empty()).then(|| EnvSource { name: name.into(), optional: Some(optional) });
        EnvFromSource { prefix: prefix.into(), config_map_ref: source(map), secret_ref: source(secret) }
    }

    #[test]
    fn whole_objects_come_first_and_what_no_variable_may_be_called_is_left_out() {
        let container = Container {
            name: "main".into(),
            env_from: vec![whole("CONF_", "conf", "", false), whole("", "", "nowhere", true)],
            env: vec![plain("USED", "$(CONF_mode)"), plain("CONF_mode", "slow")],
            ..Default::default()
        };
        let all = variables(&bundle(), &container, PLACE).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(all, [pair("USED", "fast"), pair("CONF_mode", "slow")]);
        assert_eq!(skipped(&bundle(), &container), ["CONF_a=b"]);
        let says = |source| {
            let container = Container { env_from: vec![source], ..container.clone() };
            variables(&bundle(), &container, PLACE).unwrap_err().to_string()
        };
        assert!(says(whole("", "nowhere", "", false)).contains("configMap \"nowhere\" does not exist"));
        assert!(says(whole("", "", "pass", false)).contains("variable raw of container main: key \"raw\""));
    }

    #[test]
    fn what_is_missing_is_named() {
        let secret = |k: KeySelector| EnvVarSource { secret_key_ref: Some(k), ..Default::default() };
        for (source, says) in [
            (secret(key("nowhere", "x", false)), "secret \"nowhere\" does not exist"),
            (secret(key("pass", "x", false)), "secret \"pass\" has no key \"x\""),
            (secret(key("pass", "raw", false)), "is not text"),
            (field_ref("spec.volumes"), "fieldPath \"spec.volumes\" is not supported"),
        ] {
            let error = of(vec![from("V", source)]).unwrap_err().to_string();
            assert!(error.starts_with("environment variable V of container main: "), "{error}");
            assert!(error.contains(says), "{error}");
        }
    }
}
