//! The agent's command line.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use model::quantity::{BadQuantity, Quantity};
use plan::node::pressure::Threshold;
use runtime::config::CommonArgs;

use crate::dns::DnsUpstream;
use crate::facts::Reserved;

/// Runs the pods of one node; or stands for many nodes that run nothing.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Address to listen on and telemetry.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Name of the node; unique in the cluster.
    #[arg(long, env = "BERTH_NODE_NAME")]
    pub node_name: String,

    /// Address under which the other nodes and the API service reach this node.
    #[arg(long, default_value = "127.0.0.1")]
    pub node_ip: Ipv4Addr,

    /// The API service.
    #[arg(long, default_value = "http://127.0.0.1:7440")]
    pub api: String,

    /// Folder for pods, volumes, logs and the CNI configuration.
    #[arg(long, default_value = "/var/lib/berth/agent")]
    pub data_dir: PathBuf,

    /// The container runtime's socket (CRI).
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub cri: String,

    /// Folder of the node's CSI drivers: they register with a socket in its folder `registry`.
    #[arg(long, default_value = "/var/lib/berth/csi")]
    pub csi_dir: PathBuf,

    /// Seconds that a CSI driver may take for one call. A call without an answer is repeated.
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_TIMEOUT", default_value_t = 60)]
    pub csi_timeout: u32,

    /// The cgroup above all pods.
    #[arg(long, default_value = "/berth")]
    pub cgroup_parent: String,

    /// Whether containers that say nothing of seccomp get the container runtime's own profile, which forbids system calls
    /// that no application needs; without it they may make all.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub seccomp_default: bool,

    /// Domain under which Services have names.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Address of the node's DNS server: pods get it as their name server.
    #[arg(long, default_value = "169.254.20.10")]
    pub dns_ip: Ipv4Addr,

    /// Name server for names outside the cluster domain (repeatable, asked in this order); without it those of the
    /// node's /etc/resolv.conf; `none` refuses such names.
    #[arg(long, value_name = "ADDRESS|none")]
    pub dns_upstream: Vec<DnsUpstream>,

    /// The most pods that the node takes.
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,

    /// What the node keeps for everything that is no pod, as cpu=500m,memory=1Gi,ephemeral-storage=2Gi: pods get the rest.
    #[arg(long, value_name = "NAME=AMOUNT", value_delimiter = ',')]
    pub system_reserved: Vec<Reserved>,

    /// What must be left of memory.available, nodefs.available, nodefs.inodesFree, imagefs.available and pid.available, as an
    /// amount or a percentage: with less, the node is under pressure and takes no new pods.
    #[arg(
        long,
        value_name = "SIGNAL<AMOUNT",
        value_delimiter = ',',
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,pid.available<10%"
    )]
    pub pressure: Vec<Threshold>,

    /// Seconds for which enough must have been left before a pressure ends.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub pressure_rest: u32,

    /// The most pods that are started or stopped at the same moment.
    #[arg(long, default_value_t = 8)]
    pub parallel: usize,

    /// Percentage of the disk's use from which on images that no container uses are removed; 100 removes none. Images that
    /// were imported by hand always stay.
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high: u8,

    /// Percentage of the disk's use at which enough images are removed.
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low: u8,

    /// A container's log is set aside when it is larger, such as 10Mi.
    #[arg(long, value_name = "BYTES", default_value = "10Mi", value_parser = bytes)]
    pub log_max_size: u64,

    /// Files that are kept of a container's log, at least 2.
    #[arg(long, value_name = "FILES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    pub log_max_files: u32,

    /// Stand for this many nodes, named `<node-name>-0` and so on, whose pods become ready at once.
    #[arg(long)]
    pub hollow: Option<u32>,
}

/// An amount of bytes, such as 10Mi.
fn bytes(text: &str) -> Result<u64, String> {
    let amount: Quantity = text.parse().map_err(|error: BadQuantity| error.to_string())?;
    u64::try_from(amount.as_units()).ok().filter(|bytes| *bytes > 0).ok_or_else(|| "must be more than 0".to_owned())
}

impl Config {
    /// Where the agent's own server listens.
    pub fn listen(&self) -> SocketAddr {
        self.common.listen
    }
}
