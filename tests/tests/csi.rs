//! Conformance of CSI drivers: the table in `tests/csi/`, run against Berth's own drivers as processes with real mounts
//! and loop devices, or against the driver whose socket `CSI_ENDPOINT` names. Needs root.
//!
//! For a driver of others: `CSI_ENDPOINT=unix:///csi.sock CSI_PARAMETERS=key=value,... CSI_SIZE=bytes cargo test -p tests
//! --test csi foreign -- --nocapture`, as root on the driver's node.

#![allow(clippy::expect_used, reason = "tests say what they expect")]

#[path = "../csi/mod.rs"]
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pb::pluginregistration::{InfoRequest, registration_client::RegistrationClient};
use table::{Profile, World, cases};
use tempfile::TempDir;
use tests::process::{Process, berth_bin};

/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the node.
const NODE: &str = "node-1";
/// Name of another node, which has the driver `shared` too.
const OTHER: &str = "node-2";

/// Runs the whole table, prints it, and gives the lines that failed.
async fn run(world: &World) -> Vec<String> {
    let (mut failed, mut passed, mut skipped) = (Vec::new(), 0, 0);
    for case in cases() {
        let missing = case.needs.iter().find(|need| !world.has(**need));
        let result = match missing {
            Some(_) => {
                skipped += 1;
                "skip"
            }
            None => match tried(case, world).await {
                Ok(()) => {
                    passed += 1;
                    "pass"
                }
                Err(error) => {
                    failed.push(format!("{}: {}: {error:#}", world.profile.name, case.name));
                    "FAIL"
                }
            },
        };
        println!("{:<18} {result}  {:<66} {}", world.profile.name, case.name, case.rule);
    }
    println!("{:<18} {passed} passed, {skipped} skipped, {} failed", world.profile.name, failed.len());
    failed
}

async fn tried(case: &table::Case, world: &World) -> Result<()> {
    let ran =
        tokio::time::timeout(PATIENCE, case.run(world)).await.unwrap_or_else(|_| bail!("no answer in {PATIENCE:?}"));
    let cleaned = tokio::time::timeout(PATIENCE, world.clean()).await.unwrap_or_else(|_| bail!("not cleaned in time"));
    ran.and(cleaned.context("take away what the case made"))
}

/// A driver of ours, with its data, sockets and mounts in a folder of its own.
struct Own {
    folder: TempDir,
    process: Process,
}

impl Own {
    async fn start(role: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("berth-csi-")?;
        let process = start(role, NODE, folder.path())?;
        reachable(&folder.path().join(format!("{NODE}.sock"))).await?;
        Ok(Self { folder, process })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.path(&format!("{NODE}.sock")).display())
    }

    /// What is left of all the volumes: nothing may be.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for folder in ["volumes", "snapshots", "new", "trash", "locks"] {
            for entry in fs::read_dir(self.path("data").join(folder))? {
                left.push(entry?.path().display().to_string());
            }
        }
        left.extend(mounts(self.folder.path())?.iter().map(|point| format!("mount {}", point.display())));
        Ok(left)
    }

    /// Waits until no loop device is left: whoever lists devices has them open for a moment.
    async fn freed(&self) -> Result<()> {
        let freed = async {
            while !loops(self.folder.path())?.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(10), freed).await.context("a loop device is left")?
    }
}

impl Drop for Own {
    /// A failed case leaves no mount behind, and no data is deleted through one.
    fn drop(&mut self) {
        self.process.stop();
        let left = || -> Result<()> {
            for point in mounts(self.folder.path())? {
                ensure!(Command::new("umount").arg(&point).status()?.success(), "umount {}", point.display());
            }
            for device in loops(self.folder.path())? {
                ensure!(Command::new("losetup").args(["-d", &device]).status()?.success(), "losetup -d {device}");
            }
            Ok(())
        };
        if let Err(error) = left() {
            eprintln!("left behind: {error:#}");
        }
    }
}

fn start(role: &str, node: &str, folder: &Path) -> Result<Process> {
    let text = |path: PathBuf| path.display().to_string();
    let endpoint = format!("unix://{}", text(folder.join(format!("{node}.sock"))));
    let registry = text(folder.join("registry"));
    let data = text(folder.join("data"));
    let args = [role, "--endpoint", &endpoint, "--registry", &registry, "--node-name", node, "--data-dir", &data];
    Process::start(&format!("{role}-{node}"), &berth_bin()?, &args.map(str::to_owned), &[], folder)
}

