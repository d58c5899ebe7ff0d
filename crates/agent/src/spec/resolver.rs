//! How a pod finds others by name: its `/etc/resolv.conf`, from its policy, the cluster's DNS and the node's own file.

use k8s_cri::v1 as cri;
use pb::objects::{Pod, PodDnsConfigOption, PodSpec};

use super::NodeSettings;

/// What the resolvers of the C libraries take; what is more is left out.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCHES: usize = 2048;

/// The node's own resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// Reads a `resolv.conf`. What it does not know is left out, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                // The last one holds.
                Some("search") => resolver.searches = words.filter(|domain| domain != ".").collect(),
                Some("options") => resolver.options = words.collect(),
                _ => {}
            }
        }
        resolver
    }
}

impl NodeSettings {
    /// The pod's resolver on a node with this one.
    pub(super) fn dns(&self, pod: &Pod, node: &Resolver) -> cri::DnsConfig {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let namespace = pod.metadata.as_ref().map_or("", |meta| meta.namespace.as_str());
        let mut dns = match spec.dns_policy.as_str() {
            "None" => Resolver::default(),
            "Default" => node.clone(),
            _ => self.cluster_first(namespace, node),
        };
        if let Some(own) = &spec.dns_config {
            dns.servers.extend(own.nameservers.iter().cloned());
            dns.searches.extend(own.searches.iter().cloned());
            merge(&mut dns.options, &own.options);
        }
        let mut length = 0;
        let mut fits = |domain: &String| {
            length += domain.len() + 1;
            length <= LONGEST_SEARCHES + 1
        };
        cri::DnsConfig {
            servers: unique(dns.servers).take(MOST_SERVERS).collect(),
            searches: unique(dns.searches).take(MOST_SEARCHES).take_while(|domain| fits(domain)).collect(),
            options: dns.options,
        }
    }

    /// The cluster's names first; what is beyond them is asked from the same server.
    fn cluster_first(&self, namespace: &str, node: &Resolver) -> Resolver {
        let domain = &self.cluster_domain;
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        searches.extend(node.searches.iter().cloned());
        Resolver { servers: vec![self.dns_ip.to_string()], searches, options: vec!["ndots:5".into()] }
    }
}

/// The first of each.
fn unique(all: Vec<String>) -> impl Iterator<Item = String> {
    let mut seen = std::collections::BTreeSet::new();
    all.into_iter().filter(move |one| seen.insert(one.clone()))
}

/// An option that is there already gets the new value in its place.
fn merge(options: &mut Vec<String>, more: &[PodDnsConfigOption]) {
    for PodDnsConfigOption { name, value } in more {
        let text = match value.as_deref() {
            None | Some("") => name.clone(),
            Some(value) => format!("{name}:{value}"),
        };
        match options.iter_mut().find(|option| option.split(':').next() == Some(name)) {
            Some(option) => *option = text,
            None => options.push(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::PodDnsConfig;

    use super::{
        super::tests::{pod, settings},
        *,
    };

    const NODE: &str =
        "# by hand\nnameserver 9.9.9.9\nnameserver 8.8.8.8\nsearch old\nsearch corp.example .\noptions edns0\n";

    fn of(policy: &str, config: Option<PodDnsConfig>) -> cri::DnsConfig {
        let mut pod = pod("web-0");
        let spec = pod.spec.as_mut().unwrap();
        (spec.dns_policy, spec.dns_config) = (policy.into(), config);
        settings().dns(&pod, &Resolver::parse(NODE))
    }

    #[test]
    fn the_cluster_comes_first() {
        for policy in ["", "ClusterFirst"] {
            let dns = of(policy, None);
            assert_eq!(dns.servers, ["169.254.20.10"]);
            let cluster = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
            assert_eq!(dns.searches, cluster);
            assert_eq!(dns.options, ["ndots:5"]);
        }
    }

    #[test]
    fn the_nodes_own_resolver_or_none_at_all() {
        let dns = of("Default", None);
        assert_eq!(
            (dns.servers, dns.searches),
            (vec!["9.9.9.9".into(), "8.8.8.8".into()], vec!["corp.example".into()])
        );
        assert_eq!(dns.options, ["edns0"]);
        let own = PodDnsConfig { nameservers: vec!["1.1.1.1".into()], ..Default::default() };
        let dns = of("None", Some(own));
        assert_eq!((dns.servers, dns.searches, dns.options), (vec!["1.1.1.1".into()], vec![], vec![]));
    }

    #[test]
    fn what_a_pod_adds_comes_last_once_and_as_far_as_it_fits() {
        let option =
            |name: &str, value: Option<&str>| PodDnsConfigOption { name: name.into(), value: value.map(Into::into) };
        let own = PodDnsConfig {
            nameservers: ["169.254.20.10", "1.1.1.1", "2.2.2.2", "3.3.3.3"].map(Into::into).into(),
            searches: ["svc.cluster.local".to_owned(), "x".repeat(1000), "y".repeat(1000), "z".into()].into(),
            options: vec![option("ndots", Some("2")), option("single-request", None)],
        };
        let dns = of("", Some(own));
        assert_eq!(dns.servers, ["169.254.20.10", "1.1.1.1", "2.2.2.2"]);
        assert_eq!(dns.searches.len(), 5, "the second long one is too much");
        assert_eq!(dns.options, ["ndots:2", "single-request"]);
    }
}
