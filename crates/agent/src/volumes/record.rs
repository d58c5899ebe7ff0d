//! What the agent notes of a volume that it shows to somebody: what it takes to undo it, and to know it again.
//!
//! The note is on the disk before the driver is called for the first time, and goes after the driver has said that all
//! is undone. So whatever happened to a call or to an agent, what may be mounted is noted.

use std::io;

use crate::{
    beneath::{Folder, present},
    csi::VolumeId,
    mounts::Shown,
};

/// The file of the note.
const FILE: &str = "csi.json";

/// The note.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Which volume.
    #[serde(flatten)]
    pub id: VolumeId,
    /// What the kernel showed when the driver had published it; None until then.
    #[serde(default)]
    pub shown: Option<Shown>,
}

/// The note in a folder.
pub fn read(folder: &Folder) -> io::Result<Option<Record>> {
    let Some(bytes) = present(folder.read(FILE))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let path = folder.path().join(FILE);
        io::Error::other(format!("{}: {error}: unmount what is beside it, then remove it", path.display()))
    })
}

/// Leaves the note in a folder.
pub fn write(folder: &Folder, record: &Record) -> io::Result<()> {
    folder.write(FILE, &serde_json::to_vec(record)?)
}

/// Takes the note away.
pub fn remove(folder: &Folder) -> io::Result<()> {
    folder.remove_file(FILE)
}
