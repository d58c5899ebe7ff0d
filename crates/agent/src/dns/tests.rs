//! The specification, sentence by sentence, asked of a real server over UDP and TCP; and what others are asked.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use pb::agent::v1::{
    Endpoint, EndpointPort, ServiceEndpoints, ServiceRef, WatchEndpointsResponse, watch_endpoints_response::Change,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

use super::{Upstream, Zone, server::serve_on, upstream::DnsUpstream};
use crate::stream::Feed;

const SOON: Duration = Duration::from_secs(10);

/// A server on a port of its own; ends when dropped.
struct Dns {
    zone: Zone,
    address: std::net::SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    async fn start(upstream: Option<Upstream>) -> Self {
        let zone = Zone::new("cluster.local", Ipv4Addr::new(169, 254, 20, 10));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let served = serve_on(zone.clone(), udp, tcp, upstream.map(Arc::new));
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { zone, address, task }
    }

    fn tell(&self, change: Change) {
        self.zone.take(Feed::Message(WatchEndpointsResponse { change: Some(change) }));
    }

    fn put(&self, service: ServiceEndpoints) {
        self.tell(Change::Upsert(service));
    }

    async fn exchange(&self, question: &Message, over_tcp: bool) -> Message {
        let bytes = question.to_vec().unwrap();
        let asking = async {
            if over_tcp {
                let mut stream = TcpStream::connect(self.address).await.unwrap();
                let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length, bytes.as_slice()].concat()).await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut answer = vec![0; usize::from(length)];
                stream.read_exact(&mut answer).await.unwrap();
                return answer;
            }
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(self.address).await.unwrap();
            socket.send(&bytes).await.unwrap();
            let mut answer = vec![0; 65535];
            let length = socket.recv(&mut answer).await.unwrap();
            answer.truncate(length);
            answer
        };
        let answer = tokio::time::timeout(SOON, asking).await.expect("no answer");
        Message::from_vec(&answer).unwrap()
    }

    /// The answer over both transports, which must say the same.
    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let question = question(name, kind, None);
        let (udp, tcp) = (self.exchange(&question, false).await, self.exchange(&question, true).await);
        assert_eq!(text(&udp), text(&tcp), "{name} {kind}");
        udp
    }
}

fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

/// An answer as text: its records in order, else the code, or that there is none.
fn text(message: &Message) -> String {
    if message.answers.is_empty() {
        return match message.metadata.response_code {
            ResponseCode::NoError => "no data".to_owned(),
            code => format!("{code:?}"),
        };
    }
    let mut answers: Vec<_> =
        message.answers.iter().map(|record| format!("{} {}", record.record_type(), record.data)).collect();
    answers.sort();
    answers.join("; ")
}

fn service(name: &str, ports: &[(&str, &str, i32)]) -> ServiceEndpoints {
    let port = |(name, protocol, port): &(&str, &str, i32)| EndpointPort {
        name: (*name).into(),
        protocol: (*protocol).into(),
        port: *port,
    };
    ServiceEndpoints {
        namespace: "default".into(),
        name: name.into(),
        ports: ports.iter().map(port).collect(),
        ..ServiceEndpoints::default()
    }
}

fn endpoint(ip: &str, hostname: &str, target_ports: &[i32]) -> Endpoint {
    Endpoint { ip: ip.into(), hostname: hostname.into(), pod_name: "p".into(), target_ports: target_ports.into() }
}

