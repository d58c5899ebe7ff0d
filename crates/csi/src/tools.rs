//! The system's own tools for file systems and loop devices, which know their formats best.

use std::{
    ffi::OsStr,
    process::{Command, Output, Stdio},
};

use crate::error::{Error, Result};

/// Text of a tool that goes into an error, at most.
const SAID: usize = 600;

/// Runs a tool and gives what it printed.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    let output = output(program, args)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(program, args, &output))
}

/// Runs a tool whose exit code says more than yes or no.
pub fn output<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<Output> {
    let ran = Command::new(program).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output();
    ran.map_err(|error| Error::Tool {
        command: line(program, args),
        output: format!("cannot be run: {error}; install {} on this node", package(program)),
    })
}

/// The error of a tool that failed.
pub fn failed<S: AsRef<OsStr>>(program: &str, args: &[S], output: &Output) -> Error {
    let said = [output.stderr.as_slice(), output.stdout.as_slice()].map(String::from_utf8_lossy);
    let said = said.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    let said: String = said.chars().take(SAID).collect();
    Error::Tool { command: line(program, args), output: format!("{} ({said})", output.status) }
}

fn line<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let words = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned());
    std::iter::once(program.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn package(program: &str) -> &'static str {
    match program {
        "mkfs.xfs" | "xfs_growfs" => "xfsprogs",
        "mkfs.ext4" | "e2fsck" | "resize2fs" | "debugfs" => "e2fsprogs",
        "cp" | "rm" => "coreutils",
        _ => "util-linux",
    }
}
