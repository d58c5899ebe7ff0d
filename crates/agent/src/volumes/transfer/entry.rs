//! What an archive says of a file beside its bytes.
//!
//! Times are in the pax record `mtime`. Extended attributes are in records of Berth's own, both name and value in base64:
//! the tar library cannot read records with a line feed in them.

use std::{
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use nix::sys::time::TimeSpec;

/// Record of a time.
const MTIME: &str = "mtime";

/// Record of an extended attribute: name, colon, value.
const XATTR: &str = "BERTH.xattr";

/// Attributes that are part of the data. Others say how this machine labels its files.
const KEPT: [&str; 4] = ["user.", "trusted.", "security.capability", "system.posix_acl"];

/// What goes along with a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Seconds and nanoseconds of the last change.
    pub mtime: (i64, i64),
    /// Extended attributes: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extra {
    /// Of a file; links have no attributes.
    pub fn of(path: &Path, meta: &std::fs::Metadata) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        if meta.is_file() || meta.is_dir() {
            for name in supported(xattr::list(path))?.into_iter().flatten() {
                let kept = KEPT.iter().any(|kept| name.as_bytes().starts_with(kept.as_bytes()));
                if let Some(value) = xattr::get(path, &name)?.filter(|_| kept) {
                    xattrs.push((name.as_bytes().to_owned(), value));
                }
            }
        }
        Ok(Self { mtime: (meta.mtime(), meta.mtime_nsec()), xattrs })
    }

    /// As records of an archive.
    pub fn records(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (seconds, nanos) = self.mtime;
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let xattrs = self.xattrs.iter().map(|(name, value)| {
            let record = format!("{}:{}", encode(name), encode(value));
            (XATTR, record.into_bytes())
        });
        // Two numbers, so that times before 1970 need no care.
        [(MTIME, format!("{seconds}.{nanos:09}").into_bytes())].into_iter().chain(xattrs).collect()
    }

    /// Takes a record of an archive; false if it is not known.
    pub fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let text = || std::str::from_utf8(value).map_err(io::Error::other);
        let bad = || io::Error::other(format!("the archive has a bad record {}", String::from_utf8_lossy(key)));
        if key == MTIME.as_bytes() {
            let (seconds, nanos) = text()?.split_once('.').ok_or_else(bad)?;
            self.mtime = (seconds.parse().map_err(|_| bad())?, nanos.parse().map_err(|_| bad())?);
        } else if key == XATTR.as_bytes() {
            let (name, value) = text()?.split_once(':').ok_or_else(bad)?;
            let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| bad());
            self.xattrs.push((decode(name)?, decode(value)?));
        }
        Ok(())
    }

    /// The time as the kernel takes it.
    pub fn time(&self) -> TimeSpec {
        TimeSpec::new(self.mtime.0, self.mtime.1)
    }
}

/// None where the file system has no such thing.
fn supported<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        result => result.map(Some),
    }
}
