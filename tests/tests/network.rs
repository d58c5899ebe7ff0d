//! Names and virtual addresses, asked and used from within pods of a lab.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use nix::sched::{CloneFlags, setns};
use pb::{
    Kind,
    api::v1::ExecRequest,
    objects::{Pod, Service},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    census::census,
    client::{Client, NAMESPACE, is_ready},
};

/// For a set of three to become complete.
const PATIENCE: Duration = Duration::from_secs(90);
/// From the moment that a user is told that a pod is ready, or is not, until names and addresses say so too. Far above
/// what a push through two processes takes on a busy machine, far below any poll or any answer that is kept.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long one connection or question may take.
const SOON: Duration = Duration::from_secs(5);
/// Connections that are enough for each of three endpoints to be among them.
const MANY: usize = 60;
/// The name server of every node.
const DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), 53);
/// Names end with this.
const ZONE: &str = "default.svc.cluster.local.";

#[tokio::test(flavor = "multi_thread")]
async fn names_and_virtual_addresses() -> Result<()> {
    let lab = LabGuard::up()?;
    let client = Client::new(&lab.lab.server())?;
    let told = stories(&lab, &client).await;
    if told.is_err() {
        eprintln!("{}", lab.complaints());
    }
    drop(lab);
    told?;
    tests::nothing_is_left()
}

async fn stories(lab: &LabGuard, client: &Client) -> Result<()> {
    client.apply(&[headless(), virtual_one(), set(3)]).await?;
    let mut places = Vec::new();
    for name in ["web-0", "web-1", "web-2"] {
        let pod = client.until::<Pod>(name, PATIENCE, is_ready).await?;
        places.push(pod.spec.unwrap_or_default().node_name);
    }
    ensure!(places.iter().collect::<BTreeSet<_>>().len() == 3, "the pods are not on three nodes: {places:?}");
    let service: Service = client.get("front").await?.context("there is no Service")?;
    let ip: Ipv4Addr = service.spec.unwrap_or_default().cluster_ip.parse().context("it has no address")?;
    let front = SocketAddr::new(ip.into(), 8080);
    let inside = Place::pod("web-0")?;
    let node = Place::open(format!("/run/netns/{}", lab.lab.layout().netns(lab.lab.node(&places[0])?)))?;

    an_address_leads_to_every_pod(&inside, &node, front).context("reach")?;
    an_address_is_kept(client, ip).await.context("keep")?;
    every_kind_of_name(client, &inside, ip).await.context("names")?;
    readiness_is_followed_at_once(client, &inside, front).await.context("readiness")?;
    no_answer_is_remembered_that_was_no(client, &inside).await.context("negative answers")?;
    what_nobody_serves_is_refused(client, &inside).await.context("refusal")?;
    a_killed_agent_interrupts_nobody(lab, &inside, front, &places[0]).await.context("kill -9 of the agent")
}

fn headless() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}]},
    })
}

fn virtual_one() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080, "name": "http", "targetPort": "web"}]},
    })
}

/// A web server that tells its name, and is ready as long as a file is there.
fn set(replicas: i32) -> Value {
    let serve = "cd /usr/share/nginx/html && hostname >index.html && touch ready && exec nginx -g 'daemon off;'";
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {
            "serviceName": "web",
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{
                        "name": "nginx",
                        "image": "registry.k8s.io/nginx-slim:0.24",
                        "command": ["sh", "-c", serve],
                        "ports": [{"containerPort": 80, "name": "web"}],
                        "readinessProbe": {
                            "httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1,
                        },
                    }],
                },
            },
        },
    })
}

/// A network namespace to ask from.
struct Place(File);

impl Place {
    fn open(path: String) -> Result<Self> {
        Ok(Self(File::open(&path).context(path)?))
    }

    /// A pod's.
    fn pod(name: &str) -> Result<Self> {
        let workloads = census();
        let process =
            workloads.get(name).and_then(|ids| ids.first()).with_context(|| format!("{name} runs nothing"))?;
        Self::open(format!("/proc/{process}/ns/net"))
    }

