//! What is mounted on the node.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The mount points that the agent sees.
pub fn points() -> io::Result<Vec<PathBuf>> {
    Ok(runtime::mounts::table()?.into_iter().map(|mount| mount.point).collect())
}

/// Whether something is mounted at exactly this path.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let path = path.canonicalize()?;
    Ok(points()?.contains(&path))
}

/// The mount points at or below a path.
pub fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(points()?.into_iter().filter(|point| point.starts_with(&path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_told_from_a_directory() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self/fd")).unwrap());
    }
}
