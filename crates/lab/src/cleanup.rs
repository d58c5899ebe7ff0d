//! Finding and removing everything that belongs to a lab.
//!
//! It works from the lab's name and folder alone and trusts no record: whatever state a crash left, looking again finds
//! what is there. Removal goes in an order in which nothing removed can come back: first all processes (the supervisor
//! before those that it would restart), then what they held. It never deletes a file through a mount.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::layout::{LabName, bridge, cgroup, config_file, netns_prefix, state_file, veth_prefix};
use crate::net;
use crate::state::State;
use crate::system::{ProcessId, TICK, command_name, marked, mounts, own_line, pids, run};

/// How long one kind of thing may take to be gone.
const LIMIT: Duration = Duration::from_secs(20);

/// When a mount is still busy after this, it is detached: its users are gone, and so will it be.
const DETACH_AFTER: Duration = Duration::from_secs(5);

/// What libcni remembers of every network that it set up, for the whole machine.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// Where containerd 1.6 and later put the sockets of its shims, for the whole machine.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// Which lab: its name, and its folder without links.
#[derive(Debug, Clone)]
pub struct LabId {
    /// The name that everything outside the folder carries.
    pub name: LabName,
    /// The folder.
    pub dir: PathBuf,
}

/// Something that belongs to a lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remnant {
    /// A process, with its command name.
    Process(ProcessId, String),
    /// A mount under the lab's folder.
    Mount(PathBuf),
    /// A loop device backed by a file in the lab's folder.
    Loop(PathBuf),
    /// A network namespace.
    Netns(String),
    /// An interface in the root namespace.
    Link(String),
    /// A firewall rule, marked with the bridge's name.
    Rule(String),
    /// A cgroup, and all under it.
    Cgroup(PathBuf),
    /// What others keep about the lab in folders of their own.
    File(PathBuf),
    /// The lab's folder.
    Dir(PathBuf),
}

impl fmt::Display for Remnant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(id, name) => write!(f, "process {} ({name})", id.pid),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Loop(device) => write!(f, "loop device {}", device.display()),
            Self::Netns(name) => write!(f, "network namespace {name}"),
            Self::Link(name) => write!(f, "interface {name}"),
            Self::Rule(bridge) => write!(f, "firewall rule for {bridge}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Dir(path) => write!(f, "folder {}", path.display()),
        }
    }
}

/// The kinds of things, in the order of their removal.
type Finder = fn(&LabId) -> Result<Vec<Remnant>>;
const STEPS: [(&str, Finder); 9] = [
    ("processes", processes),
    ("mounts", lab_mounts),
    ("loop devices", loops),
    ("network namespaces", namespaces),
    ("interfaces", links),
    ("firewall rules", rules),
    ("cgroups", cgroups),
    ("files elsewhere", files_elsewhere),
    ("folder", folder),
];

/// Everything of the lab that is there now; empty after a `down` that succeeded.
pub fn leftovers(lab: &LabId) -> Result<Vec<Remnant>> {
    let mut all = Vec::new();
    for (_, find) in STEPS {
        all.extend(find(lab)?);
    }
    Ok(all)
}

/// Removes everything of the lab and returns what that was. An error names what could not be removed; whatever comes
/// before it in the order is gone.
pub fn remove_all(lab: &LabId, mut progress: impl FnMut(&str, usize)) -> Result<Vec<Remnant>> {
    let mut removed = BTreeSet::new();
    for (what, find) in STEPS {
        let gone = remove_kind(lab, what, find)?;
        if !gone.is_empty() {
            progress(what, gone.len());
        }
        removed.extend(gone);
    }
    let left = leftovers(lab)?;
    if !left.is_empty() {
        bail!("still there: {}; run `berth lab down` again", list(left.iter()));
    }
    Ok(removed.into_iter().collect())
}

/// Ends the lab's daemons so that a new supervisor can start its own, and leaves the containers running: their shims
/// stay, and the container runtime finds them again.
pub fn remove_daemons(lab: &LabId) -> Result<Vec<Remnant>> {
    Ok(remove_kind(lab, "daemons", daemons)?.into_iter().collect())
}

