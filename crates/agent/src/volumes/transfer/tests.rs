use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
};

use super::*;

fn nothing(_: i64) -> io::Result<()> {
    Ok(())
}

fn unpacked(archive: &[u8]) -> (tempfile::TempDir, io::Result<unpack::Unpacked>) {
    let dir = tempfile::tempdir().unwrap();
    let done = unpack::unpack(dir.path(), archive, &mut nothing).and_then(|done| {
        unpack::verify(dir.path(), &done, &mut nothing)?;
        unpack::finish(dir.path(), &done)?;
        Ok(done)
    });
    (dir, done)
}

/// Everything about a tree that a program in a pod can see.
fn picture(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap();
        let content = if meta.is_file() {
            hex(&Sha256::digest(fs::read(&path).unwrap()))
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else {
            String::new()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let note = xattr::get(&path, "user.note").unwrap_or_default();
        all.push(format!(
            "{name:?} {:o} {}:{} {}.{} {} {links} {note:?} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
        ));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_nasty_tree_comes_out_as_it_went_in() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::write(at("plain"), "hello").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("with\nline feed and  blanks "), "x").unwrap();
    fs::write(source.path().join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), "y").unwrap();
    let deep = source.path().join("d".repeat(120)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(255)), "deep").unwrap();
    fs::hard_link(at("plain"), deep.join("again")).unwrap();
    symlink("/etc//passwd", at("absolute")).unwrap();
    symlink("../../outside\n", at("upwards")).unwrap();
    symlink("t".repeat(300), at("long")).unwrap();
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    nix::sys::uio::pwrite(&sparse, b"in the midst", 32 << 20).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    // Where the file system has none, there are none to lose.
    let with_attributes = xattr::set(at("plain"), "user.note", b"two\nlines=\0").is_ok();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(at("plain"), Some(70), Some(4_000_000)).unwrap();
        std::os::unix::fs::lchown(at("absolute"), Some(71), Some(72)).unwrap();
    }
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o2750)).unwrap();
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::new(1, 123_456_789));
    fs::File::open(&deep).unwrap().set_times(old).unwrap();

    let there = pack::survey(source.path()).unwrap();
    let mut archive = Vec::new();
    pack::pack(source.path(), &mut archive).unwrap();
    assert!(archive.len() < 1 << 20, "holes are not sent: {}", archive.len());
    let (target, done) = unpacked(&archive);
    let done = done.unwrap();
    assert_eq!((done.bytes, done.entries), (there.bytes, there.entries));
    fs::remove_file(at("socket")).unwrap();
    // Removing it changed the folder's time.
    let time = fs::metadata(target.path()).unwrap().modified().unwrap();
    fs::File::open(source.path()).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    assert_eq!(picture(source.path()), picture(target.path()));
    let copy = fs::metadata(target.path().join("sparse")).unwrap();
    assert!(copy.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", copy.blocks());
    if with_attributes {
        assert_eq!(xattr::get(target.path().join("plain"), "user.note").unwrap().unwrap(), b"two\nlines=\0");
    }
}

#[test]
fn an_archive_cannot_write_outside_of_the_volume() {
    let outside = tempfile::tempdir().unwrap();
    let header = |kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header
    };
    let mut through_a_link = tar::Builder::new(Vec::new());
    let mut link = header(tar::EntryType::Symlink);
    through_a_link.append_link(&mut link, "volume/way", outside.path()).unwrap();
    through_a_link.append_data(&mut header(tar::EntryType::Regular), "volume/way/out", io::empty()).unwrap();
    let mut upwards = tar::Builder::new(Vec::new());
    let mut up = header(tar::EntryType::Regular);
    let name = b"volume/../../out";
    up.as_old_mut().name[..name.len()].copy_from_slice(name);
    up.set_cksum();
    upwards.append(&up, io::empty()).unwrap();
    let mut elsewhere = tar::Builder::new(Vec::new());
    elsewhere.append_data(&mut header(tar::EntryType::Regular), "etc/passwd", io::empty()).unwrap();
    let mut over = tar::Builder::new(Vec::new());
    over.append_data(&mut header(tar::EntryType::Regular), "volume/a", io::empty()).unwrap();
    over.append_data(&mut header(tar::EntryType::Regular), "volume/a", io::empty()).unwrap();
    for archive in [through_a_link, upwards, elsewhere, over] {
        let (_dir, done) = unpacked(&archive.into_inner().unwrap());
        done.unwrap_err();
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn bytes_that_change_on_the_disk_are_found() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), "right").unwrap();
    let mut archive = Vec::new();
    pack::pack(source.path(), &mut archive).unwrap();
    let target = tempfile::tempdir().unwrap();
    let done = unpack::unpack(target.path(), archive.as_slice(), &mut nothing).unwrap();
    fs::write(target.path().join("a"), "wrong").unwrap();
    let error = unpack::verify(target.path(), &done, &mut nothing).unwrap_err().to_string();
    assert!(error.contains("other bytes"), "{error}");
}
