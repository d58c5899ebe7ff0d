//! Gives the rules for virtual addresses to the kernel.
//!
//! The program `nft` is the way in: its text form is stable, and one run is one transaction of the kernel. The table
//! stays when the agent ends: an agent that is restarted must not interrupt anybody.

use std::{collections::BTreeSet, io, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::services::{Ruleset, TABLE};

/// How long `nft` may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Replaces what the table says in one transaction.
///
/// # Errors
/// When `nft` is missing, or refuses the text: then the rules are what they were.
pub async fn apply(rules: &Ruleset) -> anyhow::Result<()> {
    let there = chains(&run(&["list", "chains", "ip"], "").await?);
    run(&["-f", "-"], &rules.replacing(&there)).await.map(drop)
}

/// Whether the table is there: another program may have flushed all rules.
pub async fn is_there() -> anyhow::Result<bool> {
    let tables = run(&["list", "tables", "ip"], "").await?;
    Ok(tables.lines().any(|line| line.trim() == format!("table ip {TABLE}")))
}

/// The chains of our table in a list of all chains.
fn chains(listed: &str) -> BTreeSet<String> {
    let (mut chains, mut ours) = (BTreeSet::new(), false);
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", family, name, ..] => ours = *family == "ip" && *name == TABLE,
            ["chain", name, ..] if ours => drop(chains.insert((*name).to_owned())),
            _ => {}
        }
    }
    chains
}

/// Runs `nft` in the node's network, which is the agent's own; gives what it prints.
async fn run(args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run nft: install the package nftables")?;
    let running = async {
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // It says itself why it did not read on.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output().await
    };
    let output = timeout(PATIENCE, running).await.context("nft did not end in time")?.context("run nft")?;
    if !output.status.success() {
        bail!("nft failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_chains_are_ours() {
        let listed = "table ip nat {\n\tchain prerouting {\n\t}\n}\ntable ip berth {\n\tchain refuse {\n\t}\n\tchain \
                      tcp-10.96.0.10-80 {\n\t}\n}\ntable ip other {\n\tchain refuse-not {\n\t}\n}\n";
        assert_eq!(chains(listed), BTreeSet::from(["refuse".to_owned(), "tcp-10.96.0.10-80".to_owned()]));
        assert_eq!(chains(""), BTreeSet::new());
    }
}
