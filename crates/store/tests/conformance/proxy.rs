//! A TCP proxy with faults. It knows nothing of HTTP/2: it holds bytes back or cuts connections.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Nothing comes back to the client.
    Mute,
    /// Nothing reaches the server.
    Deaf,
    /// Both.
    Blackhole,
    /// Nothing reaches the server until [`Proxy::deliver_late`]; then what the client sent first does.
    Late,
    /// As [`Mode::Late`], and released.
    Released,
    /// Closed, and what was held back is lost.
    Cut,
}

/// A proxy to one server.
pub struct Proxy {
    pub url: String,
    shared: Arc<Mutex<Shared>>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// For connections to come.
    next: Mode,
    /// How many bytes come back before a connection to come is cut.
    allowance: usize,
    connections: Vec<watch::Sender<Mode>>,
}

impl Proxy {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared =
            Arc::new(Mutex::new(Shared { next: Mode::Forward, allowance: usize::MAX, connections: Vec::new() }));
        let accepting = tokio::spawn(accept(listener, server.to_owned(), shared.clone()));
        Self { url, shared, accepting }
    }

    /// Changes the connections that are open.
    pub fn now(&self, mode: Mode) {
        for connection in &self.shared.lock().unwrap().connections {
            connection.send_replace(mode);
        }
    }

    /// Changes the connections to come. [`Mode::Cut`] closes them at once.
    pub fn next(&self, mode: Mode) {
        self.shared.lock().unwrap().next = mode;
    }

    /// Cuts connections to come after so many bytes of answers.
    pub fn allow(&self, bytes: usize) {
        self.shared.lock().unwrap().allowance = bytes;
    }

    /// Changes all.
    pub fn all(&self, mode: Mode) {
        self.next(mode);
        self.now(mode);
    }

    /// Lets go what [`Mode::Late`] held back.
    pub fn deliver_late(&self) {
        for connection in &self.shared.lock().unwrap().connections {
            connection.send_if_modified(|mode| {
                let late = *mode == Mode::Late;
                if late {
                    *mode = Mode::Released;
                }
                late
            });
        }
    }

    pub fn connections(&self) -> usize {
        self.shared.lock().unwrap().connections.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.now(Mode::Cut);
    }
}

async fn accept(listener: TcpListener, server: String, shared: Arc<Mutex<Shared>>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (mode, allowance) = {
            let mut shared = shared.lock().unwrap();
            let mode = watch::Sender::new(shared.next);
            shared.connections.push(mode.clone());
            (mode.subscribe(), shared.allowance)
        };
        let server = server.clone();
        tokio::spawn(async move {
            // An error is the end of this connection, which is what its client is to see.
            if let Err(error) = serve(client, &server, mode, allowance).await {
                eprintln!("proxy: {error}");
            }
        });
    }
}

async fn serve(client: TcpStream, server: &str, mode: watch::Receiver<Mode>, allowance: usize) -> std::io::Result<()> {
    if *mode.borrow() == Mode::Cut {
        return Ok(());
    }
    let server = TcpStream::connect(server).await?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = mode.clone();
    tokio::select! {
        () = requests(from_client, to_server, mode.clone()) => {}
        () = replies(from_server, to_client, mode, allowance) => {}
        changed = cut.wait_for(|mode| *mode == Mode::Cut) => drop(changed),
    }
    Ok(())
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut held = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        held.extend_from_slice(&buffer[..read]);
        if *mode.borrow() == Mode::Late {
            // The whole request, and nothing of what the client does when it loses patience.
            while let Ok(Ok(more @ 1..)) =
                tokio::time::timeout(Duration::from_millis(100), from.read(&mut buffer)).await
            {
                held.extend_from_slice(&buffer[..more]);
            }
            if mode.wait_for(|mode| *mode == Mode::Released).await.is_ok() && to.write_all(&held).await.is_ok() {
                std::future::pending::<()>().await;
            }
            break;
        }
        if mode.wait_for(|mode| matches!(mode, Mode::Forward | Mode::Mute)).await.is_err()
            || to.write_all(&held).await.is_err()
        {
            break;
        }
        held.clear();
    }
}

async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    mut allowance: usize,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let open = |mode: &Mode| matches!(mode, Mode::Forward | Mode::Deaf | Mode::Late | Mode::Released);
        if mode.wait_for(open).await.is_err() {
            break;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            // The client has gone; a request of it that is on its way goes on.
            std::future::pending::<()>().await;
        }
        allowance = allowance.saturating_sub(read);
        if allowance == 0 {
            break;
        }
    }
}
