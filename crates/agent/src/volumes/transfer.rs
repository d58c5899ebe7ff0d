//! Copies of whole volumes from one node to another.
//!
//! Both sides mount the volume through its driver at a path of the agent's own, for as long as the copy lasts: the source
//! only to read. No pod of the node can have the volume meanwhile. What is sent is summed up (SHA-256), and the importer
//! reads everything back from the new volume before it says that it is verified. Whatever ends a copy (an error, a caller
//! that goes away, an agent that restarts), the mounts are taken down; a new volume that is half full is begun anew.

mod entry;
mod pack;
mod unpack;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pb::{
    agent::v1::{
        ExportEnd, ExportStart, ExportVolumeRequest, ExportVolumeResponse, ImportVolumeRequest, ImportVolumeResponse,
        export_volume_response::Piece, volume_agent_service_client::VolumeAgentServiceClient,
    },
    objects::PersistentVolume,
};
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tonic::{Status, Streaming};

use super::{User, VolumeError, VolumeManager, io_error};
use crate::{archive::Arriving, beneath::Folder, csi, csi::VolumeId, stream::waits};

/// Bytes of the archive in one message.
const PIECE: usize = 256 * 1024;

/// Messages that may wait for the other side.
const AHEAD: usize = 8;

/// How long a stream may say nothing, and how long its reader may not read.
const IDLE: Duration = Duration::from_secs(60);

/// How often a side that is busy says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How often the progress is told.
const PROGRESS: Duration = Duration::from_millis(500);

/// In a new volume as long as it is not full: what is there is of an earlier try.
const MARK: &str = ".berth-import";

/// What a driver makes in an empty file system by itself.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// A volume that is mounted for a copy.
struct Copy {
    volumes: Arc<VolumeManager>,
    name: String,
    home: Folder,
}

impl Copy {
    /// Mounts a volume. What a failure leaves is taken down.
    async fn begin(volumes: Arc<VolumeManager>, volume: &PersistentVolume, read_only: bool) -> Result<Self, Status> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        let id = VolumeId::of(volume).map_err(VolumeError::from)?;
        let name = hex(&Sha256::digest(format!("{}/{}", id.driver, id.volume)));
        if !volumes.copying.lock().insert(name.clone()) {
            return Err(VolumeError::Copied { volume: id.volume }.into());
        }
        let home = match volumes.transfers.make(&name) {
            Ok(home) => home,
            Err(error) => {
                volumes.copying.lock().remove(&name);
                return Err(io_error(volumes.transfers.path())(error).into());
            }
        };
        let copy = Self { volumes, name, home };
        let shown = copy.volumes.show(&copy.home, &User::Transfer, (volume, &NOTHING), read_only, None).await;
        match shown {
            Ok(()) => Ok(copy),
            Err(error) => {
                copy.end().await;
                Err(error.into())
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join(csi::MOUNT)
    }

    /// Takes the mounts down, however often that has to be tried: until then no pod gets the volume.
    async fn end(self) {
        for wait in waits() {
            match self.volumes.clean_transfer(self.name.as_ref()).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "the mounts of a copy cannot be taken down yet; trying again"),
            }
            tokio::time::sleep(wait).await;
        }
        self.volumes.copying.lock().remove(&self.name);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The error of work on files as others are told it.
fn told(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Status::resource_exhausted(format!("the new volume is too small for the data: {error}"))
        }
        io::ErrorKind::BrokenPipe => Status::cancelled("the copy was broken off"),
        _ => Status::internal(error.to_string()),
    }
}

/// Runs work on files where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| told(&error)),
        Err(error) => Err(Status::internal(format!("the copy broke off: {error}"))),
    }
}

// --- the source

type Exported = mpsc::Sender<Result<ExportVolumeResponse, Status>>;

/// Room for an export's messages.
pub fn exported() -> (Exported, mpsc::Receiver<Result<ExportVolumeResponse, Status>>) {
    mpsc::channel(AHEAD)
}

fn piece(piece: Piece) -> ExportVolumeResponse {
    ExportVolumeResponse { piece: Some(piece) }
}

/// Sends all files of a volume.
pub async fn export(volumes: Arc<VolumeManager>, request: ExportVolumeRequest, out: Exported) {
    let result = export_mounted(volumes, request, &out).await;
    if let Err(status) = &result {
        tracing::warn!(%status, "a volume's files were not all sent");
    }
    let last = result.map(|end| piece(Piece::End(end)));
    // The reader may be gone; then nobody wants to know.
    drop(out.send_timeout(last, IDLE).await);
}

