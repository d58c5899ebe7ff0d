//! A file or a tree as an archive.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::stat::{FileStat, Mode},
};
use tar::{Builder, EntryType, Header};

use super::root::{Sort, names, resolve, sort, stat, stat_at, target, within};

/// Folders within folders that are gone into.
const DEPTH: usize = 256;

/// Writes the archive of what is at `path` below `root`; in the archive it is called `top`.
///
/// # Errors
/// When something cannot be read, or the archive cannot be written. What goes away meanwhile is left out.
pub fn pack(root: &OwnedFd, path: &Path, top: &Path, out: impl Write) -> io::Result<()> {
    // Without waiting for who may write into a pipe.
    let opened = resolve(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(|error| at(path, error))?;
    let meta = stat(&opened)?;
    let mut builder = Builder::new(out);
    match sort(&meta) {
        Sort::Folder => folder(&mut builder, opened, &meta, top, DEPTH)?,
        Sort::File => file(&mut builder, opened, top)?,
        Sort::Link | Sort::Other => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: neither file nor folder", path.display()),
            ));
        }
    }
    builder.into_inner()?.flush()
}

fn folder(
    builder: &mut Builder<impl Write>,
    folder: OwnedFd,
    meta: &FileStat,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    let Some(deeper) = depth.checked_sub(1) else {
        return Err(io::Error::other(format!("{}: too many folders within each other", name.display())));
    };
    builder.append_data(&mut header(EntryType::Directory, meta, 0), name, io::empty())?;
    for inner in names(&folder).map_err(|error| at(name, error))? {
        let path = name.join(&inner);
        match one(builder, &folder, &inner, &path, deeper) {
            // It went away meanwhile, which is nobody's fault.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(|error| at(&path, error))?,
        }
    }
    Ok(())
}

fn one(
    builder: &mut Builder<impl Write>,
    parent: &OwnedFd,
    inner: &OsStr,
    path: &Path,
    depth: usize,
) -> io::Result<()> {
    let meta = stat_at(parent, inner)?;
    let open = |flags| within(parent, Path::new(inner), OFlag::O_RDONLY | flags, Mode::empty());
    match sort(&meta) {
        Sort::Folder => {
            let opened = open(OFlag::O_DIRECTORY)?;
            folder(builder, opened, &meta, path, depth)
        }
        Sort::File => file(builder, open(OFlag::O_NONBLOCK)?, path),
        Sort::Link => {
            let target: OsString = target(parent, inner)?;
            let mut header = header(EntryType::Symlink, &meta, 0);
            if target.len() > SHORT_LINK {
                return builder.append_link(&mut header, path, target);
            }
            // As it is: the library would make `a//b` into `a/b`.
            header.set_link_name_literal(target.as_bytes())?;
            builder.append_data(&mut header, path, io::empty())
        }
        Sort::Other => Ok(()),
    }
}

/// Bytes of a link's target that fit into an entry's header.
const SHORT_LINK: usize = 100;

fn file(builder: &mut Builder<impl Write>, opened: OwnedFd, path: &Path) -> io::Result<()> {
    let meta = stat(&opened)?;
    if sort(&meta) != Sort::File {
        // It was exchanged for something else just now.
        return Ok(());
    }
    let size = u64::try_from(meta.st_size).unwrap_or(0);
    // As many bytes as the header says, also if the file grows or shrinks meanwhile.
    let bytes = File::from(opened).chain(io::repeat(0)).take(size);
    builder.append_data(&mut header(EntryType::Regular, &meta, size), path, bytes)
}

fn header(kind: EntryType, meta: &FileStat, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(meta.st_mode & 0o7777);
    header.set_uid(meta.st_uid.into());
    header.set_gid(meta.st_gid.into());
    header.set_mtime(u64::try_from(meta.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

fn at(path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        // About the stream.
        io::ErrorKind::BrokenPipe => error,
        kind => io::Error::new(kind, format!("{}: {error}", path.display())),
    }
}
