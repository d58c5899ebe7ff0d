//! What the kernel is to do with packets to virtual addresses: a pure function of the Services as told.
//!
//! The rules are one table of nftables, `ip berth`, always written as a whole in one transaction. The chains that the
//! kernel calls stay and only what is in them is replaced: a chain that is made anew is called before or after its
//! predecessor has gone, so that a packet in between would find no rule. Connections that exist are not touched: the kernel
//! remembers where each one goes.
//!
//! A connection goes to one of the ready endpoints, each as likely as the others. An address or port without any is
//! refused at once, never left to time out.
//!
//! The source of a connection stays what it is, but for two cases. Pods of one node talk over its bridge, and an answer
//! would go straight back, from an address that nobody asked: there, and where a pod reaches itself, the node puts itself
//! in between. And so it does for connections that do not come from its pods: only it knows where they came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use pb::agent::v1::{EndpointPort, ServiceEndpoints, WatchEndpointsResponse, watch_endpoints_response::Change};

use crate::stream::Feed;

/// The table's name, in family `ip`.
pub const TABLE: &str = "berth";

/// The longest comment of a rule is a little longer than this.
const COMMENT: usize = 100;

/// The Services with virtual addresses, as told.
#[derive(Debug, Default)]
pub struct Services {
    /// By namespace and name.
    services: BTreeMap<(String, String), ServiceEndpoints>,
    /// Named since the stream was opened.
    named: BTreeSet<(String, String)>,
    /// All has been told at least once.
    complete: bool,
}

impl Services {
    /// Takes what the API service tells; whether that can change the rules. What was told before stays until a new
    /// telling is complete.
    pub fn take(&mut self, feed: &Feed<WatchEndpointsResponse>) -> bool {
        let message = match feed {
            Feed::Opened => {
                self.named.clear();
                return false;
            }
            Feed::Closed => return false,
            Feed::Message(message) => message,
        };
        match &message.change {
            Some(Change::Upsert(service)) => {
                let key = (service.namespace.clone(), service.name.clone());
                self.named.insert(key.clone());
                if service.cluster_ip.is_empty() {
                    return self.services.remove(&key).is_some();
                }
                self.services.insert(key, service.clone()).as_ref() != Some(service)
            }
            Some(Change::Removed(service)) => {
                self.services.remove(&(service.namespace.clone(), service.name.clone())).is_some()
            }
            Some(Change::Synced(_)) => {
                let named = std::mem::take(&mut self.named);
                self.services.retain(|key, _| named.contains(key));
                self.complete = true;
                true
            }
            None => false,
        }
    }

    /// What the table shall say, for a node whose pods have addresses of `pods`; None until all Services have been told
    /// once: before, too little is known to take any away.
    pub fn rules(&self, pods: PodNetwork) -> Option<Ruleset> {
        self.complete.then(|| Rules::of(self.services.values()).ruleset(pods))
    }
}

/// What the table shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The names of its chains.
    pub(super) chains: BTreeSet<String>,
    /// Makes the table, and what is in it whatever Services there are.
    pub(super) frame: String,
    /// Fills it.
    pub(super) content: String,
}

impl Ruleset {
    /// The transaction that puts this into the place of a table that has the chains `there`.
    pub fn replacing(&self, there: &BTreeSet<String>) -> String {
        let gone: String =
            there.difference(&self.chains).map(|chain| format!("delete chain ip {TABLE} {chain}\n")).collect();
        let Self { frame, content, .. } = self;
        format!(
            "{frame}flush map ip {TABLE} services\nflush set ip {TABLE} addresses\nflush table ip {TABLE}\n{gone}{content}"
        )
    }
}

/// The network of the node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    base: Ipv4Addr,
    bits: u8,
}

impl PodNetwork {
    /// From text such as `10.77.1.0/24`.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        Some(Self { base: base.parse().ok()?, bits: bits.parse().ok().filter(|bits| *bits <= 32)? })
    }
}

/// Where connections to one port of one address go.
struct Port {
    address: Ipv4Addr,
    protocol: &'static str,
    port: u16,
    /// At least one.
    targets: Vec<(Ipv4Addr, u16)>,
    comment: String,
}

impl Port {
    /// None if nobody listens there.
    fn of(service: &ServiceEndpoints, address: Ipv4Addr, at: usize, port: &EndpointPort) -> Option<Self> {
        let target = |endpoint: &pb::agent::v1::Endpoint| {
            let target = u16::try_from(*endpoint.target_ports.get(at)?).ok().filter(|target| *target != 0)?;
            Some((endpoint.ip.parse().ok()?, target))
        };
        let targets: Vec<_> = service.endpoints.iter().filter_map(target).collect();
        let protocol = match port.protocol.as_str() {
            "UDP" => "udp",
            "SCTP" => "sctp",
            _ => "tcp",
        };
        let text = format!("{}/{}", service.namespace, service.name);
        let comment = text.chars().filter(|c| c.is_ascii_alphanumeric() || "-./".contains(*c)).take(COMMENT).collect();
        let port = u16::try_from(port.port).ok().filter(|port| *port != 0)?;
        (!targets.is_empty()).then_some(Self { address, protocol, port, targets, comment })
    }

