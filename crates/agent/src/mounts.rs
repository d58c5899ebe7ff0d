//! What is mounted on the node: the kernel's own word.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use runtime::mounts::Mount;

/// How long a file system may take to answer whether it is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// What a mount shows: tells a mount of one thing from a mount of another at the same path.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shown {
    /// The file system's device, as `major:minor`.
    pub device: String,
    /// The directory of that file system.
    pub root: PathBuf,
}

/// What is mounted at exactly this path; None if nothing is. Links in the path are not followed.
pub fn shown_at(path: &Path) -> io::Result<Option<Shown>> {
    // The last one lies on top.
    let top = runtime::mounts::table()?.into_iter().rfind(|mount| mount.point == path);
    Ok(top.map(|Mount { device, root, .. }| Shown { device, root }))
}

/// The mount points at or below a path.
pub fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let points = runtime::mounts::table()?.into_iter().map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(path)).collect())
}

/// Whether a mounted file system still answers: the server of a network file system or of FUSE may be gone while its
/// mount is there.
pub async fn is_alive(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    let look = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path).map(drop));
    match tokio::time::timeout(ALIVE, look).await {
        Ok(Ok(answer)) => answer.map_err(io::Error::from),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the file system did not answer in {ALIVE:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_from_a_directory() {
        let proc = shown_at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.root, Path::new("/"));
        assert_eq!(shown_at(Path::new("/proc/self/fd")).unwrap(), None);
    }
}
