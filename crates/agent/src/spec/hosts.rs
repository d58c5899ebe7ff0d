//! What a pod calls itself, and how it finds others by name.

use k8s_cri::v1 as cri;
use pb::objects::Pod;

use super::NodeSettings;

/// Linux' bound on host names.
const HOSTNAME_MAX: usize = 63;

/// The host name in the pod (ID-12).
pub fn hostname(pod: &Pod) -> String {
    let wanted = pod.spec.as_ref().map_or("", |spec| spec.hostname.as_str());
    let name = if wanted.is_empty() { pod.metadata.as_ref().map_or("", |meta| meta.name.as_str()) } else { wanted };
    let cut: String = name.chars().take(HOSTNAME_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

impl NodeSettings {
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

    /// The pod's resolver.
    pub(super) fn dns(&self, namespace: &str) -> cri::DnsConfig {
        let domain = &self.cluster_domain;
        cri::DnsConfig {
            servers: vec![self.dns_ip.to_string()],
            searches: vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
            options: vec!["ndots:5".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{pod, settings},
        *,
    };

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
}
