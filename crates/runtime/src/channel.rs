//! The one place that builds channels: deadlines, keep-alive and trace context are the same for all.
//!
//! Channels connect when first used and reconnect by themselves.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Endpoint, Uri},
};
use tower::service_fn;

/// How long a call may take until its response starts.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Between signs of life on a connection; the same again until it counts as dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What clients are built over.
pub type Channel = InterceptedService<tonic::transport::Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an address: expected http://HOST:PORT or unix:///PATH")]
pub struct BadAddress(String);

/// A channel whose calls must start to answer within [`DEADLINE`].
pub fn connect(url: &str) -> Result<Channel, BadAddress> {
    build(url, Some(DEADLINE))
}

/// A channel without a deadline of its own, for calls whose caller sets one or that take as long as they take.
pub fn connect_streaming(url: &str) -> Result<Channel, BadAddress> {
    build(url, None)
}

fn build(url: &str, deadline: Option<Duration>) -> Result<Channel, BadAddress> {
    let bad = || BadAddress(url.to_owned());
    let socket = url.strip_prefix("unix://").map(PathBuf::from);
    let address = if socket.is_some() { "http://localhost" } else { url };
    let uri: Uri = address.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err(bad());
    }
    let mut endpoint = Endpoint::from(uri).connect_timeout(CONNECT);
    // On a socket the kernel tells the end of the other side at once; and servers of other make (grpc-go, grpcio) hang up
    // on who pings them more often than every few minutes, in the midst of a call.
    if socket.is_none() {
        endpoint = endpoint
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEP_ALIVE))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
    }
    if let Some(deadline) = deadline {
        endpoint = endpoint.timeout(deadline);
    }
    let channel = match socket {
        Some(path) => endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })),
        None => endpoint.connect_lazy(),
    };
    Ok(InterceptedService::new(channel, crate::trace::inject))
}
