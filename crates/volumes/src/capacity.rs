//! How much room drivers have for new volumes, kept fresh in memory.
//!
//! Only for drivers that tell (CsiDriver.spec.storageCapacity). It is a hint: whether there is room is decided by the
//! driver when it is asked to make the volume.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use pb::{
    Kind, ObjectExt,
    csi::v1::{self as csi, GetCapacityRequest, controller_service_capability::rpc::Type as Rpc},
    objects::StorageClass,
};
use plan::volume::{self, Room, Space};
use store::Key;

use crate::{
    Inner,
    drivers::{CallError, Place, is_ready},
    provision::parameters,
};

/// Between two rounds of questions.
const PERIOD: Duration = Duration::from_secs(60);
/// Questions at the same time.
const WIDTH: usize = 16;

/// Room by class.
#[derive(Default)]
pub(crate) struct Capacity {
    spaces: Mutex<BTreeMap<String, Vec<Space>>>,
}

impl Capacity {
    /// Where there is room for a volume of a class.
    pub(crate) fn room(&self, class: &StorageClass, needed: i64) -> Room {
        let spaces = self.spaces.lock();
        spaces.get(class.name()).map_or(Room::Everywhere, |spaces| volume::room(needed, spaces))
    }

    /// A volume was made: so much less is left, until the driver is asked again.
    pub(crate) fn took(&self, class: &StorageClass, made: &csi::Volume) {
        let mut spaces = self.spaces.lock();
        let Some(spaces) = spaces.get_mut(class.name()) else { return };
        let at = |space: &&mut Space| space.place.as_ref().is_none_or(|p| made.accessible_topology.contains(p));
        for space in spaces.iter_mut().filter(at) {
            space.available = space.available.saturating_sub(made.capacity_bytes).max(0);
        }
    }
}

/// Asks all drivers that tell, over and over.
pub(crate) async fn run(inner: Arc<Inner>) {
    inner.classes.synced().await;
    inner.nodes.synced().await;
    inner.csi_drivers.synced().await;
    let (mut classes, mut drivers) = (inner.classes.subscribe(), inner.csi_drivers.subscribe());
    loop {
        inner.ask_for_room().await;
        // A new class or driver is asked about at once.
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            change = classes.next() => if change.is_none() { return },
            change = drivers.next() => if change.is_none() { return },
        }
    }
}

impl Inner {
    async fn ask_for_room(&self) {
        let mut all = BTreeMap::new();
        for class in self.classes.all() {
            let driver = self.csi_drivers.get(&Key::object(Kind::CsiDriver, "", &class.provisioner));
            let tells = driver.and_then(|driver| driver.spec.clone()).is_some_and(|s| s.storage_capacity == Some(true));
            if tells {
                all.insert(class.name().to_owned(), self.spaces(&class).await);
            }
        }
        *self.capacity.spaces.lock() = all;
    }

    async fn spaces(&self, class: &StorageClass) -> Vec<Space> {
        let driver = class.provisioner.as_str();
        // One node for each place of the driver.
        let mut places: Vec<(Option<csi::Topology>, String)> = Vec::new();
        for node in self.drivers.nodes_of(driver).into_iter().filter(|node| is_ready(node)) {
            let keys = self.drivers.on_node(driver, node.name()).map(|on| on.topology_keys).unwrap_or_default();
            let place = volume::place_of(&node, &keys);
            if !places.iter().any(|(known, _)| *known == place) {
                places.push((place, node.name().to_owned()));
            }
        }
        let asked = stream::iter(places).map(|(place, node)| async move {
            match self.space(class, place, &node).await {
                Ok(space) => space,
                Err(error) => {
                    tracing::debug!(driver, node, %error, "the driver does not say how much room it has");
                    None
                }
            }
        });
        asked.buffer_unordered(WIDTH).filter_map(futures::future::ready).collect().await
    }

    async fn space(
        &self,
        class: &StorageClass,
        place: Option<csi::Topology>,
        node: &str,
    ) -> Result<Option<Space>, CallError> {
        let controller = self.drivers.controller(&class.provisioner, Place::Node(node)).await?;
        if !controller.can(Rpc::GetCapacity) {
            return Ok(None);
        }
        let request = GetCapacityRequest {
            parameters: parameters(&class.parameters),
            accessible_topology: place.clone(),
            ..GetCapacityRequest::default()
        };
        let answer = controller.capacity(request).await?;
        let largest = answer.maximum_volume_size.map(|size| size.value);
        Ok(Some(Space { place, available: answer.available_capacity, largest }))
    }
}
