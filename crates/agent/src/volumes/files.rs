//! Volumes that need no driver: files that the agent writes, empty folders, and paths of the node.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use model::quantity::Quantity;
use nix::mount::MsFlags;
use pb::{
    agent::v1::PodBundle,
    objects::{EmptyDirVolumeSource, HostPathVolumeSource, Volume},
};

use super::{FsGroup, VolumeError, atomic, content, io_error};
use crate::{fields::Place, mounts};

/// Whether a volume is in memory: what is secret, and what comes from nowhere else than the agent's own memory.
pub fn is_tmpfs(volume: &Volume) -> bool {
    volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.empty_dir.as_ref().is_some_and(|empty| empty.medium == "Memory")
}

/// Makes a volume that needs no driver at `target`. Idempotent.
pub fn mount(
    bundle: &PodBundle,
    volume: &Volume,
    target: &Path,
    group: Option<FsGroup>,
    place: Place<'_>,
) -> Result<(), VolumeError> {
    if let Some(path) = &volume.host_path {
        return host_path(volume, path);
    }
    if content::is_content(volume) {
        // First, so that a pod whose configuration is missing leaves nothing behind.
        let files = content::files(bundle, volume, place)?;
        if is_tmpfs(volume) {
            mount_tmpfs(target, "mode=0755")?;
        } else {
            make_dir(target)?;
        }
        return atomic::write(target, &files, group.map(|group| group.gid)).map(drop).map_err(io_error(target));
    }
    empty_dir(&volume.empty_dir.clone().unwrap_or_default(), target)?;
    group.map_or(Ok(()), |group| group.give_root(target)).map_err(io_error(target))
}

/// Writes what has changed of a volume that is mounted. Tells whether something has.
pub fn refresh(
    bundle: &PodBundle,
    volume: &Volume,
    target: &Path,
    group: Option<FsGroup>,
    place: Place<'_>,
) -> Result<bool, VolumeError> {
    let there =
        if is_tmpfs(volume) { mounts::shown_at(target).map(|shown| shown.is_some()) } else { Ok(target.is_dir()) };
    if !content::is_content(volume) || !there.map_err(io_error(target))? {
        return Ok(false);
    }
    let files = content::files(bundle, volume, place)?;
    atomic::write(target, &files, group.map(|group| group.gid)).map_err(io_error(target))
}

fn empty_dir(empty: &EmptyDirVolumeSource, target: &Path) -> Result<(), VolumeError> {
    if empty.medium == "Memory" {
        let size = empty.size_limit.as_ref().and_then(|size| Quantity::try_from(size).ok());
        let size = size.map(|size| format!(",size={}", size.as_units())).unwrap_or_default();
        return mount_tmpfs(target, &format!("mode=0777{size}"));
    }
    make_dir(target)?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o777)).map_err(io_error(target))
}

/// Sees to it that a path of the node is what the pod says. Whether a pod may have it is the API service's decision.
fn host_path(volume: &Volume, source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    let kind = source.r#type.as_deref().unwrap_or_default();
    let made = match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(path),
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
        }
        _ => Ok(()),
    };
    made.map_err(io_error(path))?;
    let fits = |found: fs::FileType| match kind {
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        _ => true,
    };
    match fs::metadata(path) {
        Ok(found) if fits(found.file_type()) => Ok(()),
        Err(_) if kind.is_empty() => make_dir(path),
        found => {
            let is = found.map_or_else(|error| error.to_string(), |found| format!("{:?}", found.file_type()));
            let problem =
                format!("hostPath {} is no {kind} ({is}): make it on the node, or change its type", source.path);
            Err(VolumeError::Missing { volume: volume.name.clone(), problem })
        }
    }
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
        .map_err(|error| io_error(target)(io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_node_is_what_its_type_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let at = |name: &str, kind: &str| {
            let path = dir.path().join(name).display().to_string();
            let kind = (!kind.is_empty()).then(|| kind.to_owned());
            host_path(&Volume::default(), &HostPathVolumeSource { path, r#type: kind })
        };
        for (name, kind, fits) in [
            ("file", "File", true),
            ("file", "Directory", false),
            ("file", "Socket", false),
            ("none", "Directory", false),
            ("none", "File", false),
            ("new/dir", "DirectoryOrCreate", true),
            ("new/dir", "Directory", true),
            ("new/file", "FileOrCreate", true),
            ("new/file", "File", true),
            ("file", "", true),
        ] {
            assert_eq!(at(name, kind).is_ok(), fits, "{name} {kind}");
        }
    }
}
