//! Checks of the project on itself, run by `make check`.

mod contract;
mod fields;
mod proto_lint;
mod purity;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
enum Check {
    /// Pure crates know no clock, no I/O, no randomness and no hash maps.
    Purity,
    /// The contracts in proto/ keep their rules, and break no client.
    Proto {
        /// Takes what is new in the contracts into proto/contract.lock.
        #[arg(long)]
        bless: bool,
    },
    /// docs/fields.md says what becomes of every field of Kubernetes.
    Fields {
        /// Only looks whether it does; without, writes it.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            findings.iter().for_each(|finding| eprintln!("{finding}"));
            eprintln!("{} finding(s)", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Vec<String>> {
    match Check::parse() {
        Check::Purity => purity::check(&root()),
        Check::Proto { bless } => {
            let mut findings = proto_lint::check()?;
            findings.extend(contract::check(&root().join("proto/contract.lock"), bless)?);
            Ok(findings)
        }
        Check::Fields { check } => fields::check(&root().join("docs/fields.md"), !check),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
