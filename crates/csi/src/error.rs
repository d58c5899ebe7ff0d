//! What goes wrong with volumes, and which code of the specification says so.

use std::{io, path::Path, path::PathBuf};

use nix::errno::Errno;
use tonic::Status;

use crate::id::{BadVolumeId, VolumeId};

/// Result of work on volumes.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something cannot be done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume was here and is not any more.
    #[error(
        "the data of volume {id} is gone: {} {why}; bring it back (from a backup, or by mounting its disk), or delete \
         the claim to begin with an empty volume",
        path.display()
    )]
    Lost {
        /// The volume.
        id: VolumeId,
        /// Where its data was.
        path: PathBuf,
        /// How it is known.
        why: &'static str,
    },
    /// There is no such volume or snapshot.
    #[error("{what} {id} does not exist{}", hint(place))]
    NotFound {
        /// "volume", "snapshot", "node".
        what: &'static str,
        /// Its id.
        id: String,
        /// Where it was looked for.
        place: String,
    },
    /// It is still mounted somewhere.
    #[error("volume {id} is still mounted at {at}; unpublish and unstage it first")]
    InUse {
        /// The volume.
        id: VolumeId,
        /// One of the places.
        at: String,
    },
    /// Another call works on the same thing.
    #[error("another call for {0} is in flight; call again")]
    Busy(String),
    /// The name is taken by something else.
    #[error("{0}")]
    Exists(String),
    /// Not possible as things are now.
    #[error("{0}")]
    Refused(String),
    /// Not possible at all.
    #[error("{0}")]
    Invalid(String),
    /// A size that cannot be.
    #[error("{0}")]
    OutOfRange(String),
    /// There is no room, or not there.
    #[error("{0}")]
    Exhausted(String),
    /// A page that begins nowhere.
    #[error("starting_token {0:?} is none that this driver gave; list again from the beginning")]
    BadToken(String),
    /// The disk did not do what it should.
    #[error("{action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
    /// A tool did not do what it should.
    #[error("{command}: {output}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
}

fn hint(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" {place}") }
}

/// Says what was tried when the system refused.
pub fn io_error<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |error| Error::Io { action, path: path.to_owned(), error: error.into() }
}

/// What is not there need not be removed.
pub fn absent_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl From<BadVolumeId> for Error {
    fn from(error: BadVolumeId) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let full = [Errno::ENOSPC, Errno::EDQUOT].map(|errno| errno as i32);
        match error {
            Error::Lost { .. } => Status::data_loss(text),
            Error::NotFound { .. } => Status::not_found(text),
            Error::InUse { .. } | Error::Refused(_) => Status::failed_precondition(text),
            Error::Busy(_) | Error::BadToken(_) => Status::aborted(text),
            Error::Exists(_) => Status::already_exists(text),
            Error::Invalid(_) => Status::invalid_argument(text),
            Error::OutOfRange(_) => Status::out_of_range(text),
            Error::Exhausted(_) => Status::resource_exhausted(text),
            Error::Io { error, .. } if error.raw_os_error().is_some_and(|code| full.contains(&code)) => {
                Status::resource_exhausted(text)
            }
            Error::Tool { output, .. } if output.contains("No space left on device") => {
                Status::resource_exhausted(text)
            }
            Error::Io { .. } | Error::Tool { .. } => Status::internal(text),
        }
    }
}