    /// The name of its chain.
    fn chain(&self) -> String {
        format!("{}-{}-{}", self.protocol, self.address, self.port)
    }

    /// The rule that chooses an endpoint.
    fn rule(&self) -> String {
        let Self { protocol, targets, comment, .. } = self;
        let goal = match targets.as_slice() {
            [(ip, port)] => format!("{ip}:{port}"),
            many => {
                let choices: Vec<_> =
                    many.iter().enumerate().map(|(at, (ip, port))| format!("{at} : {ip} . {port}")).collect();
                format!("numgen random mod {} map {{ {} }}", many.len(), choices.join(", "))
            }
        };
        format!("meta l4proto {protocol} dnat to {goal} comment \"{comment}\"")
    }
}

/// All that the table says.
#[derive(Default)]
struct Rules {
    addresses: BTreeSet<Ipv4Addr>,
    ports: Vec<Port>,
}

impl Rules {
    fn of<'a>(services: impl Iterator<Item = &'a ServiceEndpoints>) -> Self {
        let mut rules = Self::default();
        for service in services {
            let Ok(address) = service.cluster_ip.parse() else { continue };
            // Two Services of one address: not both can be meant, and the text would be refused as a whole.
            if !rules.addresses.insert(address) {
                continue;
            }
            let ports = service.ports.iter().enumerate();
            rules.ports.extend(ports.filter_map(|(at, port)| Port::of(service, address, at, port)));
        }
        rules
    }

    fn ruleset(&self, pods: PodNetwork) -> Ruleset {
        let PodNetwork { base, bits } = pods;
        let own = format!("{base}/{bits}");
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let ports = self.ports.iter();
        let services: Vec<_> = ports
            .map(|port| format!("{} . {} . {} : goto {}", port.address, port.protocol, port.port, port.chain()))
            .collect();
        let translated = "ct status dnat ct original ip daddr @addresses";
        let dispatch = "ip daddr . meta l4proto . th dport vmap @services".to_owned();
        let refuse = "ip daddr @addresses goto refuse".to_owned();
        let called = [
            ("prerouting", "type nat hook prerouting priority dstnat; policy accept;", vec![dispatch.clone()]),
            ("output", "type nat hook output priority -100; policy accept;", vec![dispatch]),
            (
                "postrouting",
                "type nat hook postrouting priority srcnat; policy accept;",
                vec![
                    format!("{translated} ip saddr {own} ip daddr {own} masquerade"),
                    format!("{translated} ip saddr != {own} masquerade"),
                ],
            ),
            // What is still addressed to a virtual address here went to no endpoint.
            ("refuse-forward", "type filter hook forward priority filter; policy accept;", vec![refuse.clone()]),
            ("refuse-output", "type filter hook output priority filter; policy accept;", vec![refuse]),
        ];
        let refusal = ["meta l4proto tcp reject with tcp reset", "reject with icmp port-unreachable"];

        let mut frame = vec![
            block("set addresses", &["type ipv4_addr"]),
            block("map services", &["type ipv4_addr . inet_proto . inet_service : verdict"]),
        ];
        frame.extend(called.iter().map(|(name, hook, _)| block(&format!("chain {name}"), &[hook])));
        let mut content = vec![block("chain refuse", &refusal)];
        content.extend(self.ports.iter().map(|port| block(&format!("chain {}", port.chain()), &[port.rule()])));
        content.push(block("set addresses", &["type ipv4_addr".to_owned(), elements(&addresses)]));
        let verdicts = "type ipv4_addr . inet_proto . inet_service : verdict".to_owned();
        content.push(block("map services", &[verdicts, elements(&services)]));
        content.extend(called.iter().map(|(name, _, rules)| block(&format!("chain {name}"), rules)));

        let hooked = called.iter().map(|(name, ..)| (*name).to_owned());
        let chains = self.ports.iter().map(Port::chain).chain(hooked).chain(["refuse".to_owned()]).collect();
        let table = |blocks: &[String]| format!("table ip {TABLE} {{\n{}}}\n", blocks.concat());
        Ruleset { chains, frame: table(&frame), content: table(&content) }
    }
}

/// A named part of the table.
fn block(head: &str, lines: &[impl AsRef<str>]) -> String {
    let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).filter(|line| !line.is_empty()).collect();
    format!("  {head} {{\n    {}\n  }}\n", lines.join("\n    "))
}

/// What is in a set or map; nothing if it is empty.
fn elements(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!("elements = {{\n      {}\n    }}", all.join(",\n      ")) }
}

#[cfg(test)]
pub(super) mod tests {
    use pb::agent::v1::{Endpoint, ServiceRef};

    use super::*;

    pub fn port(name: &str, protocol: &str, port: i32) -> EndpointPort {
        EndpointPort { name: name.into(), protocol: protocol.into(), port }
    }

