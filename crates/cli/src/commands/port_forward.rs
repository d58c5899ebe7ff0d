//! `berth port-forward`: local ports whose connections go to a pod, each over a stream of its own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use pb::{
    Kind, ObjectExt,
    api::v1::{PortForwardRequest, PortForwardResponse, PortForwardStart, port_forward_request::Input},
    objects::{Pod, Service, int_or_string},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    client::Client,
    commands::watch_of,
    follow::{Follow, Told},
    pick::{self, Choice},
};

/// Flags of `berth port-forward`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod, or what it is chosen by: `web-0`, `sts/web`, `svc/nginx`
    target: String,
    /// [LOCAL:]REMOTE, each a number, REMOTE also a name; `:REMOTE` takes any free local port
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<String>,
    /// Local addresses to listen on
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// Bytes in one message.
const PIECE: usize = 32 * 1024;

/// Messages that may wait.
const AHEAD: usize = 8;

/// Connections at the same time.
const CONNECTIONS: usize = 1024;

/// Forwards until it is interrupted or the pod is gone.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let choice = Choice::read(&args.target)?;
    let pod = choice.one(&client).await?;
    let service: Option<Service> = match &choice {
        Choice::Service(name) => Some(pick::get(&client, name).await?),
        Choice::Pod(_) | Choice::Set(_) => None,
    };
    let mut listening = JoinSet::new();
    for wanted in &args.ports {
        let ports = Ports::read(wanted, service.as_ref(), &pod)?;
        for address in addresses(&args.address)? {
            let listener = match TcpListener::bind(SocketAddr::new(address, ports.local)).await {
                Ok(listener) => listener,
                // A machine without IPv6 has its localhost all the same.
                Err(_) if address == IpAddr::V6(Ipv6Addr::LOCALHOST) && !listening.is_empty() => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("listen on {address} port {}", ports.local));
                }
            };
            println!("Forwarding from {} -> {}", listener.local_addr()?, ports.remote);
            listening.spawn(accept(client.clone(), pod.name().to_owned(), listener, ports.remote));
        }
    }
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
        gone = gone(&client, &pod) => gone,
        Some(ended) = listening.join_next() => ended?.map(|()| ExitCode::SUCCESS),
    }
}

/// A local port and a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

impl Ports {
    fn read(text: &str, service: Option<&Service>, pod: &Pod) -> Result<Self> {
        let bad = || format!("{text:?} is not of the form [LOCAL:]REMOTE");
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let remote_port = match service {
            Some(service) => of_service(service, pod, remote)?,
            None => of_pod(pod, remote)?,
        };
        let local = match local {
            "" => 0,
            // Without a local port: the number that was written, or the one that was named.
            same if same == remote => remote.parse().unwrap_or(remote_port),
            other => other.parse().with_context(bad)?,
        };
        Ok(Self { local, remote: remote_port })
    }
}

/// The port of a pod by its number or the name that a container gives it.
fn of_pod(pod: &Pod, port: &str) -> Result<u16> {
    if let Ok(number) = port.parse::<u16>() {
        return Ok(number);
    }
    let ports = || pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|container| &container.ports);
    match ports().find(|one| one.name == port) {
        Some(found) => u16::try_from(found.container_port).with_context(|| format!("port {port} has no number")),
        None => {
            let names: Vec<&str> = ports().map(|one| one.name.as_str()).filter(|name| !name.is_empty()).collect();
            bail!("no container of pod {} names a port {port:?}; they name [{}]", pod.name(), names.join(", "))
        }
    }
}

/// The port of a pod that stands behind a port of a Service.
fn of_service(service: &Service, pod: &Pod, port: &str) -> Result<u16> {
    let ports = service.spec.as_ref().map(|spec| spec.ports.as_slice()).unwrap_or_default();
    let meant = ports.iter().find(|one| one.port.to_string() == port || (!one.name.is_empty() && one.name == port));
    let Some(meant) = meant else {
        let list: Vec<String> =
            ports.iter().map(|one| format!("{} {}", one.port, one.name).trim().to_owned()).collect();
        bail!("service {} has no port {port}; it has [{}]", service.name(), list.join(", "));
    };
    match meant.target_port.as_ref().and_then(|target| target.kind.as_ref()) {
        Some(int_or_string::Kind::IntValue(number)) if *number > 0 => of_pod(pod, &number.to_string()),
        Some(int_or_string::Kind::StringValue(name)) => of_pod(pod, name),
        _ => of_pod(pod, &meant.port.to_string()),
    }
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        match text.as_str() {
            "localhost" => addresses.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]),
            other => {
                addresses.push(other.parse().with_context(|| format!("--address {other}: expected an IP address"))?)
            }
        }
    }
    Ok(addresses)
}

