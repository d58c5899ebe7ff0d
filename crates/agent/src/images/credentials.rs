//! Which of a pod's pull secrets are for an image.
//!
//! Pure. The matching is Kubernetes': an entry names a registry, with wildcards within the parts of its host name, perhaps
//! a port, and perhaps the beginning of a path; more exact entries come first.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_cri::v1::AuthConfig;
use pb::{
    agent::v1::PodBundle,
    objects::{ObjectMeta, Secret},
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How Docker's own registry is called in entries.
const DOCKER_HUB: &str = "index.docker.io";

/// The pull secrets of a pod, in its order. What is missing is left out: the image may need none.
pub fn secrets(bundle: &PodBundle) -> Vec<Secret> {
    let spec = bundle.pod.as_ref().and_then(|pod| pod.spec.as_ref());
    let names = spec.into_iter().flat_map(|spec| &spec.image_pull_secrets);
    let find = |name: &str| {
        let found = bundle.secrets.iter().find(|secret| name_of(secret.metadata.as_ref()) == name);
        if found.is_none() {
            tracing::warn!(secret = name, "the pod's pull secret does not exist; pulling without it");
        }
        found.cloned()
    };
    names.filter_map(|reference| find(&reference.name)).collect()
}

fn name_of(meta: Option<&ObjectMeta>) -> &str {
    meta.map_or("", |meta| meta.name.as_str())
}

/// An entry of a secret.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// The credentials for an image, the most exact first.
pub fn matching(image: &str, secrets: &[Secret]) -> Vec<AuthConfig> {
    let repository = repository(image);
    let mut found: Vec<(String, AuthConfig)> = Vec::new();
    for (registry, entry) in secrets.iter().flat_map(entries) {
        let place = bare(&registry);
        if matches(&place, &repository) {
            match credentials(entry) {
                Some(auth) => found.push((place, auth)),
                None => tracing::warn!(registry, "an entry of a pull secret has neither user nor auth; left out"),
            }
        }
    }
    // Stable: among equals the pod's order holds.
    found.sort_by(|(one, _), (other, _)| other.cmp(one));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// The entries of both of Docker's formats.
fn entries(secret: &Secret) -> Vec<(String, Value)> {
    let json = |key: &str| secret.data.get(key).map(|bytes| serde_json::from_slice::<Map<String, Value>>(bytes));
    let found = match (json(".dockerconfigjson"), json(".dockercfg")) {
        (Some(file), _) => file.map(|mut file| match file.remove("auths") {
            Some(Value::Object(auths)) => auths,
            _ => Map::new(),
        }),
        (None, Some(file)) => file,
        (None, None) => Ok(Map::new()),
    };
    match found {
        Ok(entries) => entries.into_iter().collect(),
        Err(error) => {
            let secret = name_of(secret.metadata.as_ref());
            tracing::warn!(secret, %error, "a pull secret holds no JSON; pulling without it");
            Vec::new()
        }
    }
}

fn credentials(entry: Value) -> Option<AuthConfig> {
    let Entry { mut username, mut password, auth } = serde_json::from_value(entry).ok()?;
    if !auth.is_empty() {
        let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, word) = text.split_once(':')?;
        (username, password) = (user.to_owned(), word.to_owned());
    }
    let some = !username.is_empty() || !password.is_empty();
    some.then(|| AuthConfig { username, password, ..Default::default() })
}

/// An image's name with its registry, without tag and digest.
fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    // A colon after the last slash begins the tag; one before it a port.
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" => format!("{DOCKER_HUB}/{rest}"),
            _ => name.to_owned(),
        },
        _ => format!("{DOCKER_HUB}/{name}"),
    }
}

/// An entry's name without scheme and the paths that Docker writes for its own API.
fn bare(registry: &str) -> String {
    let name = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let name = name.trim_end_matches('/');
    let name = ["/v1", "/v2"].iter().find_map(|version| name.strip_suffix(version)).unwrap_or(name);
    match name.split_once('/') {
        None if name == "docker.io" => DOCKER_HUB.to_owned(),
        Some(("docker.io", path)) => format!("{DOCKER_HUB}/{path}"),
        _ => name.to_owned(),
    }
}

