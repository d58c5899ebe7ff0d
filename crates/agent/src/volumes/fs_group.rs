//! Whose group the files of a pod's volumes belong to (`securityContext.fsGroup`).
//!
//! Once a volume is mounted and before a container sees it, all that is in it gets the pod's group, readable and writable
//! for it, and folders hand the group on to what is made in them. Must never: follow a link, or enter a mount within the
//! volume. What a volume holds may be written by others meanwhile (a volume of many pods): every step works on what was
//! opened, never on a path that is looked up twice.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat},
    unistd::{Gid, fchownat},
};
use pb::objects::{PersistentVolume, Pod};

/// Folders within folders; a deeper tree is an error, not half done in silence.
const DEPTH: usize = 512;

/// What the group may do with files.
const FILE: Mode = Mode::from_bits_truncate(0o660);
/// What the group may do with folders: enter them, and pass the group on.
const FOLDER: Mode = Mode::from_bits_truncate(0o2770);

/// The group that a pod wants its volumes to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsGroup {
    /// The group.
    pub gid: u32,
    /// Whether a volume whose root belongs to the group already is left as it is.
    on_root_mismatch: bool,
    /// Whether the agent changes the files, if the driver does not give the volume to the group by itself.
    pub by_agent: bool,
}

impl FsGroup {
    /// What the pod's spec says; None if it wants no group.
    pub fn of(pod: &Pod) -> Option<Self> {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        let gid = u32::try_from(context.fs_group?).ok()?;
        let on_root_mismatch = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        Some(Self { gid, on_root_mismatch, by_agent: true })
    }

    /// The same for a driver's volume: `policy` is its CSIDriver's fsGroupPolicy.
    pub fn under(self, policy: &str, volume: &PersistentVolume, read_only: bool) -> Self {
        let spec = volume.spec.clone().unwrap_or_default();
        let csi = spec.csi.unwrap_or_default();
        let once = |mode: &String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
        let by_agent = match policy {
            _ if read_only || csi.read_only => false,
            "None" => false,
            "File" => true,
            _ => !csi.fs_type.is_empty() && spec.access_modes.iter().any(once),
        };
        Self { by_agent, ..self }
    }

    /// Gives a mounted volume to the group. Idempotent; takes as long as the volume has files.
    pub fn give(self, root: &Path) -> io::Result<()> {
        let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let found = fstat(&root)?;
        if self.on_root_mismatch && self.holds(&found) {
            return Ok(());
        }
        // The root goes last: while it differs, a change that was interrupted is begun anew.
        self.give_within(root.as_fd(), found.st_dev, DEPTH)?;
        self.give_one(root.as_fd(), &found)
    }

    /// Gives a folder to the group; what is made in it belongs to the group by itself.
    pub fn give_root(self, root: &Path) -> io::Result<()> {
        let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.give_one(root.as_fd(), &fstat(&root)?)
    }

    fn holds(self, found: &FileStat) -> bool {
        found.st_gid == self.gid && mode_of(found).contains(FOLDER)
    }

    fn give_within(self, folder: BorrowedFd<'_>, device: u64, depth: usize) -> io::Result<()> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(io::Error::other(format!("more than {DEPTH} folders within each other")));
        };
        let listed = openat2(folder, ".", how(OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
        for entry in Dir::from_fd(listed)?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Some(inner) = open(folder, name)? else { continue };
            let found = fstat(&inner)?;
            if found.st_dev != device {
                continue;
            }
            if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
                self.give_within(inner.as_fd(), device, deeper)?;
            }
            self.give_one(inner.as_fd(), &found)?;
        }
        Ok(())
    }

    fn give_one(self, file: BorrowedFd<'_>, found: &FileStat) -> io::Result<()> {
        if found.st_gid != self.gid {
            fchownat(file, "", None, Some(Gid::from_raw(self.gid)), AtFlags::AT_EMPTY_PATH)?;
        }
        let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
        let wanted = match kind {
            SFlag::S_IFLNK => return Ok(()),
            SFlag::S_IFDIR => FOLDER,
            _ => FILE,
        };
        // Changing the owner of a file takes away its set-id bits, so its mode is written in that case too.
        if found.st_gid != self.gid || !mode_of(found).contains(wanted) {
            // The descriptor was opened without access (O_PATH): its mode is changed by its name in /proc.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), mode_of(found) | wanted, FchmodatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

fn mode_of(found: &FileStat) -> Mode {
    Mode::from_bits_truncate(found.st_mode)
}

fn how(flags: OFlag) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve)
}