fn remove_kind(lab: &LabId, what: &str, find: Finder) -> Result<BTreeSet<Remnant>> {
    let started = Instant::now();
    let mut removed = BTreeSet::new();
    let mut failure = None;
    loop {
        // Before looking: a removal that took long and worked is found to have worked.
        let late = started.elapsed() > LIMIT;
        let found = find(lab)?;
        // A process loses its mark and its cgroup a little before it has really ended.
        let ending = |r: &Remnant| matches!(r, Remnant::Process(id, _) if id.alive());
        if found.is_empty() && !removed.iter().any(ending) {
            return Ok(removed);
        }
        if late {
            let error = failure.unwrap_or_else(|| anyhow::anyhow!("they come back"));
            return Err(error.context(format!("cannot remove {what}: {}", list(found.iter()))));
        }
        failure = None;
        for remnant in &found {
            if let Err(e) = remove(remnant, started.elapsed() > DETACH_AFTER) {
                failure = Some(e);
            }
        }
        if matches!(found.first(), Some(Remnant::Process(..))) {
            thaw(lab)?;
        }
        removed.extend(found);
        std::thread::sleep(TICK);
    }
}

fn remove(remnant: &Remnant, detach: bool) -> Result<()> {
    match remnant {
        Remnant::Process(id, _) => id.signal(Signal::SIGKILL),
        Remnant::Mount(path) => {
            let path = path.display().to_string();
            if detach { run("umount", &["--lazy", &path]).map(drop) } else { run("umount", &[&path]).map(drop) }
        }
        Remnant::Loop(device) => run("losetup", &["--detach", &device.display().to_string()]).map(drop),
        Remnant::Netns(name) => run("ip", &["netns", "delete", name]).map(drop),
        Remnant::Link(name) => run("ip", &["link", "delete", name]).map(drop),
        Remnant::Rule(bridge) => net::remove_rule(bridge),
        Remnant::Cgroup(path) => remove_cgroup(path),
        Remnant::File(path) => fs::remove_file(path).context("cannot remove a file"),
        Remnant::Dir(path) => remove_folder(path),
    }
}

