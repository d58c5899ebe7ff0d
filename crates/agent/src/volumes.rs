//! The volumes of pods on this node.
//!
//! Each volume of a pod has a folder under the pod's: `mount` is what containers see, `csi.json` says what it takes to
//! undo a CSI volume and is written before the driver is called. So an agent that starts anew, or that hears of a pod no
//! more, can still take everything down, and can say of any volume whether it may be mounted. A volume that is being
//! copied has such a folder too, under `transfers`. Nothing below a mount point is ever removed (I21).

mod atomic;
mod content;
mod files;
mod fs_group;
mod record;
pub mod service;
mod sub_path;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::mount::MntFlags;
use parking_lot::Mutex;
use pb::{
    agent::v1::{ClaimVolume, PodBundle, PodRef},
    objects::{ObjectMeta, PersistentVolume, Pod, PodSpec, Volume},
};
use record::Record;

pub use fs_group::FsGroup;

use crate::{
    beneath::{Folder, present},
    csi::{self, CsiError, Drivers, Registry, Turn, VolumeId, Wish},
    fields::Place,
    mounts,
};

/// The file in a pod's folder that tells its namespace and name.
const NAME_FILE: &str = "name";

/// The folder of volumes in a pod's folder.
const VOLUMES: &str = "volumes";

/// What can go wrong with a pod's volumes.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A claim has no volume yet.
    #[error("volume {volume:?}: claim {claim:?} is not bound to a volume yet")]
    Unbound {
        /// The pod's volume.
        volume: String,
        /// Its claim.
        claim: String,
    },
    /// The volume must be attached to the node first.
    #[error("volume {volume:?} is not attached to this node yet{why}")]
    NotAttached {
        /// The persistent volume.
        volume: String,
        /// Why it takes its time, if that is known.
        why: String,
    },
    /// Its mount is not there, or shows something else.
    #[error("volume {volume:?}: {why}; it is mounted anew before a container starts")]
    Lost {
        /// The pod's volume.
        volume: String,
        /// What is wrong.
        why: String,
    },
    /// The volume is for one pod, and another has it.
    #[error(
        "volume {volume:?} has access mode ReadWriteOncePod, and pod {other} of this node has it: \
         this pod starts when that one is gone"
    )]
    OnePod {
        /// The driver's id of the volume.
        volume: String,
        /// The other pod.
        other: String,
    },
    /// The volume is being copied.
    #[error("volume {volume:?} is being copied: pods get it when that has ended")]
    Copied {
        /// The driver's id of the volume.
        volume: String,
    },
    /// A pod has the volume that shall be copied.
    #[error("volume {volume:?} is in use by pod {other} of this node: stop the pod first")]
    InUse {
        /// The driver's id of the volume.
        volume: String,
        /// The pod.
        other: String,
    },
    /// The pod's folder tells of another volume.
    #[error(
        "volume {volume:?} of the pod is now another one than is mounted: delete the pod, and it starts with the new one"
    )]
    Changed {
        /// The driver's id of the volume that is mounted.
        volume: String,
    },
    /// A ConfigMap or Secret is missing.
    #[error("volume {volume:?}: {problem}")]
    Missing {
        /// The pod's volume.
        volume: String,
        /// What is missing.
        problem: String,
    },
    /// A path that leaves the volume.
    #[error("volume {volume:?}: path {path:?} must be relative and without \"..\"")]
    BadPath {
        /// The pod's volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// A driver.
    #[error(transparent)]
    Csi(#[from] CsiError),
    /// The node's own file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
    /// Something is still mounted.
    #[error("{} is still mounted: it is left as it is", .0.display())]
    StillMounted(PathBuf),
}

/// The word for a mount that is gone, or whose data is.
pub const LOST: &str = "VolumeLost";

impl VolumeError {
    /// One word, for a container that waits for its volumes.
    pub fn reason(&self) -> &'static str {
        match self {
            VolumeError::NotAttached { .. } => "VolumeNotAttached",
            VolumeError::Lost { .. } => LOST,
            VolumeError::Csi(error) if error.is_lost() => LOST,
            _ => "FailedMount",
        }
    }
}

