//! What goes wrong, and when.
//!
//! A script is a file with lines `CALL FAULT TIMES`: the first so many calls of that kind for each volume end like this.
//! `*` is every call. How often a fault has struck is written down before it strikes, so that a driver that dies of one
//! goes on behind it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

/// One way of going wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is done, and no answer ever comes.
    DoneButSilent,
    /// Nothing is done, and no answer ever comes.
    Silent,
    /// It is done, and the answer is an error.
    DoneButError,
    /// Nothing is done; the answer says that another call is in progress.
    Aborted,
    /// Nothing is done; the driver has a mishap.
    Error,
    /// The driver dies before it is done.
    Crash,
    /// It is done, and the driver dies before it answers.
    DoneThenCrash,
    /// It is done for another node than it should be.
    WrongNode,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DoneButSilent,
        Self::Silent,
        Self::DoneButError,
        Self::Aborted,
        Self::Error,
        Self::Crash,
        Self::DoneThenCrash,
        Self::WrongNode,
    ];

    /// Its name in scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DoneButSilent => "done-but-silent",
            Self::Silent => "silent",
            Self::DoneButError => "done-but-error",
            Self::Aborted => "aborted",
            Self::Error => "error",
            Self::Crash => "crash",
            Self::DoneThenCrash => "done-then-crash",
            Self::WrongNode => "wrong-node",
        }
    }

    /// Whether the call is carried out all the same.
    pub const fn is_done(self) -> bool {
        matches!(self, Self::DoneButSilent | Self::DoneButError | Self::DoneThenCrash | Self::WrongNode)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<Self> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name);
        found.ok_or_else(|| io::Error::other(format!("there is no fault {name:?}")))
    }
}

/// A script and how far it is.
#[derive(Clone, Debug)]
pub struct Script {
    file: PathBuf,
    struck: PathBuf,
}

impl Script {
    /// The script of a driver's folder.
    pub fn of(folder: &Path) -> Self {
        Self { file: folder.join("script"), struck: folder.join("struck") }
    }

    /// Writes a script.
    pub fn write(&self, lines: &[(&str, Fault, u32)]) -> io::Result<()> {
        fs::create_dir_all(&self.struck)?;
        let lines: Vec<String> = lines.iter().map(|(call, fault, times)| format!("{call} {fault} {times}\n")).collect();
        let new = self.file.with_extension("new");
        fs::write(&new, lines.concat())?;
        fs::rename(&new, &self.file)
    }

    /// How a call for a volume ends, if it goes wrong; counts it.
    pub fn fault(&self, call: &str, volume: &str) -> io::Result<Option<Fault>> {
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[which, fault, times] = words.as_slice() else {
                return Err(io::Error::other(format!("not of a script: {line:?}")));
            };
            if which != "*" && which != call {
                continue;
            }
            let fault: Fault = fault.parse()?;
            for time in 0..times.parse::<u32>().map_err(io::Error::other)? {
                let mark = self.struck.join(format!("{call}.{volume}.{fault}.{time}"));
                match fs::OpenOptions::new().create_new(true).write(true).open(mark) {
                    Ok(_) => return Ok(Some(fault)),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// The calls that a fault has struck.
    pub fn struck(&self) -> io::Result<Vec<String>> {
        let mut calls = Vec::new();
        for entry in fs::read_dir(&self.struck)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            calls.extend(name.split('.').next().map(str::to_owned));
        }
        calls.sort();
        calls.dedup();
        Ok(calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_each_volume_as_often_as_the_script_says() {
        let folder = tempfile::tempdir().unwrap();
        let script = Script::of(folder.path());
        assert_eq!(script.fault("CreateVolume", "a").unwrap(), None, "no script, no fault");
        script.write(&[("CreateVolume", Fault::Aborted, 2), ("*", Fault::Crash, 1)]).unwrap();
        let next = |call: &str, volume: &str| script.fault(call, volume).unwrap();
        assert_eq!(next("CreateVolume", "a"), Some(Fault::Aborted));
        assert_eq!(next("CreateVolume", "a"), Some(Fault::Aborted));
        assert_eq!(next("CreateVolume", "a"), Some(Fault::Crash));
        assert_eq!(next("CreateVolume", "a"), None);
        assert_eq!(next("CreateVolume", "b"), Some(Fault::Aborted));
        assert_eq!(next("DeleteVolume", "a"), Some(Fault::Crash));
        assert_eq!(script.struck().unwrap(), ["CreateVolume", "DeleteVolume"]);
    }

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse::<Fault>().unwrap(), fault);
        }
    }
}
