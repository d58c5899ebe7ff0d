//! The FIFOs through which containerd hands on what a command reads and writes.
//!
//! Each command has a folder of its own below `exec` in the data folder, which only the agent may enter, named after its
//! container and itself: an agent that finds one at its start knows what an earlier one left. The folder goes away with
//! the value, however that ends.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use tokio::net::unix::pipe::{self, Receiver, Sender};

use crate::containerd::{Ends, Process};

/// Between the parts of a folder's name; ids have none.
const DOT: char = '.';

/// Folder of all commands, below the data folder.
pub fn home(data_dir: &Path) -> PathBuf {
    data_dir.join("exec")
}

/// What the folders that are there belong to. Others are removed.
pub fn left(home: &Path) -> io::Result<Vec<(Process, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((container, id)) = name.split_once(DOT) {
            found.push((Process { container: container.to_owned(), id: id.to_owned() }, entry.path()));
        }
    }
    Ok(found)
}

/// One command's FIFOs.
#[derive(Debug)]
pub struct Fifos {
    folder: PathBuf,
    stdin: bool,
    stderr: bool,
}

impl Fifos {
    /// Makes them.
    pub fn make(home: &Path, process: &Process, stdin: bool, stderr: bool) -> io::Result<Self> {
        fs::create_dir_all(home)?;
        let folder = home.join(format!("{}{DOT}{}", process.container, process.id));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let fifos = Self { folder, stdin, stderr };
        for (wanted, name) in [(stdin, "stdin"), (true, "stdout"), (stderr, "stderr")] {
            if wanted {
                mkfifo(&fifos.folder.join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
            }
        }
        Ok(fifos)
    }

    /// Their paths.
    pub fn ends(&self) -> Ends {
        let path = |wanted: bool, name| {
            if wanted { self.folder.join(name).display().to_string() } else { String::new() }
        };
        Ends { stdin: path(self.stdin, "stdin"), stdout: path(true, "stdout"), stderr: path(self.stderr, "stderr") }
    }

    /// Opens what the command writes to. Before it starts: containerd waits until somebody reads. They are read only
    /// after it has started: until somebody writes, they look ended.
    pub fn outputs(&self) -> io::Result<(Receiver, Option<Receiver>)> {
        let open = |name| pipe::OpenOptions::new().open_receiver(self.folder.join(name));
        Ok((open("stdout")?, self.stderr.then(|| open("stderr")).transpose()?))
    }

    /// Opens what the command reads from; waits until it is read, which an end of input must not overtake. Dropping the
    /// FIFOs ends the wait.
    pub async fn input(&self) -> io::Result<Option<Sender>> {
        if !self.stdin {
            return Ok(None);
        }
        let path = self.folder.join("stdin");
        let opening = move || fs::OpenOptions::new().write(true).open(path);
        let file = tokio::task::spawn_blocking(opening).await.map_err(io::Error::other)??;
        Sender::from_file(file).map(Some)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        // Who still waits for somebody to read goes on now, and finds nobody.
        if self.stdin {
            let mut passing = fs::OpenOptions::new();
            passing.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
            drop(passing.open(self.folder.join("stdin")));
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the FIFOs of a command are left until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_wait_for_a_reader_ends_with_the_fifos_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let process = Process { container: "c0ffee".into(), id: "exec-1".into() };
        let fifos = Fifos::make(&home, &process, true, false).unwrap();
        assert!(fifos.ends().stderr.is_empty());
        let mode =
            |name: &str| fs::metadata(home.join("c0ffee.exec-1").join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("stdin"), mode("stdout")), (0o700, 0o600, 0o600));
        assert_eq!(left(&home).unwrap().iter().map(|(one, _)| one).collect::<Vec<_>>(), [&process]);
        let limit = Duration::from_millis(100);
        assert!(tokio::time::timeout(limit, fifos.input()).await.is_err(), "nobody reads");
        drop(fifos);
        assert!(left(&home).unwrap().is_empty());
        // The runtime of this test ends only when no thread waits any more.
    }
}
