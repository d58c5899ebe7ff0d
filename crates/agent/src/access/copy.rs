//! Files into and out of running containers, as archives. The image needs no program for it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag};
use pb::{
    agent::v1::{CopyFromResponse, CopyToRequest},
    api::v1::{self as api, copy_to_request::Input},
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

use crate::archive::{
    Arriving, Leaving, pack, root,
    unpack::{How, Owner, Written, unpack},
};

/// Bytes of the archive in one message.
const PIECE: usize = 128 * 1024;

/// Messages that may wait for the other side.
const AHEAD: usize = 8;

/// How long the other side may send nothing, or not read.
const IDLE: Duration = Duration::from_secs(60);

/// What a call gets.
pub type Pieces = mpsc::Receiver<Result<CopyFromResponse, Status>>;

/// Sends the archive of what is at a path.
pub fn read(root: OwnedFd, path: PathBuf) -> Pieces {
    let (out, pieces) = mpsc::channel(AHEAD);
    let leaving = Leaving::new(out.clone(), |data| Ok(piece(data)), PIECE, IDLE);
    tokio::spawn(async move {
        let packing = move || {
            let top = path.file_name().map_or(Path::new("root"), Path::new);
            pack::pack(&root, &path, top, leaving)
        };
        let packed = tokio::task::spawn_blocking(packing).await;
        let failed = match packed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => told(&error),
            Err(error) => Status::internal(format!("the copy broke off: {error}")),
        };
        // The caller may be gone.
        drop(out.send_timeout(Err(failed), IDLE).await);
    });
    pieces
}

fn piece(data: Vec<u8>) -> CopyFromResponse {
    CopyFromResponse { response: Some(api::CopyFromResponse { data }) }
}

/// Opens the folder that is copied into.
pub fn folder(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Status> {
    root::resolve(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .map_err(|error| told(&io::Error::new(error.kind(), format!("{}: {error}", path.display()))))
}

/// Unpacks what comes into a folder of the container.
pub async fn write(folder: OwnedFd, owner: Owner, mut requests: Streaming<CopyToRequest>) -> Result<Written, Status> {
    let (to, pieces) = mpsc::channel(AHEAD);
    let how = How { owner: Some(owner), top: None };
    let work = tokio::task::spawn_blocking(move || unpack(&folder, &how, Arriving::new(pieces), |_| ()));
    let pumping = async {
        let broken = loop {
            match timeout(IDLE, requests.message()).await {
                Err(_) => break Status::deadline_exceeded(format!("no data within {IDLE:?}")),
                Ok(Err(status)) => break status,
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(message))) => match message.request.and_then(|request| request.input) {
                    Some(Input::Data(data)) => match to.send(Ok(data)).await {
                        Ok(()) => {}
                        // Why nothing more is taken is the other half's to say.
                        Err(_) => return None,
                    },
                    Some(Input::Start(_)) => break Status::invalid_argument("start: the copy has begun already"),
                    None => {}
                },
            }
        };
        // The end of the channel alone could pass for the end of the archive.
        drop(to.send(Err(io::Error::other(broken.message().to_owned()))).await);
        Some(broken)
    };
    let pumped = pumping.await;
    drop(to);
    let written = work.await.map_err(|error| Status::internal(format!("the copy broke off: {error}")))?;
    match pumped {
        Some(broken) => Err(broken),
        None => written.map_err(|error| told(&error)),
    }
}

/// The error of work on files as others are told it.
pub fn told(error: &io::Error) -> Status {
    if error.raw_os_error() == Some(Errno::ELOOP as i32) {
        return Status::failed_precondition(error.to_string());
    }
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(error.to_string()),
        io::ErrorKind::InvalidInput => Status::invalid_argument(error.to_string()),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Status::resource_exhausted(error.to_string()),
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied => Status::failed_precondition(error.to_string()),
        io::ErrorKind::BrokenPipe => Status::cancelled("the copy was broken off"),
        _ => Status::internal(error.to_string()),
    }
}
