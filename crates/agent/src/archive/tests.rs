use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use std::{ffi::OsString, io, os::fd::OwnedFd};

use super::{
    pack, root,
    unpack::{How, Owner, Written, unpack},
};

fn how() -> How {
    let own = fs::metadata("/proc/self").unwrap();
    How { owner: Some(Owner { uid: own.uid(), gid: own.gid() }), top: None }
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn packed(root: &Path, path: &str) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    let path = root::absolute(path)?;
    let top = path.file_name().map_or(Path::new("root"), Path::new);
    pack::pack(&open(root), &path, top, &mut archive)?;
    Ok(archive)
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("srv/data/empty")).unwrap();
    fs::write(at("srv/data/plain"), "plain").unwrap();
    fs::write(at("srv/data/run"), "#!").unwrap();
    fs::set_permissions(at("srv/data/run"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc//passwd", at("srv/data/link")).unwrap();
    nix::unistd::mkfifo(&at("srv/data/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A link on the way leads where it leads in the container.
    symlink("/srv", at("short")).unwrap();
    let archive = packed(root.path(), "/short/data").unwrap();
    let target = tempfile::tempdir().unwrap();
    let written = unpack(&open(target.path()), &how(), archive.as_slice(), |_| ()).unwrap();
    assert_eq!(written, Written { entries: 5, bytes: 7 });
    let at = |name: &str| target.path().join("data").join(name);
    assert_eq!(fs::read_to_string(at("plain")).unwrap(), "plain");
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc//passwd"));
    assert!(at("empty").is_dir() && !at("pipe").exists());
    assert_eq!(fs::metadata(at("run")).unwrap().permissions().mode() & 0o7777, 0o755, "no bits that give rights");
    let renamed = How { owner: None, top: Some(OsString::from("other")) };
    unpack(&open(target.path()), &renamed, archive.as_slice(), |_| ()).unwrap();
    assert_eq!(fs::read_to_string(target.path().join("other/plain")).unwrap(), "plain");
    // Once more, over what is there.
    unpack(&open(target.path()), &how(), archive.as_slice(), |_| ()).unwrap();
}

#[test]
fn nothing_outside_of_the_container_is_read() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = tempfile::tempdir().unwrap();
    symlink(outside.path(), root.path().join("out")).unwrap();
    symlink("../../../../../../../../..", root.path().join("up")).unwrap();
    let secret = outside.path().join("secret");
    for path in ["/out/secret", &format!("/up{}", secret.display())] {
        assert_eq!(packed(root.path(), path).unwrap_err().kind(), io::ErrorKind::NotFound, "{path}");
    }
    for path in ["relative", "/a/../b", ""] {
        assert_eq!(packed(root.path(), path).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
    }
    // As its own processes see it, a link to the root is the container's root.
    assert!(!packed(root.path(), "/up").unwrap().windows(6).any(|bytes| bytes == b"secret"));
}

#[test]
fn links_of_the_kernel_do_not_lead_out() {
    // Through /proc, which a container has, a magic link would lead to this process' own root.
    let error = packed(Path::new("/"), "/proc/self/root/etc/hostname").unwrap_err();
    assert!(error.to_string().contains("symbolic links"), "{error}");
}

#[test]
fn an_archive_writes_only_below_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let header = |kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header
    };
    let mut through = tar::Builder::new(Vec::new());
    through.append_link(&mut header(tar::EntryType::Symlink), "way", outside.path()).unwrap();
    through.append_data(&mut header(tar::EntryType::Regular), "way/out", io::empty()).unwrap();
    let mut upwards = tar::Builder::new(Vec::new());
    let mut up = header(tar::EntryType::Regular);
    let name = b"a/../../out";
    up.as_old_mut().name[..name.len()].copy_from_slice(name);
    up.set_cksum();
    upwards.append(&up, io::empty()).unwrap();
    for archive in [through, upwards] {
        let target = tempfile::tempdir().unwrap();
        let archive = archive.into_inner().unwrap();
        unpack(&open(target.path()), &how(), archive.as_slice(), |_| ()).unwrap_err();
    }
    // A link that is there already is replaced, not followed.
    let target = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    symlink(outside.path().join("kept"), target.path().join("file")).unwrap();
    let mut over = tar::Builder::new(Vec::new());
    over.append_data(&mut header(tar::EntryType::Regular), "file", io::empty()).unwrap();
    let archive = over.into_inner().unwrap();
    unpack(&open(target.path()), &how(), archive.as_slice(), |_| ()).unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "kept");
    assert!(fs::symlink_metadata(target.path().join("file")).unwrap().is_file());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}
