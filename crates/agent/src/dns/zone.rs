//! What the names of Services and their pods mean.
//!
//! Pure: a table and a question give an answer, after Kubernetes' DNS specification 1.1.0 (DNS-2 to DNS-8). The table
//! holds only endpoints that are to be answered (DNS-4): that is decided where readiness is known. Positive answers live
//! 5 s, negative ones not at all: a pod that has just become ready must not be hidden by an answer from before.
//!
//! Beyond the specification: pods have names under Services with a virtual address too, and a headless Service's SRV
//! records name the port where each pod listens, as CoreDNS has both: nothing translates the Service's own port there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};
use pb::agent::v1::{Endpoint, EndpointPort, ServiceEndpoints};

/// Seconds that an answer may be kept.
const TTL: u32 = 5;

/// Version of the specification that `dns-version` tells.
const SCHEMA: &str = "1.1.0";

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not a name of this zone.
    Foreign,
    /// There is no such name.
    NoName,
    /// The name stands for this one, which is to be asked next.
    Alias(Name),
    /// There is such a name, with these records of the asked type, possibly none.
    Records(Vec<Record>),
}

/// The record that says that a name stands for another one.
pub fn cname(name: &Name, target: &Name) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())))
}

/// What an address is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pointer {
    /// Whether the name was made from the address: those that were given come first.
    made_up: bool,
    namespace: String,
    service: String,
    /// Empty for the Service itself.
    host: String,
}

/// The Services of the cluster, and who stands behind each.
#[derive(Clone, Debug)]
pub struct Table {
    /// The labels of the zone, lower case.
    zone: Vec<String>,
    /// Where the zone is served.
    address: Ipv4Addr,
    /// By namespace, then name.
    services: BTreeMap<String, BTreeMap<String, ServiceEndpoints>>,
    /// Names of addresses.
    names: BTreeMap<IpAddr, BTreeSet<Pointer>>,
}

impl Table {
    /// An empty table for a zone such as `cluster.local`, served at `address`.
    pub fn new(zone: &str, address: Ipv4Addr) -> Self {
        let zone = zone.trim_matches('.').split('.').map(str::to_ascii_lowercase).collect();
        Self { zone, address, services: BTreeMap::new(), names: BTreeMap::new() }
    }

    /// Puts a Service's endpoints in place of what was there.
    pub fn put(&mut self, service: ServiceEndpoints) {
        self.remove(&service.namespace, &service.name);
        for (ip, pointer) in pointers(&service) {
            self.names.entry(ip).or_default().insert(pointer);
        }
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        self.services.entry(namespace).or_default().insert(name, service);
    }

