//! Turns: who may work on a volume or snapshot now, among all processes that share a data directory.
//!
//! A turn is a lock on a file, so that it ends with its process and is seen by drivers on other nodes. Nobody waits for
//! a turn: a call that comes in between is told to come again (I4).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::error::{Error, Result, io_error};

/// How often the lock's file may be removed by its last holder while we take it.
const TRIES: usize = 16;

/// The right to work on something. Ends when dropped.
#[derive(Debug)]
pub struct Turn {
    lock: Flock<File>,
    path: PathBuf,
}

impl Turn {
    /// Alone.
    pub fn take(path: PathBuf, what: &str) -> Result<Self> {
        Self::lock(path, what, FlockArg::LockExclusiveNonblock)
    }

    /// Together with others who only read.
    pub fn share(path: PathBuf, what: &str) -> Result<Self> {
        Self::lock(path, what, FlockArg::LockSharedNonblock)
    }

    fn lock(path: PathBuf, what: &str, how: FlockArg) -> Result<Self> {
        for _ in 0..TRIES {
            let file = File::options().create(true).truncate(false).write(true).read(true).open(&path);
            let file = file.map_err(io_error("open the lock", &path))?;
            match Flock::lock(file, how) {
                Ok(lock) if still_there(&lock, &path).map_err(io_error("look at", &path))? => {
                    return Ok(Self { lock, path });
                }
                // Its last holder took the file away while we came.
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Busy(what.to_owned())),
                Err((_, error)) => return Err(io_error("lock", &path)(error)),
            }
        }
        Err(Error::Busy(what.to_owned()))
    }
}

fn still_there(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The file goes with its last holder; who came in between sees that and takes a new one.
        if self.lock.relock(FlockArg::LockExclusiveNonblock).is_ok()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "the lock's file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_a_turn_and_a_writer_has_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = || dir.path().join("a");
        let (one, two) = (Turn::share(at(), "a").unwrap(), Turn::share(at(), "a").unwrap());
        assert!(matches!(Turn::take(at(), "a"), Err(Error::Busy(_))));
        drop(one);
        assert!(matches!(Turn::take(at(), "a"), Err(Error::Busy(_))), "one reader is left");
        drop(two);
        let alone = Turn::take(at(), "a").unwrap();
        assert!(matches!(Turn::share(at(), "a"), Err(Error::Busy(_))));
        drop(alone);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
