//! The CNI configuration that the container runtime takes up, and forwarding between pods and the node's network.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde_json::json;

/// The bridge of the node's pods; alone in the node's network namespace.
pub const BRIDGE: &str = "berth-pods";

/// Where the configuration is, in the agent's folder.
const CONFLIST: &str = "cni/net.d/10-berth.conflist";

/// Writes the configuration for pods with addresses from `cidr`, unless it stands there already.
pub fn write(data_dir: &Path, cidr: &str) -> anyhow::Result<()> {
    if cidr.is_empty() {
        bail!("the API service gave this node no pod network: start it with --pod-cidr");
    }
    let leases = data_dir.join("cni/leases");
    let list = json!({
        "cniVersion": "0.4.0",
        "name": "berth",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": leases.display().to_string(),
                "ranges": [[{ "subnet": cidr }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }, {
            // Ports of the node. Does nothing for pods without.
            "type": "portmap",
            "capabilities": { "portMappings": true },
            "snat": true,
        }],
    });
    let path = data_dir.join(CONFLIST);
    let text = serde_json::to_string_pretty(&list)?;
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let make = || {
        fs::create_dir_all(path.parent().unwrap_or(data_dir))?;
        // The runtime reads the folder whenever something changes in it: never half a file.
        let new = path.with_extension("new");
        fs::write(&new, &text)?;
        fs::rename(new, &path)
    };
    make().with_context(|| format!("write {}", path.display()))
}

/// Lets the kernel forward between the pods and the node's network.
pub fn enable_forwarding() -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(path).is_ok_and(|now| now.trim() == "1") {
        return Ok(());
    }
    fs::write(path, "1").with_context(|| format!("write {path}: the agent must run as root in the node's network"))
}
