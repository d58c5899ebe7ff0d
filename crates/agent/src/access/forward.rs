//! One connection to a port of a pod, on its loopback address.
//!
//! A socket belongs to the network namespace in which it is made, wherever it is used: a thread of its own enters the
//! pod's namespace, connects, hands the socket out and ends. No other thread of the agent is ever in a pod's network.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use pb::{
    agent::v1::{PortForwardRequest, PortForwardResponse},
    api::v1::{self as api, port_forward_request::Input},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Bytes in one message.
const PIECE: usize = 32 * 1024;

/// Messages that may wait for a slow reader.
const AHEAD: usize = 8;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a last message waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a call gets.
pub type Answers = mpsc::Receiver<Result<PortForwardResponse, Status>>;
type Answering = mpsc::Sender<Result<PortForwardResponse, Status>>;

/// Room for what a call gets.
pub fn answers() -> (Answering, Answers) {
    mpsc::channel(AHEAD)
}

/// Connects to a port in the network of a process.
pub async fn connect(network: File, port: u16) -> io::Result<TcpStream> {
    let (done, connected) = oneshot::channel();
    std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        let connecting = setns(&network, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| dial(port));
        // The caller may be gone.
        drop(done.send(connecting));
    })?;
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Servers that listen on one family only are reached over that.
fn dial(port: u16) -> io::Result<TcpStream> {
    let to = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT);
    to(Ipv4Addr::LOCALHOST.into()).or_else(|error| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
}

/// Carries bytes both ways until the port sends no more, the caller goes away, or the agent does.
pub async fn carry(
    stream: tokio::net::TcpStream,
    requests: Streaming<PortForwardRequest>,
    out: Answering,
    stop: CancellationToken,
) {
    let (from, to) = stream.into_split();
    let both = async {
        let receiving = receive(from, &out);
        tokio::pin!(receiving);
        tokio::select! {
            received = &mut receiving => received,
            sent = send(to, requests) => {
                sent?;
                receiving.await
            }
        }
    };
    let ended = tokio::select! {
        ended = both => ended,
        () = out.closed() => return,
        () = stop.cancelled() => Err(Status::unavailable("the agent of the node is being restarted: connect again")),
    };
    if let Err(status) = ended {
        // The caller may be gone.
        drop(out.send_timeout(Err(status), PATIENCE).await);
    }
}

async fn receive(mut from: OwnedReadHalf, out: &Answering) -> Result<(), Status> {
    let gone = |_| Status::cancelled("the caller went away");
    // Empty: the connection stands.
    out.send(Ok(answer(Vec::new()))).await.map_err(gone)?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await.map_err(|error| broken(&error))?;
        if length == 0 {
            return Ok(());
        }
        out.send(Ok(answer(piece.get(..length).unwrap_or_default().to_vec()))).await.map_err(gone)?;
    }
}

async fn send(mut to: OwnedWriteHalf, mut requests: Streaming<PortForwardRequest>) -> Result<(), Status> {
    loop {
        let input = requests.message().await?.map(|message| message.request.and_then(|request| request.input));
        match input {
            Some(Some(Input::Data(bytes))) => to.write_all(&bytes).await.map_err(|error| broken(&error))?,
            Some(Some(Input::Closed(true))) | None => {
                to.shutdown().await.map_err(|error| broken(&error))?;
                return Ok(());
            }
            Some(Some(Input::Closed(false)) | None) => {}
            Some(Some(Input::Start(_))) => {
                return Err(Status::invalid_argument("start: the connection stands already"));
            }
        }
    }
}

fn broken(error: &io::Error) -> Status {
    Status::aborted(format!("the connection to the port broke: {error}"))
}

fn answer(data: Vec<u8>) -> PortForwardResponse {
    PortForwardResponse { response: Some(api::PortForwardResponse { data }) }
}