    /// Does something there. A socket stays in the namespace that it was made in.
    fn within<T: Send + 'static>(&self, what: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let namespace = self.0.try_clone()?;
        let inside = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            what()
        };
        thread::spawn(inside).join().map_err(|_| anyhow::anyhow!("it panicked"))?
    }

    /// Who answered how often, of many connections one after the other.
    fn reach(&self, address: SocketAddr) -> Result<BTreeMap<String, usize>> {
        self.within(move || {
            let mut seen = BTreeMap::new();
            for _ in 0..MANY {
                *seen.entry(name_of_server(address)?).or_default() += 1;
            }
            Ok(seen)
        })
    }

    fn ask(&self, name: &str, kind: RecordType) -> Result<Message> {
        let name = Name::from_ascii(format!("{name}{ZONE}"))?;
        self.within(move || ask(&name, kind))
    }

    /// The answer as text: data in order, else the code, or that there is none.
    fn lookup(&self, name: &str, kind: RecordType) -> Result<String> {
        self.ask(name, kind).map(|message| told(&message))
    }

    /// Waits until a name means this, and gives how long it took.
    fn until_it_means(&self, name: &str, wanted: &str) -> Result<Duration> {
        let (begun, full) = (Instant::now(), Name::from_ascii(format!("{name}{ZONE}"))?);
        let wanted = wanted.to_owned();
        self.within(move || {
            loop {
                // No name server is an answer to wait on from: the agent may be starting again.
                let now = ask(&full, RecordType::A).map_or_else(|error| format!("{error:#}"), |message| told(&message));
                if now == wanted {
                    return Ok(begun.elapsed());
                }
                ensure!(begun.elapsed() < PATIENCE, "{full} is still {now}, not {wanted}");
                thread::sleep(Duration::from_millis(2));
            }
        })
    }
}

fn ask(name: &Name, kind: RecordType) -> Result<Message> {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name.clone(), kind));
    question.metadata.recursion_desired = true;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(DNS)?;
    socket.send(&question.to_vec()?)?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer).context("the name server does not answer")?;
    Ok(Message::from_vec(&answer[..length])?)
}

fn told(message: &Message) -> String {
    let mut data: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    match message.metadata.response_code {
        ResponseCode::NoError if data.is_empty() => "no data".to_owned(),
        ResponseCode::NoError => data.join(" "),
        code => format!("{code:?}"),
    }
}

fn name_of_server(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer of a web server")?;
    Ok(body.trim().to_owned())
}

async fn ip_of(client: &Client, name: &str) -> Result<String> {
    Ok(client.get::<Pod>(name).await?.context("no pod")?.status.unwrap_or_default().pod_ip)
}

/// Pods on this node (the asking one among them) and on others, from a pod and from the node itself.
fn an_address_leads_to_every_pod(inside: &Place, node: &Place, front: SocketAddr) -> Result<()> {
    for (from, place) in [("web-0", inside), ("its node", node)] {
        // The user heard of the last pod's readiness when the nodes did.
        let begun = Instant::now();
        // Until the nodes have heard of the first pod, the address refuses.
        while place.reach(front).map_or(0, |seen| seen.len()) < 3 && begun.elapsed() < AT_ONCE {}
        let seen = place.reach(front).with_context(|| format!("from {from}"))?;
        println!("{front} from {from}: {seen:?}");
        ensure!(seen.keys().eq(["web-0", "web-1", "web-2"].iter()), "from {from}: {seen:?}");
        // A fair die falls on one of three sides less than 4 times in 60 once in 10^8.
        ensure!(seen.values().all(|times| *times >= 4), "from {from} not spread: {seen:?}");
    }
    Ok(())
}

async fn an_address_is_kept(client: &Client, ip: Ipv4Addr) -> Result<()> {
    let mut other = virtual_one();
    other["metadata"]["labels"] = json!({"changed": "yes"});
    client.apply(&[other]).await?;
    let now: Service = client.get("front").await?.context("no Service")?;
    ensure!(now.spec.unwrap_or_default().cluster_ip == ip.to_string(), "apply changed the address");
    Ok(())
}

async fn every_kind_of_name(client: &Client, inside: &Place, ip: Ipv4Addr) -> Result<()> {
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
        "spec": {"type": "ExternalName", "externalName": "web-0.web.default.svc.cluster.local"},
    });
    client.apply(&[external]).await?;
    let zero = ip_of(client, "web-0").await?;
    inside.until_it_means("outside.", &format!("{zero} web-0.web.{ZONE}"))?;
    let mut all = Vec::new();
    for name in ["web-0", "web-1", "web-2"] {
        all.push(ip_of(client, name).await?);
    }
    all.sort();
    for (name, kind, wanted) in [
        ("front.", RecordType::A, ip.to_string()),
        ("front.", RecordType::AAAA, "no data".to_owned()),
        ("web.", RecordType::A, all.join(" ")),
        ("web-0.web.", RecordType::A, zero.clone()),
        ("web-0.web.", RecordType::AAAA, "no data".to_owned()),
        ("_http._tcp.front.", RecordType::SRV, format!("0 100 8080 front.{ZONE}")),
        ("nothing.", RecordType::A, "NXDomain".to_owned()),
    ] {
        let got = inside.lookup(name, kind)?;
        ensure!(got == wanted, "{name} {kind}: {got}, not {wanted}");
    }
    Ok(())
}

