//! Which places have room for a new volume.

use pb::{csi::v1 as csi, objects::NodeSelector};

use super::selector_of;

/// What a driver says of one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// The place; None: the driver has no topology.
    pub place: Option<csi::Topology>,
    /// Bytes free for volumes of the class.
    pub available: i64,
    /// The largest volume that can be made, if the driver says.
    pub largest: Option<i64>,
}

/// Where there is room.
#[derive(Clone, Debug, PartialEq)]
pub enum Room {
    /// Everywhere, as far as is known.
    Everywhere,
    /// There alone.
    Only(NodeSelector),
    /// Nowhere. The most that there is anywhere.
    Nowhere(i64),
}

/// Where there is room for a volume of so many bytes. A place that is not told of is not ruled out while no place is
/// full: what is not known is no reason to wait.
pub fn room(needed: i64, spaces: &[Space]) -> Room {
    let most = |space: &Space| space.largest.map_or(space.available, |largest| largest.min(space.available));
    let (fit, full): (Vec<&Space>, Vec<&Space>) = spaces.iter().partition(|space| most(space) >= needed);
    if full.is_empty() {
        return Room::Everywhere;
    }
    if fit.is_empty() {
        return Room::Nowhere(full.iter().map(|space| most(space)).max().unwrap_or(0));
    }
    let places: Vec<csi::Topology> = fit.iter().filter_map(|space| space.place.clone()).collect();
    selector_of(&places).map_or(Room::Everywhere, Room::Only)
}
