//! Loop devices: a file as a block device.
//!
//! A device is found by the file behind it, as the kernel knows it, so that a restarted driver finds its own and no file
//! ever has two. After it is mounted a device is told to go with its last user: whoever unmounts frees it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::stat::{major, minor},
};

use crate::{
    error::{Error, Result, io_error},
    tools,
};

/// How often a device may pass to another file while we look at it.
const TRIES: usize = 16;

/// A loop device. It stays the file's as long as this is held.
#[derive(Debug)]
pub struct Loop {
    /// Its path below `/dev`.
    pub path: PathBuf,
    /// Its number, as `major:minor`, as the table of mounts has it.
    pub number: String,
    /// A device goes with its last user, which may be the one before us: being a user keeps it.
    _open: fs::File,
}

/// The device of a file, if it has one.
pub fn find(file: &Path) -> Result<Option<Loop>> {
    for _ in 0..TRIES {
        let Some(path) = list(file)? else { return Ok(None) };
        let open = match fs::File::open(&path) {
            // It is going at this moment.
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => continue,
            opened => opened.map_err(io_error("open", &path))?,
        };
        // From here on it cannot go. It may have gone before, and be another file's now.
        if list(file)?.is_some_and(|again| again == path) {
            let device = open.metadata().map_err(io_error("look at", &path))?.rdev();
            let number = format!("{}:{}", major(device), minor(device));
            return Ok(Some(Loop { path, number, _open: open }));
        }
    }
    Err(Error::Busy(format!("the loop device of {}", file.display())))
}

fn list(file: &Path) -> Result<Option<PathBuf>> {
    if !file.try_exists().map_err(io_error("look at", file))? {
        return Ok(None);
    }
    let listed = tools::run("losetup", &["-n", "-O", "NAME", "-j", &text(file)?])?;
    Ok(listed.lines().map(str::trim).find(|line| !line.is_empty()).map(PathBuf::from))
}

/// The device of a file, which gets one if it has none. The caller holds the file's turn.
pub fn attach(file: &Path) -> Result<Loop> {
    if let Some(device) = find(file)? {
        return Ok(device);
    }
    let made = tools::run("losetup", &["--find", "--show", "--nooverlap", &text(file)?])?;
    let made_none = || Error::Busy(format!("the loop device {} of {}", made.trim(), file.display()));
    find(file)?.ok_or_else(made_none)
}

/// Whether something has the device mounted, also where we do not see it.
pub fn is_mounted(device: &Loop) -> Result<bool> {
    match fs::File::options().read(true).custom_flags(OFlag::O_EXCL.bits()).open(&device.path) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(true),
        Err(error) => Err(io_error("open", &device.path)(error)),
    }
}

/// Lets a device go as soon as nobody uses it, which may be now.
pub fn release(device: &Loop) -> Result<()> {
    tools::run("losetup", &["-d", &text(&device.path)?]).map(drop)
}

/// Frees the device of a file if nothing is mounted from it.
pub fn detach_unused(file: &Path) -> Result<()> {
    match find(file)? {
        Some(device) => release(&device),
        None => Ok(()),
    }
}

/// Makes a device as large as its file has become.
pub fn resize(device: &Loop) -> Result<()> {
    tools::run("losetup", &["-c", &text(&device.path)?]).map(drop)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Invalid(format!("{} is not text, which tools need", path.display())))
}
