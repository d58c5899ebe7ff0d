//! The scripted CSI driver of one node, see [`tests::scripted`].

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use pb::{
    csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    pluginregistration::registration_server::RegistrationServer,
};
use tests::scripted::{
    service::{Driver, Identified},
    state::State,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// A CSI driver that does what a script says
#[derive(Parser)]
struct Args {
    /// The driver's name
    #[arg(long)]
    name: String,
    /// The node that it serves
    #[arg(long)]
    node: String,
    /// The socket on which it serves CSI
    #[arg(long)]
    endpoint: PathBuf,
    /// The socket by which it makes itself known
    #[arg(long)]
    registration: PathBuf,
    /// Its folder, the same on all nodes
    #[arg(long)]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let endpoint = args.endpoint.display().to_string();
    let driver = Driver::new(Identified { name: args.name, node: args.node, endpoint }, State::open(&args.folder)?);
    let csi = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()))
        .serve_with_incoming(listen(&args.endpoint)?);
    // Last: whoever finds this socket may call the other one.
    let registration =
        Server::builder().add_service(RegistrationServer::new(driver)).serve_with_incoming(listen(&args.registration)?);
    tokio::try_join!(csi, registration)?;
    Ok(())
}

fn listen(socket: &PathBuf) -> Result<UnixListenerStream> {
    // Left by a driver that died.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    Ok(UnixListenerStream::new(listener))
}
