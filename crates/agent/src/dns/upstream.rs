//! Questions about names outside the cluster are handed on to other name servers.
//!
//! Which ones: those of the command line, else those of the node's own `resolv.conf`, read again when it may have changed.
//! They are asked in their order; the next one when one fails or refuses. A server that fails again and again is left out
//! for a while, and when all are, questions fail at once: a dead name server must not make every look-up of every pod
//! slow. Bounded: so many questions at once, so long for each; nothing is handed on to this server itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// The port of name servers.
const PORT: u16 = 53;
/// How long one server may take.
const ONE: Duration = Duration::from_secs(2);
/// How long a question may take altogether: resolvers give up after 5 s.
const ALTOGETHER: Duration = Duration::from_millis(4500);
/// Servers that are asked at most, as the C library does.
const SERVERS: usize = 3;
/// Questions that are under way at most.
const AT_ONCE: usize = 256;
/// A server that failed so often without an answer in between is left out.
const FAILURES: u32 = 3;
/// For so long.
const LEFT_OUT: Duration = Duration::from_secs(5);
/// How old what was read from `resolv.conf` may be.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// The largest UDP response that is asked for (no fragments).
pub const UDP_MAX: u16 = 1232;

/// A name server for names outside the cluster, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsUpstream {
    /// None: such names are refused.
    None,
    /// This one.
    Server(SocketAddr),
}

impl FromStr for DnsUpstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        let server = ip.or_else(|_| text.parse::<SocketAddr>());
        server.map(Self::Server).map_err(|_| "must be the address of a name server, or none".to_owned())
    }
}

/// Where the servers are named.
#[derive(Clone, Debug)]
enum Source {
    Given(Vec<SocketAddr>),
    File(PathBuf),
}

/// One server, and how it has behaved.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failures: AtomicU32,
    left_out_until: Mutex<Option<Instant>>,
}

impl Server {
    fn is_left_out(&self, now: Instant) -> bool {
        self.left_out_until.lock().is_some_and(|until| now < until)
    }

    fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
        *self.left_out_until.lock() = None;
    }

    fn failed(&self, now: Instant) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            *self.left_out_until.lock() = Some(now + LEFT_OUT);
        }
    }
}

/// The servers as they were named last.
#[derive(Clone, Debug, Default)]
struct Known {
    read_at: Option<Instant>,
    servers: Arc<Vec<Arc<Server>>>,
}

/// The name servers for names outside the cluster.
#[derive(Debug)]
pub struct Upstream {
    source: Source,
    /// This server's own address.
    own: IpAddr,
    known: Mutex<Known>,
    permits: Semaphore,
}

impl Upstream {
    /// The servers that the flags name; without any, those of the file `resolv_conf`. None if there are to be none.
    pub fn new(flags: &[DnsUpstream], resolv_conf: PathBuf, own: Ipv4Addr) -> Option<Self> {
        let given = flags.iter().filter_map(|flag| match flag {
            DnsUpstream::Server(address) => Some(*address),
            DnsUpstream::None => None,
        });
        let source = match given.collect::<Vec<_>>() {
            none if none.is_empty() && !flags.is_empty() => return None,
            none if none.is_empty() => Source::File(resolv_conf),
            given => Source::Given(given),
        };
        Some(Self { source, own: own.into(), known: Mutex::default(), permits: Semaphore::new(AT_ONCE) })
    }

    /// Asks the servers one after the other.
    ///
    /// # Errors
    /// When none of them answers in time, or too many questions are under way.
    pub async fn ask(&self, query: &Query, dnssec: bool) -> anyhow::Result<Message> {
        let Ok(_permit) = self.permits.try_acquire() else { bail!("{AT_ONCE} questions are under way already") };
        timeout(ALTOGETHER, self.ask_in_turn(query, dnssec)).await.context("no answer in time")?
    }

    async fn ask_in_turn(&self, query: &Query, dnssec: bool) -> anyhow::Result<Message> {
        let servers = self.servers().await;
        let now = Instant::now();
        let mut last = None;
        for server in servers.iter().filter(|server| !server.is_left_out(now)) {
            match timeout(ONE, ask_one(server.address, query, dnssec)).await {
                Ok(Ok(answer)) => {
                    server.answered();
                    // It has nothing to say of it; another one may.
                    let useless =
                        matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused);
                    if !useless {
                        return Ok(answer);
                    }
                    last = Some(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(server = %server.address, %error, "a name server failed");
                    server.failed(Instant::now());
                }
                Err(_) => {
                    tracing::debug!(server = %server.address, "a name server did not answer in time");
                    server.failed(Instant::now());
                }
            }
        }
        last.context("no name server answers")
    }