/// The file itself, whatever it is; None if it went away.
fn open(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<Option<OwnedFd>> {
    let name = std::ffi::OsStr::from_bytes(name.to_bytes());
    crate::beneath::present(openat2(folder, name, how(OFlag::O_PATH)).map_err(io::Error::from))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use pb::objects::{CsiPersistentVolumeSource, PersistentVolumeSpec, PodSecurityContext, PodSpec};

    use super::*;

    fn group(policy: Option<&str>) -> FsGroup {
        let context = PodSecurityContext {
            fs_group: Some(4711),
            fs_group_change_policy: policy.map(str::to_owned),
            ..Default::default()
        };
        let spec = PodSpec { security_context: Some(context), ..Default::default() };
        FsGroup::of(&Pod { spec: Some(spec), ..Default::default() }).unwrap()
    }

    fn seen(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.gid(), found.permissions().mode() & 0o7777)
    }

    #[test]
    fn everything_belongs_to_the_group_and_no_link_is_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let precious = outside.path().join("precious");
        fs::write(&precious, "x").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::set_permissions(root.join("a/b/file"), fs::Permissions::from_mode(0o604)).unwrap();
        symlink(&precious, root.join("a/link")).unwrap();
        symlink(outside.path(), root.join("a/folder")).unwrap();

        group(None).give(root).unwrap();
        assert_eq!(seen(&root.join("a/b/file")), (4711, 0o664));
        assert_eq!(seen(&root.join("a/b")), (4711, 0o2770));
        assert_eq!(seen(root).0, 4711);
        assert_eq!(seen(&root.join("a/link")).0, 4711, "the link itself");
        assert_eq!(seen(&precious), (0, 0o600), "what it leads to");
    }

    #[test]
    fn a_root_that_fits_saves_the_rest_if_the_pod_wants_that() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        group(Some("OnRootMismatch")).give(root).unwrap();
        let file = root.join("file");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        group(Some("OnRootMismatch")).give(root).unwrap();
        assert_eq!(seen(&file).1, 0o600);
        group(Some("Always")).give(root).unwrap();
        assert_eq!(seen(&file).1, 0o660);
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        group(Some("OnRootMismatch")).give(root).unwrap();
        assert_eq!((seen(&file).1, seen(root).1), (0o660, 0o2775));
    }

    #[test]
    fn a_drivers_policy_says_whether_it_is_the_agents_task() {
        let volume = |fs_type: &str, mode: &str| PersistentVolume {
            spec: Some(PersistentVolumeSpec {
                csi: Some(CsiPersistentVolumeSource { fs_type: fs_type.into(), ..Default::default() }),
                access_modes: vec![mode.into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        for (policy, fs_type, mode, read_only, applies) in [
            ("File", "", "ReadWriteMany", false, true),
            ("File", "", "ReadWriteMany", true, false),
            ("None", "ext4", "ReadWriteOnce", false, false),
            ("", "ext4", "ReadWriteOnce", false, true),
            ("", "ext4", "ReadWriteOncePod", false, true),
            ("ReadWriteOnceWithFSType", "", "ReadWriteOnce", false, false),
            ("ReadWriteOnceWithFSType", "ext4", "ReadWriteMany", false, false),
        ] {
            let group = group(None).under(policy, &volume(fs_type, mode), read_only);
            assert_eq!(group.by_agent, applies, "{policy} {fs_type} {mode}");
        }
    }
}
