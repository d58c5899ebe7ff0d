//! The rules in a real kernel: a node with a bridge and two pods, and another node with one, in network namespaces of
//! their own. Needs root, `ip` and `nft`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use pb::agent::v1::{ServiceEndpoints, WatchEndpointsResponse, watch_endpoints_response::Change};

use super::{
    nft,
    services::{
        Ruleset, Services,
        tests::{endpoint, own, port, service},
    },
};
use crate::stream::Feed;

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(5);
/// Connections that are enough for each of three endpoints to be among them: one is missed once in 10^17 runs.
const MANY: usize = 100;

/// Network namespaces with the names of what is in them; gone when dropped.
struct Net {
    prefix: String,
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["node", "a", "b", "far"] {
            // One that was never made is no reason to panic.
            drop(Command::new("ip").args(["netns", "del", &self.ns(name)]).output());
        }
    }
}

impl Net {
    /// `node` (10.77.1.1 on a bridge) with pods `a` (10.77.1.2) and `b` (10.77.1.3), beside `far` (10.88.0.2) with the
    /// pod address 10.77.2.2. Bridged packets pass the rules only with `filter_bridge`, as machines differ in that.
    fn new(test: &str, filter_bridge: bool) -> Self {
        let net = Self { prefix: format!("berth-nft-{test}-{}", std::process::id()) };
        let n = |name: &str| net.ns(name);
        for name in ["node", "a", "b", "far"] {
            ip(&format!("netns add {}", n(name)));
            ip(&format!("-n {} link set lo up", n(name)));
        }
        ip(&format!("-n {} link add br0 type bridge", n("node")));
        ip(&format!("-n {} address add 10.77.1.1/24 dev br0", n("node")));
        ip(&format!("-n {} link set br0 up", n("node")));
        for (name, address) in [("a", "10.77.1.2/24"), ("b", "10.77.1.3/24")] {
            ip(&format!("-n {} link add eth0 type veth peer name v{name} netns {}", n(name), n("node")));
            ip(&format!("-n {} link set v{name} master br0 up", n("node")));
            ip(&format!("-n {} link set v{name} type bridge_slave hairpin on", n("node")));
            ip(&format!("-n {} address add {address} dev eth0", n(name)));
            ip(&format!("-n {} link set eth0 up", n(name)));
            ip(&format!("-n {} route add default via 10.77.1.1", n(name)));
        }
        ip(&format!("-n {} link add eth0 type veth peer name eth0 netns {}", n("node"), n("far")));
        for (name, address) in [("node", "10.88.0.1/24"), ("far", "10.88.0.2/24")] {
            ip(&format!("-n {} address add {address} dev eth0", n(name)));
            ip(&format!("-n {} link set eth0 up", n(name)));
        }
        ip(&format!("-n {} address add 10.77.2.2/32 dev lo", n("far")));
        ip(&format!("-n {} route add default via 10.88.0.2", n("node")));
        ip(&format!("-n {} route add 10.77.1.0/24 via 10.88.0.1", n("far")));
        net.within("node", move || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            // Absent where bridged packets never pass.
            let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            if std::path::Path::new(bridged).exists() {
                std::fs::write(bridged, if filter_bridge { "1" } else { "0" }).unwrap();
            }
        });
        net
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Does something in a namespace. A socket stays in the namespace that it was made in.
    fn within<T: Send + 'static>(&self, name: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/run/netns/{}", self.ns(name))).unwrap();
        let inside = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        };
        thread::spawn(inside).join().unwrap()
    }

    /// A server that tells each client its name and how it sees the client.
    fn serve(&self, name: &'static str, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) =
            self.within(name, move || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        thread::spawn(move || {
            while let Ok((mut client, peer)) = tcp.accept() {
                // Says it once for every line, so that a connection can be kept.
                thread::spawn(move || {
                    let mut line = [0; 1];
                    while client.read_exact(&mut line).is_ok() {
                        if client.write_all(format!("{name} {}\n", peer.ip()).as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                udp.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer).unwrap();
            }
        });
    }

    fn apply(&self, services: &[ServiceEndpoints]) {
        let rules = rules(services);
        self.within("node", move || run(nft::apply(&rules)).unwrap());
    }

    /// Who answered and whom it saw, for many connections from `name`.
    fn ask(&self, name: &str, address: &str) -> BTreeMap<String, BTreeSet<String>> {
        let address: SocketAddr = address.parse().unwrap();
        let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let answers = self.within(name, move || (0..MANY).map(|_| tcp(address).unwrap()).collect::<Vec<_>>());
        for answer in answers {
            let (who, whom) = answer.split_once(' ').unwrap();
            seen.entry(who.to_owned()).or_default().insert(whom.to_owned());
        }
        seen
    }
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("the package iproute2 is installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {told} (these tests need root)");
}

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
}

fn rules(services: &[ServiceEndpoints]) -> Ruleset {
    let mut told = Services::default();
    for service in services {
        let change = Some(Change::Upsert(service.clone()));
        told.take(&Feed::Message(WatchEndpointsResponse { change }));
    }
    told.take(&Feed::Message(WatchEndpointsResponse { change: Some(Change::Synced(true)) }));
    told.rules(own()).unwrap()
}

fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"?")?;
    let mut text = String::new();
    let mut byte = [0; 1];
    loop {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => return Ok(text),
            other => text.push(other.into()),
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn tcp(address: SocketAddr) -> std::io::Result<String> {
    line(&mut connect(address)?)
}

fn udp(address: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

fn web() -> ServiceEndpoints {
    let endpoints = vec![
        endpoint("10.77.1.2", &[8080, 8080]),
        endpoint("10.77.1.3", &[8080, 8080]),
        endpoint("10.77.2.2", &[8081, 8081]),
    ];
    service("web", "10.96.0.10", vec![port("a", "TCP", 80), port("b", "UDP", 80)], endpoints)
}

fn start_all(net: &Net) {
    net.serve("a", "10.77.1.2:8080");
    net.serve("b", "10.77.1.3:8080");
    net.serve("far", "10.77.2.2:8081");
}

fn reaches_all(test: &str, filter_bridge: bool) {
    let net = Net::new(test, filter_bridge);
    start_all(&net);
    net.apply(&[web()]);
    let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    let seen = net.ask("a", "10.96.0.10:80");
    // Itself, its neighbour, and the pod on the other node, which sees the pod as it is.
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "far"]);
    assert_eq!(seen["a"], set(&["10.77.1.1"]));
    assert_eq!(seen["b"], set(&["10.77.1.1"]));
    assert_eq!(seen["far"], set(&["10.77.1.2"]));
    // The node itself.
    let seen = net.ask("node", "10.96.0.10:80");
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "far"]);
    assert_eq!(seen["far"], set(&["10.88.0.1"]));
    let answered: BTreeSet<_> = net.within("b", || {
        let ask = || udp("10.96.0.10:80".parse().unwrap()).unwrap();
        (0..MANY).map(|_| ask().split(' ').next().unwrap().to_owned()).collect()
    });
    assert_eq!(answered, set(&["a", "b", "far"]));
}

