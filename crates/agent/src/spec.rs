//! What the container runtime is asked to make for a pod.
//!
//! Pure: from the pod and its place to CRI's configuration.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use k8s_cri::v1 as cri;
use model::quantity::Quantity;
use pb::{
    agent::v1::{PodBundle, PodRef},
    objects::{Container, Pod, PodSpec, ResourceRequirements},
};

use crate::{
    cri::{annotation, label},
    env::{self, BadEnv, Place},
};

/// Linux' bound on host names.
const HOSTNAME_MAX: usize = 63;

/// Scheduling period of the CPU quota in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// What is the same for all pods of a node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub node_ip: Ipv4Addr,
    /// The cgroup above all pods.
    pub cgroup_parent: String,
    /// Domain under which Services have names.
    pub cluster_domain: String,
    /// Name server of the pods.
    pub dns_ip: Ipv4Addr,
    /// The agent's folder.
    pub data_dir: PathBuf,
}

/// Names a pod that the API sent.
pub fn reference(pod: &Pod) -> PodRef {
    let meta = pod.metadata.clone().unwrap_or_default();
    PodRef { namespace: meta.namespace, name: meta.name, uid: meta.uid }
}

/// The host name in the pod (ID-12).
pub fn hostname(pod: &Pod) -> String {
    let wanted = pod.spec.as_ref().map_or("", |spec| spec.hostname.as_str());
    let name = if wanted.is_empty() { pod.metadata.as_ref().map_or("", |meta| meta.name.as_str()) } else { wanted };
    let cut: String = name.chars().take(HOSTNAME_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

impl NodeSettings {
    /// The folder of a pod's volumes and files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// The folder of a pod's logs.
    pub fn log_dir(&self, pod: &PodRef) -> PathBuf {
        self.data_dir.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// The pod's own cgroup.
    pub fn cgroup(&self, uid: &str) -> String {
        format!("{}/pod{uid}", self.cgroup_parent.trim_end_matches('/'))
    }

    /// The pod's `/etc/hosts`: its own address under its names (ID-12).
    pub fn hosts_file(&self, pod: &Pod, ip: &str) -> String {
        let namespace = pod.metadata.as_ref().map_or("", |meta| meta.namespace.as_str());
        let subdomain = pod.spec.as_ref().map_or("", |spec| spec.subdomain.as_str());
        let host = hostname(pod);
        let names = match subdomain {
            "" => host,
            subdomain => format!("{host}.{subdomain}.{namespace}.svc.{}\t{host}", self.cluster_domain),
        };
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{names}\n")
    }

    /// The sandbox of a pod.
    pub fn sandbox(&self, pod: &Pod, attempt: u32) -> cri::PodSandboxConfig {
        let reference = reference(pod);
        let domain = &self.cluster_domain;
        let grace = plan::node::grace(pod).as_secs().to_string();
        cri::PodSandboxConfig {
            hostname: hostname(pod),
            log_directory: self.log_dir(&reference).display().to_string(),
            dns_config: Some(cri::DnsConfig {
                servers: vec![self.dns_ip.to_string()],
                searches: vec![
                    format!("{}.svc.{domain}", reference.namespace),
                    format!("svc.{domain}"),
                    domain.clone(),
                ],
                options: vec!["ndots:5".into()],
            }),
            labels: self.labels(&reference),
            annotations: HashMap::from([(annotation::GRACE.to_owned(), grace)]),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup(&reference.uid),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            metadata: Some(cri::PodSandboxMetadata {
                name: reference.name,
                uid: reference.uid,
                namespace: reference.namespace,
                attempt,
            }),
            ..Default::default()
        }
    }

    fn labels(&self, pod: &PodRef) -> HashMap<String, String> {
        let labels = [
            (label::UID, &pod.uid),
            (label::NAME, &pod.name),
            (label::NAMESPACE, &pod.namespace),
            (label::NODE, &self.node_name),
        ];
        labels.map(|(key, value)| (key.to_owned(), value.clone())).into()
    }
}

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
    /// The pod's `/etc/hosts` on the node.
    pub hosts: &'a Path,
}

/// Why a container cannot be made as its spec says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContainer {
    /// Its environment.
    #[error(transparent)]
    Env(#[from] BadEnv),
    /// A mount.
    #[error("container {container} mounts volume {volume:?}, which the pod does not have: add it to spec.volumes")]
    NoVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
}

impl NodeSettings {
    /// A container of a pod.
    pub fn container(&self, run: Run<'_>) -> Result<cri::ContainerConfig, BadContainer> {
        let Run { bundle, container, .. } = run;
        let pod = bundle.pod.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let host_ip = self.node_ip.to_string();
        let place = Place { node_name: &self.node_name, host_ip: &host_ip, pod_ip: run.pod_ip };
        let envs = env::variables(bundle, container, place)?;
        let known: BTreeMap<String, String> = envs.iter().cloned().collect();
        let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &known)).collect();
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
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources(container.resources.as_ref())),
                security_context: Some(security(&spec, container)),
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
    for mount in &run.container.volume_mounts {
        let Some((path, read_only)) = run.volumes.get(&mount.name) else {
            let (container, volume) = (run.container.name.clone(), mount.name.clone());
            return Err(BadContainer::NoVolume { container, volume });
        };
        mounts.push(cri::Mount {
            container_path: mount.mount_path.clone(),
            host_path: path.display().to_string(),
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

fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn security(spec: &PodSpec, container: &Container) -> cri::LinuxContainerSecurityContext {
    let own = container.security_context.as_ref();
    let pod = spec.security_context.as_ref();
    let user = own.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|c| c.run_as_group));
    let number = |value: i64| cri::Int64Value { value };
    cri::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces()),
        run_as_user: user.map(number),
        // CRI takes a group only together with a user.
        run_as_group: group.filter(|_| user.is_some()).map(number),
        masked_paths: MASKED_PATHS.map(str::to_owned).into(),
        readonly_paths: READONLY_PATHS.map(str::to_owned).into(),
        ..Default::default()
    }
}

