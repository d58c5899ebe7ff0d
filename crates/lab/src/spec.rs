//! What runs in a lab: every process with its command, its network namespace, what it waits for and how one sees
//! that it is up.
//!
//! Pure: a function of the configuration. A process is named `role` or `role@node`, and those names are what
//! `lab status`, `lab kill` and the log files use.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layout::{Layout, NodeIndex};

/// A lab's configuration: all that `up` decided, kept in the lab's folder for the supervisor and later commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Names, addresses, paths.
    pub layout: Layout,
    /// The binary that holds every role and the lab's own hidden commands.
    pub berth: PathBuf,
    /// OCI archives that every node's runtime gets.
    pub images: Vec<PathBuf>,
    /// The range that the nodes' pod ranges are cut from.
    pub pod_cidr: String,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// How the container runtime stores images: `overlayfs`, or `native` where overlay mounts do not work.
    pub snapshotter: String,
    /// Where the CNI plugins are installed.
    pub cni_bin_dir: PathBuf,
}

/// Whether a process is meant to run on or to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Restarted whenever it ends.
    Daemon,
    /// Restarted until it ends with success, then done.
    Task,
}

/// How one sees from outside that a process is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// It accepts TCP connections here.
    Tcp(SocketAddrV4),
    /// It accepts connections on this Unix socket.
    Unix(PathBuf),
    /// It is etcd, and its health page on this address says so.
    EtcdHealth(SocketAddrV4),
    /// It has ended with success.
    Exit,
}

/// One process of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// `role` or `role@node`.
    pub name: String,
    /// The node that it belongs to; none for the control plane.
    pub node: Option<String>,
    /// The network namespace that it runs in; none is the root namespace.
    pub netns: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Whether it is meant to end.
    pub kind: Kind,
    /// The processes that must have been ready once before its first start.
    pub after: Vec<String>,
    /// What tells that it is up.
    pub ready: Ready,
}

impl Process {
    /// The command line to execute. `nsenter` replaces itself by the program, so the process id stays the same; unlike
    /// `ip netns exec` it keeps the mount namespace, and with it the cgroup mounts that a container runtime needs.
    pub fn command(&self) -> Vec<String> {
        let mut command = Vec::new();
        if let Some(netns) = &self.netns {
            command.push("nsenter".to_owned());
            command.push(format!("--net=/run/netns/{netns}"));
            command.push("--".to_owned());
        }
        command.extend(self.argv.iter().cloned());
        command
    }
}

fn http(address: SocketAddrV4) -> String {
    format!("http://{address}")
}

fn unix(path: PathBuf) -> String {
    format!("unix://{}", path.display())
}

fn path(path: PathBuf) -> String {
    path.display().to_string()
}

/// Every process of the lab, in the order in which people want to read them.
pub fn processes(config: &Config) -> Vec<Process> {
    let lab = &config.layout;
    let mut all = control_plane(config);
    for node in lab.all_nodes() {
        all.extend(node_processes(config, node));
    }
    all
}

