//! Removes what nobody needs any more: images when the disk is full, and logs of pods that are gone.
//!
//! Containers and sandboxes are the workers' (`plan::node`). Which images go is decided by `plan::node::images`; when
//! they were used is remembered here and begins anew with the agent, which only makes it keep more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;
use plan::node::images::{self, Bounds, Disk, Image};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{cri::Cri, pods::Pods};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(300);

/// Images stay at least this long.
pub const MIN_AGE: SignedDuration = SignedDuration::from_mins(2);

/// A log folder that was touched so recently may belong to a pod that is just coming.
const LOG_AGE: Duration = Duration::from_secs(300);

/// The collector.
pub struct Collector {
    /// The container runtime.
    pub cri: Cri,
    /// The pods of the node.
    pub pods: Arc<Pods>,
    /// The agent's folder.
    pub data_dir: PathBuf,
    /// When images go.
    pub bounds: Bounds,
}

impl Collector {
    /// Collects until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen = Seen::default();
        let mut looks = tokio::time::interval(PERIOD);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(looks.tick()).await.is_some() {
            if let Err(status) = self.images(&mut seen).await {
                tracing::warn!(%status, "cannot look at the images; trying again");
            }
            if let Err(error) = self.logs() {
                tracing::warn!(%error, "cannot remove the logs of pods that are gone; trying again");
            }
        }
    }

    async fn images(&self, seen: &mut Seen) -> Result<(), Status> {
        let now = Timestamp::now();
        let (all, used) = (self.cri.images().await?, self.cri.used_images().await?);
        let pause = self.cri.sandbox_image().await?;
        let images: Vec<_> = all
            .into_iter()
            .map(|image| {
                let named = |name: &String| used.contains(name);
                let in_use = named(&image.id) || image.repo_tags.iter().chain(&image.repo_digests).any(named);
                let is_pause = pause.is_empty() || image.repo_tags.contains(&pause) || image.id == pause;
                // What no registry vouches for was imported by hand, and nobody could pull it again.
                let kept = image.pinned || is_pause || image.repo_digests.is_empty();
                let (first_seen, last_used) = seen.look(&image.id, in_use, now);
                Image { id: image.id, size: image.size, in_use, kept, first_seen, last_used }
            })
            .collect();
        seen.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        let Some(disk) = self.disk().await? else { return Ok(()) };
        for image in images::expendable(&images, disk, self.bounds, now) {
            tracing::info!(
                image = image.id,
                bytes = image.size,
                "the disk is full: removing an image that is not used"
            );
            self.cri.remove_image(&image.id).await?;
        }
        Ok(())
    }

    /// None if it cannot be told.
    async fn disk(&self) -> Result<Option<Disk>, Status> {
        let Some(folder) = self.cri.image_folder().await? else { return Ok(None) };
        let Ok(stat) = statvfs(&folder) else { return Ok(None) };
        let block = stat.fragment_size();
        Ok(Some(Disk { capacity: stat.blocks() * block, available: stat.blocks_available() * block }))
    }

    /// Removes folders of logs whose pods nobody knows: neither the API service nor the runtime, of which every pod has a
    /// worker.
    fn logs(&self) -> io::Result<()> {
        let entries = match fs::read_dir(self.data_dir.join("logs")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((_, uid)) = name.rsplit_once('_') else { continue };
            let old = |at: SystemTime| at.elapsed().is_ok_and(|age| age > LOG_AGE);
            if !self.pods.knows(uid) && entry.metadata()?.modified().is_ok_and(old) {
                tracing::info!(folder = name, "removing the logs of a pod that is gone");
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// When images were first seen and last used, by id.
#[derive(Default)]
struct Seen(BTreeMap<String, (Timestamp, Timestamp)>);

impl Seen {
    fn look(&mut self, id: &str, in_use: bool, now: Timestamp) -> (Timestamp, Timestamp) {
        let entry = self.0.entry(id.to_owned()).or_insert((now, now));
        if in_use {
            entry.1 = now;
        }
        *entry
    }
}

/// Names and ids of images.
pub type Used = BTreeSet<String>;
