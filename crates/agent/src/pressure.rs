//! Watches what a node can run short of: memory, room on its disks, processes.
//!
//! What follows from it is decided by `plan::node::pressure`. The kernel tells nobody that a disk fills up, so this looks
//! again and again; what has not turned is told to nobody.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::{Statvfs, statvfs};
use plan::node::pressure::{Level, Pressures, Signal, Threshold};
use tokio::sync::watch;

use crate::{config::Config, cri::Cri};

/// Between two looks: as often as the kubelet.
const PERIOD: Duration = Duration::from_secs(10);

/// How long a file system may take to answer: one whose server is away never does.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks at a node.
pub struct Watcher {
    cri: Cri,
    data_dir: PathBuf,
    thresholds: Vec<Threshold>,
    rest: SignedDuration,
}

impl Watcher {
    /// Nothing looked at yet.
    pub fn new(config: &Config, cri: Cri) -> Self {
        Self {
            cri,
            data_dir: config.data_dir.clone(),
            thresholds: config.pressure.clone(),
            rest: SignedDuration::from_secs(config.pressure_rest.into()),
        }
    }

    /// What follows from one look.
    pub async fn look(&self, before: Pressures) -> Pressures {
        before.look(Timestamp::now(), &self.levels().await, &self.thresholds, self.rest)
    }

    /// Looks for as long as somebody listens.
    pub async fn run(self, told: watch::Sender<Pressures>) {
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = told.borrow().clone();
        while !told.is_closed() {
            looks.tick().await;
            seen = self.look(seen).await;
            told.send_if_modified(|before| {
                let turned = !before.conditions().eq(seen.conditions());
                if turned {
                    before.clone_from(&seen);
                }
                turned
            });
        }
    }

    async fn levels(&self) -> BTreeMap<Signal, Level> {
        let mut levels = BTreeMap::new();
        levels.extend(read("/proc/meminfo").as_deref().and_then(memory).map(|level| (Signal::Memory, level)));
        levels.extend(processes().map(|level| (Signal::Processes, level)));
        if let Some(disk) = disk(&self.data_dir).await {
            levels.insert(Signal::NodeDisk, room(&disk));
            // File systems without a table of inodes say 0 of 0.
            if disk.files() > 0 {
                let inodes = Level { available: disk.files_available(), total: disk.files() };
                levels.insert(Signal::NodeInodes, inodes);
            }
        }
        match self.cri.image_folder().await {
            Ok(Some(folder)) => {
                levels.extend(disk(&folder).await.map(|disk| (Signal::ImageDisk, room(&disk))));
            }
            Ok(None) => {}
            Err(status) => tracing::debug!(%status, "cannot ask where the images are"),
        }
        levels
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).inspect_err(|error| tracing::warn!(path, %error, "cannot look at the node")).ok()
}

async fn disk(path: &Path) -> Option<Statvfs> {
    let of = path.to_owned();
    let look = tokio::task::spawn_blocking(move || statvfs(&of));
    let problem = match tokio::time::timeout(ANSWER, look).await {
        Ok(Ok(Ok(disk))) => return Some(disk),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {ANSWER:?}"),
    };
    tracing::warn!(path = %path.display(), problem, "cannot look at the file system");
    None
}

fn room(disk: &Statvfs) -> Level {
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    Level { available: bytes(disk.blocks_available()), total: bytes(disk.blocks()) }
}

/// Bytes, from /proc/meminfo.
fn memory(meminfo: &str) -> Option<Level> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Level { available: bytes("MemAvailable")?, total: bytes("MemTotal")? })
}

/// The kernel's bounds are on threads, whether they are processes of their own or not.
fn processes() -> Option<Level> {
    let most = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let total = most("/proc/sys/kernel/pid_max")?.min(most("/proc/sys/kernel/threads-max")?);
    let now = threads(&read("/proc/loadavg")?)?;
    Some(Level { available: total.saturating_sub(now), total })
}

/// The second half of the fourth word of /proc/loadavg.
fn threads(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_files() {
        let meminfo = "MemTotal:       100 kB\nMemFree:  1 kB\nMemAvailable:   60 kB\n";
        assert_eq!(memory(meminfo), Some(Level { available: 60 << 10, total: 100 << 10 }));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
        assert_eq!(threads("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert!(processes().is_some_and(|level| level.available > 0 && level.available < level.total));
    }
}
