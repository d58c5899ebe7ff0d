//! What the machine must have before a lab can start, each with the Debian package that brings it.

use std::env;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::layout::Layout;
use crate::system::run;

/// Programs that the lab runs, and their Debian packages.
const PROGRAMS: [(&str, &str); 11] = [
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    // The plugin portmap runs it.
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("losetup", "mount"),
];

/// The CNI plugins that pods need.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Where distributions put CNI plugins.
const PLUGIN_DIRS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Only root can make namespaces, mounts and cgroups for everyone to see.
pub fn require_root() -> Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    bail!("the lab needs root (namespaces, mounts, cgroups): run the same command with sudo")
}

/// Checks programs and plugins, names everything that is missing at once, and returns the plugins' folder.
pub fn check_tools() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    let mut missing: Vec<(String, &str)> = PROGRAMS
        .iter()
        .filter(|(program, _)| !dirs.iter().any(|dir| dir.join(program).is_file()))
        .map(|(program, package)| ((*program).to_owned(), *package))
        .collect();
    let plugins = PLUGIN_DIRS.iter().map(Path::new).find(|dir| PLUGINS.iter().all(|plugin| dir.join(plugin).is_file()));
    if plugins.is_none() {
        missing.push((format!("CNI plugins {}", PLUGINS.join(", ")), "containernetworking-plugins"));
    }
    match plugins {
        Some(dir) if missing.is_empty() => Ok(dir.to_owned()),
        _ => {
            let names: Vec<_> = missing.iter().map(|(name, _)| name.as_str()).collect();
            let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
            packages.dedup();
            bail!(
                "missing: {}. Install with: apt-get install {} (or run deploy/setup.sh)",
                names.join("; "),
                packages.join(" ")
            )
        }
    }
}

/// Names every port of the control plane that someone else holds.
pub fn check_ports(lab: &Layout) -> Result<()> {
    let taken: Vec<String> = [lab.api(), lab.controller(), lab.scheduler(), lab.volumes(), lab.etcd(), lab.etcd_peer()]
        .into_iter()
        .filter(|address| TcpListener::bind(address).is_err())
        .map(|address| address.to_string())
        .collect();
    if taken.is_empty() {
        return Ok(());
    }
    bail!("in use by another program: {}; stop it, or choose other ports with --port-base", taken.join(", "))
}

/// `overlayfs` where an overlay can be mounted in the lab's folder, else `native`, which copies.
pub fn choose_snapshotter(dir: &Path) -> Result<String> {
    let probe = dir.join("overlay-probe");
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(probe.join(name))?;
    }
    let at = |name: &str| probe.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let mounted = run("mount", &["-t", "overlay", "overlay", "-o", &options, &at("merged")]);
    let snapshotter = match mounted {
        Ok(_) => {
            run("umount", &[&at("merged")])?;
            "overlayfs"
        }
        Err(_) => "native",
    };
    fs::remove_dir_all(&probe)?;
    Ok(snapshotter.to_owned())
}