/// A part of a volume that a container sees instead of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the volumeMount.
    pub index: usize,
    /// The pod's volume.
    pub volume: String,
    /// The path in it.
    pub path: String,
}

/// For whom a volume is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A pod, by its uid.
    Pod(String),
    /// A copy to or from another node.
    Transfer,
}

/// Somebody has a volume, or may have it.
#[derive(Clone, Debug)]
pub struct Use {
    /// Who.
    pub user: User,
    /// Where it is shown.
    pub target: PathBuf,
    /// Whether the driver has said so; else it may be so.
    pub published: bool,
}

/// The volumes of all pods of the node.
#[derive(Debug)]
pub struct VolumeManager {
    pods: Folder,
    transfers: Folder,
    /// Folders of transfers that are under way.
    copying: Mutex<BTreeSet<String>>,
    drivers: Drivers,
}

impl VolumeManager {
    /// Volumes under `data_dir`, of the drivers of `registry`, each of whose calls may take `deadline`.
    pub fn new(data_dir: &Path, registry: Arc<Registry>, deadline: Duration) -> io::Result<Self> {
        let data = Folder::root(data_dir)?;
        Ok(Self {
            pods: data.make("pods")?,
            transfers: data.make("transfers")?,
            copying: Mutex::default(),
            drivers: Drivers::new(registry, data.make("staging")?, deadline),
        })
    }

