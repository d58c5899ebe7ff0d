//! Serves the zone over UDP and TCP, and keeps it up to date.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use hickory_proto::{
    op::{Edns, Message, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, Server},
    zone_handler::MessageResponseBuilder,
};
use parking_lot::RwLock;
use pb::agent::v1::{WatchEndpointsResponse, watch_endpoints_response::Change};
use tokio::net::{TcpListener, UdpSocket};

use super::{
    upstream::{UDP_MAX, Upstream},
    zone::{Answer, Table, cname},
};
use crate::stream::Feed;

/// How long a TCP connection may be idle.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Responses that may wait on one TCP connection.
const TCP_RESPONSES: usize = 32;

/// Names that lead to other names, one after the other, that are followed at most.
const ALIASES: usize = 8;

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
    /// An empty zone that knows nothing yet, served at `address`.
    pub fn new(domain: &str, address: Ipv4Addr) -> Self {
        let state = State { table: Table::new(domain, address), complete: false, named: BTreeSet::new() };
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
    fn answer(&self, name: &Name, kind: RecordType) -> Option<(Answer, Record)> {
        let state = self.state.read();
        let answer = state.table.answer(name, kind);
        (state.complete || answer == Answer::Foreign).then(|| (answer, state.table.soa()))
    }
}

/// Serves at `address` until dropped. Names that are not the cluster's are asked of `upstream`, or refused.
pub async fn serve(zone: Zone, address: SocketAddr, upstream: Option<Arc<Upstream>>) -> anyhow::Result<()> {
    let hint = "is another name server there?";
    let udp =
        UdpSocket::bind(address).await.with_context(|| format!("DNS cannot listen on {address} (UDP): {hint}"))?;
    let tcp =
        TcpListener::bind(address).await.with_context(|| format!("DNS cannot listen on {address} (TCP): {hint}"))?;
    serve_on(zone, udp, tcp, upstream).await
}

/// Serves on sockets until dropped.
pub(super) async fn serve_on(
    zone: Zone,
    udp: UdpSocket,
    tcp: TcpListener,
    upstream: Option<Arc<Upstream>>,
) -> anyhow::Result<()> {
    let address = udp.local_addr().context("the address of DNS")?;
    let mut server = Server::new(Handler { zone, upstream });
    server.register_socket(udp);
    server.register_listener(tcp, TCP_IDLE, TCP_RESPONSES);
    tracing::info!(%address, "serving DNS");
    server.block_until_done().await.context("serve DNS")
}

struct Handler {
    zone: Zone,
    upstream: Option<Arc<Upstream>>,
}

/// What a response consists of.
#[derive(Debug, Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Reply {
    fn only(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    /// What another name server said.
    fn of(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authorities: message.authorities,
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::only(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::only(ResponseCode::FormErr) };
        let query = info.query.original();
        let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        if query.query_class() != DNSClass::IN {
            return Reply::only(ResponseCode::Refused);
        }
        let mut reply = self.resolve(query, dnssec).await;
        let addresses = reply.answers.iter().all(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA));
        // Clients that take the first address are to be spread over all of them.
        if addresses && reply.authoritative && !reply.answers.is_empty() {
            let first = usize::from(request.metadata.id) % reply.answers.len();
            reply.answers.rotate_left(first);
        }
        reply
    }

    /// The answer, with the answers for the names that the name leads to.
    async fn resolve(&self, query: &Query, dnssec: bool) -> Reply {
        let mut query = query.clone();
        let mut before = Vec::new();
        for _ in 0..ALIASES {
            let Some((answer, soa)) = self.zone.answer(query.name(), query.query_type()) else {
                return Reply::only(ResponseCode::ServFail);
            };
            match answer {
                Answer::Foreign => {
                    let mut reply = self.forward(&query, dnssec, before.is_empty()).await;
                    reply.authoritative = false;
                    reply.answers = before.into_iter().chain(reply.answers).collect();
                    return reply;
                }
                Answer::Alias(target) => {
                    before.push(cname(query.name(), &target));
                    query.set_name(target);
                }
                Answer::Records(records) => {
                    let authorities = if records.is_empty() { vec![soa] } else { Vec::new() };
                    let answers = before.into_iter().chain(records).collect();
                    return Reply { code: ResponseCode::NoError, authoritative: true, answers, authorities };
                }
                Answer::NoName => {
                    let code = ResponseCode::NXDomain;
                    return Reply { code, authoritative: true, answers: before, authorities: vec![soa] };
                }
            }
        }
        Reply::only(ResponseCode::ServFail)
    }

    /// What others know of a name that is not the cluster's. A name of the cluster that leads there is known all the same.
    async fn forward(&self, query: &Query, dnssec: bool, asked_directly: bool) -> Reply {
        let Some(upstream) = &self.upstream else {
            return Reply::only(if asked_directly { ResponseCode::Refused } else { ResponseCode::NoError });
        };
        match upstream.ask(query, dnssec).await {
            Ok(message) => Reply::of(message),
            Err(error) => {
                tracing::debug!(%error, %query, "cannot ask other name servers");
                Reply::only(ResponseCode::ServFail)
            }
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut responder: R) -> ResponseInfo {
        let Reply { code, authoritative, answers, authorities } = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = self.upstream.is_some();
        metadata.authoritative = authoritative;
        metadata.response_code = code;
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
