//! What a container wrote, from its log files, and on as it writes.
//!
//! A log goes over several files when it grows: they are read in their order, and a reader that follows goes from one to
//! the next when the run writes into the next. It ends when the run has ended and all is read.

use std::{
    fs::Metadata,
    io::SeekFrom,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use pb::{
    agent::v1::{LogsResponse, PodRef},
    api::v1::{self as api, LogsRequest},
};
use plan::node::Container;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::mpsc,
};
use tonic::Status;

use crate::{
    logs::{Decoder, files, tail_start},
    worker::Shared,
};

/// Bytes of log read at a time.
const PIECE: usize = 32 * 1024;

/// Pieces that may wait for a slow reader.
const AHEAD: usize = 8;

/// How often a followed container is looked at when its log says nothing.
const STILL_RUNNING: Duration = Duration::from_secs(1);

/// How long nobody may read.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a reader gets.
pub type Pieces = mpsc::Receiver<Result<LogsResponse, Status>>;

/// One log being read.
pub struct Reading {
    shared: Arc<Shared>,
    pod: PodRef,
    run: Container,
    path: PathBuf,
    wanted: LogsRequest,
    sender: mpsc::Sender<Result<LogsResponse, Status>>,
    left: Option<u64>,
}

/// Where a reader is.
struct Place {
    file: File,
    inode: u64,
}

impl Reading {
    /// Of one run of a container, whose newest log file is at `path`.
    pub fn new(
        shared: Arc<Shared>,
        pod: PodRef,
        run: Container,
        path: PathBuf,
        wanted: LogsRequest,
    ) -> Result<(Self, Pieces), Status> {
        let left = wanted.limit_bytes.map(u64::try_from).transpose();
        let left = left.map_err(|_| Status::invalid_argument("limit_bytes: must be greater than 0"))?;
        let (sender, pieces) = mpsc::channel(AHEAD);
        Ok((Self { shared, pod, run, path, wanted, sender, left }, pieces))
    }

    /// Sends all that is wanted.
    pub async fn stream(mut self) {
        let sender = self.sender.clone();
        let read = tokio::select! {
            read = self.send_all() => read,
            () = sender.closed() => return,
        };
        if let Err(error) = read {
            let message = format!("cannot read the log of container {}: {error}", self.run.name);
            // The reader may be gone; then nobody wants the error either.
            drop(self.sender.send_timeout(Err(Status::unavailable(message)), PATIENCE).await);
        }
    }

    fn since(&self) -> Option<Timestamp> {
        let time = self.wanted.since_time.as_ref().map(|time| time.timestamp());
        let ago = self
            .wanted
            .since_seconds
            .and_then(|seconds| Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok());
        time.or(ago)
    }