/// Returns when the pod is gone, or another one has its name.
async fn gone(client: &Client, pod: &Pod) -> Result<ExitCode> {
    let mut follow = Follow::new(client, watch_of(client, Kind::Pod, pod.name()));
    let mut seen = false;
    loop {
        match follow.next().await? {
            Told::Is(object) if object.meta().uid == pod.uid() => seen = true,
            Told::Current if seen => {}
            Told::Anew => seen = false,
            Told::Is(_) | Told::Gone(_) | Told::Current => {
                bail!("pod {} is gone: nothing more is forwarded", pod.name())
            }
        }
    }
}

async fn accept(client: Client, pod: String, listener: TcpListener, remote: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS && connections.join_next().await.is_some() {}
        let (stream, _) = listener.accept().await.context("take a connection")?;
        println!("Handling connection for {}", listener.local_addr()?.port());
        let (client, pod) = (client.clone(), pod.clone());
        connections.spawn(async move {
            // One connection that fails says so, and the others go on.
            if let Err(error) = carry(&client, pod, stream, remote).await {
                eprintln!("a connection to port {remote} failed: {error:#}");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(client: &Client, pod: String, stream: TcpStream, remote: u16) -> Result<()> {
    let refused = |status: tonic::Status| client.refused(&status);
    let (sender, requests) = mpsc::channel(AHEAD);
    let start = PortForwardStart { namespace: client.namespace.clone(), pod, port: remote.into() };
    sender.send(message(Input::Start(start))).await?;
    let call = client.streams.clone().port_forward(ReceiverStream::new(requests)).await;
    let mut answers = call.map_err(refused)?.into_inner();
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        let mut piece = vec![0; PIECE];
        loop {
            let length = from.read(&mut piece).await?;
            let input = match length {
                0 => Input::Closed(true),
                _ => Input::Data(piece.get(..length).unwrap_or_default().to_vec()),
            };
            if sender.send(message(input)).await.is_err() || length == 0 {
                return Ok(());
            }
        }
    };
    let receiving = async {
        while let Some(data) = next(&mut answers).await.map_err(refused)? {
            to.write_all(&data).await?;
        }
        Ok(to.shutdown().await?)
    };
    tokio::pin!(receiving);
    tokio::select! {
        received = &mut receiving => received,
        sent = sending => {
            let sent: Result<()> = sent;
            sent?;
            receiving.await
        }
    }
}

async fn next(answers: &mut Streaming<PortForwardResponse>) -> Result<Option<Vec<u8>>, tonic::Status> {
    Ok(answers.message().await?.map(|answer| answer.data))
}

fn message(input: Input) -> PortForwardRequest {
    PortForwardRequest { input: Some(input) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_numbers_or_names_of_a_pod_or_of_a_service() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0"},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "nginx"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"port": 81}]},
        }))
        .unwrap();
        let read = |text: &str, service| Ports::read(text, service, &pod).map(|ports| (ports.local, ports.remote));
        assert_eq!(read("80", None).unwrap(), (80, 80));
        assert_eq!(read("5000:80", None).unwrap(), (5000, 80));
        assert_eq!(read(":web", None).unwrap(), (0, 8080));
        assert_eq!(read("web", None).unwrap(), (8080, 8080));
        assert_eq!(read("80", Some(&service)).unwrap(), (80, 8080));
        assert_eq!(read("9000:http", Some(&service)).unwrap(), (9000, 8080));
        assert_eq!(read("81", Some(&service)).unwrap(), (81, 81));
        assert!(read("other", None).unwrap_err().to_string().contains("[web]"));
        assert!(read("82", Some(&service)).unwrap_err().to_string().contains("80 http, 81"));
        assert!(read("x:80", None).is_err());
    }
}