async fn readiness_is_followed_at_once(client: &Client, inside: &Place, front: SocketAddr) -> Result<()> {
    let one = ip_of(client, "web-1").await?;
    for ready in [false, true] {
        let command = if ready { "touch" } else { "rm" };
        run(client, "web-1", &[command, "/usr/share/nginx/html/ready"]).await?;
        client.until::<Pod>("web-1", PATIENCE, |pod| is_ready(pod) == ready).await?;
        let took = inside.until_it_means("web-1.web.", if ready { &one } else { "NXDomain" })?;
        println!("from \"ready: {ready}\" to its name saying so: {took:?}");
        ensure!(took < AT_ONCE, "the name followed after {took:?}");
        // The rules come from the same message; whoever connects from now on is led right.
        let begun = Instant::now();
        while inside.reach(front)?.contains_key("web-1") != ready {
            ensure!(begun.elapsed() < AT_ONCE, "the address does not follow");
        }
    }
    Ok(())
}

async fn run(client: &Client, pod: &str, command: &[&str]) -> Result<()> {
    let request = ExecRequest {
        namespace: NAMESPACE.to_owned(),
        pod: pod.to_owned(),
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let done = client.exec(request, SOON).await?;
    ensure!(done.exit_code == 0, "{command:?} in {pod}: {done:?}");
    Ok(())
}

/// DNS-9: what was asked for before it was there is found as soon as it is.
async fn no_answer_is_remembered_that_was_no(client: &Client, inside: &Place) -> Result<()> {
    let no = inside.ask("web-3.web.", RecordType::A)?;
    ensure!(told(&no) == "NXDomain" && no.metadata.authoritative, "{no:?}");
    ensure!(no.authorities.len() == 1 && no.authorities.iter().all(|soa| soa.ttl == 0), "it may be kept: {no:?}");
    client.scale("web", 4).await?;
    let three = client.until::<Pod>("web-3", PATIENCE, is_ready).await?;
    let took = inside.until_it_means("web-3.web.", &three.status.unwrap_or_default().pod_ip)?;
    println!("from \"web-3 is ready\" to its name: {took:?}");
    ensure!(took < AT_ONCE, "the name came after {took:?}");
    client.scale("web", 3).await?;
    inside.until_it_means("web-3.web.", "NXDomain").map(drop)
}

async fn what_nobody_serves_is_refused(client: &Client, inside: &Place) -> Result<()> {
    let mut nobody = virtual_one();
    nobody["metadata"]["name"] = json!("nobody");
    nobody["spec"]["selector"] = json!({"app": "nobody"});
    client.apply(&[nobody]).await?;
    let service: Service = client.get("nobody").await?.context("no Service")?;
    let ip: Ipv4Addr = service.spec.unwrap_or_default().cluster_ip.parse()?;
    inside.until_it_means("nobody.", &ip.to_string())?;
    let begun = Instant::now();
    loop {
        let refused = inside.within(move || Ok(TcpStream::connect_timeout(&(ip, 8080).into(), SOON).map(drop)))?;
        match refused {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            // Names and rules follow the same message, one a moment after the other.
            other => ensure!(begun.elapsed() < AT_ONCE, "it is not refused: {other:?}"),
        }
    }
    client.delete(Kind::Service, "nobody").await
}

async fn a_killed_agent_interrupts_nobody(lab: &LabGuard, inside: &Place, front: SocketAddr, node: &str) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, namespace) = (stop.clone(), inside.0.try_clone()?);
    let asking = thread::spawn(move || -> Result<usize> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let mut asked = 0;
        while !stopping.load(Ordering::Relaxed) {
            name_of_server(front).with_context(|| format!("connection {asked}"))?;
            asked += 1;
        }
        Ok(asked)
    });
    let killed = lab.kill_and_wait(&format!("agent@{node}")).await;
    // Its successor has been told everything, and written the rules anew.
    let answers = killed.and_then(|()| inside.until_it_means("nothing.", "NXDomain"));
    stop.store(true, Ordering::Relaxed);
    let asked = asking.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
    answers?;
    println!("kill -9 of the agent: {asked} connections through the address, none failed");
    ensure!(asked > 10, "only {asked} connections were made");
    Ok(())
}
