//! What is on the disks and mounted, against what is in the store: nothing more, nothing less.
//!
//! The disks are read as files and not through a driver: what a driver forgets is there all the same.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pb::{
    ObjectExt,
    objects::{NodeSelector, PersistentVolume, Pod, VolumeAttachment, VolumeSnapshot},
};
use tokio::time::Instant;

use crate::{LabGuard, client::Client};

/// The driver whose volumes are bound to nodes.
const LOCAL: &str = "local";
/// The driver whose volumes all nodes reach.
const SHARED: &str = "shared";
/// Where the volumes of [`SHARED`] are.
const EVERYWHERE: &str = "every node";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// A piece of storage of a built-in driver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The node that it is on.
    pub place: String,
    /// volumes or snapshots.
    pub kind: &'static str,
    /// The driver's id of it.
    pub handle: String,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.kind, self.handle, self.place)
    }
}

/// Waits until disks and store agree, and nothing is mounted or attached that no pod has.
pub async fn settled(lab: &LabGuard, client: &Client, deadline: Instant) -> Result<()> {
    loop {
        let wrong = differences(lab, client).await?;
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("disks and store do not come to agree:\n  {}", wrong.join("\n  "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is on a disk and not in the store, and the other way round; mounts and attachments that no pod has.
pub async fn differences(lab: &LabGuard, client: &Client) -> Result<Vec<String>> {
    let stored = stored(client).await?;
    let found = on_disk(lab)?;
    let mut wrong: Vec<String> = found.difference(&stored).map(|piece| format!("{piece} is in no object")).collect();
    wrong.extend(stored.difference(&found).map(|piece| format!("{piece} is on no disk")));
    wrong.extend(unused_mounts(lab, client).await?);
    wrong.extend(unused_attachments(client).await?);
    Ok(wrong)
}

/// What the store says of the built-in drivers.
async fn stored(client: &Client) -> Result<BTreeSet<Piece>> {
    let mut pieces = BTreeSet::new();
    let (volumes, _) = client.list::<PersistentVolume>("").await?;
    for volume in &volumes {
        let spec = volume.spec.clone().unwrap_or_default();
        let Some(csi) = spec.csi else { continue };
        let reachable = spec.node_affinity.and_then(|affinity| affinity.required);
        if let Some(place) = place(&csi.driver, reachable.as_ref()) {
            pieces.insert(Piece { place, kind: "volumes", handle: csi.volume_handle });
        }
    }
    let (snapshots, _) = client.list::<VolumeSnapshot>("").await?;
    for snapshot in &snapshots {
        let status = snapshot.status.clone().unwrap_or_default();
        if let Some(place) = place(&status.driver, status.reachable.as_ref()) {
            pieces.insert(Piece { place, kind: "snapshots", handle: status.snapshot_handle });
        }
    }
    Ok(pieces)
}

/// Where something of a driver is. None if the driver is not built in.
fn place(driver: &str, reachable: Option<&NodeSelector>) -> Option<String> {
    match driver {
        LOCAL => {
            let terms = reachable.into_iter().flat_map(|selector| &selector.node_selector_terms);
            let values = terms.flat_map(|term| &term.match_expressions).flat_map(|one| one.values.iter().cloned());
            Some(values.collect::<Vec<_>>().join("|"))
        }
        SHARED => Some(EVERYWHERE.to_owned()),
        _ => None,
    }
}

/// What the disks say.
fn on_disk(lab: &LabGuard) -> Result<BTreeSet<Piece>> {
    let layout = lab.lab.layout();
    let mut pieces = BTreeSet::new();
    let folders = layout.all_nodes().map(|node| (node.name(), layout.local_dir(node)));
    for (place, folder) in folders.chain([(EVERYWHERE.to_owned(), layout.shared_dir())]) {
        for kind in ["volumes", "snapshots"] {
            for handle in names(&folder.join(kind))? {
                pieces.insert(Piece { place: place.clone(), kind, handle });
            }
        }
        // What a driver builds or removes; it is there only while a call runs.
        for kind in ["new", "trash"] {
            for handle in names(&folder.join(kind))? {
                pieces.insert(Piece { place: place.clone(), kind, handle });
            }
        }
    }
    Ok(pieces)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Mounts in the nodes' folders of pods that do not exist, and stagings while there are no pods at all.
async fn unused_mounts(lab: &LabGuard, client: &Client) -> Result<Vec<String>> {
    let (pods, _) = client.list::<Pod>("").await?;
    let uids: BTreeSet<&str> = pods.iter().map(ObjectExt::uid).collect();
    let layout = lab.lab.layout();
    let mut wrong = Vec::new();
    for mount in lab::system::mounts()? {
        for node in layout.all_nodes() {
            let folder = layout.node_dir(node);
            let pod = mount.target.strip_prefix(folder.join("pods")).ok().and_then(|rest| rest.iter().next());
            let orphaned = pod.is_some_and(|uid| uid.to_str().is_none_or(|uid| !uids.contains(uid)));
            let staged = mount.target.starts_with(folder.join("staging")) && pods.is_empty();
            if orphaned || staged {
                wrong.push(format!("{} is mounted for nobody", mount.target.display()));
            }
        }
    }
    Ok(wrong)
}

/// Attachments to nodes on which no pod has the volume.
async fn unused_attachments(client: &Client) -> Result<Vec<String>> {
    let (attachments, _) = client.list::<VolumeAttachment>("").await?;
    let (pods, _) = client.list::<Pod>("").await?;
    let nodes: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()).map(|spec| spec.node_name.as_str()).collect();
    let wanted = |one: &VolumeAttachment| one.spec.as_ref().is_some_and(|spec| nodes.contains(spec.node_name.as_str()));
    Ok(attachments
        .iter()
        .filter(|one| !wanted(one))
        .map(|one| format!("{} is attached for nobody", one.name()))
        .collect())
}

/// What a canary wrote on a volume of a built-in driver that no pod has.
pub async fn read_log(lab: &LabGuard, volume: &PersistentVolume) -> Result<Vec<u8>> {
    let spec = volume.spec.clone().unwrap_or_default();
    let csi = spec.csi.context("the volume has no driver")?;
    let layout = lab.lab.layout();
    let affinity = spec.node_affinity.and_then(|affinity| affinity.required);
    let place = place(&csi.driver, affinity.as_ref()).with_context(|| format!("{} is not built in", csi.driver))?;
    let folder = if csi.driver == SHARED { layout.shared_dir() } else { layout.local_dir(lab.lab.node(&place)?) };
    let volume = folder.join("volumes").join(&csi.volume_handle);
    let image = volume.join("image");
    if image.exists() {
        return tokio::task::spawn_blocking(move || read_image(&image)).await?;
    }
    let log = volume.join("data").join("log");
    fs::read(&log).with_context(|| format!("read {}", log.display()))
}

/// Reads the log out of a copy of an image, so that the image itself stays as it is.
fn read_image(image: &Path) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let (copy, mount) = (folder.path().join("image"), folder.path().join("mount"));
    run("cp", &[Path::new("--sparse=always"), image, &copy])?;
    fs::create_dir(&mount)?;
    // Another file system of the same uuid may be mounted: xfs wants to hear that this is meant.
    let options = if is_xfs(&copy)? { "loop,nouuid" } else { "loop" };
    run("mount", &[Path::new("-o"), Path::new(options), &copy, &mount])?;
    let log = fs::read(mount.join("log")).with_context(|| format!("read the log in {}", image.display()));
    run("umount", &[&mount])?;
    log
}

fn is_xfs(image: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    io::Read::read_exact(&mut fs::File::open(image)?, &mut magic)?;
    Ok(&magic == b"XFSB")
}

fn run(program: &str, args: &[&Path]) -> Result<()> {
    let ran = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    let args: Vec<PathBuf> = args.iter().map(|arg| arg.to_path_buf()).collect();
    ensure!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}
