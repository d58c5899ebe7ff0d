//! The one place that builds servers: health, reflection, metrics, traces, keep-alive and bounds are the same for all.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::routing::get;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService, service::Routes, service::RoutesBuilder};

use crate::trace::TraceLayer;

/// Calls that one connection may have in flight.
const CALLS_PER_CONNECTION: usize = 1024;
/// Between signs of life on a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long calls in flight may take to end at shutdown; streams do not end by themselves.
const DRAIN: Duration = Duration::from_secs(2);

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A server to be.
pub struct Server {
    name: &'static str,
    address: Address,
    routes: RoutesBuilder,
    health: Vec<&'static str>,
}

impl Server {
    /// A server on a TCP port. Port 0 takes any.
    pub fn new(name: &'static str, listen: SocketAddr) -> Self {
        Self::at(name, Address::Tcp(listen))
    }

    /// A server on a unix socket. A socket file that is in the way is replaced.
    pub fn unix(name: &'static str, path: &Path) -> Self {
        Self::at(name, Address::Unix(path.to_owned()))
    }

    fn at(name: &'static str, address: Address) -> Self {
        Self { name, address, routes: Routes::builder(), health: Vec::new() }
    }

    /// Adds a gRPC service.
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.health.push(S::NAME);
        self
    }

    /// Serves until the token is cancelled.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        self.bind().await?.serve(shutdown).await
    }

    /// Takes the address. From here on clients connect, and wait.
    pub async fn bind(self) -> Result<Bound> {
        let listener = match &self.address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await.with_context(|| {
                    format!(
                        "{} cannot listen on {address}; is another instance running, or is --listen wrong?",
                        self.name
                    )
                })?;
                Listener::Tcp(listener)
            }
            Address::Unix(path) => {
                remove_stale_socket(path)?;
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("{} cannot listen on {}", self.name, path.display()))?;
                Listener::Unix(listener)
            }
        };
        Ok(Bound { server: self, listener })
    }
}

fn remove_stale_socket(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove the old socket {}", path.display())),
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A server that has its address.
pub struct Bound {
    server: Server,
    listener: Listener,
}

impl Bound {
    /// The address, for servers on TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// A name for the place that this server holds, which no two living processes can hold: the boot of a machine, a
    /// network namespace in it, an address bound there. A process that finds its own identity in the store knows that
    /// whoever wrote it is dead (see [`crate::leader`]).
    pub fn identity(&self) -> String {
        let address = match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().map(|address| address.to_string()),
            Listener::Unix(_) => Ok(format!("process {}", std::process::id())),
        };
        let parts = || -> std::io::Result<String> {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
            let network = std::fs::read_link("/proc/self/ns/net")?;
            Ok(format!("{}/{}/{}/{}", host.trim(), boot.trim(), network.display(), address?))
        };
        // Without such a name nobody is succeeded: a restart then waits for the lease to end.
        parts().unwrap_or_else(|error| {
            tracing::warn!(%error, "no lasting identity for this process");
            format!("process {} at {:?}", std::process::id(), std::time::SystemTime::now())
        })
    }

    /// Serves until the token is cancelled, then lets calls in flight end for a short time.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let Self { server, listener } = self;
        let (reporter, health) = tonic_health::server::health_reporter();
        for name in &server.health {
            reporter.set_service_status(*name, tonic_health::ServingStatus::Serving).await;
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut routes = server.routes;
        routes.add_service(health);
        routes.add_service(reflection().build_v1().context("build the reflection service")?);
        // What grpcio and older grpcurl still ask for.
        routes.add_service(reflection().build_v1alpha().context("build the older reflection service")?);
        let router = routes.routes().into_axum_router().route("/metrics", get(|| async { crate::metrics::text() }));

        let tonic = tonic::transport::Server::builder()
            .accept_http1(true)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEP_ALIVE))
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .layer(TraceLayer)
            .add_routes(Routes::from(router));
        let stop = shutdown.clone().cancelled_owned();
        let serving = async {
            match listener {
                Listener::Tcp(listener) => {
                    tracing::info!(service = server.name, address = ?listener.local_addr().ok(), "serving");
                    tonic.serve_with_incoming_shutdown(nodelay(listener), stop).await
                }
                Listener::Unix(listener) => {
                    tracing::info!(service = server.name, address = ?listener.local_addr().ok(), "serving");
                    tonic.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop).await
                }
            }
        };
        let drained = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            result = serving => result.with_context(|| format!("serve {}", server.name)),
            () = drained => Ok(()),
        }
    }
}

/// Small messages must not wait for company.
fn nodelay(listener: TcpListener) -> impl futures::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use futures::StreamExt;
    TcpListenerStream::new(listener).map(|connection| {
        let connection = connection?;
        connection.set_nodelay(true)?;
        Ok(connection)
    })
}
