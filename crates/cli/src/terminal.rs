//! The user's terminal, handed to a command elsewhere and always given back.

use std::{
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
};

use anyhow::{Context, Result};
use pb::api::v1::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Bytes of input taken at a time.
const PIECE: usize = 16 * 1024;

/// Pieces of input that may wait.
const AHEAD: usize = 4;

/// Standard input without any meaning of keys, until this is dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes the terminal.
    pub fn take() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("take the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            eprintln!("the terminal keeps the command's settings ({error}); `reset` gives it back its own");
        }
    }
}

/// Whether standard input is a terminal.
pub fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal; None without one.
pub fn size() -> Option<TerminalSize> {
    let read = |fd: rustix::fd::BorrowedFd<'_>| tcgetwinsize(fd).ok();
    let size = read(io::stdout().as_fd()).or_else(|| read(io::stdin().as_fd()))?;
    Some(TerminalSize { width: size.ws_col.into(), height: size.ws_row.into() })
}

/// Standard input as it comes; the end of the channel is its end. Its thread ends with the process: nothing can take a
/// read back.
pub fn input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match io::stdin().lock().read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(piece.get(..length).unwrap_or_default().to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("standard input cannot be read on: {error}");
                    return;
                }
            }
        }
    });
    receiver
}