#[test]
fn a_virtual_address_leads_to_every_endpoint_from_pods_and_from_the_node() {
    reaches_all("plain", false);
}

#[test]
fn it_does_so_too_where_bridged_packets_pass_the_rules() {
    reaches_all("bridged", true);
}

#[test]
fn what_nobody_serves_is_refused_at_once() {
    let net = Net::new("refuse", false);
    net.apply(&[web(), service("nobody", "10.96.0.11", vec![port("", "TCP", 80)], vec![])]);
    for from in ["a", "node"] {
        let refused = net.within(from, || {
            let addresses = ["10.96.0.11:80", "10.96.0.10:81"];
            let tcp: Vec<_> = addresses.map(|to| tcp(to.parse().unwrap()).unwrap_err().kind()).into();
            (tcp, udp("10.96.0.11:80".parse().unwrap()).unwrap_err().kind())
        });
        // The kernel lets the node itself not even send a datagram that is refused.
        let datagram = if from == "node" { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionRefused };
        assert_eq!(refused, (vec![ErrorKind::ConnectionRefused; 2], datagram), "from {from}");
    }
}

#[test]
fn rules_change_without_a_moment_in_between() {
    let net = Net::new("change", false);
    start_all(&net);
    net.apply(&[web()]);
    // Until it is there for the first time, nothing is.
    assert!(net.within("node", || run(nft::is_there()).unwrap()));
    assert!(!net.within("far", || run(nft::is_there()).unwrap()));
    let mut kept = net.within("a", || connect("10.96.0.10:80".parse().unwrap()).unwrap());
    let first = line(&mut kept).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, namespace) = (stop.clone(), File::open(format!("/run/netns/{}", net.ns("a"))).unwrap());
    let asking = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let mut asked = 0;
        while !stopping.load(Ordering::Relaxed) {
            tcp("10.96.0.10:80".parse().unwrap()).unwrap();
            asked += 1;
        }
        asked
    });
    let mut fewer = web();
    fewer.endpoints.pop();
    for round in 0..40 {
        net.apply(&[if round % 2 == 0 { fewer.clone() } else { web() }]);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(asking.join().unwrap() > 10);
    // What was connected stays connected, even to an endpoint that is not one any more.
    net.apply(&[service("web", "10.96.0.10", vec![port("a", "TCP", 80)], vec![])]);
    assert_eq!(line(&mut kept).unwrap(), first);
    let refused = net.within("a", || tcp("10.96.0.10:80".parse().unwrap()).unwrap_err().kind());
    assert_eq!(refused, ErrorKind::ConnectionRefused);
}

#[test]
fn rules_that_the_kernel_refuses_leave_the_old_ones() {
    let net = Net::new("bad", false);
    start_all(&net);
    net.apply(&[web()]);
    let nonsense = Ruleset { content: "table ip berth {\n nonsense\n}\n".into(), ..rules(&[web()]) };
    let error = net.within("node", move || run(nft::apply(&nonsense)).unwrap_err());
    assert!(format!("{error:#}").contains("nft failed"), "{error:#}");
    assert_eq!(net.ask("a", "10.96.0.10:80").len(), 3);
}