/// Whether an entry is for a repository.
fn matches(entry: &str, repository: &str) -> bool {
    let split = |text: &str| match text.split_once('/') {
        Some((host, path)) => (host.to_owned(), format!("/{path}")),
        None => (text.to_owned(), String::new()),
    };
    let ((wanted, prefix), (host, path)) = (split(entry), split(repository));
    let port = |host: &str| host.split_once(':').map(|(_, port)| port.to_owned());
    let parts = |host: &str| -> Vec<String> {
        host.split(':').next().unwrap_or_default().split('.').map(str::to_owned).collect()
    };
    let (wanted_parts, parts) = (parts(&wanted), parts(&host));
    port(&wanted) == port(&host)
        && wanted_parts.len() == parts.len()
        && wanted_parts.iter().zip(&parts).all(|(pattern, part)| fits(pattern, part))
        && path.starts_with(&prefix)
}

/// `*` stands for any characters of one part.
fn fits(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((before, after)) => part.strip_prefix(before).is_some_and(|rest| {
            let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.into_iter().any(|at| fits(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{LocalObjectReference, Pod, PodSpec};
    use serde_json::json;

    use super::*;

    fn secret(name: &str, key: &str, json: &Value) -> Secret {
        Secret {
            metadata: Some(ObjectMeta { name: name.into(), ..Default::default() }),
            data: [(key.to_owned(), serde_json::to_vec(json).unwrap())].into(),
            ..Default::default()
        }
    }

    fn users(image: &str, auths: &Value) -> Vec<String> {
        let secret = secret("s", ".dockerconfigjson", &json!({ "auths": auths }));
        matching(image, &[secret]).into_iter().map(|auth| auth.username).collect()
    }

    #[test]
    fn entries_are_matched_as_kubernetes_matches_them() {
        let user = |name: &str| json!({"username": name, "password": "x"});
        let auths = json!({
            "https://index.docker.io/v1/": user("hub"),
            "*.example.com": user("any"),
            "reg.example.com/team": user("team"),
            "reg.example.com:5000": user("port"),
            "localhost:5000": user("local"),
        });
        for (image, wanted) in [
            ("nginx", &["hub"][..]),
            ("library/nginx:1.2", &["hub"]),
            ("docker.io/library/nginx@sha256:00", &["hub"]),
            ("reg.example.com/team/app:1", &["team", "any"]),
            ("reg.example.com/other", &["any"]),
            ("reg.example.com:5000/app", &["port"]),
            ("a.b.example.com/app", &[]),
            ("localhost:5000/app:2", &["local"]),
            ("quay.io/app", &[]),
        ] {
            assert_eq!(users(image, &auths), wanted, "{image}");
        }
    }

    #[test]
    fn both_formats_and_both_spellings_are_read() {
        let auth = STANDARD.encode("joe:se:cret");
        let old = secret("old", ".dockercfg", &json!({"quay.io": {"auth": auth, "username": "other"}}));
        let found = matching("quay.io/app", &[old]);
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("joe", "se:cret"));
        let mut broken = secret("broken", ".dockerconfigjson", &json!({}));
        broken.data.insert(".dockerconfigjson".into(), b"{".to_vec());
        assert!(matching("quay.io/app", &[broken]).is_empty());
        assert!(users("quay.io/app", &json!({"quay.io": {"auth": "?"}})).is_empty());
    }

    #[test]
    fn a_pods_secrets_come_in_its_order_and_missing_ones_are_left_out() {
        let reference = |name: &str| LocalObjectReference { name: name.into() };
        let spec = PodSpec { image_pull_secrets: ["b", "none", "a"].map(reference).into(), ..Default::default() };
        let empty = json!({});
        let bundle = PodBundle {
            pod: Some(Pod { spec: Some(spec), ..Default::default() }),
            secrets: vec![secret("a", "k", &empty), secret("b", "k", &empty), secret("other", "k", &empty)],
            ..Default::default()
        };
        let names: Vec<_> = secrets(&bundle).iter().map(|s| name_of(s.metadata.as_ref()).to_owned()).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