async fn export_mounted(
    volumes: Arc<VolumeManager>,
    request: ExportVolumeRequest,
    out: &Exported,
) -> Result<ExportEnd, Status> {
    let volume = request.volume.ok_or_else(|| Status::invalid_argument("volume: must be given"))?;
    let copy = Copy::begin(volumes, &volume, true).await?;
    let (root, sender) = (copy.path(), out.clone());
    let handle = Handle::current();
    let mut packing = std::pin::pin!(blocking(move || send_all(&root, sender, handle)));
    let packed = loop {
        tokio::select! {
            packed = &mut packing => break packed,
            // Empty, and only if there is room: the other side sees that this one is at work.
            () = tokio::time::sleep(SIGN_OF_LIFE) => drop(out.try_send(Ok(piece(Piece::Data(Vec::new()))))),
        }
    };
    copy.end().await;
    packed
}

fn send_all(root: &Path, out: Exported, handle: Handle) -> io::Result<ExportEnd> {
    let there = pack::survey(root)?;
    let mut pieces = Pieces { out, handle, buffer: Vec::with_capacity(PIECE), sum: Sha256::new() };
    let start = ExportStart { total_bytes: there.bytes, entries: there.entries };
    pieces.send(Piece::Start(start))?;
    pack::pack(root, &mut pieces)?;
    pieces.flush()?;
    Ok(ExportEnd { sha256: pieces.sum.finalize().to_vec() })
}

/// Takes the archive's bytes and sends them as messages.
struct Pieces {
    out: Exported,
    handle: Handle,
    buffer: Vec<u8>,
    sum: Sha256,
}

impl Pieces {
    fn send(&self, content: Piece) -> io::Result<()> {
        let sent = self.out.send_timeout(Ok(piece(content)), IDLE);
        self.handle.block_on(sent).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE.saturating_sub(self.buffer.len());
        let (now, _) = bytes.split_at(bytes.len().min(room));
        self.sum.update(now);
        self.buffer.extend_from_slice(now);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send(Piece::Data(full))
    }
}

// --- the target

type Imported = mpsc::Sender<Result<ImportVolumeResponse, Status>>;

/// Room for an import's messages.
pub fn imported() -> (Imported, mpsc::Receiver<Result<ImportVolumeResponse, Status>>) {
    mpsc::channel(AHEAD)
}

/// Fetches all files of a volume into a new one.
pub async fn import(volumes: Arc<VolumeManager>, request: ImportVolumeRequest, out: Imported) {
    let result = import_mounted(volumes, request, &out).await;
    if let Err(status) = &result {
        tracing::warn!(%status, "a volume's files did not all arrive");
    }
    let last = result.map(|total| ImportVolumeResponse { done_bytes: total, total_bytes: total, verified: true });
    // The caller may be gone; then it asks again.
    drop(out.send_timeout(last, IDLE).await);
}

async fn import_mounted(
    volumes: Arc<VolumeManager>,
    request: ImportVolumeRequest,
    out: &Imported,
) -> Result<i64, Status> {
    let missing = |field: &str| Status::invalid_argument(format!("{field}: must be given"));
    let source = request.source.ok_or_else(|| missing("source"))?;
    let target = request.target.ok_or_else(|| missing("target"))?;
    let channel = runtime::channel::connect_streaming(&request.from);
    let channel = channel.map_err(|error| Status::invalid_argument(format!("from: {error}")))?;
    let copy = Copy::begin(volumes, &target, false).await?;
    // Dropped when the caller goes away: then the stream ends, and so does the work on files.
    let fetched = tokio::select! {
        fetched = fetch(VolumeAgentServiceClient::new(channel), source, copy.path(), out) => fetched,
        () = out.closed() => Err(Status::cancelled("the caller went away")),
    };
    copy.end().await;
    fetched
}

type Agent = VolumeAgentServiceClient<runtime::channel::Channel>;

