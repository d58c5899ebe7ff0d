//! Serves the zone over UDP and TCP, and keeps it up to date.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use hickory_proto::{
    op::{Edns, Message, Metadata, OpCode, ResponseCode},
    rr::Record,
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use parking_lot::RwLock;
use pb::agent::v1::{WatchEndpointsResponse, watch_endpoints_response::Change};
use tokio::net::{TcpListener, UdpSocket};

use super::zone::{Answer, Table};
use crate::stream::Feed;

/// How long a TCP connection may be idle.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Responses that may wait on one TCP connection.
const TCP_RESPONSES: usize = 32;

/// How long a name server upstream may take.
const UPSTREAM: Duration = Duration::from_secs(2);

/// The largest UDP response that is asked of upstream and given to clients (no fragments).
const UDP_MAX: u16 = 1232;

/// The zone as it is told. Clones share it.
#[derive(Clone, Debug)]
pub struct Zone {
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct State {
    table: Table,
    /// All has been told at least once: until then "no such name" would be a guess.
    complete: bool,
    /// Named since the stream was opened.
    named: BTreeSet<(String, String)>,
}

impl Zone {
    /// An empty zone that knows nothing yet.
    pub fn new(domain: &str) -> Self {
        let state = State { table: Table::new(domain), complete: false, named: BTreeSet::new() };
        Self { state: Arc::new(RwLock::new(state)) }
    }

    /// Takes what the API service tells. What was told before stays until a new telling is complete.
    pub fn take(&self, feed: Feed<WatchEndpointsResponse>) {
        let mut state = self.state.write();
        match feed {
            Feed::Opened => state.named.clear(),
            Feed::Closed => {}
            Feed::Message(message) => match message.change {
                Some(Change::Upsert(service)) => {
                    state.named.insert((service.namespace.clone(), service.name.clone()));
                    state.table.put(service);
                }
                Some(Change::Removed(service)) => state.table.remove(&service.namespace, &service.name),
                Some(Change::Synced(_)) => {
                    let named = std::mem::take(&mut state.named);
                    state.table.retain(&named);
                    state.complete = true;
                }
                None => {}
            },
        }
    }

    /// Answer and, for answers without records, the record that says not to keep it; None while too little is known.
    fn answer(&self, request: &Request) -> Option<(Answer, Record)> {
        let info = request.request_info().ok()?;
        let state = self.state.read();
        let answer = state.table.answer(info.query.name(), info.query.query_type());
        (state.complete || answer == Answer::Foreign).then(|| (answer, state.table.soa()))
    }
}

/// Serves at `address` until dropped. Names that are not the cluster's are asked of `upstream`, or refused.
pub async fn serve(zone: Zone, address: SocketAddr, upstream: Option<IpAddr>) -> anyhow::Result<()> {
    let hint = "is another name server there?";
    let udp =
        UdpSocket::bind(address).await.with_context(|| format!("DNS cannot listen on {address} (UDP): {hint}"))?;
    let tcp =
        TcpListener::bind(address).await.with_context(|| format!("DNS cannot listen on {address} (TCP): {hint}"))?;
    let upstream = upstream.map(|ip| SocketAddr::new(ip, 53));
    let mut server = Server::new(Handler { zone, upstream });
    server.register_socket(udp);
    server.register_listener(tcp, TCP_IDLE, TCP_RESPONSES);
    tracing::info!(%address, "serving DNS");
    server.block_until_done().await.context("serve DNS")
}

struct Handler {
    zone: Zone,
    upstream: Option<SocketAddr>,
}

/// What a response consists of.
struct Reply {
    metadata: Metadata,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = self.upstream.is_some();
        let only = |mut metadata: Metadata, code| {
            metadata.response_code = code;
            Reply { metadata, answers: Vec::new(), authorities: Vec::new() }
        };
        if request.metadata.op_code != OpCode::Query {
            return only(metadata, ResponseCode::NotImp);
        }
        match (self.zone.answer(request), self.upstream) {
            (None, _) => only(metadata, ResponseCode::ServFail),
            (Some((Answer::Foreign, _)), Some(upstream)) => match forward(request.as_slice(), upstream).await {
                Ok(message) => {
                    metadata.response_code = message.metadata.response_code;
                    Reply { metadata, answers: message.answers, authorities: message.authorities }
                }
                Err(error) => {
                    tracing::debug!(%error, %upstream, "upstream name server failed");
                    only(metadata, ResponseCode::ServFail)
                }
            },
            (Some((Answer::Foreign, _)), None) => only(metadata, ResponseCode::Refused),
            (Some((answer, soa)), _) => {
                metadata.authoritative = true;
                metadata.response_code = answer.code();
                let answers = if let Answer::Records(records) = answer { records } else { Vec::new() };
                let authorities = if answers.is_empty() { vec![soa] } else { Vec::new() };
                Reply { metadata, answers, authorities }
            }
        }
    }
}

/// Asks upstream over UDP, and over TCP if the answer does not fit.
async fn forward(question: &[u8], upstream: SocketAddr) -> anyhow::Result<Message> {
    let asking = async {
        let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).await?;
        socket.connect(upstream).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // The first two bytes are the question's id.
            if buffer.get(..2) == question.get(..2) {
                return Ok::<_, anyhow::Error>(Message::from_vec(&buffer[..length])?);
            }
        }
    };
    tokio::time::timeout(UPSTREAM, asking).await.context("no answer in time")?
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut responder: R) -> ResponseInfo {
        let Reply { metadata, answers, authorities } = self.reply(request).await;
        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(request.max_payload().min(UDP_MAX));
            edns
        });
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = builder.build(metadata, &answers, &authorities, [], []);
        match responder.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "cannot send a DNS response");
                let header = hickory_proto::op::Header { metadata, counts: Default::default() };
                ResponseInfo::from(header)
            }
        }
    }
}
