//! Gives the rules for virtual addresses to the kernel.
//!
//! The program `nft` is the way in: its text form is stable, and one run is one transaction of the kernel. The table
//! stays when the agent ends: an agent that is restarted must not interrupt anybody.

use std::{io, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::services::TABLE;

/// How long `nft` may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Replaces the table in one transaction.
///
/// # Errors
/// When `nft` is missing, or refuses the text: then the rules are what they were.
pub async fn apply(rules: &str) -> anyhow::Result<()> {
    run(&["-f", "-"], rules).await.map(drop)
}

/// Whether the table is there: another program may have flushed all rules.
pub async fn is_there() -> anyhow::Result<bool> {
    let tables = run(&["list", "tables", "ip"], "").await?;
    Ok(tables.lines().any(|line| line.trim() == format!("table ip {TABLE}")))
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