    /// Takes a Service away.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(services) = self.services.get_mut(namespace) else { return };
        let Some(old) = services.remove(name) else { return };
        if services.is_empty() {
            self.services.remove(namespace);
        }
        for (ip, pointer) in pointers(&old) {
            if let Some(names) = self.names.get_mut(&ip) {
                names.remove(&pointer);
                if names.is_empty() {
                    self.names.remove(&ip);
                }
            }
        }
    }

    /// Keeps the Services that are named.
    pub fn retain(&mut self, named: &BTreeSet<(String, String)>) {
        let all =
            self.services.iter().flat_map(|(ns, services)| services.keys().map(|name| (ns.clone(), name.clone())));
        let gone: Vec<_> = all.filter(|key| !named.contains(key)).collect();
        for (namespace, name) in gone {
            self.remove(&namespace, &name);
        }
    }

    /// Answers a question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let labels: Vec<String> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        if let Ok(network) = name.parse_arpa_name() {
            let whole = network.prefix_len() == network.max_prefix_len();
            return if whole { self.reverse(name, network.addr(), kind) } else { Answer::Foreign };
        }
        let Some(inside) = labels.strip_suffix(self.zone.as_slice()) else { return Answer::Foreign };
        let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
        if let Some(target) = self.alias(&inside) {
            return match kind {
                RecordType::CNAME => Answer::Records(vec![cname(name, &target)]),
                _ => Answer::Alias(target),
            };
        }
        let data = match inside.as_slice() {
            [] => match kind {
                RecordType::SOA => vec![RData::SOA(self.soa_data())],
                RecordType::NS => vec![RData::NS(NS(self.absolute(&["ns", "dns"])))],
                _ => Vec::new(),
            },
            ["dns-version"] => match kind {
                RecordType::TXT => vec![RData::TXT(TXT::new(vec![SCHEMA.to_owned()]))],
                _ => Vec::new(),
            },
            ["ns", "dns"] => of_address(self.address.into(), kind),
            ["dns" | "svc" | "pod"] | [_, "pod"] => Vec::new(),
            [host, _, "pod"] => match host.replace('-', ".").parse::<Ipv4Addr>() {
                Ok(ip) => of_address(ip.into(), kind),
                Err(_) => return Answer::NoName,
            },
            [namespace, "svc"] => match self.services.contains_key(*namespace) {
                true => Vec::new(),
                false => return Answer::NoName,
            },
            [below @ .., service, namespace, "svc"] => match self.below_service(namespace, service, below, kind) {
                Some(data) => data,
                None => return Answer::NoName,
            },
            _ => return Answer::NoName,
        };
        Answer::Records(data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect())
    }

    /// The name that a Service of type ExternalName stands for.
    fn alias(&self, inside: &[&str]) -> Option<Name> {
        let [service, namespace, "svc"] = inside else { return None };
        let service = self.services.get(*namespace)?.get(*service)?;
        let external = Some(&service.external_name).filter(|name| !name.is_empty())?;
        let mut target = Name::from_ascii(external).ok()?;
        target.set_fqdn(true);
        Some(target)
    }

    /// None if there is no such name.
    fn below_service(&self, namespace: &str, service: &str, below: &[&str], kind: RecordType) -> Option<Vec<RData>> {
        let service = self.services.get(namespace)?.get(service)?;
        let virtual_ip = service.cluster_ip.parse::<IpAddr>().ok();
        // Whether anything under the Service can be reached: a virtual address is there without endpoints, too.
        let there = virtual_ip.is_some() || !service.endpoints.is_empty();
        match below {
            [] => match virtual_ip {
                Some(ip) => Some(of_address(ip, kind)),
                None => there.then(|| addresses(&service.endpoints, kind)),
            },
            [host] if !host.starts_with('_') => {
                let named: Vec<_> = service.endpoints.iter().filter(|e| label(e).eq_ignore_ascii_case(host)).collect();
                (!named.is_empty()).then(|| addresses(named, kind))
            }
            [protocol] => {
                let protocol = protocol.strip_prefix('_')?;
                let used =
                    service.ports.iter().any(|p| !p.name.is_empty() && p.protocol.eq_ignore_ascii_case(protocol));
                (used && there).then(Vec::new)
            }
            [port, protocol] => {
                let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let is_meant = |p: &EndpointPort| {
                    !p.name.is_empty() && p.name.eq_ignore_ascii_case(port) && p.protocol.eq_ignore_ascii_case(protocol)
                };
                let at = service.ports.iter().position(is_meant)?;
                let found = || match kind {
                    RecordType::SRV => self.targets(service, at, virtual_ip.is_some()),
                    _ => Vec::new(),
                };
                there.then(found)
            }
            _ => None,
        }
    }

    /// Where a named port of a Service is: at the Service itself if it has a virtual address, else at each endpoint.
    fn targets(&self, service: &ServiceEndpoints, at: usize, is_virtual: bool) -> Vec<RData> {
        let Some(port) = service.ports.get(at).map(|port| port.port) else { return Vec::new() };
        let own = [service.name.as_str(), &service.namespace, "svc"];
        let record = |number: i32, target: Name| {
            let number = u16::try_from(number).ok().filter(|number| *number != 0)?;
            Some(RData::SRV(SRV::new(0, 100, number, target)))
        };
        if is_virtual {
            return record(port, self.absolute(&own)).into_iter().collect();
        }
        let of_endpoint = |endpoint: &Endpoint| {
            // An endpoint without the named port that the Service asks for does not serve it.
            let number = endpoint.target_ports.get(at).copied().unwrap_or(port);
            let [service, namespace, svc] = own;
            record(number, self.absolute(&[&label(endpoint), service, namespace, svc]))
        };
        service.endpoints.iter().filter_map(of_endpoint).collect()
    }

    fn reverse(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Answer {
        let Some(names) = self.names.get(&ip) else { return Answer::Foreign };
        let pointer = |pointer: &Pointer| {
            let Pointer { host, service, namespace, .. } = pointer;
            let labels = [host.as_str(), service, namespace, "svc"];
            let name = self.absolute(if host.is_empty() { &labels[1..] } else { &labels });
            RData::PTR(PTR(name))
        };
        let data: Vec<_> = if kind == RecordType::PTR { names.iter().map(pointer).collect() } else { Vec::new() };
        Answer::Records(data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect())
    }

    /// The record that goes with answers without records: they are not to be kept.
    pub fn soa(&self) -> Record {
        Record::from_rdata(self.absolute(&[]), 0, RData::SOA(self.soa_data()))
    }

    fn soa_data(&self) -> SOA {
        SOA::new(self.absolute(&["ns", "dns"]), self.absolute(&["hostmaster"]), 1, 7200, 1800, 86400, 0)
    }

    /// A name in the zone. Labels that are none give the root; the API validated them.
    fn absolute(&self, below: &[&str]) -> Name {
        let labels = below.iter().copied().chain(self.zone.iter().map(String::as_str));
        let mut name = Name::from_labels(labels.map(str::as_bytes)).unwrap_or_else(|_| Name::root());
        name.set_fqdn(true);
        name
    }
}

