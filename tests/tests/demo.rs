//! `make demo` holds, and leaves nothing behind.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};
use tests::process::berth_bin;

#[test]
fn the_demo_holds_and_leaves_nothing_behind() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(root.join("deploy/demo.sh")).env("BERTH_BIN", berth_bin()?).env("KEEP", "0").status()?;
    ensure!(status.success(), "the demo ended with {status}");
    tests::nothing_is_left()
}
