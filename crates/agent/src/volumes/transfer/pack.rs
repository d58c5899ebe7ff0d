//! All files of a mounted volume as one archive.
//!
//! Files come in the order of their names, folders before what is in them, under one top folder. Links are told, never
//! followed; files with several names are sent once; holes stay holes. What is mounted within the volume, and sockets,
//! which mean nothing without their process, are left out.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use tar::{Builder, EntryType, Header};

use super::{MARK, OF_THE_FILE_SYSTEM, entry::Extra};

/// The archive's top folder: the volume's own.
pub const TOP: &str = "volume";

/// Bytes of a link's target that fit into an entry's header.
const SHORT_LINK: usize = 100;

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct There {
    /// Bytes of all files.
    pub bytes: i64,
    /// Number of files and folders.
    pub entries: i64,
}

/// Counts what [`pack`] will send.
pub fn survey(root: &Path) -> io::Result<There> {
    let mut there = There::default();
    walk(root, |found| {
        there.entries += 1;
        if found.meta.is_file() && found.same_as.is_none() {
            there.bytes += i64::try_from(found.meta.len()).unwrap_or(i64::MAX);
        }
        Ok(())
    })?;
    Ok(there)
}

/// Writes the archive.
pub fn pack(root: &Path, out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    builder.follow_symlinks(false);
    walk(root, |found| append(&mut builder, found))?;
    builder.into_inner()?.flush()
}

struct Found<'a> {
    path: &'a Path,
    /// In the archive.
    name: &'a Path,
    meta: &'a Metadata,
    /// The first name of a file with several.
    same_as: Option<&'a Path>,
}

fn walk(root: &Path, mut each: impl FnMut(Found<'_>) -> io::Result<()>) -> io::Result<()> {
    let device = fs::symlink_metadata(root)?.dev();
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![(root.to_owned(), PathBuf::from(TOP))];
    while let Some((path, name)) = todo.pop() {
        let meta = fs::symlink_metadata(&path).map_err(|error| at(&path, error))?;
        if meta.dev() != device || meta.file_type().is_socket() {
            tracing::warn!(path = %path.display(), "not copied: a socket, or not of the volume");
            continue;
        }
        let linked = !meta.is_dir() && meta.nlink() > 1;
        let same_as = first_names.get(&meta.ino()).filter(|_| linked);
        each(Found { path: &path, name: &name, meta: &meta, same_as: same_as.map(PathBuf::as_path) })
            .map_err(|error| at(&path, error))?;
        if linked && same_as.is_none() {
            first_names.insert(meta.ino(), name.clone());
        }
        if meta.is_dir() {
            let mut inner = list(&path, path == root).map_err(|error| at(&path, error))?;
            inner.sort();
            // The last is taken first.
            todo.extend(inner.into_iter().rev().map(|part| (path.join(&part), name.join(&part))));
        }
    }
    Ok(())
}

fn list(folder: &Path, is_root: bool) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let own = is_root && (name == MARK || (name == OF_THE_FILE_SYSTEM && is_empty(&entry.path())));
        if !own {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn at(path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        // Already said, or about the stream.
        io::ErrorKind::BrokenPipe => error,
        kind => io::Error::new(kind, format!("{}: {error}", path.display())),
    }
}

fn append(builder: &mut Builder<impl Write>, found: Found<'_>) -> io::Result<()> {
    let Found { path, name, meta, same_as } = found;
    let extra = Extra::of(path, meta)?;
    let records = extra.records();
    builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_slice())))?;
    if meta.is_file() && same_as.is_none() {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
        return builder.append_file(name, &mut file);
    }
    let mut header = Header::new_gnu();
    header.set_metadata(meta);
    header.set_size(0);
    let target = match same_as {
        Some(first) => {
            header.set_entry_type(EntryType::Link);
            first.to_owned()
        }
        None if meta.is_symlink() => fs::read_link(path)?,
        None => return builder.append_data(&mut header, name, io::empty()),
    };
    if target.as_os_str().len() > SHORT_LINK {
        return builder.append_link(&mut header, name, target);
    }
    // As it is: the library would make `a//b` into `a/b`.
    header.set_link_name_literal(target.as_os_str().as_bytes())?;
    builder.append_data(&mut header, name, io::empty())
}