    pub fn endpoint(ip: &str, target_ports: &[i32]) -> Endpoint {
        Endpoint { ip: ip.into(), target_ports: target_ports.into(), ..Endpoint::default() }
    }

    pub fn service(name: &str, ip: &str, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> ServiceEndpoints {
        ServiceEndpoints {
            namespace: "default".into(),
            name: name.into(),
            cluster_ip: ip.into(),
            ports,
            endpoints,
            ..ServiceEndpoints::default()
        }
    }

    fn upsert(service: ServiceEndpoints) -> Feed<WatchEndpointsResponse> {
        Feed::Message(WatchEndpointsResponse { change: Some(Change::Upsert(service)) })
    }

    fn synced() -> Feed<WatchEndpointsResponse> {
        Feed::Message(WatchEndpointsResponse { change: Some(Change::Synced(true)) })
    }

    pub fn own() -> PodNetwork {
        PodNetwork::parse("10.77.1.0/24").unwrap()
    }

    #[test]
    fn the_rules_of_two_services() {
        let mut services = Services::default();
        services.take(&Feed::Opened);
        let ports = vec![port("web", "TCP", 80), port("dns", "UDP", 53)];
        // The second pod has no port of the name that the Service's second port asks for.
        let endpoints = vec![endpoint("10.77.1.2", &[8080, 5353]), endpoint("10.77.2.9", &[8081, 0])];
        services.take(&upsert(service("web", "10.96.0.10", ports, endpoints)));
        services.take(&upsert(service("nobody", "10.96.0.11", vec![port("", "TCP", 80)], vec![])));
        services.take(&upsert(service("headless", "", vec![port("", "TCP", 80)], vec![endpoint("10.77.1.2", &[80])])));
        assert_eq!(services.rules(own()), None, "half of it is told");
        assert!(services.take(&synced()));
        let expected = r#"table ip berth {
  chain refuse {
    meta l4proto tcp reject with tcp reset
    reject with icmp port-unreachable
  }
  chain tcp-10.96.0.10-80 {
    meta l4proto tcp dnat to numgen random mod 2 map { 0 : 10.77.1.2 . 8080, 1 : 10.77.2.9 . 8081 } comment "default/web"
  }
  chain udp-10.96.0.10-53 {
    meta l4proto udp dnat to 10.77.1.2:5353 comment "default/web"
  }
  set addresses {
    type ipv4_addr
    elements = {
      10.96.0.10,
      10.96.0.11
    }
  }
  map services {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {
      10.96.0.10 . tcp . 80 : goto tcp-10.96.0.10-80,
      10.96.0.10 . udp . 53 : goto udp-10.96.0.10-53
    }
  }
  chain prerouting {
    ip daddr . meta l4proto . th dport vmap @services
  }
  chain output {
    ip daddr . meta l4proto . th dport vmap @services
  }
  chain postrouting {
    ct status dnat ct original ip daddr @addresses ip saddr 10.77.1.0/24 ip daddr 10.77.1.0/24 masquerade
    ct status dnat ct original ip daddr @addresses ip saddr != 10.77.1.0/24 masquerade
  }
  chain refuse-forward {
    ip daddr @addresses goto refuse
  }
  chain refuse-output {
    ip daddr @addresses goto refuse
  }
}
"#;
        let ruleset = services.rules(own()).unwrap();
        assert_eq!(ruleset.content, expected);
        // A chain of a Service that is gone goes; those that the kernel calls stay.
        let there = ["prerouting", "refuse", "tcp-10.96.0.9-80", "tcp-10.96.0.10-80"].map(str::to_owned).into();
        let text = ruleset.replacing(&there);
        let deleted: Vec<_> = text.lines().filter(|line| line.starts_with("delete")).collect();
        assert_eq!(deleted, ["delete chain ip berth tcp-10.96.0.9-80"]);
        assert!(text.starts_with("table ip berth {\n  set addresses {\n    type ipv4_addr\n  }\n"), "{text}");
    }

    #[test]
    fn what_cannot_change_the_rules_is_told_apart() {
        let mut services = Services::default();
        let web = service("web", "10.96.0.10", vec![port("", "TCP", 80)], vec![endpoint("10.77.1.2", &[80])]);
        assert!(services.take(&upsert(web.clone())));
        assert!(!services.take(&upsert(web.clone())), "the same again");
        let headless = ServiceEndpoints { name: "headless".into(), cluster_ip: String::new(), ..web.clone() };
        assert!(!services.take(&upsert(headless)));
        services.take(&synced());
        let before = services.rules(own());
        services.take(&Feed::Opened);
        assert_eq!(services.rules(own()), before, "what was told stays until the new telling is complete");
        assert!(services.take(&synced()), "it was not named again");
        assert_ne!(services.rules(own()), before);
        services.take(&upsert(web));
        assert_eq!(services.rules(own()), before);
        let gone = ServiceRef { namespace: "default".into(), name: "web".into() };
        let gone = Feed::Message(WatchEndpointsResponse { change: Some(Change::Removed(gone)) });
        assert!(services.take(&gone));
        assert!(!services.take(&gone));
    }
}
