//! A driver: where it runs, what sets it apart from the other, and how it is served.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use pb::{
    csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    pluginregistration::registration_server::RegistrationServer,
};
use runtime::{CancellationToken, Server, Tasks};
use tonic::Status;

use crate::{
    disk::Disk,
    error::{Error, Result},
    id::VolumeId,
    local, provision,
    registration::Registrar,
    shared,
};

/// How long the work at start may take to end at shutdown.
const END: Duration = Duration::from_secs(2);

/// What sets one driver apart from the other.
#[derive(Debug)]
pub(crate) struct Policy {
    /// What a class names as its provisioner.
    pub name: &'static str,
    /// Name of the process.
    pub service: &'static str,
    /// In a volume's context: the node that holds its data.
    pub context_node: &'static str,
    /// In a volume's context: which of the volumes that had this name it is.
    pub context_instance: &'static str,
    /// Volumes are on one node, which this key names.
    pub topology_key: Option<&'static str>,
    /// Volumes are attached to nodes before they are staged, and can be on several if they are directories.
    pub attaches: bool,
}

/// The driver. Clones share their state.
#[derive(Clone, Debug)]
pub struct Driver {
    pub(crate) policy: &'static Policy,
    node: Option<Arc<OnNode>>,
}

#[derive(Clone, Debug)]
pub(crate) struct OnNode {
    /// The node's name.
    pub name: String,
    /// Where volumes are.
    pub disk: Disk,
    /// Volumes that the node can have; 0: no bound.
    pub max_volumes: u32,
}

impl Driver {
    /// The driver `local` without a node: makes volumes for nodes, and holds none.
    pub fn controller_only() -> Self {
        Self { policy: &local::POLICY, node: None }
    }

    /// The driver `local` on a node, with the disk that holds the node's volumes.
    pub fn on_node(name: String, disk: Disk) -> Self {
        Self { policy: &local::POLICY, node: Some(Arc::new(OnNode { name, disk, max_volumes: 0 })) }
    }

    /// The driver `shared` on a node, with the disk that all nodes reach.
    pub fn on_shared(name: &str, disk: Disk) -> std::result::Result<Self, Error> {
        disk.note_node(&name.parse::<VolumeId>()?)?;
        let node = OnNode { name: name.to_owned(), disk, max_volumes: 0 };
        Ok(Self { policy: &shared::POLICY, node: Some(Arc::new(node)) })
    }

    /// The same with a bound of volumes on the node; 0: none.
    #[must_use]
    pub fn with_max_volumes(mut self, max_volumes: u32) -> Self {
        self.node = self.node.map(|node| Arc::new(OnNode { max_volumes, ..node.as_ref().clone() }));
        self
    }

    /// Whether there is a node side.
    pub fn has_node(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn node(&self) -> std::result::Result<Arc<OnNode>, Status> {
        let node = self.node.clone();
        node.ok_or_else(|| {
            Status::failed_precondition("this process has no node side; ask the driver on the volume's node")
        })
    }

    /// Does work where blocking is allowed. It goes on to its end, also when the caller has gone away.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OnNode) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let node = self.node()?;
        let done = tokio::task::spawn_blocking(move || work(&node)).await;
        Ok(done.map_err(|error| Status::internal(format!("the call broke off: {error}")))??)
    }

    /// Removes what an earlier process left behind.
    async fn recover(self) {
        if self.node.is_some()
            && let Err(error) = self.work(|node| provision::recover(&node.disk)).await
        {
            tracing::warn!(%error, "what an earlier process left behind was not all removed");
        }
    }
}

/// Where a driver is reached.
#[derive(clap::Args, Clone, Debug)]
pub struct Endpoint {
    /// Socket to serve CSI on, as unix:///PATH.
    #[arg(long, value_name = "unix:///PATH")]
    pub endpoint: String,
    /// Folder in which the node's agent looks for drivers. The driver makes itself known there.
    #[arg(long, value_name = "DIR")]
    pub registry: Option<PathBuf>,
}

impl Endpoint {
    pub(crate) async fn run(self, driver: Driver, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Some(socket) = self.endpoint.strip_prefix("unix://").filter(|path| path.starts_with('/')) else {
            bail!("--endpoint {:?} is not a socket: expected unix:///PATH", self.endpoint);
        };
        serve_registered(driver, Path::new(socket), self.registry.as_deref(), shutdown).await
    }
}

/// Serves a driver on a socket until shutdown.
pub async fn serve(driver: Driver, socket: &Path, shutdown: CancellationToken) -> anyhow::Result<()> {
    serve_registered(driver, socket, None, shutdown).await
}

async fn serve_registered(
    driver: Driver,
    socket: &Path,
    registry: Option<&Path>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let policy = driver.policy;
    let mut server = Server::unix(policy.service, socket)
        .service(IdentityServer::new(driver.clone()))
        .service(ControllerServer::new(driver.clone()));
    if driver.has_node() {
        server = server.service(NodeServer::new(driver.clone()));
    }
    let server = server.bind().await?;
    let tasks = Tasks::new(&shutdown);
    tasks.spawn_graceful("recover", driver.recover());
    let served = match registry {
        None => server.serve(shutdown).await,
        Some(registry) => {
            // Only now: who finds this socket calls the other one.
            let path = registry.join(format!("{}-reg.sock", policy.name));
            let registrar = Registrar::new(policy.name, socket);
            let registration =
                Server::unix("registration", &path).service(RegistrationServer::new(registrar)).bind().await?;
            let served = tokio::try_join!(server.serve(shutdown.clone()), registration.serve(shutdown));
            // A driver that has ended is not on this node any more.
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            served.map(|_| ())
        }
    };
    tasks.finish(END).await;
    served
}