/// What the addresses of a Service are called: the virtual one after the Service, those of endpoints after their hosts.
/// Under a virtual address only hosts that have a name of their own count.
fn pointers(service: &ServiceEndpoints) -> Vec<(IpAddr, Pointer)> {
    let pointer = |made_up: bool, host: String| Pointer {
        made_up,
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        host,
    };
    let virtual_ip = service.cluster_ip.parse::<IpAddr>().ok();
    let endpoints = service.endpoints.iter().filter(|e| virtual_ip.is_none() || !e.hostname.is_empty());
    let of_endpoints = endpoints.filter_map(|endpoint| {
        Some((endpoint.ip.parse().ok()?, pointer(endpoint.hostname.is_empty(), label(endpoint))))
    });
    virtual_ip.map(|ip| (ip, pointer(false, String::new()))).into_iter().chain(of_endpoints).collect()
}

/// The label of an endpoint under its Service: its host name, else its address with dashes.
fn label(endpoint: &Endpoint) -> String {
    match endpoint.hostname.as_str() {
        "" => endpoint.ip.replace(['.', ':'], "-"),
        hostname => hostname.to_owned(),
    }
}

fn addresses<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>, kind: RecordType) -> Vec<RData> {
    let ips = endpoints.into_iter().filter_map(|endpoint| endpoint.ip.parse().ok());
    ips.flat_map(|ip| of_address(ip, kind)).collect()
}

