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

/// A loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Its path below `/dev`.
    pub path: PathBuf,
    /// Its number, as `major:minor`, as the table of mounts has it.
    pub number: String,
}

/// The device of a file, if it has one.
pub fn find(file: &Path) -> Result<Option<Loop>> {
    if !file.try_exists().map_err(io_error("look at", file))? {
        return Ok(None);
    }
    let listed = tools::run("losetup", &["-n", "-O", "NAME", "-j", &text(file)?])?;
    listed.lines().map(str::trim).find(|line| !line.is_empty()).map(|line| device(Path::new(line))).transpose()
}

/// The device of a file, which gets one if it has none. The caller holds the file's turn.
pub fn attach(file: &Path) -> Result<Loop> {
    if let Some(device) = find(file)? {
        return Ok(device);
    }
    let made = tools::run("losetup", &["--find", "--show", "--nooverlap", &text(file)?])?;
    device(Path::new(made.trim()))
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

fn device(path: &Path) -> Result<Loop> {
    let number = fs::metadata(path).map_err(io_error("look at", path))?.rdev();
    Ok(Loop { path: path.to_owned(), number: format!("{}:{}", major(number), minor(number)) })
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Invalid(format!("{} is not text, which tools need", path.display())))
}