async fn reachable(socket: &Path) -> Result<()> {
    let up = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), up).await.with_context(|| format!("nobody at {}", socket.display()))
}

/// Mount points below a folder, the latest first.
fn mounts(folder: &Path) -> Result<Vec<PathBuf>> {
    let points = runtime::mounts::table()?.into_iter().rev().map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// Loop devices with a file below a folder behind them.
fn loops(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim()).starts_with(folder) {
            found.push(format!("/dev/{}", device.file_name().display()));
        }
    }
    Ok(found)
}

/// Runs the table against a driver of ours, and looks that nothing is left.
async fn conforms(role: &str, parameters: &[(&str, &str)], size: i64) {
    let own = Own::start(role).await.expect("the driver starts");
    let many = role == "csi-shared";
    let image = parameters.contains(&("type", "image"));
    let other = if many {
        let other = start(role, OTHER, own.folder.path()).expect("a second node's driver starts");
        reachable(&own.path(&format!("{OTHER}.sock"))).await.expect("a second node's driver answers");
        Some(other)
    } else {
        None
    };
    let kind: Vec<&str> = parameters.iter().map(|(_, value)| *value).filter(|value| *value != "image").collect();
    let profile = Profile {
        name: format!("{} {}", role.trim_start_matches("csi-"), kind.join(" ")),
        parameters: parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        size,
        own: true,
        image,
        many_nodes: many && !image,
        other_node: OTHER.to_owned(),
    };
    let folder = own.path("mounts");
    fs::create_dir(&folder).expect("a folder for mounts");
    let world = World::new(&own.endpoint(), profile, folder).await.expect("the driver says what it can");
    let failed = run(&world).await;
    drop(other);
    own.freed().await.expect("no loop device is left");
    let left = own.leftovers().expect("look at what is left");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(left.is_empty(), "left behind: {left:#?}");
}

#[tokio::test]
async fn local_directories_keep_the_rules() {
    conforms("csi-local", &[("type", "directory")], 64 << 20).await;
}

#[tokio::test]
async fn local_images_with_ext4_keep_the_rules() {
    conforms("csi-local", &[("type", "image"), ("fsType", "ext4")], 64 << 20).await;
}

#[tokio::test]
async fn local_images_with_xfs_keep_the_rules() {
    conforms("csi-local", &[("type", "image"), ("fsType", "xfs")], 300 << 20).await;
}

#[tokio::test]
async fn shared_directories_keep_the_rules() {
    conforms("csi-shared", &[("type", "directory")], 64 << 20).await;
}

#[tokio::test]
async fn shared_images_keep_the_rules() {
    conforms("csi-shared", &[("type", "image"), ("fsType", "ext4")], 64 << 20).await;
}

/// Whatever driver `CSI_ENDPOINT` names.
#[tokio::test]
async fn a_foreign_driver_keeps_the_rules() {
    let Ok(endpoint) = std::env::var("CSI_ENDPOINT") else {
        println!("CSI_ENDPOINT names no driver");
        return;
    };
    let parameters = std::env::var("CSI_PARAMETERS").unwrap_or_default();
    let pairs = parameters.split(',').filter_map(|pair| pair.split_once('='));
    let profile = Profile {
        name: "foreign".to_owned(),
        parameters: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        size: std::env::var("CSI_SIZE").map_or(1 << 30, |size| size.parse().expect("CSI_SIZE is a number of bytes")),
        ..Profile::default()
    };
    let folder = TempDir::with_prefix("berth-csi-").expect("a folder for mounts");
    let world = World::new(&endpoint, profile, folder.path().to_owned()).await.expect("the driver says what it can");
    let failed = run(&world).await;
    let left = mounts(folder.path()).expect("look at the mounts");
    assert!(left.is_empty(), "left behind: {left:#?}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn a_driver_makes_itself_known_and_takes_it_back() {
    for role in ["csi-local", "csi-shared"] {
        let own = Own::start(role).await.expect("the driver starts");
        let name = role.trim_start_matches("csi-");
        let socket = own.path("registry").join(format!("{name}-reg.sock"));
        reachable(&socket).await.expect("the registration is served");
        let channel = runtime::channel::connect(&format!("unix://{}", socket.display())).expect("a channel");
        let info = RegistrationClient::new(channel).get_info(InfoRequest {}).await.expect("an answer").into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", name));
        assert_eq!(format!("unix://{}", info.endpoint), own.endpoint());
        own.process.terminate().expect("SIGTERM");
        let gone = async {
            while socket.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the registration ends with the driver");
    }
}
