//! What whoever runs the cluster lets its users do to the nodes: which of their paths pods may see, and whether a
//! container may do all that root may.
//!
//! Pure. Pods and templates of sets are held to it when they are written; what is stored stays as it is, and a change of
//! something else is not refused because of it.

use std::path::{Component, Path, PathBuf};

use pb::{
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::PodSpec,
};

use crate::error::Violation;

/// What is allowed; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Paths of the node at or below which hostPath volumes may lie.
    pub host_paths: Vec<PathBuf>,
    /// Whether containers may be privileged.
    pub privileged: bool,
}

/// Not a path that pods can be let into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no absolute path without '..', such as /srv/data")]
pub struct BadPrefix(String);

/// Reads a path at or below which pods may see the node's files.
pub fn prefix(text: &str) -> Result<PathBuf, BadPrefix> {
    let path = PathBuf::from(text);
    if is_plain(&path) { Ok(path) } else { Err(BadPrefix(text.to_owned())) }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| part != Component::ParentDir)
}

impl Policy {
    /// Every reason why `new` may not be written in the place of `old`; none if it may.
    pub fn check(&self, old: Option<&AnyObject>, new: &AnyObject) -> Vec<Violation> {
        let Some((spec, path)) = pods(new) else { return Vec::new() };
        if old.and_then(pods).is_some_and(|(before, _)| before == spec) {
            return Vec::new();
        }
        let mut violations = self.host_paths_of(spec, path);
        violations.extend(self.privileges_of(spec, path));
        violations
    }

    fn host_paths_of(&self, spec: &PodSpec, path: &str) -> Vec<Violation> {
        let sources = spec.volumes.iter().enumerate().filter_map(|(index, one)| Some((index, one.host_path.as_ref()?)));
        let outside = sources.filter(|(_, source)| !self.lets_into(Path::new(&source.path)));
        let allowed = match self.host_paths.as_slice() {
            [] => "none".to_owned(),
            some => some.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        };
        let told = outside.map(|(index, source)| {
            let why = format!(
                "Forbidden: {:?} is not among the paths of nodes that pods may see ({allowed}); use a claim or an emptyDir, \
                 or let the API service be started with --allow-host-path",
                source.path
            );
            Violation::new(format!("{path}.volumes[{index}].hostPath.path"), why)
        });
        told.collect()
    }

    fn lets_into(&self, path: &Path) -> bool {
        is_plain(path) && self.host_paths.iter().any(|allowed| path.starts_with(allowed))
    }

    fn privileges_of(&self, spec: &PodSpec, path: &str) -> Vec<Violation> {
        if self.privileged {
            return Vec::new();
        }
        let lists = [("initContainers", &spec.init_containers), ("containers", &spec.containers)];
        let all =
            lists.into_iter().flat_map(|(list, all)| all.iter().enumerate().map(move |(at, one)| (list, at, one)));
        let privileged = all.filter(|(_, _, container)| {
            container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
        });
        let told = privileged.map(|(list, at, _)| {
            let why = "Forbidden: containers may not be privileged here; ask for the capabilities that are needed \
                       (capabilities.add), or let the API service be started with --allow-privileged";
            Violation::new(format!("{path}.{list}[{at}].securityContext.privileged"), why)
        });
        told.collect()
    }
}

/// What an object says of pods, and where.
fn pods(object: &AnyObject) -> Option<(&PodSpec, &'static str)> {
    match &object.object {
        Some(Variant::Pod(pod)) => Some((pod.spec.as_ref()?, "spec")),
        Some(Variant::StatefulSet(set)) => {
            let template = set.spec.as_ref()?.template.as_ref()?;
            Some((template.spec.as_ref()?, "spec.template.spec"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pb::Kind;
    use serde_json::{Value, json};

    use super::*;

    fn pod(path: &str, privileged: bool) -> Value {
        let container = json!({"name": "a", "securityContext": {"privileged": privileged}});
        json!({"containers": [container], "volumes": [{"name": "x"}, {"name": "h", "hostPath": {"path": path}}]})
    }

    fn refused(policy: &Policy, kind: Kind, spec: Value) -> Vec<String> {
        let object = AnyObject::from_json(kind, json!({"metadata": {"name": "x"}, "spec": spec})).unwrap();
        policy.check(None, &object).into_iter().map(|one| format!("{}: {}", one.field, one.description)).collect()
    }

    #[test]
    fn nothing_of_the_node_is_given_unless_that_is_said() {
        let texts = refused(&Policy::default(), Kind::Pod, pod("/srv", true));
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].starts_with("spec.volumes[1].hostPath.path: Forbidden"), "{texts:?}");
        assert!(texts[0].contains("--allow-host-path"), "{texts:?}");
        assert!(texts[1].starts_with("spec.containers[0].securityContext.privileged: Forbidden"), "{texts:?}");
        assert!(texts[1].contains("--allow-privileged"), "{texts:?}");
        let texts = refused(&Policy::default(), Kind::StatefulSet, json!({"template": {"spec": pod("/srv", false)}}));
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with("spec.template.spec.volumes[1].hostPath.path"), "{texts:?}");
    }

    #[test]
    fn a_prefix_lets_into_whole_steps_of_paths() {
        let policy = Policy { host_paths: vec![prefix("/srv/data").unwrap()], privileged: true };
        let lets = |path: &str| refused(&policy, Kind::Pod, pod(path, true)).is_empty();
        for path in ["/srv/data", "/srv/data/", "/srv//data/x", "/srv/./data/x/y"] {
            assert!(lets(path), "{path}");
        }
        for path in ["/srv", "/srv/database", "/srv/data/../../etc", "/", "srv/data", ""] {
            assert!(!lets(path), "{path}");
        }
        let all = Policy { host_paths: vec![prefix("/").unwrap()], privileged: false };
        assert!(refused(&all, Kind::Pod, pod("/etc", false)).is_empty());
        assert!(prefix("srv").is_err() && prefix("/srv/..").is_err() && prefix("").is_err());
    }

    #[test]
    fn what_is_stored_is_not_held_against_another_change() {
        let set = |replicas: i32, path: &str| {
            let json = json!({"metadata": {"name": "x"}, "spec": {"replicas": replicas, "template": {"spec": pod(path, false)}}});
            AnyObject::from_json(Kind::StatefulSet, json).unwrap()
        };
        let policy = Policy::default();
        assert!(policy.check(Some(&set(1, "/srv")), &set(2, "/srv")).is_empty());
        assert_eq!(policy.check(Some(&set(1, "/srv")), &set(1, "/etc")).len(), 1);
    }
}