    /// The servers to ask, in order; never this one.
    async fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        let Known { read_at, servers: known } = self.known.lock().clone();
        let addresses = match &self.source {
            _ if read_at.is_some_and(|at| at.elapsed() < READ_AGAIN) => return known,
            Source::Given(_) if read_at.is_some() => return known,
            Source::Given(addresses) => addresses.clone(),
            Source::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => name_servers(&text),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read which name servers the node has");
                    known.iter().map(|server| server.address).collect()
                }
            },
        };
        let keep = |address: SocketAddr| {
            let same = known.iter().find(|server| server.address == address).cloned();
            same.unwrap_or_else(|| {
                Arc::new(Server { address, failures: AtomicU32::default(), left_out_until: Mutex::default() })
            })
        };
        let others = addresses.into_iter().filter(|address| address.ip() != self.own || address.port() != PORT);
        let servers: Arc<Vec<_>> = Arc::new(others.take(SERVERS).map(keep).collect());
        *self.known.lock() = Known { read_at: Some(Instant::now()), servers: servers.clone() };
        servers
    }
}

/// The name servers that a `resolv.conf` names.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let words =
        lines.filter(|rest| rest.starts_with(char::is_whitespace)).filter_map(|rest| rest.split_whitespace().next());
    words.filter_map(|word| word.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, PORT)).collect()
}

/// Asks one server over UDP, and over TCP if the answer does not fit.
async fn ask_one(server: SocketAddr, query: &Query, dnssec: bool) -> anyhow::Result<Message> {
    // With an id of its own: the client's can be guessed by other clients.
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX).set_dnssec_ok(dnssec);
    message.set_edns(edns);
    let question = message.to_vec()?;
    let answer = over_udp(server, &message, &question).await?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let answer = over_tcp(server, &question).await?;
    if !is_answer(&message, &answer) {
        bail!("the answer is to another question");
    }
    Ok(answer)
}

fn is_answer(question: &Message, answer: &Message) -> bool {
    answer.metadata.id == question.metadata.id && (answer.queries == question.queries || answer.queries.is_empty())
}

async fn over_udp(server: SocketAddr, message: &Message, question: &[u8]) -> anyhow::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question, or cannot be read, may be forged: the real one is still to come.
        match buffer.get(..length).map(Message::from_vec) {
            Some(Ok(answer)) if is_answer(message, &answer) => return Ok(answer),
            _ => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> anyhow::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    Ok(Message::from_vec(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_servers_a_resolv_conf_names() {
        let text = "# nameserver 9.9.9.9\nsearch example.com\nnameserver 10.0.0.2\nnameserver\t10.0.0.3 # second\n\
                    nameservers 1.1.1.1\nnameserver fe80::1%eth0\nnameserver ::1\n";
        let ips: Vec<_> = name_servers(text).iter().map(|server| server.ip().to_string()).collect();
        assert_eq!(ips, ["10.0.0.2", "10.0.0.3", "::1"]);
    }

    #[tokio::test]
    async fn this_server_is_never_asked_and_the_file_is_read_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 169.254.20.10\nnameserver 10.0.0.2\n").unwrap();
        let upstream = Upstream::new(&[], file.clone(), Ipv4Addr::new(169, 254, 20, 10)).unwrap();
        let asked =
            |servers: &[Arc<Server>]| servers.iter().map(|server| server.address.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(asked(&upstream.servers().await), ["10.0.0.2"]);
        std::fs::write(&file, "nameserver 10.0.0.3\n").unwrap();
        upstream.known.lock().read_at = None;
        assert_eq!(asked(&upstream.servers().await), ["10.0.0.3"]);
        std::fs::remove_file(&file).unwrap();
        upstream.known.lock().read_at = None;
        assert_eq!(asked(&upstream.servers().await), ["10.0.0.3"], "what cannot be read does not take away");
    }

    #[test]
    fn what_the_flag_takes() {
        assert_eq!("none".parse(), Ok(DnsUpstream::None));
        assert_eq!("10.0.0.2".parse(), Ok(DnsUpstream::Server("10.0.0.2:53".parse().unwrap())));
        assert_eq!("10.0.0.2:5353".parse(), Ok(DnsUpstream::Server("10.0.0.2:5353".parse().unwrap())));
        assert!("dns.example.com".parse::<DnsUpstream>().is_err());
        assert!(Upstream::new(&[DnsUpstream::None], "/etc/resolv.conf".into(), Ipv4Addr::LOCALHOST).is_none());
    }
}