/// The Services of the table below.
async fn cluster(upstream: Option<Upstream>) -> Dns {
    let dns = Dns::start(upstream).await;
    dns.zone.take(Feed::Opened);
    let mut kubernetes = service("kubernetes", &[("https", "TCP", 443), ("", "TCP", 80), ("dns", "UDP", 53)]);
    kubernetes.cluster_ip = "10.96.0.1".into();
    kubernetes.endpoints =
        vec![endpoint("10.77.1.9", "", &[6443, 80, 53]), endpoint("10.77.1.8", "m-0", &[6443, 80, 53])];
    dns.put(kubernetes);
    let mut idle = service("idle", &[("web", "TCP", 80)]);
    idle.cluster_ip = "10.96.0.2".into();
    dns.put(idle);
    let mut headless = service("headless", &[("https", "TCP", 443), ("peer", "TCP", 7000), ("", "TCP", 80)]);
    headless.endpoints = vec![
        endpoint("10.77.1.2", "my-pet", &[443, 7001, 80]),
        endpoint("10.77.2.2", "my-pet-2", &[443, 0, 80]),
        endpoint("10.77.2.3", "", &[443, 7003, 80]),
        endpoint("fd00::7", "my-pet", &[443, 7004, 80]),
    ];
    dns.put(headless);
    dns.put(service("nobody", &[("https", "TCP", 443)]));
    let mut foo = service("foo", &[]);
    foo.external_name = "www.example.com".into();
    dns.put(foo);
    let mut near = service("near", &[]);
    near.external_name = "my-pet.headless.default.svc.cluster.local.".into();
    dns.put(near);
    let mut circle = service("circle", &[]);
    circle.external_name = "circle.default.svc.cluster.local".into();
    dns.put(circle);
    dns.tell(Change::Synced(true));
    dns
}