    /// The node's drivers.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.drivers.registry
    }

    /// The folder of a pod's volumes, if it has one.
    fn folder(&self, uid: &str) -> io::Result<Option<Folder>> {
        let Some(pod) = present(self.pods.open(uid))? else { return Ok(None) };
        present(pod.open(VOLUMES))
    }

    /// Makes the pod's folder, with its name in it: who finds the folder later knows whose it is.
    pub fn remember(&self, pod: &PodRef) -> Result<(), VolumeError> {
        let text = format!("{}/{}", pod.namespace, pod.name);
        let remember = || self.pods.make(&pod.uid)?.write(NAME_FILE, text.as_bytes());
        remember().map_err(io_error(&self.pods.path().join(&pod.uid)))
    }

    /// Pods that have a folder on this node. One whose folder does not tell its name has an empty one.
    pub fn pods(&self) -> io::Result<Vec<PodRef>> {
        let read = |uid: std::ffi::OsString| {
            let text = self.pods.open(&uid).and_then(|pod| pod.read(NAME_FILE)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let (namespace, name) = text.split_once('/').unwrap_or_default();
            let uid = uid.to_string_lossy().into_owned();
            PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid }
        };
        Ok(self.pods.names()?.into_iter().map(read).collect())
    }

    /// Whether nothing of the pod's volumes is on the node.
    pub fn is_absent(&self, uid: &str) -> bool {
        matches!(self.folder(uid), Ok(None))
    }

    /// Where the pod's volumes are, and which are read-only as a whole.
    pub fn paths(&self, pod: &Pod) -> BTreeMap<String, (PathBuf, bool)> {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let folder = self.pods.path().join(uid_of(pod)).join(VOLUMES);
        let path = |volume: &Volume| {
            let claim_read_only = volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only);
            let read_only = claim_read_only || content::is_content(volume);
            let at_home = || folder.join(&volume.name).join(csi::MOUNT);
            let path = volume.host_path.as_ref().map_or_else(at_home, |host| PathBuf::from(&host.path));
            (volume.name.clone(), (path, read_only))
        };
        spec.volumes.iter().map(path).collect()
    }

    /// Mounts all volumes of a pod. Idempotent.
    pub async fn mount(&self, bundle: &PodBundle, place: Place<'_>) -> Result<(), VolumeError> {
        let none = Pod::default();
        let pod = bundle.pod.as_ref().unwrap_or(&none);
        let uid = uid_of(pod);
        let make = || self.pods.make(uid)?.make(VOLUMES);
        let folder = make().map_err(io_error(&self.pods.path().join(uid)))?;
        let group = FsGroup::of(pod);
        for volume in pod.spec.iter().flat_map(|spec| &spec.volumes) {
            let home = folder.make(&volume.name).map_err(io_error(&folder.path().join(&volume.name)))?;
            match &volume.persistent_volume_claim {
                Some(claim) => {
                    let bound = bundle.volumes.iter().find(|bound| bound.claim_name == claim.claim_name);
                    let policy = bound.map_or("", |bound| bound.fs_group_policy.as_str());
                    let bound = attached(volume, &claim.claim_name, bound)?;
                    let group = group.map(|group| group.under(policy, bound.0, claim.read_only));
                    self.show(&home, &User::Pod(uid.to_owned()), bound, claim.read_only, group).await?;
                }
                None => files::mount(bundle, volume, &home.path().join(csi::MOUNT), group, place)?,
            }
        }
        Ok(())
    }

    /// Brings the files of a pod's mounted volumes up to what its ConfigMaps, Secrets and fields are now. Tells which
    /// volumes changed. A volume whose object is gone keeps its files.
    pub fn refresh(&self, bundle: &PodBundle, place: Place<'_>) -> Result<Vec<String>, VolumeError> {
        let none = Pod::default();
        let pod = bundle.pod.as_ref().unwrap_or(&none);
        let group = FsGroup::of(pod);
        let folder = self.pods.path().join(uid_of(pod)).join(VOLUMES);
        let (mut changed, mut failed) = (Vec::new(), None);
        for volume in pod.spec.iter().flat_map(|spec| &spec.volumes) {
            let target = folder.join(&volume.name).join(csi::MOUNT);
            match files::refresh(bundle, volume, &target, group, place) {
                Ok(true) => changed.push(volume.name.clone()),
                Ok(false) => {}
                Err(VolumeError::Missing { volume, problem }) => {
                    tracing::warn!(volume, problem, "the files of a volume stay as they were");
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    /// Mounts the parts of volumes that a container sees; says where each is, by the index of its volumeMount.
    pub fn parts(&self, pod: &Pod, container: &str, parts: &[Part]) -> Result<BTreeMap<usize, PathBuf>, VolumeError> {
        let folder = self.pods.path().join(uid_of(pod)).join(VOLUMES);
        let paths = self.paths(pod);
        let mount = |part: &Part| {
            let home = folder.join(&part.volume);
            // An unknown volume is an error of the container, told where its mounts are made.
            let Some((volume, fixed)) = paths.get(&part.volume) else { return Ok(None) };
            let name = format!("{container}-{}", part.index);
            let mounted = sub_path::mount(&home, &name, volume, &part.path, *fixed);
            mounted.map(|path| Some((part.index, path))).map_err(io_error(&home))
        };
        parts.iter().filter_map(|part| mount(part).transpose()).collect()
    }

    /// Shows a volume in a folder's `mount`. Idempotent.
    async fn show(
        &self,
        home: &Folder,
        user: &User,
        bound: (&PersistentVolume, &BTreeMap<String, String>),
        read_only: bool,
        group: Option<FsGroup>,
    ) -> Result<(), VolumeError> {
        let (volume, publish_context) = bound;
        let id = VolumeId::of(volume)?;
        let target = home.path().join(csi::MOUNT);
        let failed = io_error(home.path());
        let turn = self.drivers.turn(&id).await;
        self.give_way(&id, user, volume)?;
        let before = record::read(home).map_err(&failed)?;
        if let Some(before) = before.as_ref().filter(|before| before.id != id) {
            return Err(VolumeError::Changed { volume: before.id.volume.clone() });
        }
        let known = before.as_ref().and_then(|before| before.shown.clone());
        let now = mounts::shown_at(&target).map_err(&failed)?;
        if known.is_some() && now.is_some() && known != now {
            tracing::warn!(target = %target.display(), ?known, ?now, "not what was mounted there: it is taken down");
            self.drivers.unpublish(&turn, &target).await?;
        }
        let mut record = Record { id, shown: known };
        if before.as_ref() != Some(&record) {
            record::write(home, &record).map_err(&failed)?;
        }
        let given =
            self.drivers.publish(&turn, Wish { volume, publish_context, target: &target, read_only, group }).await?;
        // What is noted as shown has its group: only then may a container see it.
        if let Some(group) = group.filter(|group| group.by_agent && !given && record.shown.is_none()) {
            let root = target.clone();
            let done = tokio::task::spawn_blocking(move || group.give(&root)).await;
            done.map_err(|error| io::Error::other(error.to_string())).flatten().map_err(io_error(&target))?;
        }
        let shown = mounts::shown_at(&target).map_err(&failed)?;
        if record.shown != shown {
            record.shown = shown;
            record::write(home, &record).map_err(&failed)?;
        }
        Ok(())
    }

    /// Whether others that have the volume leave room for one more.
    fn give_way(&self, id: &VolumeId, me: &User, volume: &PersistentVolume) -> Result<(), VolumeError> {
        let modes = volume.spec.as_ref().map(|spec| spec.access_modes.as_slice()).unwrap_or_default();
        let volume = || id.volume.clone();
        for other in self.uses(id)?.into_iter().filter(|other| other.user != *me) {
            match (&other.user, me) {
                (User::Transfer, _) => return Err(VolumeError::Copied { volume: volume() }),
                (User::Pod(uid), User::Transfer) => {
                    return Err(VolumeError::InUse { volume: volume(), other: self.name_of(uid) });
                }
                (User::Pod(uid), User::Pod(_)) if csi::is_for_one_pod(modes) => {
                    return Err(VolumeError::OnePod { volume: volume(), other: self.name_of(uid) });
                }
                (User::Pod(_), User::Pod(_)) => {}
            }
        }
        Ok(())
    }

    /// For messages: the pod's name, or its uid.
    fn name_of(&self, uid: &str) -> String {
        let name = self.pods.open(uid).and_then(|pod| pod.read(NAME_FILE));
        name.map_or_else(|_| uid.to_owned(), |name| String::from_utf8_lossy(&name).into_owned())
    }

    /// Who has a volume, or may have it.
    pub fn uses(&self, id: &VolumeId) -> Result<Vec<Use>, VolumeError> {
        let mut uses = Vec::new();
        let mut look = |user: User, home: Option<Folder>| -> io::Result<()> {
            let Some(home) = home else { return Ok(()) };
            if let Some(record) = record::read(&home)?.filter(|record| record.id == *id) {
                uses.push(Use { user, target: home.path().join(csi::MOUNT), published: record.shown.is_some() });
            }
            Ok(())
        };
        let mut all = || -> io::Result<()> {
            for uid in self.pods.names()? {
                let uid = uid.to_string_lossy().into_owned();
                let Some(folder) = self.folder(&uid)? else { continue };
                for volume in folder.names()? {
                    look(User::Pod(uid.clone()), present(folder.open(volume))?)?;
                }
            }
            for transfer in self.transfers.names()? {
                look(User::Transfer, present(self.transfers.open(transfer))?)?;
            }
            Ok(())
        };
        all().map_err(io_error(self.pods.path()))?;
        Ok(uses)
    }

    /// Whether what a container of the pod would see is what was mounted: asked right before each start (I5).
    pub async fn verify(&self, pod: &Pod, container: &str) -> Result<(), VolumeError> {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let mut containers = spec.containers.iter().chain(&spec.init_containers);
        let mounts = containers.find(|found| found.name == container).map(|found| found.volume_mounts.as_slice());
        let named: BTreeSet<&str> = mounts.unwrap_or_default().iter().map(|mount| mount.name.as_str()).collect();
        let folder = self.folder(uid_of(pod)).map_err(io_error(self.pods.path()))?;
        let ours = |volume: &&Volume| volume.host_path.is_none() && named.contains(volume.name.as_str());
        for volume in spec.volumes.iter().filter(ours) {
            let lost = |why: String| VolumeError::Lost { volume: volume.name.clone(), why };
            let home = folder.as_ref().map(|folder| present(folder.open(&volume.name))).transpose();
            let home = home.map_err(|error| lost(error.to_string()))?.flatten();
            let home = home.ok_or_else(|| lost("its folder is gone".to_owned()))?;
            let target = home.path().join(csi::MOUNT);
            let now = mounts::shown_at(&target).map_err(io_error(&target))?;
            if volume.persistent_volume_claim.is_some() {
                let known = record::read(&home).map_err(io_error(home.path()))?.and_then(|record| record.shown);
                match (known, now) {
                    (Some(known), Some(now)) if known == now => {}
                    (_, None) => return Err(lost(format!("nothing is mounted at {} any more", target.display()))),
                    _ => return Err(lost(format!("something else is mounted at {}", target.display()))),
                }
                mounts::is_alive(&target).await.map_err(|error| lost(format!("{}: {error}", target.display())))?;
            } else if now.is_none()
                && (files::is_tmpfs(volume) || present(home.open(csi::MOUNT)).is_ok_and(|it| it.is_none()))
            {
                return Err(lost(format!("{} is not there any more", target.display())));
            }
        }
        Ok(())
    }

    /// Takes all volumes of a pod down. Idempotent; needs nothing but what is on the node.
    pub async fn unmount(&self, uid: &str) -> Result<(), VolumeError> {
        let failed = io_error(&self.pods.path().join(uid));
        let Some(pod) = present(self.pods.open(uid)).map_err(&failed)? else { return Ok(()) };
        let Some(folder) = present(pod.open(VOLUMES)).map_err(&failed)? else { return Ok(()) };
        for name in folder.names().map_err(&failed)? {
            let Some(home) = present(folder.open(&name)).map_err(&failed)? else { continue };
            sub_path::unmount(home.path()).map_err(io_error(home.path()))?;
            if record::read(&home).map_err(&failed)?.is_some() {
                self.hide(&home).await?;
                folder.remove_dir(&name).map_err(&failed)?;
                continue;
            }
            let target = home.path().join(csi::MOUNT);
            if mounts::shown_at(&target).map_err(io_error(&target))?.is_some() {
                nix::mount::umount2(&target, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| io_error(&target)(e.into()))?;
            }
            refuse_mounts(home.path())?;
            folder.remove_tree(&name).map_err(&failed)?;
        }
        pod.remove_dir(VOLUMES).map_err(&failed)
    }

    /// Undoes [`VolumeManager::show`]; unstages too unless somebody else has the volume. Idempotent.
    async fn hide(&self, home: &Folder) -> Result<(), VolumeError> {
        let failed = io_error(home.path());
        let target = home.path().join(csi::MOUNT);
        let Some(record) = record::read(home).map_err(&failed)? else { return Ok(()) };
        let turn = self.drivers.turn(&record.id).await;
        self.drivers.unpublish(&turn, &target).await?;
        refuse_mounts(&target)?;
        // Not recursive: whatever is in an unpublished volume's folder is not ours to remove.
        home.remove_dir(csi::MOUNT).map_err(&failed)?;
        self.unstage(&turn, &target).await?;
        // Last, and before another gets its turn: until here the volume may be mounted.
        record::remove(home).map_err(&failed)
    }

    /// Unstages a volume that nobody has but who had it at `target`.
    async fn unstage(&self, turn: &Turn, target: &Path) -> Result<(), VolumeError> {
        if self.uses(turn.id())?.iter().all(|other| other.target == target) {
            self.drivers.unstage(turn).await?;
        }
        Ok(())
    }

    /// Undoes what an agent before this one left and nobody goes on with: copies, and volumes staged for nobody.
    pub async fn clean(&self) -> Result<(), VolumeError> {
        let failed = io_error(self.transfers.path());
        for name in self.transfers.names().map_err(&failed)? {
            let key = name.to_string_lossy().into_owned();
            // One that is under way takes itself down; and none begins while what it would mount over is taken down.
            if !self.copying.lock().insert(key.clone()) {
                continue;
            }
            let cleaned = self.clean_transfer(&name).await;
            self.copying.lock().remove(&key);
            cleaned?;
        }
        for id in self.drivers.staged().map_err(io_error(self.transfers.path()))? {
            let turn = self.drivers.turn(&id).await;
            self.unstage(&turn, Path::new("")).await?;
        }
        Ok(())
    }

    async fn clean_transfer(&self, name: &OsStr) -> Result<(), VolumeError> {
        let failed = io_error(self.transfers.path());
        let Some(home) = present(self.transfers.open(name)).map_err(&failed)? else { return Ok(()) };
        self.hide(&home).await?;
        refuse_mounts(home.path())?;
        // Empty but for the mount point of a copy that never came to its note.
        home.remove_dir(csi::MOUNT).map_err(&failed)?;
        self.transfers.remove_dir(name).map_err(&failed)
    }

    /// Removes the pod's own folder, after its volumes are gone.
    pub fn remove_folder(&self, uid: &str) -> Result<(), VolumeError> {
        let folder = self.pods.path().join(uid);
        refuse_mounts(&folder)?;
        self.pods.remove_tree(uid).map_err(io_error(&folder))
    }
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.as_ref().map_or("", |meta| &meta.uid)
}

/// The volume of a claim with what attaching it said, if it can be mounted now.
fn attached<'a>(
    volume: &Volume,
    claim: &str,
    bound: Option<&'a ClaimVolume>,
) -> Result<(&'a PersistentVolume, &'a BTreeMap<String, String>), VolumeError> {
    static NOTHING: BTreeMap<String, String> = BTreeMap::new();
    let unbound = || VolumeError::Unbound { volume: volume.name.clone(), claim: claim.to_owned() };
    let bound = bound.ok_or_else(unbound)?;
    let persistent = bound.volume.as_ref().ok_or_else(unbound)?;
    let attachment = bound.attachment.as_ref();
    let status = attachment.and_then(|attachment| attachment.status.as_ref());
    let ending = |meta: &ObjectMeta| meta.deletion_timestamp.is_some();
    let ends = attachment.and_then(|attachment| attachment.metadata.as_ref()).is_some_and(ending);
    match status {
        Some(status) if status.attached && !ends => Ok((persistent, &status.attachment_metadata)),
        _ if !bound.attach_required => Ok((persistent, &NOTHING)),
        status => {
            let error = status.and_then(|status| status.attach_error.as_ref());
            let why = match (ends, error) {
                (true, _) => ": it is being detached".to_owned(),
                (false, Some(error)) => format!(": {}", error.message),
                (false, None) => String::new(),
            };
            let name = persistent.metadata.as_ref().map_or("", |meta| &meta.name).to_owned();
            Err(VolumeError::NotAttached { volume: name, why })
        }
    }
}

fn refuse_mounts(path: &Path) -> Result<(), VolumeError> {
    match mounts::below(path).map_err(io_error(path))?.into_iter().next() {
        Some(point) => Err(VolumeError::StillMounted(point)),
        None => Ok(()),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> VolumeError + use<> {
    let path = path.to_owned();
    move |error| VolumeError::Io { path: path.clone(), error }
}

#[cfg(test)]
mod tests;
