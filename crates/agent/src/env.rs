//! The environment of a container, and `$(NAME)` in its command.
//!
//! Pure. A missing ConfigMap, Secret or key is an error with the variable's name, unless the reference is optional.

use std::collections::BTreeMap;

use pb::{
    agent::v1::PodBundle,
    objects::{Container, EnvVar, EnvVarSource, KeySelector, ObjectMeta},
};

/// What fields of the pod are read from, beside the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The node's name.
    pub node_name: &'a str,
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's address.
    pub pod_ip: &'a str,
}

/// Why the environment cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {variable} of container {container}: {problem}")]
pub struct BadEnv {
    container: String,
    variable: String,
    problem: String,
}

/// The variables of a container, in order.
pub fn variables(bundle: &PodBundle, container: &Container, place: Place<'_>) -> Result<Vec<(String, String)>, BadEnv> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<(String, String)> = Vec::new();
    for variable in &container.env {
        let bad = |problem| BadEnv { container: container.name.clone(), variable: variable.name.clone(), problem };
        let Some(value) = value(bundle, variable, place, &known).map_err(bad)? else { continue };
        known.insert(variable.name.clone(), value.clone());
        order.retain(|(name, _)| *name != variable.name);
        order.push((variable.name.clone(), value));
    }
    Ok(order)
}

/// None for an optional reference to what is not there.
fn value(
    bundle: &PodBundle,
    variable: &EnvVar,
    place: Place<'_>,
    known: &BTreeMap<String, String>,
) -> Result<Option<String>, String> {
    match &variable.value_from {
        None => Ok(Some(expand(&variable.value, known))),
        Some(EnvVarSource { field_ref: Some(field), .. }) => self::field(bundle, &field.field_path, place).map(Some),
        Some(EnvVarSource { config_map_key_ref: Some(key), .. }) => config_map_key(bundle, key),
        Some(EnvVarSource { secret_key_ref: Some(key), .. }) => secret_key(bundle, key),
        Some(_) => {
            Err("valueFrom names no source that Berth supports: use fieldRef, configMapKeyRef or secretKeyRef".into())
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
    match String::from_utf8(bytes.clone()) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(format!("key {:?} of secret {:?} is not text; mount it as a file instead", key.key, key.name)),
    }
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

/// A field of the pod, by its path.
fn field(bundle: &PodBundle, path: &str, place: Place<'_>) -> Result<String, String> {
    let none = ObjectMeta::default();
    let meta = bundle.pod.as_ref().and_then(|pod| pod.metadata.as_ref()).unwrap_or(&none);
    let entry = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.get(key).cloned().unwrap_or_default())
    };
    let plain = match path {
        "metadata.name" => Some(meta.name.clone()),
        "metadata.namespace" => Some(meta.namespace.clone()),
        "metadata.uid" => Some(meta.uid.clone()),
        "spec.nodeName" => Some(place.node_name.to_owned()),
        "status.hostIP" => Some(place.host_ip.to_owned()),
        "status.podIP" | "status.podIPs" => Some(place.pod_ip.to_owned()),
        _ => None,
    };
    plain
        .or_else(|| entry("metadata.labels", &meta.labels))
        .or_else(|| entry("metadata.annotations", &meta.annotations))
        .ok_or_else(|| {
            format!(
                "fieldPath {path:?} is not supported: use metadata.name, metadata.namespace, metadata.uid, \
                 metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, status.hostIP or status.podIP"
            )
        })
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

#[cfg(test)]
mod tests {
    use pb::objects::{ConfigMap, ObjectFieldSelector, Pod, Secret};

    use super::*;

    const PLACE: Place<'_> = Place { node_name: "node-1", host_ip: "10.0.0.1", pod_ip: "10.77.0.5" };

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
                data: [("mode".to_owned(), "fast".to_owned())].into(),
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
