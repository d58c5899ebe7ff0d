//! One container of a pod.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use k8s_cri::v1 as cri;
use pb::{
    agent::v1::PodBundle,
    objects::{Container, VolumeMount},
};

use super::{
    NodeSettings, reference, resources,
    security::{self, ImageUser, RunsAsRoot},
};
use crate::{
    cri::{annotation, label},
    env::{self, BadEnv},
    volumes::Part,
};

/// One run of a container.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The pod with what it needs.
    pub bundle: &'a PodBundle,
    /// Which container.
    pub container: &'a Container,
    /// Number of the run.
    pub attempt: u32,
    /// Early ends in a row before it.
    pub crashes: u32,
    /// The pod's address.
    pub pod_ip: &'a str,
    /// Where the pod's volumes are on the node: path, and whether the whole volume is read-only.
    pub volumes: &'a BTreeMap<String, (PathBuf, bool)>,
    /// Where the parts of volumes are that it mounts instead of the whole, by the index of the volumeMount.
    pub parts: &'a BTreeMap<usize, PathBuf>,
    /// The pod's `/etc/hosts` on the node.
    pub hosts: &'a Path,
    /// Who the image runs as.
    pub image_user: &'a ImageUser,
}

/// Why a container cannot be made as its spec says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContainer {
    /// Its environment.
    #[error(transparent)]
    Env(#[from] BadEnv),
    /// Its user.
    #[error(transparent)]
    User(#[from] RunsAsRoot),
    /// A mount.
    #[error("container {container} mounts volume {volume:?}, which the pod does not have: add it to spec.volumes")]
    NoVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// A part of a volume that is named by a variable.
    #[error(
        "container {container}: subPathExpr {path:?} needs variable {variable:?}: define it in the container's env"
    )]
    NoVariable {
        /// The container.
        container: String,
        /// The path.
        path: String,
        /// The variable.
        variable: String,
    },
}

impl NodeSettings {
    /// The parts of volumes that a container mounts instead of the whole.
    pub fn parts(&self, bundle: &PodBundle, container: &Container, pod_ip: &str) -> Result<Vec<Part>, BadContainer> {
        let host_ip = self.node_ip.to_string();
        let variables = env::variables(bundle, container, self.place(&host_ip, pod_ip))?;
        let known: BTreeMap<String, String> = variables.into_iter().collect();
        let part = |(index, mount): (usize, &VolumeMount)| {
            if let Some(variable) = env::unknown(&mount.sub_path_expr, &known).into_iter().next() {
                let (container, path) = (container.name.clone(), mount.sub_path_expr.clone());
                return Err(BadContainer::NoVariable { container, path, variable });
            }
            let path = match mount.sub_path_expr.as_str() {
                "" => mount.sub_path.clone(),
                expression => env::expand(expression, &known),
            };
            Ok((!path.is_empty()).then(|| Part { index, volume: mount.name.clone(), path }))
        };
        container.volume_mounts.iter().enumerate().filter_map(|mount| part(mount).transpose()).collect()
    }

    /// A container of a pod.
    pub fn container(&self, run: Run<'_>) -> Result<cri::ContainerConfig, BadContainer> {
        let Run { bundle, container, .. } = run;
        let pod = bundle.pod.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let host_ip = self.node_ip.to_string();
        let place = self.place(&host_ip, run.pod_ip);
        let envs = env::variables(bundle, container, place)?;
        let known: BTreeMap<String, String> = envs.iter().cloned().collect();
        let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &known)).collect();
        let security = security::of_container(&spec, container, run.image_user, self.seccomp_default)?;
        let skipped = env::skipped(bundle, container);
        if !skipped.is_empty() {
            let container = &container.name;
            tracing::warn!(container, ?skipped, "keys in envFrom are left out: no variable may have such a name");
        }
        let mut labels = self.labels(&reference(&pod));
        labels.insert(label::CONTAINER.to_owned(), container.name.clone());
        Ok(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: run.attempt }),
            image: Some(cri::ImageSpec { image: container.image.clone(), ..Default::default() }),
            command: expand(&container.command),
            args: expand(&container.args),
            working_dir: container.working_dir.clone(),
            envs: envs.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
            mounts: mounts(run)?,
            labels,
            annotations: HashMap::from([(annotation::CRASHES.to_owned(), run.crashes.to_string())]),
            log_path: log_path(&container.name, run.attempt),
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources::of_container(&spec, container, self.amounts.memory())),
                security_context: Some(security),
            }),
            ..Default::default()
        })
    }
}

/// Where a run's log is, in the pod's log folder.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

fn mounts(run: Run<'_>) -> Result<Vec<cri::Mount>, BadContainer> {
    let mut mounts = Vec::new();
    for (index, mount) in run.container.volume_mounts.iter().enumerate() {
        let Some((path, read_only)) = run.volumes.get(&mount.name) else {
            let (container, volume) = (run.container.name.clone(), mount.name.clone());
            return Err(BadContainer::NoVolume { container, volume });
        };
        mounts.push(cri::Mount {
            container_path: mount.mount_path.clone(),
            host_path: run.parts.get(&index).unwrap_or(path).display().to_string(),
            readonly: mount.read_only || *read_only,
            ..Default::default()
        });
    }
    if !run.container.volume_mounts.iter().any(|mount| mount.mount_path == "/etc/hosts") {
        mounts.push(cri::Mount {
            container_path: "/etc/hosts".into(),
            host_path: run.hosts.display().to_string(),
            ..Default::default()
        });
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use pb::objects::{PodSecurityContext, SecurityContext};

    use super::{
        super::tests::{pod, settings},
        *,
    };

    #[test]
    fn a_container_s_own_user_wins_and_an_unknown_volume_is_refused() {
        let mut pod = pod("web-0");
        pod.spec.as_mut().unwrap().security_context =
            Some(PodSecurityContext { run_as_user: Some(1), run_as_group: Some(2), ..Default::default() });
        let bundle = PodBundle { pod: Some(pod), ..Default::default() };
        let mut container = Container {
            name: "main".into(),
            security_context: Some(SecurityContext { run_as_user: Some(7), ..Default::default() }),
            tty: true,
            ..Default::default()
        };
        let volumes = BTreeMap::new();
        let make = |container: &Container| {
            let run = Run {
                bundle: &bundle,
                container,
                attempt: 3,
                crashes: 2,
                pod_ip: "",
                volumes: &volumes,
                parts: &BTreeMap::new(),
                hosts: Path::new("/hosts"),
                image_user: &ImageUser::Number(0),
            };
            settings().container(run)
        };
        let made = make(&container).unwrap();
        let security = made.linux.unwrap().security_context.unwrap();
        assert_eq!((security.run_as_user.unwrap().value, security.run_as_group.unwrap().value), (7, 2));
        assert_eq!((made.log_path.as_str(), made.tty, made.stdin), ("main/3.log", true, false));
        container.volume_mounts = vec![VolumeMount { name: "www".into(), ..Default::default() }];
        assert!(make(&container).unwrap_err().to_string().contains("\"www\""));
    }
}