fn control_plane(config: &Config) -> Vec<Process> {
    let lab = &config.layout;
    let etcd_url = http(lab.etcd());
    let peer_url = http(lab.etcd_peer());
    let service = |name: &str, after: &[&str], ready: Ready, args: &[(&str, String)]| {
        let mut argv = vec![path(config.berth.clone()), name.to_owned()];
        for (flag, value) in args {
            argv.push((*flag).to_owned());
            argv.push(value.clone());
        }
        Process {
            name: name.to_owned(),
            node: None,
            netns: None,
            argv,
            kind: Kind::Daemon,
            after: after.iter().map(|s| (*s).to_owned()).collect(),
            ready,
        }
    };
    let etcd = Process {
        name: "etcd".to_owned(),
        node: None,
        netns: None,
        argv: [
            "etcd",
            "--name=lab",
            "--logger=zap",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            &format!("--data-dir={}", lab.etcd_dir().display()),
            &format!("--listen-client-urls={etcd_url}"),
            &format!("--advertise-client-urls={etcd_url}"),
            &format!("--listen-peer-urls={peer_url}"),
            &format!("--initial-advertise-peer-urls={peer_url}"),
            &format!("--initial-cluster=lab={peer_url}"),
        ]
        .map(str::to_owned)
        .to_vec(),
        kind: Kind::Daemon,
        after: vec![],
        ready: Ready::EtcdHealth(lab.etcd()),
    };
    vec![
        etcd,
        service(
            "api",
            &["etcd"],
            Ready::Tcp(lab.api()),
            &[
                // All addresses: users reach it on loopback, node agents through the bridge.
                ("--listen", format!("0.0.0.0:{}", lab.api().port())),
                ("--etcd", etcd_url.clone()),
                ("--cluster-domain", config.cluster_domain.clone()),
                ("--pod-cidr", config.pod_cidr.clone()),
                ("--volumes", http(lab.volumes())),
            ],
        ),
        Process {
            name: "classes".to_owned(),
            node: None,
            netns: None,
            argv: vec![
                path(config.berth.clone()),
                "apply".to_owned(),
                "--server".to_owned(),
                http(lab.api()),
                "--filename".to_owned(),
                path(lab.classes_file()),
            ],
            kind: Kind::Task,
            after: vec!["api".to_owned()],
            ready: Ready::Exit,
        },
        service(
            "scheduler",
            &["etcd"],
            Ready::Tcp(lab.scheduler()),
            &[
                ("--listen", lab.scheduler().to_string()),
                ("--etcd", etcd_url.clone()),
                ("--volumes", http(lab.volumes())),
            ],
        ),
        service(
            "volumes",
            &["etcd"],
            Ready::Tcp(lab.volumes()),
            // It reaches the drivers through the nodes' agents.
            &[("--listen", lab.volumes().to_string()), ("--etcd", etcd_url.clone())],
        ),
        service(
            "controller",
            &["etcd", "scheduler", "volumes"],
            Ready::Tcp(lab.controller()),
            &[
                ("--listen", lab.controller().to_string()),
                ("--etcd", etcd_url),
                ("--scheduler", http(lab.scheduler())),
                ("--volumes", http(lab.volumes())),
            ],
        ),
    ]
}

fn node_processes(config: &Config, node: NodeIndex) -> Vec<Process> {
    let lab = &config.layout;
    let on_node = |role: &str, kind, after: &[&str], ready, argv: Vec<String>| Process {
        name: format!("{role}@{}", node.name()),
        node: Some(node.name()),
        netns: Some(lab.netns(node)),
        argv,
        kind,
        after: after
            .iter()
            .map(|role| match *role {
                "api" => "api".to_owned(),
                role => format!("{role}@{}", node.name()),
            })
            .collect(),
        ready,
    };
    let socket = lab.containerd_socket(node);
    let berth = || path(config.berth.clone());
    let flag = |flag: &str, value: String| [flag.to_owned(), value];

    let mut load = vec![berth(), "lab".to_owned(), "load-images".to_owned()];
    load.extend(flag("--socket", path(socket.clone())));
    load.extend(flag("--snapshotter", config.snapshotter.clone()));
    load.extend(config.images.iter().cloned().map(path));

    let driver = |name: &str, data: PathBuf| {
        let role = format!("csi-{name}");
        let mut argv = vec![berth(), role.clone()];
        argv.extend(flag("--endpoint", unix(lab.csi_socket(node, name))));
        argv.extend(flag("--registry", path(lab.registry(node))));
        argv.extend(flag("--node-name", node.name()));
        argv.extend(flag("--data-dir", path(data)));
        on_node(&role, Kind::Daemon, &[], Ready::Unix(lab.csi_socket(node, name)), argv)
    };

    let mut agent = vec![berth(), "agent".to_owned()];
    agent.extend(flag("--listen", lab.agent(node).to_string()));
    agent.extend(flag("--node-name", node.name()));
    agent.extend(flag("--node-ip", lab.node_ip(node).to_string()));
    agent.extend(flag("--api", format!("http://{}:{}", lab.gateway(), lab.api().port())));
    agent.extend(flag("--data-dir", path(lab.node_dir(node))));
    agent.extend(flag("--cri", unix(socket.clone())));
    agent.extend(flag("--csi-dir", path(lab.csi_dir(node))));
    agent.extend(flag("--cgroup-parent", lab.cgroup_parent(node)));
    agent.extend(flag("--cluster-domain", config.cluster_domain.clone()));
    // All nodes share one disk, which is somebody's own.
    agent.extend(flag("--pressure", "memory.available<50Mi,nodefs.available<256Mi".to_owned()));
    // The lab's network leads nowhere else: names outside are refused at once, not after a wait.
    agent.extend(flag("--dns-upstream", "none".to_owned()));

    vec![
        on_node(
            "containerd",
            Kind::Daemon,
            &[],
            Ready::Unix(socket),
            vec!["containerd".to_owned(), "--config".to_owned(), path(lab.containerd_config(node))],
        ),
        on_node("images", Kind::Task, &["containerd"], Ready::Exit, load),
        driver("local", lab.local_dir(node)),
        driver("shared", lab.shared_dir()),
        on_node(
            "agent",
            Kind::Daemon,
            &["api", "images", "csi-local", "csi-shared"],
            Ready::Tcp(lab.agent(node)),
            agent,
        ),
    ]
}