    async fn send_all(&mut self) -> std::io::Result<()> {
        let since = self.since();
        // Before the files are looked at: no change after that is missed.
        let mut changes = self.wanted.follow.then(|| Changes::of(&self.path)).transpose()?;
        let mut decoder = Decoder::new(self.wanted.timestamps, since);
        let mut place = self.begin(since).await?;
        loop {
            // Asked before reading: what was written until then is read below.
            let ended = changes.is_none() || self.has_ended().await;
            loop {
                if !self.read_on(&mut place.file, &mut decoder).await? {
                    return Ok(());
                }
                let Some(next) = self.next(place.inode, ended).await? else { break };
                // The run has begun to write there, so nothing more comes here; what came just before is read.
                if !self.read_on(&mut place.file, &mut decoder).await? {
                    return Ok(());
                }
                place = next;
            }
            match &mut changes {
                Some(changes) if !ended => {
                    tokio::select! {
                        changed = changes.next() => changed?,
                        () = tokio::time::sleep(STILL_RUNNING) => {}
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// The place where reading begins: at the last lines, if only those are wanted.
    async fn begin(&self, since: Option<Timestamp>) -> std::io::Result<Place> {
        let (path, tail) = (self.path.clone(), self.wanted.tail_lines.and_then(|lines| u64::try_from(lines).ok()));
        let find = move || {
            let mut files = files(&path)?;
            let Some(mut newest) = files.pop() else { return Err(std::io::Error::from(std::io::ErrorKind::NotFound)) };
            let mut at = 0;
            let mut missing = tail.unwrap_or(u64::MAX);
            if tail.is_some() {
                let (start, found) = tail_start(&mut std::fs::File::open(&newest)?, missing)?;
                (at, missing) = (start, missing.saturating_sub(found));
            }
            let older_is_wanted = |path: &Path| match (since, std::fs::metadata(path).and_then(|m| m.modified())) {
                (Some(since), Ok(written)) => Timestamp::try_from(written).map_or(true, |written| written >= since),
                _ => true,
            };
            while missing > 0
                && let Some(older) = files.pop().filter(|older| older_is_wanted(older))
            {
                at = 0;
                if tail.is_some() {
                    let (start, found) = tail_start(&mut std::fs::File::open(&older)?, missing)?;
                    (at, missing) = (start, missing.saturating_sub(found));
                }
                newest = older;
            }
            Ok((newest, at))
        };
        let (path, at) = tokio::task::spawn_blocking(find).await.map_err(std::io::Error::other)??;
        let mut place = open(&path).await?;
        place.file.seek(SeekFrom::Start(at)).await?;
        Ok(place)
    }

    /// The file after the one that is read, if the run has written into it.
    async fn next(&self, inode: u64, ended: bool) -> std::io::Result<Option<Place>> {
        let path = self.path.clone();
        let find = move || {
            let files = match files(&path) {
                // The pod is gone with its folder.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                files => files?,
            };
            let mut known = Vec::new();
            for file in files {
                let meta = std::fs::metadata(&file);
                known.extend(meta.ok().map(|meta: Metadata| (meta.ino(), meta.len(), file)));
            }
            // A file that was removed is followed by the oldest that is left.
            let at = known.iter().position(|(other, ..)| *other == inode).map_or(0, |at| at + 1);
            let last = known.len();
            let next = known.into_iter().nth(at);
            // An empty one, unless there is a later one, may be there before the run writes into it.
            Ok::<_, std::io::Error>(next.filter(|(_, length, _)| *length > 0 || at + 1 < last || ended))
        };
        let found = tokio::task::spawn_blocking(find).await.map_err(std::io::Error::other)??;
        match found {
            Some((_, _, path)) => open(&path).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sends what is there; false if no more is wanted.
    async fn read_on(&mut self, file: &mut File, decoder: &mut Decoder) -> std::io::Result<bool> {
        let mut piece = vec![0; PIECE];
        loop {
            let length = file.read(&mut piece).await?;
            if length == 0 {
                return Ok(true);
            }
            let mut data = Vec::with_capacity(length);
            decoder.feed(piece.get(..length).unwrap_or_default(), &mut data);
            if let Some(left) = &mut self.left {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left = left.saturating_sub(data.len() as u64);
            }
            if !data.is_empty() {
                let response = LogsResponse { response: Some(api::LogsResponse { data }) };
                if self.sender.send(Ok(response)).await.is_err() {
                    return Ok(false);
                }
            }
            if self.left == Some(0) {
                return Ok(false);
            }
        }
    }

    /// Whether the run that is followed has ended; it counts as running while the runtime does not answer.
    async fn has_ended(&self) -> bool {
        match self.shared.cri.observe(&self.pod.uid).await {
            Ok(runtime) => !runtime.containers.iter().any(|run| run.id == self.run.id && run.may_run()),
            Err(_) => false,
        }
    }
}

async fn open(path: &Path) -> std::io::Result<Place> {
    let file = File::open(path).await?;
    let inode = file.metadata().await?.ino();
    Ok(Place { file, inode })
}

/// Tells when something changes in a folder of logs.
struct Changes {
    events: EventStream<[u8; 4096]>,
}

impl Changes {
    fn of(path: &Path) -> std::io::Result<Self> {
        let folder = path.parent().unwrap_or(path);
        let inotify = Inotify::init()?;
        inotify.watches().add(folder, WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::CREATE)?;
        Ok(Self { events: inotify.into_event_stream([0; 4096])? })
    }

    async fn next(&mut self) -> std::io::Result<()> {
        self.events.next().await.transpose().map(drop)
    }
}
