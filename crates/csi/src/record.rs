//! What is written down of volumes and snapshots.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::VolumeId;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its id, which is its name too.
    pub id: VolumeId,
    /// Tells it from a later volume of the same name: data that went and was made anew is not the same data (I5).
    pub instance: String,
    /// When it was made.
    pub created_at: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Size in bytes; 0 when none was asked for.
    pub capacity: u64,
    /// What it began with.
    pub source: Option<Source>,
    /// Whether it was ever staged, or may have been. What never was holds nobody's data.
    #[serde(default = "yes")]
    pub staged: bool,
}

fn yes() -> bool {
    true
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id, which is its name too.
    pub id: VolumeId,
    /// The volume that it was made of.
    pub volume: VolumeId,
    /// The moment whose data it holds.
    pub created_at: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Size of the volume in bytes.
    pub capacity: u64,
}

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Kind {
    /// A directory; its size is not enforced.
    Directory,
    /// A file with a file system of its own.
    #[serde(rename_all = "camelCase")]
    Image {
        /// The file system.
        fs_type: FsType,
    },
}

/// A file system that images can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// What a volume began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A snapshot.
    Snapshot(VolumeId),
    /// Another volume.
    Volume(VolumeId),
}

impl Volume {
    /// A volume made now.
    pub fn new(id: VolumeId, kind: Kind, capacity: u64, source: Option<Source>) -> Self {
        let instance = Uuid::new_v4().to_string();
        Self { id, instance, created_at: Timestamp::now().to_string(), kind, capacity, source, staged: false }
    }

    /// A volume that no driver made.
    pub fn found(id: VolumeId, kind: Kind, capacity: u64) -> Self {
        Self { id, instance: String::new(), created_at: String::new(), kind, capacity, source: None, staged: true }
    }
}

impl Kind {
    /// The least size in bytes.
    pub fn least(self) -> u64 {
        match self {
            Self::Directory => 0,
            Self::Image { fs_type: FsType::Ext4 } => 8 << 20,
            Self::Image { fs_type: FsType::Xfs } => 300 << 20,
        }
    }

    /// The size in bytes when none is asked for.
    pub fn usual(self) -> u64 {
        match self {
            Self::Directory => 0,
            Self::Image { .. } => 1 << 30,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::Image { fs_type } => write!(f, "image with {fs_type}"),
        }
    }
}

impl FsType {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FsType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(format!("file system {other:?} is not known; there are ext4 and xfs")),
        }
    }
}
