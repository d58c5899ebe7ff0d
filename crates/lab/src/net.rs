//! The lab's network: one bridge in the root namespace, one namespace and one cable per node.
//!
//! Every step looks first and does what is missing, so that an `up` that was interrupted anywhere is finished by the
//! next one. Routes between the nodes' pod ranges are the agents' work: only they know the ranges.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, NodeIndex};
use crate::system::{addresses, mounts, run};

/// There only when bridged traffic can pass iptables at all; 1 when it does.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Makes the whole network as `lab` says.
pub fn ensure(lab: &Layout) -> Result<()> {
    refuse_taken_subnet(lab)?;
    let bridge = lab.bridge();
    if !link_exists(&bridge) {
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
    }
    let gateway = format!("{}/24", lab.gateway());
    run("ip", &["address", "replace", &gateway, "dev", &bridge])?;
    run("ip", &["link", "set", &bridge, "up"])?;
    accept_bridged_traffic(&bridge)?;
    for node in lab.all_nodes() {
        ensure_node(lab, node).with_context(|| format!("network of {}", node.name()))?;
    }
    Ok(())
}

fn ensure_node(lab: &Layout, node: NodeIndex) -> Result<()> {
    let netns = lab.netns(node);
    let file = Path::new("/run/netns").join(&netns);
    if !netns_exists(&netns)? {
        if file.exists() {
            // Left by an `ip netns add` that was killed between making the file and mounting the namespace on it.
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        run("ip", &["netns", "add", &netns])?;
    }
    let veth = lab.veth(node);
    if !link_exists(&veth) {
        run("ip", &["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
    }
    run("ip", &["link", "set", &veth, "master", &lab.bridge(), "up"])?;
    let address = format!("{}/24", lab.node_ip(node));
    let gateway = lab.gateway().to_string();
    let inside = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "replace", &address, "dev", "eth0"])?;
    inside(&["link", "set", "eth0", "up"])?;
    inside(&["route", "replace", "default", "via", &gateway])?;
    // The node forwards between its pods and its cable. /proc/sys/net shows the namespace of whoever opens it.
    run("nsenter", &[&format!("--net={}", file.display()), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?;
    Ok(())
}

/// Whether an interface of this name is in the root namespace.
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn netns_exists(name: &str) -> Result<bool> {
    let target = Path::new("/run/netns").join(name);
    Ok(mounts()?.iter().any(|mount| mount.target == target))
}

fn refuse_taken_subnet(lab: &Layout) -> Result<()> {
    let bridge = lab.bridge();
    if let Some((interface, address)) =
        addresses()?.into_iter().find(|(interface, address)| lab.subnet.contains(*address) && *interface != bridge)
    {
        bail!("the lab's network {} is in use: {interface} has {address}; choose another with --subnet", lab.subnet);
    }
    Ok(())
}

/// Where Docker or a firewall made bridged traffic pass iptables, the default policy may drop what the nodes send to
/// each other. A rule of the lab's own, marked with the bridge's name, lets it through; `down` removes it.
fn accept_bridged_traffic(bridge: &str) -> Result<()> {
    let filtered = fs::read_to_string(BRIDGE_FILTER).is_ok_and(|value| value.trim() == "1");
    let open = |rules: String| rules.trim() == "-P FORWARD ACCEPT";
    if !filtered || run("iptables", &["-w", "-S", "FORWARD"]).map_or(true, open) {
        return Ok(());
    }
    let rule = forward_rule(bridge);
    let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
    if run("iptables", &[&["-w", "-C"], &rule[..]].concat()).is_err() {
        run("iptables", &[&["-w", "-I"], &rule[..]].concat())?;
    }
    Ok(())
}

fn forward_rule(bridge: &str) -> Vec<String> {
    ["FORWARD", "-i", bridge, "-o", bridge, "-m", "comment", "--comment", bridge, "-j", "ACCEPT"]
        .map(str::to_owned)
        .to_vec()
}

/// Whether the lab's firewall rule is there.
pub fn rule_exists(bridge: &str) -> bool {
    // Asking iptables would make its tables where there are none.
    if !Path::new(BRIDGE_FILTER).exists() {
        return false;
    }
    let rule = forward_rule(bridge);
    let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
    run("iptables", &[&["-w", "-C"], &rule[..]].concat()).is_ok()
}

/// Removes the lab's firewall rule.
pub fn remove_rule(bridge: &str) -> Result<()> {
    let rule = forward_rule(bridge);
    let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
    run("iptables", &[&["-w", "-D"], &rule[..]].concat()).map(drop)
}
