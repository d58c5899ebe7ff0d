//! What requests ask for, checked: everything that comes from outside becomes a type here or is refused.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use pb::csi::v1::{
    CapacityRange, VolumeCapability, VolumeContentSource,
    volume_capability::{AccessType, access_mode::Mode},
    volume_content_source::Type,
};

use crate::{
    driver::Policy,
    error::{Error, Result},
    id::VolumeId,
    mounts::Options,
    provision::{Range, fs_type},
    record::{FsType, Kind, Source},
};

/// Parameter of a class: what a volume is.
const TYPE: &str = "type";
/// Parameters of a class: the file system of an image; the second as it is called for drivers of Kubernetes.
const FS_TYPE: [&str; 2] = ["fsType", "csi.storage.k8s.io/fstype"];
/// Parameters that tell a driver for whom a volume is, which these do not need.
const ABOUT: &str = "csi.storage.k8s.io/";
/// Longest path that a request may name.
const PATH: usize = 4096;

/// An id that must be there.
pub(crate) fn id(field: &str, text: &str) -> Result<VolumeId> {
    if text.is_empty() {
        return Err(Error::Invalid(format!("{field} is missing")));
    }
    text.parse::<VolumeId>().map_err(|error| Error::Invalid(format!("{field}: {error}")))
}

/// An absolute path that must be there.
pub(crate) fn path(field: &str, text: &str) -> Result<PathBuf> {
    if text.is_empty() {
        return Err(Error::Invalid(format!("{field} is missing")));
    }
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if text.len() <= PATH && path.is_absolute() && plain && !text.contains('\0') {
        // Without double and trailing slashes, which the table of mounts does not have.
        return Ok(path.components().collect());
    }
    let shown: String = text.chars().take(160).collect();
    Err(Error::Invalid(format!("{field} {shown:?} is not an absolute path without \"..\"")))
}

/// Bounds of a size.
pub(crate) fn range(range: Option<CapacityRange>) -> Result<Range> {
    let range = range.unwrap_or_default();
    let bytes = |field, value: i64| {
        u64::try_from(value).map_err(|_| Error::Invalid(format!("capacity_range.{field} is negative: {value}")))
    };
    let required = bytes("required_bytes", range.required_bytes)?;
    let limit = bytes("limit_bytes", range.limit_bytes)?;
    if limit != 0 && limit < required {
        return Err(Error::OutOfRange(format!(
            "capacity_range: limit_bytes {limit} is less than required_bytes {required}"
        )));
    }
    Ok(Range { required, limit })
}

/// How a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// Who may write.
    pub mode: Mode,
    /// The file system that it must have.
    pub fs: Option<FsType>,
    /// How it is mounted.
    pub options: Options,
}

impl Use {
    /// Of one capability, which must be there.
    pub fn of(policy: &Policy, capability: Option<&VolumeCapability>) -> Result<Self> {
        let Some(capability) = capability else {
            return Err(Error::Invalid("volume_capability is missing".to_owned()));
        };
        let Some(AccessType::Mount(mount)) = &capability.access_type else {
            return Err(Error::Invalid(format!(
                "volume_capability: a volume of the driver {} is a file system; ask for mount access",
                policy.name
            )));
        };
        let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
        let possible = match mode {
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter => true,
            Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter => policy.attaches,
            Mode::Unknown | Mode::MultiNodeSingleWriter => false,
        };
        if !possible {
            return Err(Error::Invalid(format!(
                "volume_capability: the driver {} has no access mode {}",
                policy.name,
                mode.as_str_name()
            )));
        }
        // Staged writable also where pods only read, since a file system must be able to repair itself.
        let options = Options::parse(&mount.mount_flags)?;
        Ok(Self { mode, fs: fs_type(&mount.fs_type)?, options })
    }

    /// Whether pods may only read.
    pub fn only_reads(&self) -> bool {
        matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
    }

    /// Whether several nodes may have the volume at once.
    pub fn many_nodes(&self) -> bool {
        matches!(self.mode, Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter)
    }

    /// Whether a volume of this kind can be used so.
    pub fn suits(&self, kind: Kind) -> Result<()> {
        match (kind, self.fs) {
            (Kind::Image { .. }, _) if self.many_nodes() => Err(Error::Invalid(format!(
                "volume_capability: access mode {} is not possible for an image, which one node has at a time; use \
                 type=directory",
                self.mode.as_str_name()
            ))),
            (Kind::Image { fs_type }, Some(wanted)) if wanted != fs_type => Err(Error::Invalid(format!(
                "volume_capability: fs_type {wanted} is asked for, and the volume has {fs_type}"
            ))),
            _ => Ok(()),
        }
    }
}

/// What a class's parameters, and the uses, make of a volume.
pub(crate) fn kind(policy: &Policy, parameters: &BTreeMap<String, String>, uses: &[Use]) -> Result<Kind> {
    let (mut image, mut fs) = (None, None);
    for (name, value) in parameters {
        match (name.as_str(), value.as_str()) {
            (TYPE, "directory") => image = Some(false),
            (TYPE, "image") => image = Some(true),
            (name, value) if FS_TYPE.contains(&name) => {
                let named = fs_type(value)?;
                if fs.is_some() && named.is_some() && fs != named {
                    return Err(Error::Invalid(format!("parameter {name}={value:?} contradicts another")));
                }
                fs = fs.or(named);
            }
            (name, _) if name.starts_with(ABOUT) => {}
            _ => {
                return Err(Error::Invalid(format!(
                    "parameter {name}={value:?} is not known; the driver {} knows type=directory, type=image and, for \
                     images, fsType=ext4 and fsType=xfs",
                    policy.name
                )));
            }
        }
    }
    let kind = match image {
        Some(true) => {
            let asked = uses.iter().find_map(|one| one.fs);
            Kind::Image { fs_type: fs.or(asked).unwrap_or(FsType::Ext4) }
        }
        _ if fs.is_some() && image.is_none() => {
            return Err(Error::Invalid("parameter fsType is for images; add type=image".to_owned()));
        }
        _ => Kind::Directory,
    };
    uses.iter().try_for_each(|one| one.suits(kind))?;
    Ok(kind)
}

/// What a volume begins with.
pub(crate) fn source(source: Option<&VolumeContentSource>) -> Result<Option<Source>> {
    match source.map(|source| &source.r#type) {
        None => Ok(None),
        Some(Some(Type::Snapshot(from))) => {
            Ok(Some(Source::Snapshot(unknown("volume_content_source.snapshot.snapshot_id", &from.snapshot_id)?)))
        }
        Some(Some(Type::Volume(from))) => {
            Ok(Some(Source::Volume(unknown("volume_content_source.volume.volume_id", &from.volume_id)?)))
        }
        Some(None) => Err(Error::Invalid("volume_content_source names neither a snapshot nor a volume".to_owned())),
    }
}

/// The id of something that must exist: a text that is no id is one that nothing has.
pub(crate) fn unknown(field: &str, text: &str) -> Result<VolumeId> {
    match id(field, text) {
        Err(Error::Invalid(error)) if !text.is_empty() && text.len() <= 128 => {
            Err(Error::NotFound { what: "the", id: error, place: String::new() })
        }
        other => other,
    }
}