#[tokio::test]
async fn every_sentence_of_the_specification() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV, TXT};
    let dns = cluster(None).await;
    for (sentence, name, kind, expected) in [
        ("2.2 there must be a TXT record that contains the version", "dns-version.cluster.local.", TXT, "TXT 1.1.0"),
        ("2.3.1 A of the cluster IP", "kubernetes.default.svc.cluster.local.", A, "A 10.96.0.1"),
        ("2.3.1 no AAAA for a cluster IP of IPv4", "kubernetes.default.svc.cluster.local.", AAAA, "no data"),
        ("2.3.1 a cluster IP is there without endpoints", "idle.default.svc.cluster.local.", A, "A 10.96.0.2"),
        (
            "2.3.2 SRV for each named port, to the Service",
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 443 kubernetes.default.svc.cluster.local.",
        ),
        (
            "2.3.2 by protocol",
            "_dns._udp.kubernetes.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 53 kubernetes.default.svc.cluster.local.",
        ),
        ("2.3.2 not by another protocol", "_https._udp.kubernetes.default.svc.cluster.local.", SRV, "NXDomain"),
        ("2.3.2 a port that there is not", "_http._tcp.kubernetes.default.svc.cluster.local.", SRV, "NXDomain"),
        ("2.3.2 unnamed ports have no SRV", "_._tcp.kubernetes.default.svc.cluster.local.", SRV, "NXDomain"),
        ("2.3.3 PTR of the cluster IP", "1.0.96.10.in-addr.arpa.", PTR, "PTR kubernetes.default.svc.cluster.local."),
        (
            "2.4.1 A for each ready endpoint",
            "headless.default.svc.cluster.local.",
            A,
            "A 10.77.1.2; A 10.77.2.2; A 10.77.2.3",
        ),
        ("2.4.1 AAAA likewise", "headless.default.svc.cluster.local.", AAAA, "AAAA fd00::7"),
        ("2.4.1 without ready endpoints NXDOMAIN", "nobody.default.svc.cluster.local.", A, "NXDomain"),
        ("2.4.1 A by hostname", "my-pet.headless.default.svc.cluster.local.", A, "A 10.77.1.2"),
        ("2.4.1 AAAA by hostname", "my-pet.headless.default.svc.cluster.local.", AAAA, "AAAA fd00::7"),
        (
            "2.1 a hostname is made up where there is none",
            "10-77-2-3.headless.default.svc.cluster.local.",
            A,
            "A 10.77.2.3",
        ),
        ("2.1 comparisons ignore case", "MY-PET.headLESS.Default.svc.Cluster.Local.", A, "A 10.77.1.2"),
        (
            "2.4.2 SRV for each endpoint and port",
            "_https._tcp.headless.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 443 10-77-2-3.headless.default.svc.cluster.local.; \
             SRV 0 100 443 my-pet-2.headless.default.svc.cluster.local.; \
             SRV 0 100 443 my-pet.headless.default.svc.cluster.local.; \
             SRV 0 100 443 my-pet.headless.default.svc.cluster.local.",
        ),
        (
            "2.4.2 with the port where each listens; not one that does not",
            "_peer._tcp.headless.default.svc.cluster.local.",
            SRV,
            "SRV 0 100 7001 my-pet.headless.default.svc.cluster.local.; \
             SRV 0 100 7003 10-77-2-3.headless.default.svc.cluster.local.; \
             SRV 0 100 7004 my-pet.headless.default.svc.cluster.local.",
        ),
        ("2.4.2 none without endpoints", "_https._tcp.nobody.default.svc.cluster.local.", SRV, "NXDomain"),
        ("2.4.3 PTR of an endpoint", "2.1.77.10.in-addr.arpa.", PTR, "PTR my-pet.headless.default.svc.cluster.local."),
        (
            "2.4.3 likewise with a hostname that is made up",
            "3.2.77.10.in-addr.arpa.",
            PTR,
            "PTR 10-77-2-3.headless.default.svc.cluster.local.",
        ),
        (
            "2.4.3 and of IPv6",
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "PTR my-pet.headless.default.svc.cluster.local.",
        ),
        ("2.5 CNAME for ExternalName", "foo.default.svc.cluster.local.", CNAME, "CNAME www.example.com."),
        ("2.5 it is the answer to every type", "foo.default.svc.cluster.local.", A, "CNAME www.example.com."),
        (
            "2.5 and is followed within the cluster",
            "near.default.svc.cluster.local.",
            A,
            "A 10.77.1.2; CNAME my-pet.headless.default.svc.cluster.local.",
        ),
        ("2.5 to an end", "circle.default.svc.cluster.local.", A, "ServFail"),
        ("2.6 names from addresses", "10-3-0-1.default.pod.cluster.local.", A, "A 10.3.0.1"),
        ("unknown Service", "nothing.default.svc.cluster.local.", A, "NXDomain"),
        ("unknown namespace", "kubernetes.other.svc.cluster.local.", A, "NXDomain"),
        ("unknown hostname", "my-pet-3.headless.default.svc.cluster.local.", A, "NXDomain"),
        ("a name between others", "default.svc.cluster.local.", A, "no data"),
        ("extension: hostnames under a virtual address", "m-0.kubernetes.default.svc.cluster.local.", A, "A 10.77.1.8"),
        ("extension: and back", "8.1.77.10.in-addr.arpa.", PTR, "PTR m-0.kubernetes.default.svc.cluster.local."),
        ("others' names without others", "www.example.com.", A, "Refused"),
    ] {
        assert_eq!(text(&dns.ask(name, kind).await), expected, "{sentence}: {name} {kind}");
    }
}

#[tokio::test]
async fn answers_are_authoritative_live_five_seconds_and_negative_ones_not_at_all() {
    let dns = cluster(None).await;
    for (name, kind) in [
        ("nothing.default.svc.cluster.local.", RecordType::A),
        ("nobody.default.svc.cluster.local.", RecordType::A),
        ("kubernetes.default.svc.cluster.local.", RecordType::AAAA),
    ] {
        let answer = dns.ask(name, kind).await;
        assert!(answer.metadata.authoritative, "{name}");
        let [soa] = answer.authorities.as_slice() else { panic!("no SOA for {name}") };
        let RData::SOA(data) = &soa.data else { panic!("{soa}") };
        assert_eq!((soa.name.to_string().as_str(), soa.ttl, data.minimum), ("cluster.local.", 0, 0));
    }
    let answer = dns.ask("headless.default.svc.cluster.local.", RecordType::A).await;
    assert!(answer.metadata.authoritative && answer.authorities.is_empty());
    assert!(answer.answers.iter().all(|record| record.ttl == 5));
}

