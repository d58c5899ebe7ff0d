//! Archives of files, packed and unpacked without ever leaving a folder, whatever its owner does to it meanwhile.
//!
//! For both ends of a copy: the agent, in a container's root, and the user's command, in a folder of the user's. The code
//! that works on files works where blocking is allowed, and takes and gives the archive as messages; a few of them wait at
//! most on either side.

pub mod pack;
pub mod root;
pub mod unpack;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc};

/// The archive's bytes as they arrive. An error among them is the reader's error.
pub struct Arriving {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
    at: usize,
}

impl Arriving {
    /// From a channel; its end is the end of the archive.
    pub fn new(pieces: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self { pieces, rest: Vec::new(), at: 0 }
    }
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.rest.len() {
            match self.pieces.blocking_recv() {
                Some(piece) => (self.rest, self.at) = (piece?, 0),
                None => return Ok(0),
            }
        }
        let read = self.rest.get(self.at..).unwrap_or_default().read(into)?;
        self.at += read;
        Ok(read)
    }
}

/// Takes the archive's bytes and sends them in pieces.
pub struct Leaving<M> {
    out: mpsc::Sender<M>,
    handle: Handle,
    message: fn(Vec<u8>) -> M,
    piece: usize,
    patience: Duration,
    buffer: Vec<u8>,
}

impl<M> Leaving<M> {
    /// Into a channel, `piece` bytes at a time; an error once nobody has read for as long as `patience`. To be made
    /// within the asynchronous runtime.
    pub fn new(out: mpsc::Sender<M>, message: fn(Vec<u8>) -> M, piece: usize, patience: Duration) -> Self {
        Self { out, handle: Handle::current(), message, piece, patience, buffer: Vec::with_capacity(piece) }
    }
}

impl<M> Write for Leaving<M> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.piece.saturating_sub(self.buffer.len());
        let (now, _) = bytes.split_at(bytes.len().min(room));
        self.buffer.extend_from_slice(now);
        if self.buffer.len() >= self.piece {
            self.flush()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(self.piece));
        let sent = self.out.send_timeout((self.message)(full), self.patience);
        self.handle.block_on(sent).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
