//! The rules of the CSI specification as a table of cases, asked of any driver at its socket.
//!
//! Each case has a name and the rule that it comes from. What a driver does not say it can do is not asked of it. A case
//! is either a row (one call, and the codes that may answer it) or a story (several calls). Whatever a case makes is
//! taken away after it.

mod arguments;
mod attach;
mod controller;
mod copies;
mod identity;
mod node;
mod world;

use anyhow::Result;
use futures::future::BoxFuture;
use pb::csi::v1::{
    controller_service_capability::rpc::Type as Controller, node_service_capability::rpc::Type as Node,
    plugin_capability::service::Type as Plugin,
};
use tonic::Code;

use world::Call;
pub use world::{Profile, World};

/// One rule, tried.
pub struct Case {
    /// What must be so.
    pub name: &'static str,
    /// The part of the specification that says it.
    pub rule: &'static str,
    /// What the driver must be able to do for it.
    pub needs: &'static [Need],
    /// How it is tried.
    pub how: How,
}

/// What a case needs of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// An ability of the controller service.
    Controller(Controller),
    /// An ability of the node service.
    Node(Node),
    /// A service or trait.
    Plugin(Plugin),
    /// No ability of the controller service.
    Without(Controller),
    /// One of Berth's own drivers: the specification leaves it to the driver.
    Own,
    /// Volumes whose size is enforced.
    Image,
    /// Volumes that several nodes may have at once.
    ManyNodes,
}

/// How a case is tried.
pub enum How {
    /// One call, and the codes that may answer it.
    Row(fn(&World) -> Call, &'static [Code]),
    /// Several calls.
    Story(for<'a> fn(&'a World) -> BoxFuture<'a, Result<()>>),
}

/// All cases.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    [identity::CASES, arguments::CASES, controller::CASES, copies::CASES, node::CASES, attach::CASES]
        .into_iter()
        .flatten()
}

impl Case {
    const fn row(
        name: &'static str,
        rule: &'static str,
        needs: &'static [Need],
        call: fn(&World) -> Call,
        codes: &'static [Code],
    ) -> Self {
        Self { name, rule, needs, how: How::Row(call, codes) }
    }

    const fn story(
        name: &'static str,
        rule: &'static str,
        needs: &'static [Need],
        story: for<'a> fn(&'a World) -> BoxFuture<'a, Result<()>>,
    ) -> Self {
        Self { name, rule, needs, how: How::Story(story) }
    }

    /// Tries it. What it made is not yet taken away.
    pub async fn run(&self, world: &World) -> Result<()> {
        match &self.how {
            How::Row(call, codes) => world.expect(call(world), codes).await,
            How::Story(story) => story(world).await,
        }
    }
}

const CREATE: Need = Need::Controller(Controller::CreateDeleteVolume);
const PUBLISH: Need = Need::Controller(Controller::PublishUnpublishVolume);
const LIST: Need = Need::Controller(Controller::ListVolumes);
const CAPACITY: Need = Need::Controller(Controller::GetCapacity);
const SNAPSHOT: Need = Need::Controller(Controller::CreateDeleteSnapshot);
const LIST_SNAPSHOTS: Need = Need::Controller(Controller::ListSnapshots);
const CLONE: Need = Need::Controller(Controller::CloneVolume);
const EXPAND: Need = Need::Controller(Controller::ExpandVolume);
const GET: Need = Need::Controller(Controller::GetVolume);
const STAGE: Need = Need::Node(Node::StageUnstageVolume);
const STATS: Need = Need::Node(Node::GetVolumeStats);
const NODE_EXPAND: Need = Need::Node(Node::ExpandVolume);