/// The folders that must exist before anything starts.
pub fn folders(lab: &Layout) -> Vec<PathBuf> {
    let mut folders = vec![lab.dir.join("log"), lab.etcd_dir(), lab.shared_dir()];
    for node in lab.all_nodes() {
        folders.extend([lab.containerd_dir(node), lab.cni_conf_dir(node), lab.registry(node), lab.local_dir(node)]);
    }
    folders
}

/// The classes of storage that the lab makes beside the default one, from `deploy/`.
pub const CLASSES: &str = include_str!("../../../deploy/lab/classes.yaml");

/// The container runtime's configuration for one node, from the template in `deploy/`.
pub fn containerd_config(config: &Config, node: NodeIndex) -> String {
    let lab = &config.layout;
    include_str!("../../../deploy/containerd/config.toml.template")
        .replace("@DIR@", &lab.containerd_dir(node).display().to_string())
        .replace("@SOCKET@", &lab.containerd_socket(node).display().to_string())
        .replace("@TTRPC@", &lab.containerd_ttrpc(node).display().to_string())
        .replace("@PAUSE@", crate::layout::PAUSE_IMAGE)
        .replace("@SNAPSHOTTER@", &config.snapshotter)
        .replace("@CNI_BIN@", &config.cni_bin_dir.display().to_string())
        .replace("@CNI_CONF@", &lab.cni_conf_dir(node).display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn config(nodes: u16) -> Config {
        Config {
            layout: Layout::new(
                "lab".parse().unwrap(),
                "/var/lib/berth/lab".into(),
                nodes,
                "10.88.0.0/24".parse().unwrap(),
                7440,
            )
            .unwrap(),
            berth: "/usr/bin/berth".into(),
            images: vec!["/images/pause.tar".into()],
            pod_cidr: "10.77.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
            snapshotter: "overlayfs".into(),
            cni_bin_dir: "/usr/lib/cni".into(),
        }
    }

    #[test]
    fn every_process_can_start_at_some_point() {
        let all = processes(&config(3));
        assert_eq!(all.len(), 6 + 3 * 5);
        let mut started = BTreeSet::new();
        loop {
            let due: Vec<_> = all
                .iter()
                .filter(|p| !started.contains(&p.name) && p.after.iter().all(|a| started.contains(a)))
                .map(|p| p.name.clone())
                .collect();
            if due.is_empty() {
                break;
            }
            started.extend(due);
        }
        assert_eq!(started.len(), all.len(), "a circle, or an unknown name");
    }

    #[test]
    fn a_node_runs_in_its_own_namespace_and_reaches_the_api_over_the_bridge() {
        let all = processes(&config(3));
        let agent = all.iter().find(|p| p.name == "agent@node-2").unwrap();
        let command = agent.command().join(" ");
        assert!(command.starts_with("nsenter --net=/run/netns/berth-lab-node-2 -- /usr/bin/berth agent "));
        assert!(command.contains("--api http://10.88.0.1:7440 "));
        assert!(command.contains("--node-ip 10.88.0.12 "));
        assert!(command.contains("--cgroup-parent /berth-lab/node-2 "));
    }

    #[test]
    fn the_runtime_template_is_filled_completely() {
        let text = containerd_config(&config(1), NodeIndex::first(1).next().unwrap());
        assert!(!text.contains('@'), "{text}");
        assert!(text.contains("/var/lib/berth/lab/node-1/containerd/state"));
    }
}