fn of_address(ip: IpAddr, kind: RecordType) -> Vec<RData> {
    match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A) => vec![RData::A(A(ip))],
        (IpAddr::V6(ip), RecordType::AAAA) => vec![RData::AAAA(AAAA(ip))],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ip: &str, hostname: &str) -> Endpoint {
        Endpoint { ip: ip.into(), hostname: hostname.into(), pod_name: hostname.into(), ..Endpoint::default() }
    }

    fn port(name: &str, protocol: &str, port: i32) -> EndpointPort {
        EndpointPort { name: name.into(), protocol: protocol.into(), port }
    }

    fn service(name: &str, endpoints: Vec<Endpoint>) -> ServiceEndpoints {
        ServiceEndpoints {
            namespace: "default".into(),
            name: name.into(),
            endpoints,
            ports: vec![port("web", "TCP", 80), port("", "TCP", 81)],
            ..ServiceEndpoints::default()
        }
    }

    fn table() -> Table {
        let mut table = Table::new("cluster.local", Ipv4Addr::new(169, 254, 20, 10));
        table.put(service("nginx", vec![endpoint("10.77.1.2", "web-0"), endpoint("10.77.2.2", "web-1")]));
        table.put(service("plain", vec![endpoint("10.77.1.3", "")]));
        table.put(service("nobody", vec![]));
        table
    }

    /// The answer as text: records, or the code.
    fn ask(table: &Table, name: &str, kind: RecordType) -> String {
        let answer = table.answer(&Name::from_ascii(name).unwrap(), kind);
        match &answer {
            Answer::Records(records) if !records.is_empty() => {
                records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(", ")
            }
            Answer::Records(_) => "no data".into(),
            Answer::NoName => "Non-Existent Domain".into(),
            Answer::Foreign => "Query Refused".into(),
            Answer::Alias(target) => target.to_string(),
        }
    }

    #[test]
    fn answers_as_the_specification_says() {
        let table = table();
        use RecordType::{A, AAAA, PTR, SRV, TXT};
        for (name, kind, expected) in [
            // DNS-5, DNS-6: the Service and its pods, in any case.
            ("nginx.default.svc.cluster.local.", A, "10.77.1.2, 10.77.2.2"),
            ("web-1.nginx.default.svc.cluster.local.", A, "10.77.2.2"),
            ("WEB-1.Nginx.default.SVC.cluster.local.", A, "10.77.2.2"),
            ("web-1.nginx.default.svc.cluster.local.", AAAA, "no data"),
            ("web-2.nginx.default.svc.cluster.local.", A, "Non-Existent Domain"),
            ("nobody.default.svc.cluster.local.", A, "Non-Existent Domain"),
            ("nginx.other.svc.cluster.local.", A, "Non-Existent Domain"),
            // DNS-2: without a host name there is no name but the address.
            ("plain.default.svc.cluster.local.", A, "10.77.1.3"),
            ("10-77-1-3.plain.default.svc.cluster.local.", A, "10.77.1.3"),
            // DNS-7: only named ports.
            (
                "_web._tcp.nginx.default.svc.cluster.local.",
                SRV,
                "0 100 80 web-0.nginx.default.svc.cluster.local., 0 100 80 web-1.nginx.default.svc.cluster.local.",
            ),
            ("_web._udp.nginx.default.svc.cluster.local.", SRV, "Non-Existent Domain"),
            ("_other._tcp.nginx.default.svc.cluster.local.", SRV, "Non-Existent Domain"),
            ("_tcp.nginx.default.svc.cluster.local.", A, "no data"),
            // DNS-8.
            ("2.1.77.10.in-addr.arpa.", PTR, "web-0.nginx.default.svc.cluster.local."),
            ("dns-version.cluster.local.", TXT, "1.1.0"),
            // The name server, and the names from addresses that the specification still asks for.
            ("cluster.local.", RecordType::NS, "ns.dns.cluster.local."),
            ("ns.dns.cluster.local.", A, "169.254.20.10"),
            ("1-2-3-4.default.pod.cluster.local.", A, "1.2.3.4"),
            ("1-2-3-4.default.pod.cluster.local.", AAAA, "no data"),
            ("web-0.default.pod.cluster.local.", A, "Non-Existent Domain"),
            // Names between the zone and Services exist.
            ("cluster.local.", A, "no data"),
            ("svc.cluster.local.", A, "no data"),
            ("default.svc.cluster.local.", A, "no data"),
            ("other.svc.cluster.local.", A, "Non-Existent Domain"),
            ("x.web-0.nginx.default.svc.cluster.local.", A, "Non-Existent Domain"),
            // Others' names.
            ("example.org.", A, "Query Refused"),
            ("local.", A, "Query Refused"),
            ("9.9.9.9.in-addr.arpa.", PTR, "Query Refused"),
        ] {
            assert_eq!(ask(&table, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn names_follow_the_endpoints() {
        let mut table = table();
        table.put(service("nginx", vec![endpoint("10.77.3.9", "web-0")]));
        assert_eq!(ask(&table, "web-0.nginx.default.svc.cluster.local.", RecordType::A), "10.77.3.9");
        assert_eq!(ask(&table, "2.1.77.10.in-addr.arpa.", RecordType::PTR), "Query Refused");
        table.retain(&[("default".to_owned(), "plain".to_owned())].into());
        assert_eq!(ask(&table, "nginx.default.svc.cluster.local.", RecordType::A), "Non-Existent Domain");
        assert_eq!(ask(&table, "plain.default.svc.cluster.local.", RecordType::A), "10.77.1.3");
    }

    #[test]
    fn negative_answers_are_not_kept() {
        let soa = table().soa();
        let RData::SOA(data) = soa.data else { panic!("not an SOA record") };
        assert_eq!((soa.ttl, data.minimum), (0, 0));
    }
}
