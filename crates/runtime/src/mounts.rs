//! What is mounted: the kernel's own word, from `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's device, as `major:minor`.
    pub device: String,
    /// The directory of the file system that the mount shows.
    pub root: PathBuf,
    /// Where it shows it.
    pub point: PathBuf,
}

/// All mounts that this process sees, older ones first where several lie upon one point.
pub fn table() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// A mount that shows this very directory at another place: its contents are in use there. None if there is no such
/// directory.
pub fn shown_elsewhere(directory: &Path) -> io::Result<Option<PathBuf>> {
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(find_elsewhere(&table()?, &directory))
}

fn find_elsewhere(table: &[Mount], directory: &Path) -> Option<PathBuf> {
    // The last of the deepest mounts above the directory is the one that it is seen through.
    let above = table.iter().filter(|mount| directory.starts_with(&mount.point));
    let home = above.max_by_key(|mount| mount.point.components().count())?;
    let root = home.root.join(directory.strip_prefix(&home.point).ok()?);
    let same = |mount: &&Mount| mount.device == home.device && mount.root == root && mount.point != directory;
    table.iter().find(same).map(|mount| mount.point.clone())
}

/// The third to fifth field of each line; blanks and such are written as `\040`.
fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let mounts = lines.filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Mount { device, root: path(fields.next()?), point: path(fields.next()?) })
    });
    mounts.collect()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw - ext4 /dev/vda rw
36 22 0:32 / /tmp/a\\040b\\134c rw - tmpfs x rw
40 22 254:0 /data/volumes/one /pods/x rw - ext4 /dev/vda rw
41 22 254:0 /elsewhere/data/volumes/two /pods/y rw - ext4 /dev/vda rw
";

    #[test]
    fn reads_the_kernels_table() {
        let points: Vec<_> = parse(TABLE).into_iter().map(|mount| mount.point).collect();
        assert_eq!(points[..2], [PathBuf::from("/"), PathBuf::from("/tmp/a b\\c")]);
    }

    #[test]
    fn a_directory_is_told_from_others_whose_path_ends_alike() {
        let table = parse(TABLE);
        let at = |directory: &str| find_elsewhere(&table, Path::new(directory));
        assert_eq!(at("/data/volumes/one"), Some(PathBuf::from("/pods/x")));
        assert_eq!(at("/data/volumes/two"), None);
        assert_eq!(at("/tmp/a b\\c"), None, "a mount point does not show itself elsewhere");
    }
}
