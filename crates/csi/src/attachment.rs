//! Which nodes a volume is attached to: a record beside its data, for drivers whose volumes can be reached from several.
//!
//! The caller holds the volume's turn.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    disk::{Disk, remove_file},
    error::{Error, Result},
    id::VolumeId,
    record::{Kind, Volume},
};

/// Name of the record.
const FILE: &str = "attachments.json";

/// How a volume is attached to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attachment {
    /// Whether other nodes may have it too.
    pub many_nodes: bool,
    /// Whether writes are refused.
    pub readonly: bool,
}

/// The nodes that have a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachments {
    /// By node.
    pub nodes: BTreeMap<String, Attachment>,
}

impl Attachments {
    /// Of a volume.
    pub fn read(disk: &Disk, id: &VolumeId) -> Result<Self> {
        Ok(disk.read_json(&format!("volumes/{id}/{FILE}"))?.unwrap_or_default())
    }

    fn write(&self, disk: &Disk, id: &VolumeId) -> Result<()> {
        if self.nodes.is_empty() {
            let image = disk.data_path::<Volume>(id, Kind::Directory);
            return image.parent().map_or(Ok(()), |folder| remove_file(&folder.join(FILE)));
        }
        disk.write_beside(id, FILE, self)
    }

    /// Adds a node, if the others let it.
    pub fn attach(mut self, disk: &Disk, id: &VolumeId, node: &str, how: Attachment) -> Result<()> {
        match self.nodes.get(node) {
            Some(is) if *is == how => return Ok(()),
            Some(is) => {
                return Err(Error::Exists(format!(
                    "volume {id} is attached to node {node:?} in another way (readonly={}, many nodes={}); detach it first",
                    is.readonly, is.many_nodes
                )));
            }
            None => {}
        }
        let alone = self.nodes.iter().find(|(_, is)| !is.many_nodes || !how.many_nodes);
        if let Some((other, _)) = alone {
            return Err(Error::Refused(format!(
                "volume {id} is attached to node {other:?}, and one node has it at a time; detach it there first"
            )));
        }
        self.nodes.insert(node.to_owned(), how);
        self.write(disk, id)
    }

    /// Removes a node, or all.
    pub fn detach(mut self, disk: &Disk, id: &VolumeId, node: Option<&str>) -> Result<()> {
        match node {
            Some(node) => drop(self.nodes.remove(node)),
            None => self.nodes.clear(),
        }
        self.write(disk, id)
    }
}