/// What containers do not see of the kernel, as in every container runtime's default.
const MASKED_PATHS: [&str; 7] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// What containers only read.
const READONLY_PATHS: [&str; 6] =
    ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Kubernetes' mapping: requests become CPU shares, limits become quota and memory bound. The OOM score says who goes
/// first when memory runs out: who asked for nothing.
fn resources(wanted: Option<&ResourceRequirements>) -> cri::LinuxContainerResources {
    let read = |map: Option<&BTreeMap<String, pb::objects::Quantity>>, name: &str| {
        map.and_then(|map| map.get(name)).and_then(|text| Quantity::try_from(text).ok())
    };
    let limits = wanted.map(|wanted| &wanted.limits);
    let requests = wanted.map(|wanted| &wanted.requests);
    let cpu_limit = read(limits, "cpu");
    let memory_limit = read(limits, "memory");
    let cpu_request = read(requests, "cpu").or(cpu_limit);
    let asks = wanted.is_some_and(|wanted| !wanted.limits.is_empty() || !wanted.requests.is_empty());
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_limit.map_or(0, |cpu| (cpu.as_millis() * CPU_PERIOD / 1000).max(1000)),
        cpu_shares: cpu_request.map_or(2, |cpu| (cpu.as_millis() * 1024 / 1000).clamp(2, 262_144)),
        memory_limit_in_bytes: memory_limit.map_or(0, Quantity::as_units),
        oom_score_adj: if asks { 500 } else { 1000 },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{ObjectMeta, PodSecurityContext, SecurityContext, VolumeMount};

    use super::*;

    fn settings() -> NodeSettings {
        NodeSettings {
            node_name: "node-1".into(),
            node_ip: Ipv4Addr::new(10, 0, 0, 1),
            cgroup_parent: "/berth-lab/node-1".into(),
            cluster_domain: "cluster.local".into(),
            dns_ip: Ipv4Addr::new(169, 254, 20, 10),
            data_dir: "/data".into(),
        }
    }

    fn pod(name: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: name.into(),
                namespace: "default".into(),
                uid: "u".into(),
                ..Default::default()
            }),
            spec: Some(PodSpec { subdomain: "nginx".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn host_names_are_cut_to_what_linux_takes() {
        assert_eq!(hostname(&pod("web-0")), "web-0");
        assert_eq!(hostname(&pod(&format!("{}-.-{}", "a".repeat(61), "b"))), "a".repeat(61));
    }

    #[test]
    fn a_pod_knows_its_own_full_name_and_searches_its_namespace() {
        let hosts = settings().hosts_file(&pod("web-0"), "10.77.0.5");
        assert!(hosts.ends_with("10.77.0.5\tweb-0.nginx.default.svc.cluster.local\tweb-0\n"), "{hosts}");
        let sandbox = settings().sandbox(&pod("web-0"), 0);
        let searches = sandbox.dns_config.unwrap().searches;
        assert_eq!(searches, ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(sandbox.linux.unwrap().cgroup_parent, "/berth-lab/node-1/podu");
    }

    #[test]
    fn resources_become_shares_quota_and_bounds() {
        let quantity = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), pb::objects::Quantity::from(*v))).collect::<BTreeMap<_, _>>()
        };
        let wanted = ResourceRequirements {
            limits: quantity(&[("cpu", "1500m"), ("memory", "64Mi")]),
            requests: quantity(&[("cpu", "250m")]),
        };
        let got = resources(Some(&wanted));
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (256, 150_000, 64 << 20));
        let nothing = resources(None);
        assert_eq!((nothing.cpu_shares, nothing.cpu_quota, nothing.memory_limit_in_bytes), (2, 0, 0));
    }

    #[test]
    fn a_container_s_own_user_wins_and_an_unknown_volume_is_refused() {
        let mut pod = pod("web-0");
        pod.spec.as_mut().unwrap().security_context =
            Some(PodSecurityContext { run_as_user: Some(1), run_as_group: Some(2), ..Default::default() });
        let bundle = PodBundle { pod: Some(pod), ..Default::default() };
        let mut container = Container {
            name: "main".into(),
            security_context: Some(SecurityContext { run_as_user: Some(7), ..Default::default() }),
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
                hosts: Path::new("/hosts"),
            };
            settings().container(run)
        };
        let made = make(&container).unwrap();
        let security = made.linux.unwrap().security_context.unwrap();
        assert_eq!((security.run_as_user.unwrap().value, security.run_as_group.unwrap().value), (7, 2));
        assert_eq!(made.log_path, "main/3.log");
        container.volume_mounts = vec![VolumeMount { name: "www".into(), ..Default::default() }];
        assert!(make(&container).unwrap_err().to_string().contains("\"www\""));
    }
}