fn list<'a>(remnants: impl Iterator<Item = &'a Remnant>) -> String {
    remnants.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Every process of the lab, by mark, by cgroup and by network namespace; the supervisor first, so that it cannot
/// start again what is ended after it.
fn processes(lab: &LabId) -> Result<Vec<Remnant>> {
    let spared = own_line();
    let mut found = BTreeSet::new();
    let namespaces = namespace_ids(lab)?;
    for pid in pids()? {
        let in_namespace = || {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| namespaces.contains(&(meta.dev(), meta.ino())))
        };
        if marked(pid, &lab.name) || in_namespace() {
            found.insert(pid);
        }
    }
    for group in cgroup_roots(lab)? {
        walk(&group, &mut |dir| {
            let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(members.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
    }
    let supervisor = State::read(&state_file(&lab.dir)).ok().flatten().map(|state| state.supervisor);
    let mut found: Vec<Remnant> = found.difference(&spared).filter_map(|pid| running(*pid)).collect();
    found.sort_by_key(|r| !matches!(r, Remnant::Process(id, _) if Some(*id) == supervisor));
    Ok(found)
}

/// The process of this number, unless it has ended: one that was not reaped holds nothing, and no signal reaches it.
fn running(pid: i32) -> Option<Remnant> {
    let name = command_name(pid);
    ProcessId::of(pid).map(|id| Remnant::Process(id, name))
}

/// Lets frozen processes run again: on cgroup v1 a frozen process does not even take SIGKILL.
fn thaw(lab: &LabId) -> Result<()> {
    for group in cgroup_roots(lab)? {
        walk(&group, &mut |dir| {
            let state = dir.join("freezer.state");
            if fs::read_to_string(&state).is_ok_and(|s| s.trim() != "THAWED")
                && let Err(e) = fs::write(&state, "THAWED")
            {
                tracing::warn!("cannot thaw {}: {e}", dir.display());
            }
        });
    }
    Ok(())
}

/// The marked processes without the containers' shims.
fn daemons(lab: &LabId) -> Result<Vec<Remnant>> {
    let spared = own_line();
    let marked = pids()?.into_iter().filter(|pid| !spared.contains(pid) && marked(*pid, &lab.name));
    Ok(marked
        .filter_map(running)
        .filter(|r| !matches!(r, Remnant::Process(_, name) if name.starts_with("containerd-shim")))
        .collect())
}

/// Device and inode of every network namespace of the lab: the nodes' and the pods'.
fn namespace_ids(lab: &LabId) -> Result<BTreeSet<(u64, u64)>> {
    let nodes = Path::new("/run/netns");
    let prefix = netns_prefix(&lab.name);
    Ok(mounts()?
        .into_iter()
        .filter(|mount| mount.kind == "nsfs")
        .map(|mount| mount.target)
        .filter(|target| {
            let node = target.parent() == Some(nodes)
                && target.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            node || target.starts_with(&lab.dir)
        })
        .filter_map(|target| fs::metadata(target).ok())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect())
}

/// Mounts below the lab's folder, the newest first, so that none hides another.
fn lab_mounts(lab: &LabId) -> Result<Vec<Remnant>> {
    Ok(mounts()?
        .into_iter()
        .rev()
        .filter(|mount| mount.target.starts_with(&lab.dir) && mount.target != lab.dir)
        .map(|mount| Remnant::Mount(mount.target))
        .collect())
}

fn loops(lab: &LabId) -> Result<Vec<Remnant>> {
    let mut found = Vec::new();
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Ok(found);
    };
    for device in devices {
        let device = device?;
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        if backing.is_ok_and(|file| Path::new(file.trim_end()).starts_with(&lab.dir)) {
            found.push(Remnant::Loop(Path::new("/dev").join(device.file_name())));
        }
    }
    Ok(found)
}

fn namespaces(lab: &LabId) -> Result<Vec<Remnant>> {
    names_in(Path::new("/run/netns"), |name| {
        name.starts_with(&netns_prefix(&lab.name)).then(|| Remnant::Netns(name.to_owned()))
    })
}

fn links(lab: &LabId) -> Result<Vec<Remnant>> {
    names_in(Path::new("/sys/class/net"), |name| {
        (name == bridge(&lab.name) || name.starts_with(&veth_prefix(&lab.name))).then(|| Remnant::Link(name.to_owned()))
    })
}

fn rules(lab: &LabId) -> Result<Vec<Remnant>> {
    let bridge = bridge(&lab.name);
    Ok(net::rule_exists(&bridge).then_some(Remnant::Rule(bridge)).into_iter().collect())
}

fn names_in(dir: &Path, keep: impl Fn(&str) -> Option<Remnant>) -> Result<Vec<Remnant>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", dir.display())),
    };
    Ok(entries.filter_map(|entry| keep(entry.ok()?.file_name().to_str()?)).collect())
}

/// The lab's cgroup in every hierarchy of this machine: one on cgroup v2, many on v1.
fn cgroup_roots(lab: &LabId) -> Result<Vec<PathBuf>> {
    let name = cgroup(&lab.name);
    let mut roots: Vec<PathBuf> = mounts()?
        .into_iter()
        .filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"))
        .map(|mount| mount.target.join(&name))
        .filter(|path| path.is_dir())
        .collect();
    roots.sort();
    roots.dedup();
    Ok(roots)
}

fn cgroups(lab: &LabId) -> Result<Vec<Remnant>> {
    Ok(cgroup_roots(lab)?.into_iter().map(Remnant::Cgroup).collect())
}

/// Visits a folder's subfolders, then itself. What vanishes meanwhile is skipped.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), visit);
            }
        }
    }
    visit(dir);
}

fn remove_cgroup(root: &Path) -> Result<()> {
    let mut failure = None;
    walk(root, &mut |dir| {
        if let Err(e) = fs::remove_dir(dir) {
            failure = Some(e);
        }
    });
    match failure {
        Some(e) if root.exists() => Err(e).context("a cgroup is still in use"),
        _ => Ok(()),
    }
}

