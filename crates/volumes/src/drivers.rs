//! The CSI drivers that volumes are made with. A driver says its own name; until it has, nothing is said about classes
//! that name it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;
use pb::csi::v1::{
    CreateVolumeRequest, GetPluginInfoRequest, Volume, controller_client::ControllerClient,
    identity_client::IdentityClient,
};
use runtime::{
    Tasks,
    backoff::Backoff,
    channel::{BadAddress, Channel, connect},
};
use tonic::Status;

/// Bytes that a driver's id of a volume may have: the specification's bound on strings, with room to spare.
const LONGEST_ID: usize = 1024;

/// Drivers by their names. Clones share them.
#[derive(Clone)]
pub(crate) struct Drivers {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    known: BTreeMap<String, ControllerClient<Channel>>,
    /// Sockets whose driver has not said its name yet.
    silent: BTreeSet<String>,
    /// Names of volumes with a call in flight.
    busy: BTreeSet<String>,
}

impl Drivers {
    /// Asks each socket for its driver's name, until it answers.
    pub(crate) fn meet(sockets: &[String], tasks: &Tasks) -> Result<Self, BadAddress> {
        let silent = sockets.iter().cloned().collect();
        let shared = Shared { known: BTreeMap::new(), silent, busy: BTreeSet::new() };
        let drivers = Self { shared: Arc::new(Mutex::new(shared)) };
        for socket in sockets {
            let channel = connect(socket)?;
            tasks.spawn("driver", drivers.clone().ask_name(socket.clone(), channel));
        }
        Ok(drivers)
    }

    async fn ask_name(self, socket: String, channel: Channel) {
        let mut failures = 0;
        loop {
            match IdentityClient::new(channel.clone()).get_plugin_info(GetPluginInfoRequest {}).await {
                Ok(info) => {
                    let info = info.into_inner();
                    tracing::info!(socket, driver = info.name, version = info.vendor_version, "met a CSI driver");
                    let mut shared = self.shared.lock();
                    shared.silent.remove(&socket);
                    shared.known.insert(info.name, ControllerClient::new(channel));
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
    pub(crate) fn names(&self) -> Vec<String> {
        self.shared.lock().known.keys().cloned().collect()
    }

    /// Sockets whose driver is not known yet.
    pub(crate) fn silent(&self) -> Vec<String> {
        self.shared.lock().silent.iter().cloned().collect()
    }

    /// Makes a volume. One call per volume at a time; a call that timed out is resolved by calling again.
    pub(crate) async fn create(&self, driver: &str, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let name = request.name.clone();
        let mut client = {
            let mut shared = self.shared.lock();
            let client = shared.known.get(driver).cloned();
            let client =
                client.ok_or_else(|| Status::unavailable(format!("the CSI driver {driver:?} is not known (yet)")))?;
            if !shared.busy.insert(name.clone()) {
                return Err(Status::aborted(format!("volume {name} is being made already; ask again")));
            }
            client
        };
        let _turn = Turn { drivers: self, name: &name };
        let answer = client.create_volume(request).await.map_err(|status| {
            Status::new(status.code(), format!("the CSI driver {driver:?} did not make {name}: {}", status.message()))
        })?;
        let volume = answer.into_inner().volume.unwrap_or_default();
        if volume.volume_id.is_empty() || volume.volume_id.len() > LONGEST_ID || volume.capacity_bytes < 0 {
            return Err(Status::internal(format!(
                "the CSI driver {driver:?} answered for {name} without a usable volume (id of {} bytes, capacity {})",
                volume.volume_id.len(),
                volume.capacity_bytes
            )));
        }
        Ok(volume)
    }
}

struct Turn<'a> {
    drivers: &'a Drivers,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.drivers.shared.lock().busy.remove(self.name);
    }
}
