//! What a pod calls itself, and whom it knows without asking.

use std::fmt::Write;

use pb::objects::Pod;

use super::NodeSettings;

/// The longest label of a name in DNS.
const LABEL_MAX: usize = 63;

/// Linux' bound on host names.
const KERNEL_MAX: usize = 64;

/// A full name that Linux does not take for a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "setHostnameAsFQDN: the full name {name} has {} characters, and Linux takes {KERNEL_MAX}: shorten the names of the \
     set or its Service, or leave the field out",
    name.len()
)]
pub struct LongName {
    name: String,
}

/// The pod's own label under its Service (ID-12).
fn label(pod: &Pod) -> String {
    let wanted = pod.spec.as_ref().map_or("", |spec| spec.hostname.as_str());
    let name = if wanted.is_empty() { pod.metadata.as_ref().map_or("", |meta| meta.name.as_str()) } else { wanted };
    let cut: String = name.chars().take(LABEL_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

impl NodeSettings {
    /// The host name in the pod: its own label, or its full name if it asks for that and has one.
    pub(super) fn hostname(&self, pod: &Pod) -> Result<String, LongName> {
        let wanted = pod.spec.as_ref().is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true));
        match self.full_name(pod).filter(|_| wanted) {
            Some(name) if name.len() > KERNEL_MAX => Err(LongName { name }),
            Some(name) => Ok(name),
            None => Ok(label(pod)),
        }
    }

    /// None without a subdomain.
    fn full_name(&self, pod: &Pod) -> Option<String> {
        let namespace = pod.metadata.as_ref().map_or("", |meta| meta.namespace.as_str());
        let subdomain = pod.spec.as_ref().map_or("", |spec| spec.subdomain.as_str());
        let name = || format!("{}.{subdomain}.{namespace}.svc.{}", label(pod), self.cluster_domain);
        (!subdomain.is_empty()).then(name)
    }

    /// The pod's `/etc/hosts`: its own address under its names (ID-12), and what it adds.
    pub fn hosts_file(&self, pod: &Pod, ip: &str) -> String {
        let host = label(pod);
        let names = self.full_name(pod).map_or_else(|| host.clone(), |name| format!("{name}\t{host}"));
        let mut file = format!(
            "# Written by Berth.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             {ip}\t{names}\n"
        );
        for alias in pod.spec.iter().flat_map(|spec| &spec.host_aliases) {
            // Writing into a String does not fail.
            writeln!(file, "{}\t{}", alias.ip, alias.hostnames.join("\t")).unwrap_or_default();
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::HostAlias;

    use super::super::tests::{pod, settings};

    #[test]
    fn host_names_are_cut_to_what_dns_takes() {
        let name = |name: &str| settings().hostname(&pod(name)).unwrap();
        assert_eq!(name("web-0"), "web-0");
        assert_eq!(name(&format!("{}-.-{}", "a".repeat(61), "b")), "a".repeat(61));
    }

    #[test]
    fn a_full_name_is_the_host_name_if_it_fits() {
        let mut pod = pod("web-0");
        pod.spec.as_mut().unwrap().set_hostname_as_fqdn = Some(true);
        assert_eq!(settings().hostname(&pod).as_deref(), Ok("web-0.nginx.default.svc.cluster.local"));
        pod.spec.as_mut().unwrap().subdomain = "n".repeat(40);
        let error = settings().hostname(&pod).unwrap_err().to_string();
        assert!(error.contains("has 72 characters, and Linux takes 64"), "{error}");
        pod.spec.as_mut().unwrap().subdomain.clear();
        assert_eq!(settings().hostname(&pod).as_deref(), Ok("web-0"), "it has no full name");
    }

    #[test]
    fn a_pod_knows_its_own_full_name_and_its_aliases() {
        let mut pod = pod("web-0");
        let hosts = settings().hosts_file(&pod, "10.77.0.5");
        assert!(hosts.ends_with("10.77.0.5\tweb-0.nginx.default.svc.cluster.local\tweb-0\n"), "{hosts}");
        let spec = pod.spec.as_mut().unwrap();
        spec.host_aliases = vec![HostAlias { ip: "10.1.2.3".into(), hostnames: vec!["db".into(), "db.old".into()] }];
        spec.subdomain.clear();
        let hosts = settings().hosts_file(&pod, "10.77.0.5");
        assert!(hosts.ends_with("10.77.0.5\tweb-0\n10.1.2.3\tdb\tdb.old\n"), "{hosts}");
    }
}