#[tokio::test]
async fn records_follow_what_is_told_at_once_and_half_a_telling_takes_nothing_away() {
    let dns = Dns::start(None).await;
    let ask = |kind| dns.ask("web.default.svc.cluster.local.", kind);
    assert_eq!(text(&ask(RecordType::A).await), "ServFail", "nothing is known yet");
    dns.zone.take(Feed::Opened);
    dns.tell(Change::Synced(true));
    assert_eq!(text(&ask(RecordType::A).await), "NXDomain");
    let mut web = service("web", &[]);
    web.endpoints = vec![endpoint("10.77.1.2", "web-0", &[])];
    dns.put(web.clone());
    assert_eq!(text(&ask(RecordType::A).await), "A 10.77.1.2");
    dns.zone.take(Feed::Closed);
    dns.zone.take(Feed::Opened);
    assert_eq!(text(&ask(RecordType::A).await), "A 10.77.1.2");
    dns.tell(Change::Synced(true));
    assert_eq!(text(&ask(RecordType::A).await), "NXDomain");
    // From headless to virtual and to a name: nothing of before stays.
    dns.put(web.clone());
    dns.put(ServiceEndpoints { cluster_ip: "10.96.0.9".into(), endpoints: vec![], ..web.clone() });
    assert_eq!(text(&ask(RecordType::A).await), "A 10.96.0.9");
    assert_eq!(text(&dns.ask("2.1.77.10.in-addr.arpa.", RecordType::PTR).await), "Refused");
    dns.tell(Change::Removed(ServiceRef { namespace: "default".into(), name: "web".into() }));
    assert_eq!(text(&dns.ask("9.0.96.10.in-addr.arpa.", RecordType::PTR).await), "Refused");
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_told_so_and_whole_over_tcp() {
    let dns = cluster(None).await;
    let mut many = service("many", &[]);
    many.endpoints = (0..100).map(|n| endpoint(&format!("10.77.3.{n}"), &format!("many-{n}"), &[])).collect();
    dns.put(many);
    let name = "many.default.svc.cluster.local.";
    for (payload, largest) in [(None, 512), (Some(1000), 1000), (Some(4096), 1232)] {
        let cut = dns.exchange(&question(name, RecordType::A, payload), false).await;
        assert!(cut.metadata.truncation && cut.answers.len() < 100, "{payload:?}");
        assert!(cut.to_vec().unwrap().len() <= largest, "{payload:?}");
        let whole = dns.exchange(&question(name, RecordType::A, payload), true).await;
        assert!(!whole.metadata.truncation);
        assert_eq!((whole.answers.len(), whole.edns.is_some()), (100, payload.is_some()));
    }
    // Different clients begin with different addresses.
    let mut other = question(name, RecordType::A, Some(4096));
    let first = dns.exchange(&other, true).await.answers[0].clone();
    other.metadata.id += 1;
    assert_ne!(dns.exchange(&other, true).await.answers[0], first);
}

#[tokio::test]
async fn other_kinds_of_requests_are_answered_with_their_codes() {
    let dns = cluster(None).await;
    let mut notify = question("kubernetes.default.svc.cluster.local.", RecordType::A, None);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(dns.exchange(&notify, false).await.metadata.response_code, ResponseCode::NotImp);
}

/// Another name server: knows `www.example.com`, and `big.example.com` whole only over TCP.
struct Other {
    address: std::net::SocketAddr,
    asked: Arc<std::sync::atomic::AtomicUsize>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Other {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn other_answer(question: &[u8], over_tcp: bool, code: ResponseCode) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.response_code = code;
    answer.add_queries(question.queries.clone());
    let name = question.queries[0].name().clone();
    match name.to_string().as_str() {
        _ if code != ResponseCode::NoError => {}
        "www.example.com." => {
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 53)))));
        }
        "big.example.com." if over_tcp => {
            for n in 0..10 {
                let data = TXT::new(vec![format!("{n}{}", "x".repeat(200))]);
                answer.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(data)));
            }
        }
        "big.example.com." => answer.metadata.truncation = true,
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.to_vec().unwrap()
}

