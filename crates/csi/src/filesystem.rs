//! File systems in images: made, checked and grown with their own tools, and their size read from their own words.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result, io_error},
    record::FsType,
    tools,
};

/// Of an ext4 file system's super block.
const EXT4_SUPER: u64 = 1024;

/// What an XFS file system begins with: a directory that every user can write to, and nothing in it.
const PROTO: &str = "/dev/null\n0 0\nd--777 0 0\n$\n";

/// Makes an empty file system in a file. Every user can write to it, since the pod decides as whom it runs.
pub fn make(fs: FsType, file: &Path) -> Result<()> {
    match fs {
        FsType::Ext4 => {
            // Root keeps no part for itself: the size is what was asked for.
            let args = ["-F", "-q", "-m", "0", "-E", "nodiscard,root_owner=0:0"].map(Path::new);
            tools::run("mkfs.ext4", &[&args[..], &[file]].concat())?;
            let open = ["-w", "-R", "set_inode_field <2> mode 040777"].map(Path::new);
            tools::run("debugfs", &[&open[..], &[file]].concat()).map(drop)
        }
        FsType::Xfs => {
            let proto = file.with_extension("proto");
            fs::write(&proto, PROTO).map_err(io_error("write", &proto))?;
            let args = ["-f", "-q", "-K", "-p"].map(Path::new);
            tools::run("mkfs.xfs", &[&args[..], &[&proto, file]].concat())?;
            fs::remove_file(&proto).map_err(io_error("remove", &proto))
        }
    }
}

/// The size in bytes that the file system in a file or device has; an error if it is another one.
pub fn size(fs: FsType, file: &Path) -> Result<u64> {
    let open = || {
        let file = File::open(file)?;
        match fs {
            FsType::Ext4 => ext4_size(&file),
            FsType::Xfs => xfs_size(&file),
        }
    };
    open().map_err(io_error("read the file system in", file))
}

fn ext4_size(file: &File) -> io::Result<u64> {
    let word = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, EXT4_SUPER + at).map(|()| u64::from(u32::from_le_bytes(bytes)))
    };
    if word(0x38)? & 0xffff != 0xef53 {
        return Err(other("ext4"));
    }
    // The upper half of the number of blocks is there only with the feature `64bit`.
    let high = if word(0x60)? & 0x80 == 0 { 0 } else { word(0x150)? };
    let shift = u32::try_from(word(0x18)?).ok().and_then(|log| log.checked_add(10)).filter(|shift| *shift <= 16);
    let shift = shift.ok_or_else(|| other("ext4"))?;
    Ok(((high << 32) | word(0x4)?) << shift)
}

fn xfs_size(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 16];
    file.read_exact_at(&mut bytes, 0)?;
    let [m0, m1, m2, m3, b0, b1, b2, b3, n @ ..] = bytes;
    if &[m0, m1, m2, m3] != b"XFSB" {
        return Err(other("xfs"));
    }
    Ok(u64::from(u32::from_be_bytes([b0, b1, b2, b3])) * u64::from_be_bytes(n))
}

fn other(fs: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is not {fs}"))
}

/// Repairs what a crash left, as far as that is sure. For file systems that do it when they are mounted, nothing.
pub fn check(fs: FsType, device: &Path) -> Result<()> {
    match fs {
        FsType::Ext4 => e2fsck(&["-p"], device),
        FsType::Xfs => Ok(()),
    }
}

fn e2fsck(flags: &[&str], device: &Path) -> Result<()> {
    let args: Vec<_> = flags.iter().map(Path::new).chain([device]).collect();
    let output = tools::output("e2fsck", &args)?;
    // 1: errors were corrected. 2: and the machine should restart, which is about root file systems.
    if matches!(output.status.code(), Some(0..=3)) {
        return Ok(());
    }
    let said = tools::failed("e2fsck", &args, &output);
    Err(Error::Refused(format!(
        "{said}; the file system needs a repair that can lose data: copy the image, then run `e2fsck -f` on it by hand"
    )))
}

/// Grows a file system that is not mounted to the size of its device, if that is its way to grow.
pub fn grow_offline(fs: FsType, device: &Path) -> Result<()> {
    match fs {
        FsType::Ext4 => {
            e2fsck(&["-f", "-p"], device)?;
            tools::run("resize2fs", &[device]).map(drop)
        }
        FsType::Xfs => Ok(()),
    }
}

/// Grows a mounted file system to the size of its device.
pub fn grow_mounted(fs: FsType, device: &Path, mounted: &Path) -> Result<()> {
    let (program, args) = match fs {
        FsType::Ext4 => ("resize2fs", [device.to_owned()]),
        FsType::Xfs => ("xfs_growfs", [PathBuf::from(mounted)]),
    };
    match tools::run(program, &args) {
        Err(Error::Tool { output, .. }) if output.contains("ermission") || output.contains("not permitted") => {
            Err(Error::Refused(format!(
                "this node may not grow {fs} while it is mounted ({output}); it grows when the pod is started again"
            )))
        }
        done => done.map(drop),
    }
}
