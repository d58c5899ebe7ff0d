//! The CSI drivers that volumes are made with, and who is called for which volume.
//!
//! A driver is reached on a socket beside the control plane (`--csi`; it says its own name there), or through the
//! agent of a node that has it. Where a driver has a topology, the node is one that reaches the volume; else it is the
//! first ready one. If that node cannot be reached the call waits: another node's driver knows nothing of the volume.

mod agents;
mod call;
mod turn;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pb::{
    Object, ObjectExt,
    csi::v1::{GetPluginInfoRequest, controller_client::ControllerClient, identity_client::IdentityClient},
    objects::{Node, NodeCsiDriver, NodeSelector},
};
use runtime::{
    Cache, Tasks,
    backoff::Backoff,
    channel::{BadAddress, Channel, connect, connect_streaming},
};
use tokio::{sync::watch, time::Instant};

use self::{agents::registered, call::Abilities, turn::Turns};
pub(crate) use self::{
    call::{CallError, Controller, Deadlines},
    turn::{Turn, VolumeKey},
};

/// How long a driver's word about what it can do is taken. It may be replaced by another version.
const ABILITIES_LAST: Duration = Duration::from_secs(60);

/// Where a volume is, or shall be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// Wherever the driver is.
    Anywhere,
    /// Where this node reaches it.
    Node(&'a str),
    /// Where such nodes reach it.
    Reachable(&'a NodeSelector),
}

impl<'a> Place<'a> {
    /// Where a volume is, by its node affinity.
    pub(crate) fn of(volume: &'a pb::objects::PersistentVolume) -> Self {
        plan::volume::reachable(volume).map_or(Self::Anywhere, Self::Reachable)
    }
}

/// Drivers by their names. Clones share them.
#[derive(Clone)]
pub(crate) struct Drivers {
    nodes: Cache<Node>,
    turns: Turns,
    deadlines: Deadlines,
    shared: Arc<Shared>,
}

struct Shared {
    sockets: Mutex<Sockets>,
    /// How many sockets have said a name.
    met: watch::Sender<usize>,
    /// By node: the address that the channel leads to.
    channels: Mutex<BTreeMap<String, (String, Channel)>>,
    /// By node (empty: a socket) and driver.
    abilities: Mutex<BTreeMap<(String, String), Heard>>,
}

struct Sockets {
    known: BTreeMap<String, ControllerClient<Channel>>,
    /// Sockets whose driver has not said its name yet.
    silent: BTreeSet<String>,
}

/// What a driver said that it can do.
struct Heard {
    at: Instant,
    registration: Option<NodeCsiDriver>,
    abilities: Arc<Abilities>,
}

impl Drivers {
    /// Asks each socket for its driver's name, until it answers. Other drivers are those of the nodes.
    pub(crate) fn meet(
        sockets: &[String],
        nodes: Cache<Node>,
        deadlines: Deadlines,
        tasks: &Tasks,
    ) -> Result<Self, BadAddress> {
        let silent = sockets.iter().cloned().collect();
        let shared = Shared {
            sockets: Mutex::new(Sockets { known: BTreeMap::new(), silent }),
            met: watch::Sender::new(0),
            channels: Mutex::default(),
            abilities: Mutex::default(),
        };
        let drivers = Self { nodes, turns: Turns::default(), deadlines, shared: Arc::new(shared) };
        for socket in sockets {
            let (asked, channel) = (connect(socket)?, connect_streaming(socket)?);
            tasks.spawn("driver", drivers.clone().ask_name(socket.clone(), asked, channel));
        }
        Ok(drivers)
    }

    async fn ask_name(self, socket: String, asked: Channel, channel: Channel) {
        let mut failures = 0;
        loop {
            match IdentityClient::new(asked.clone()).get_plugin_info(GetPluginInfoRequest {}).await {
                Ok(info) => {
                    let info = info.into_inner();
                    tracing::info!(socket, driver = info.name, version = info.vendor_version, "met a CSI driver");
                    let mut sockets = self.shared.sockets.lock();
                    sockets.silent.remove(&socket);
                    sockets.known.insert(info.name, ControllerClient::new(channel));
                    drop(sockets);
                    self.shared.met.send_modify(|met| *met += 1);
                    return;
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(socket, %error, failures, "the CSI driver does not say its name; asking again");
                    tokio::time::sleep(Backoff::RECONNECT.after(failures)).await;
                }
            }
        }
    }

    /// Names of the drivers that are known.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.shared.sockets.lock().known.keys().cloned().collect();
        for node in self.nodes.all() {
            let status = node.status.iter().flat_map(|status| &status.csi_drivers);
            names.extend(status.map(|driver| driver.name.clone()));
        }
        names
    }

    /// Sockets whose driver is not known yet.
    pub(crate) fn silent(&self) -> Vec<String> {
        self.shared.sockets.lock().silent.iter().cloned().collect()
    }

    /// Changes whenever a socket's driver has said its name.
    pub(crate) fn met(&self) -> watch::Receiver<usize> {
        self.shared.met.subscribe()
    }

    /// Whether the driver is called on a socket beside the control plane: then nodes need not have said that they have
    /// it.
    pub(crate) fn is_central(&self, driver: &str) -> bool {
        self.shared.sockets.lock().known.contains_key(driver)
    }

    /// Nodes that have the driver.
    pub(crate) fn nodes_of(&self, driver: &str) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes.all();
        nodes.retain(|node| registered(node, driver).is_some());
        nodes
    }

    /// Waits for the volume's turn: hold it for as long as a call about the volume is in flight.
    pub(crate) async fn turn(&self, volume: &VolumeKey) -> Turn {
        self.turns.take(volume).await
    }

    /// The controller service of a driver for a volume at a place.
    pub(crate) async fn controller(&self, driver: &str, place: Place<'_>) -> Result<Controller, CallError> {
        let central = self.shared.sockets.lock().known.get(driver).cloned();
        let (node, client) = match central {
            Some(client) => (None, client),
            None => {
                let node = self.choose(driver, place)?;
                let client = ControllerClient::new(self.agent_channel(&node)?);
                (Some(node), client)
            }
        };
        let mut controller = Controller {
            driver: driver.to_owned(),
            node,
            client,
            abilities: Arc::default(),
            deadlines: self.deadlines,
        };
        controller.abilities = self.abilities_of(&controller).await?;
        Ok(controller)
    }

    async fn abilities_of(&self, controller: &Controller) -> Result<Arc<Abilities>, CallError> {
        let node = controller.node().unwrap_or_default();
        let key = (node.to_owned(), controller.driver.clone());
        let registration = self.on_node(&controller.driver, node);
        if let Some(heard) = self.shared.abilities.lock().get(&key)
            && heard.at.elapsed() < ABILITIES_LAST
            && heard.registration == registration
        {
            return Ok(Arc::clone(&heard.abilities));
        }
        let abilities = Arc::new(controller.abilities().await?);
        let heard = Heard { at: Instant::now(), registration, abilities: Arc::clone(&abilities) };
        let mut all = self.shared.abilities.lock();
        all.retain(|(node, _), _| node.is_empty() || self.node(node).is_some());
        all.insert(key, heard);
        Ok(abilities)
    }

    /// The node whose agent is asked.
    fn choose(&self, driver: &str, place: Place<'_>) -> Result<String, CallError> {
        let nobody = |message: String| Err(CallError::NoController { message });
        let all = self.nodes_of(driver);
        let silent = self.silent();
        if all.is_empty() && !silent.is_empty() {
            return nobody(format!("the CSI driver at {} has not answered yet; check that it runs", silent.join(", ")));
        }
        let serving: Vec<&Arc<Node>> =
            all.iter().filter(|node| registered(node, driver).is_some_and(|driver| driver.controller)).collect();
        if serving.is_empty() {
            return nobody(format!(
                "no node has the controller service of the CSI driver {driver:?}; register the driver with a node's \
                 agent"
            ));
        }
        let near: Vec<&Arc<Node>> = serving.into_iter().filter(|node| self.is_near(node, driver, place)).collect();
        // Where any node would do, the one that was named is better: it may have the volume mounted.
        let named = |node: &Node| matches!(place, Place::Node(name) if name == node.name());
        let ready = || near.iter().filter(|node| is_ready(node));
        match (ready().find(|node| named(node)).or_else(|| ready().next()), near.first()) {
            (Some(node), _) => Ok(node.name().to_owned()),
            (None, Some(down)) => nobody(format!(
                "node {:?} is not reachable, and the CSI driver {driver:?} is called there; it is tried again when the \
                 node is ready",
                down.name()
            )),
            (None, None) => nobody(match place {
                Place::Node(node) => format!(
                    "node {node:?} does not have the CSI driver {driver:?} (any more); register it with the node's agent"
                ),
                Place::Reachable(selector) => format!(
                    "no node with the CSI driver {driver:?} matches {}; start such a node",
                    plan::volume::selector_text(selector)
                ),
                Place::Anywhere => format!("no node has the CSI driver {driver:?}"),
            }),
        }
    }

    /// Whether the driver on a node can be asked about a volume at a place.
    fn is_near(&self, node: &Node, driver: &str, place: Place<'_>) -> bool {
        let keys = registered(node, driver).map(|driver| driver.topology_keys.as_slice()).unwrap_or_default();
        if keys.is_empty() {
            return true;
        }
        let label = |node: &Node, key: &str| plan::volume::label_of(node, key).map(str::to_owned);
        match place {
            Place::Anywhere => true,
            Place::Node(name) if name == node.name() => true,
            Place::Node(name) => {
                self.node(name).is_some_and(|other| keys.iter().all(|key| label(node, key) == label(&other, key)))
            }
            Place::Reachable(selector) => plan::schedule::matches(selector, node.name(), &node.meta().labels),
        }
    }
}

/// Whether a node answers.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}