/// Records about this lab's pods in folders that all container runtimes of the machine share.
fn files_elsewhere(lab: &LabId) -> Result<Vec<Remnant>> {
    let mut found = names_in(Path::new(CNI_RESULTS), |name| {
        let path = Path::new(CNI_RESULTS).join(name);
        // The result names the pod's network namespace, which the runtime mounts under the lab's folder.
        let text = fs::read_to_string(&path).ok()?;
        text.contains(&format!("\"{}/", lab.dir.display())).then_some(Remnant::File(path))
    })?;
    let mut addresses = BTreeSet::new();
    for node in names_in(&lab.dir, |name| {
        Some(Remnant::Dir(lab.dir.join(name).join("containerd/state/io.containerd.runtime.v2.task/k8s.io")))
    })? {
        let Remnant::Dir(tasks) = node else { continue };
        let Ok(tasks) = fs::read_dir(tasks) else {
            continue;
        };
        for task in tasks.flatten() {
            let address = fs::read_to_string(task.path().join("address")).unwrap_or_default();
            if let Some(path) = address.trim().strip_prefix("unix://") {
                addresses.insert(PathBuf::from(path));
            }
        }
    }
    found.extend(
        addresses.into_iter().filter(|path| path.starts_with(SHIM_SOCKETS) && path.exists()).map(Remnant::File),
    );
    Ok(found)
}

fn folder(lab: &LabId) -> Result<Vec<Remnant>> {
    Ok(lab.dir.exists().then(|| Remnant::Dir(lab.dir.clone())).into_iter().collect())
}

/// Deletes the lab's folder, but nothing through a mount.
fn remove_folder(dir: &Path) -> Result<()> {
    if let Some(mount) = mounts()?.iter().find(|mount| mount.target.starts_with(dir) && mount.target != dir) {
        bail!(
            "refusing to delete {}: {} is still mounted; unmount it, then run `berth lab down` again",
            dir.display(),
            mount.target.display()
        );
    }
    let config = config_file(dir);
    let entries: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    if !entries.is_empty() && !config.exists() {
        bail!("refusing to delete {}: it has no {}, so it is no lab's folder", dir.display(), config.display());
    }
    // What tells that this is a lab's folder goes last: a removal that is interrupted can go on.
    for entry in entries.iter().filter(|entry| **entry != config) {
        let entry = entry.display().to_string();
        run("rm", &["--recursive", "--force", "--one-file-system", &entry])?;
    }
    if config.exists() {
        fs::remove_file(&config)?;
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    remove_dead_shim_sockets()?;
    // Folders that the lab's tools made for the whole machine go when nothing else uses them.
    for shared in [CNI_RESULTS, "/var/lib/cni", SHIM_SOCKETS, "/run/containerd", "/var/lib/berth"] {
        match fs::remove_dir(shared) {
            Ok(()) => {}
            Err(e) => tracing::trace!("{shared} stays: {e}"),
        }
    }
    Ok(())
}

/// A shim that was killed leaves its socket, and when the runtime then forgot the container nothing tells whose it was.
/// A socket that no process has open is of no use to anyone.
fn remove_dead_shim_sockets() -> Result<()> {
    let open = open_unix_sockets()?;
    for socket in names_in(Path::new(SHIM_SOCKETS), |name| Some(Remnant::File(Path::new(SHIM_SOCKETS).join(name))))? {
        if let Remnant::File(path) = &socket
            && !open.contains(path.to_string_lossy().as_ref())
        {
            remove(&socket, false)?;
        }
    }
    Ok(())
}

/// Paths of the unix sockets that processes of this machine have open. The kernel lists them by network namespace, so
/// every namespace that a process lives in is asked: another lab's shims live in those of its nodes.
fn open_unix_sockets() -> Result<BTreeSet<String>> {
    let mut open = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for pid in pids()? {
        let process = Path::new("/proc").join(pid.to_string());
        // A process that has ended in the meantime has nothing open.
        let Ok(namespace) = fs::read_link(process.join("ns/net")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(table) = fs::read_to_string(process.join("net/unix")) else { continue };
        seen.insert(namespace);
        open.extend(table.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned));
    }
    Ok(open)
}