impl Other {
    async fn start(code: ResponseCode) -> Self {
        let asked = Arc::new(std::sync::atomic::AtomicUsize::default());
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let counter = asked.clone();
        let over_udp = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                // What does not answer the question comes first, as a forger would send it.
                let forged = Message::response(1, OpCode::Query).to_vec().unwrap();
                udp.send_to(&forged, peer).await.unwrap();
                udp.send_to(&other_answer(&buffer[..length], false, code), peer).await.unwrap();
            }
        });
        let over_tcp = tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.unwrap();
                let answer = other_answer(&question, true, code);
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { address, asked, tasks: [over_udp, over_tcp] }
    }
}

fn upstream(servers: &[std::net::SocketAddr]) -> Option<Upstream> {
    let flags: Vec<_> = servers.iter().map(|server| DnsUpstream::Server(*server)).collect();
    Upstream::new(&flags, "/dev/null".into(), Ipv4Addr::new(169, 254, 20, 10))
}

#[tokio::test]
async fn other_names_are_asked_of_others() {
    let other = Other::start(ResponseCode::NoError).await;
    let dns = cluster(upstream(&[other.address])).await;
    let answer = dns.ask("www.example.com.", RecordType::A).await;
    assert_eq!(text(&answer), "A 192.0.2.53");
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    assert_eq!(text(&dns.ask("no.example.com.", RecordType::A).await), "NXDomain");
    assert_eq!(
        text(&dns.ask("foo.default.svc.cluster.local.", RecordType::A).await),
        "A 192.0.2.53; CNAME www.example.com."
    );
    assert_eq!(text(&dns.ask("4.3.2.1.in-addr.arpa.", RecordType::PTR).await), "NXDomain");
    // Cut upstream, so asked again over TCP; cut for the client, who asks again over TCP in turn.
    let big = question("big.example.com.", RecordType::TXT, Some(1232));
    let cut = dns.exchange(&big, false).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 10);
    assert_eq!(dns.exchange(&big, true).await.answers.len(), 10);
    // The cluster's own names are never asked of others.
    let before = other.asked.load(std::sync::atomic::Ordering::Relaxed);
    dns.ask("nothing.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(other.asked.load(std::sync::atomic::Ordering::Relaxed), before);
}

#[tokio::test]
async fn a_name_server_that_fails_is_passed_over_and_soon_left_out() {
    let (refusing, good) = (Other::start(ResponseCode::Refused).await, Other::start(ResponseCode::NoError).await);
    let dns = cluster(upstream(&[refusing.address, good.address])).await;
    assert_eq!(text(&dns.ask("www.example.com.", RecordType::A).await), "A 192.0.2.53");

    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dns = cluster(upstream(&[silent.local_addr().unwrap(), good.address])).await;
    let question = question("www.example.com.", RecordType::A, None);
    let all = (0..3).map(|_| dns.exchange(&question, false));
    for answer in futures::future::join_all(all).await {
        assert_eq!(text(&answer), "A 192.0.2.53");
    }
    let begun = std::time::Instant::now();
    assert_eq!(text(&dns.exchange(&question, false).await), "A 192.0.2.53");
    assert!(begun.elapsed() < Duration::from_secs(1), "the silent one is left out");
}

#[tokio::test]
async fn without_any_that_answers_there_is_a_failure_in_time_and_then_at_once() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dns = cluster(upstream(&[silent.local_addr().unwrap()])).await;
    let question = question("www.example.com.", RecordType::A, None);
    let begun = std::time::Instant::now();
    for answer in futures::future::join_all((0..3).map(|_| dns.exchange(&question, false))).await {
        assert_eq!(text(&answer), "ServFail");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    let begun = std::time::Instant::now();
    assert_eq!(text(&dns.exchange(&question, false).await), "ServFail");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(text(&dns.exchange(&question_of_the_cluster(), false).await), "A 10.96.0.1");
}

fn question_of_the_cluster() -> Message {
    question("kubernetes.default.svc.cluster.local.", RecordType::A, None)
}
