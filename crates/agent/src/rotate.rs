//! Keeps the logs of containers within bounds.
//!
//! A log that has become too large is set aside as `<attempt>.log.<time>`, and the container runtime goes on in a new
//! `<attempt>.log`; [`crate::logs::files`] lists them all. Looked at from time to time: a log says nothing when it grows.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::cri::Cri;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);

/// How much is kept of the log of one run.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of one file.
    pub size: u64,
    /// Files, the one that is written included; at least 2.
    pub files: usize,
}

/// Rotates until `shutdown`.
pub async fn run(cri: Cri, bounds: Bounds, shutdown: CancellationToken) {
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(looks.tick()).await.is_some() {
        let logs = match cri.running_logs().await {
            Ok(logs) => logs,
            Err(status) => {
                tracing::debug!(%status, "cannot look at the logs; trying again");
                continue;
            }
        };
        for (id, log) in logs {
            if let Err(error) = look_at(&cri, &id, &log, bounds).await {
                tracing::warn!(log = %log.display(), %error, "cannot rotate the log; trying again");
            }
        }
    }
}

async fn look_at(cri: &Cri, id: &str, log: &Path, bounds: Bounds) -> io::Result<()> {
    let size = match fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        // Set aside by an agent that ended before the runtime was told.
        Err(error) if error.kind() == io::ErrorKind::NotFound => u64::MAX,
        Err(error) => return Err(error),
    };
    if size < bounds.size {
        return Ok(());
    }
    let aside = set_aside(log, Timestamp::now())?;
    if let Err(status) = cri.reopen_log(id).await {
        if let Some(aside) = aside {
            // The runtime still writes to it: under its own name it is found.
            fs::rename(aside, log)?;
        }
        return Err(io::Error::other(status.message().to_owned()));
    }
    let old = older(log)?;
    let too_many = old.len().saturating_sub(bounds.files.max(2) - 1);
    old.iter().take(too_many).try_for_each(fs::remove_file)
}

/// None if there is nothing to set aside.
fn set_aside(log: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let aside = PathBuf::from(format!("{}.{}", log.display(), now.strftime("%Y%m%d-%H%M%S.%6f")));
    match fs::rename(log, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was set aside of a log, oldest first.
fn older(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a log with all that was set aside of it. Idempotent.
pub fn remove(log: &Path) -> io::Result<()> {
    for file in older(log)?.iter().map(PathBuf::as_path).chain([log]) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_found_oldest_first_and_goes_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("1.log");
        let other = folder.path().join("11.log");
        fs::write(&other, "x").unwrap();
        for second in [5, 3] {
            fs::write(&log, second.to_string()).unwrap();
            set_aside(&log, Timestamp::from_second(second).unwrap()).unwrap();
        }
        let kept: Vec<_> = older(&log).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(kept, ["3", "5"]);
        assert_eq!(set_aside(&log, Timestamp::UNIX_EPOCH).unwrap(), None, "there is none now");
        remove(&log).unwrap();
        assert!(older(&log).unwrap().is_empty() && other.exists());
    }
}