async fn fetch(mut from: Agent, source: PersistentVolume, root: PathBuf, out: &Imported) -> Result<i64, Status> {
    let silent = || Status::deadline_exceeded(format!("the other node's agent said nothing for {IDLE:?}"));
    let request = ExportVolumeRequest { volume: Some(source) };
    let mut pieces = timeout(IDLE, from.export_volume(request)).await.map_err(|_| silent())??.into_inner();
    let start = loop {
        match next(&mut pieces).await? {
            Piece::Start(start) => break start,
            Piece::Data(empty) if empty.is_empty() => {}
            _ => return Err(Status::internal("the other node's agent sends data before its size")),
        }
    };
    let (progress, seen) = watch::channel(0);
    let (sender, receiver) = mpsc::channel(AHEAD);
    // The work ends when nobody looks at its progress any more.
    let still_wanted = move |done: i64| progress.send(done).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let work = blocking(move || take_all(&root, Arriving::new(receiver), still_wanted));
    let telling = async {
        loop {
            let done_bytes = *seen.borrow();
            let progress = ImportVolumeResponse { done_bytes, total_bytes: start.total_bytes, verified: false };
            if out.send_timeout(Ok(progress), IDLE).await.is_err() {
                return;
            }
            tokio::time::sleep(PROGRESS).await;
        }
    };
    let done = async {
        let (pumped, unpacked) = tokio::join!(pump(&mut pieces, sender), work);
        // Why the stream ended says more than that the archive ended too early; but a full disk ends the stream too.
        match (pumped, unpacked) {
            (Ok(()), unpacked) => unpacked,
            (Err(pumped), Err(unpacked)) if pumped.code() == tonic::Code::Cancelled => Err(unpacked),
            (Err(pumped), _) => Err(pumped),
        }
    };
    let unpacked = tokio::select! {
        done = done => done?,
        () = telling => return Err(Status::cancelled("the caller does not read")),
    };
    if (unpacked.bytes, unpacked.entries) != (start.total_bytes, start.entries) {
        return Err(Status::data_loss(format!(
            "{} bytes in {} files were announced, {} in {} arrived: copy again",
            start.total_bytes, start.entries, unpacked.bytes, unpacked.entries
        )));
    }
    Ok(unpacked.bytes)
}

async fn next(pieces: &mut Streaming<ExportVolumeResponse>) -> Result<Piece, Status> {
    let message = timeout(IDLE, pieces.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded(format!("no data within {IDLE:?}")))??;
    message
        .and_then(|message| message.piece)
        .ok_or_else(|| Status::unavailable("the other node's agent broke the stream off: copy again"))
}

/// Hands the archive's bytes on until its end, and compares their sum.
async fn pump(
    pieces: &mut Streaming<ExportVolumeResponse>,
    to: mpsc::Sender<io::Result<Vec<u8>>>,
) -> Result<(), Status> {
    let mut sum = Sha256::new();
    let ended = loop {
        match next(pieces).await {
            Ok(Piece::Data(data)) => {
                sum.update(&data);
                if to.send(Ok(data)).await.is_err() {
                    return Err(Status::cancelled("the archive is not read on"));
                }
            }
            Ok(Piece::End(end)) if *end.sha256 == *sum.finalize() => return Ok(()),
            Ok(Piece::End(_)) => break Status::data_loss("the archive arrived with another checksum: copy again"),
            Ok(Piece::Start(_)) => break Status::internal("the other node's agent began twice"),
            Err(status) => break status,
        }
    };
    // The end of the stream alone could pass for the end of the archive. The reader may have ended before.
    drop(to.send(Err(io::Error::other(ended.message().to_owned()))).await);
    Err(ended)
}

/// Makes a new volume hold what the archive holds, and reads it back.
fn take_all(
    root: &Path,
    archive: Arriving,
    mut progress: impl FnMut(i64) -> io::Result<()>,
) -> io::Result<unpack::Unpacked> {
    let folder = Folder::root(root)?;
    let names = folder.names()?;
    let marked = names.iter().any(|name| name == MARK);
    for name in names.iter().filter(|name| *name != MARK && *name != OF_THE_FILE_SYSTEM) {
        if !marked {
            return Err(io::Error::other(format!("the new volume is not empty: it has {name:?}; nothing was changed")));
        }
        folder.remove_tree(name)?;
    }
    folder.write(MARK, b"not all files have arrived\n")?;
    let unpacked = unpack::unpack(root, archive, &mut progress)?;
    unpack::sync(root)?;
    unpack::verify(root, &unpacked, &mut progress)?;
    folder.remove_file(MARK)?;
    unpack::finish(root, &unpacked)?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests;
