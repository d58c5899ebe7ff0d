//! Volumes that the agent fills by itself: ConfigMaps, Secrets, empty folders.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path},
};

use model::quantity::Quantity;
use nix::mount::MsFlags;
use pb::{
    agent::v1::PodBundle,
    objects::{KeyToPath, ObjectMeta, Volume},
};

use super::{FsGroup, VolumeError, io_error};
use crate::mounts;

/// Mode of files from ConfigMaps and Secrets unless the volume says otherwise.
const FILE_MODE: i32 = 0o644;

/// Whether a volume is in memory.
pub fn is_tmpfs(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.empty_dir.as_ref().is_some_and(|empty| empty.medium == "Memory")
}

/// Makes a volume that needs no driver at `target`. Idempotent.
pub fn mount(bundle: &PodBundle, volume: &Volume, target: &Path, group: Option<FsGroup>) -> Result<(), VolumeError> {
    if let Some(map) = &volume.config_map {
        let found = bundle.config_maps.iter().find(|found| is_named(found.metadata.as_ref(), &map.name));
        if found.is_none() && map.optional != Some(true) {
            return Err(missing(volume, format!("configMap {:?} does not exist", map.name)));
        }
        let text = found.iter().flat_map(|found| &found.data).map(|(key, text)| (key.as_str(), text.as_bytes()));
        let bytes = found.iter().flat_map(|found| &found.binary_data).map(|(key, b)| (key.as_str(), b.as_slice()));
        let keys = text.chain(bytes).collect();
        make_dir(target)?;
        write_keys(volume, target, &keys, &map.items, map.default_mode, map.optional)
    } else if let Some(secret) = &volume.secret {
        let found = bundle.secrets.iter().find(|found| is_named(found.metadata.as_ref(), &secret.secret_name));
        if found.is_none() && secret.optional != Some(true) {
            return Err(missing(volume, format!("secret {:?} does not exist", secret.secret_name)));
        }
        let data = found.iter().flat_map(|found| &found.data);
        let keys = data.map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect();
        mount_tmpfs(target, "mode=0755")?;
        write_keys(volume, target, &keys, &secret.items, secret.default_mode, secret.optional)
    } else {
        let empty = volume.empty_dir.clone().unwrap_or_default();
        if empty.medium == "Memory" {
            let size = empty.size_limit.as_ref().and_then(|size| Quantity::try_from(size).ok());
            let size = size.map(|size| format!(",size={}", size.as_units())).unwrap_or_default();
            mount_tmpfs(target, &format!("mode=0777{size}"))?;
        } else {
            make_dir(target)?;
            fs::set_permissions(target, fs::Permissions::from_mode(0o777)).map_err(io_error(target))?;
        }
        group.map_or(Ok(()), |group| group.give_root(target)).map_err(io_error(target))
    }
}

fn is_named(meta: Option<&ObjectMeta>, name: &str) -> bool {
    meta.is_some_and(|meta| meta.name == name)
}

fn missing(volume: &Volume, problem: String) -> VolumeError {
    VolumeError::Missing { volume: volume.name.clone(), problem: format!("{problem}; create it, and the pod starts") }
}

fn make_dir(path: &Path) -> Result<(), VolumeError> {
    fs::create_dir_all(path).map_err(io_error(path))
}

fn mount_tmpfs(target: &Path, options: &str) -> Result<(), VolumeError> {
    make_dir(target)?;
    if mounts::shown_at(target).map_err(io_error(target))?.is_some() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .map_err(|e| io_error(target)(e.into()))
}

/// Writes keys as files: all, or those that `items` names, at their paths.
fn write_keys(
    volume: &Volume,
    target: &Path,
    keys: &BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<(), VolumeError> {
    let default_mode = default_mode.unwrap_or(FILE_MODE);
    let all: Vec<KeyToPath>;
    let items = if items.is_empty() {
        let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None };
        all = keys.keys().map(item).collect();
        &all
    } else {
        items
    };
    for item in items {
        let Some(bytes) = keys.get(item.key.as_str()) else {
            if optional == Some(true) {
                continue;
            }
            return Err(missing(volume, format!("key {:?} does not exist", item.key)));
        };
        let relative = Path::new(&item.path);
        if item.path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(VolumeError::BadPath { volume: volume.name.clone(), path: item.path.clone() });
        }
        let path = target.join(relative);
        if let Some(parent) = path.parent().filter(|parent| *parent != target) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
            made.map_err(io_error(parent))?;
        }
        let mode = u32::try_from(item.mode.unwrap_or(default_mode)).unwrap_or(0o644) & 0o777;
        write_file(&path, bytes, mode)?;
    }
    Ok(())
}

/// Writes a file whole or not at all: readers see the old or the new.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), VolumeError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".berth-new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        io::Write::write_all(&mut file, bytes)?;
        // The mode above passes through the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    };
    write().map_err(io_error(path))
}
