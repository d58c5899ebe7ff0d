//! The cgroup of a pod as a whole, in which the runtime makes those of its containers.
//!
//! Both layouts of the kernel are known: one folder for each controller (v1, also beside an unused v2), and one folder for
//! all (v2).

use std::{fs, io, path::Path};

/// Where the kernel shows cgroups.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that a pod's folder needs under v2.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Scheduling period of the quota in microseconds.
pub const CPU_PERIOD: i64 = 100_000;

/// What all processes of a pod may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Share of the processors when all want them; 1024 stands for one.
    pub cpu_shares: i64,
    /// Microseconds of processor time in each 100,000; as many as there are when absent.
    pub cpu_quota: Option<i64>,
    /// Bytes; as many as there are when absent.
    pub memory: Option<i64>,
}

/// Makes a pod's cgroup under `root` and sets its bounds. Idempotent.
pub fn make(root: &Path, cgroup: &str, bounds: Bounds) -> io::Result<()> {
    let below = cgroup.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() { make_v2(root, below, bounds) } else { make_v1(root, below, bounds) }
}

fn make_v1(root: &Path, below: &str, bounds: Bounds) -> io::Result<()> {
    let unlimited = |bound: Option<i64>| bound.unwrap_or(-1).to_string();
    let files = [
        ("cpu", "cpu.shares", bounds.cpu_shares.to_string()),
        ("cpu", "cpu.cfs_period_us", CPU_PERIOD.to_string()),
        ("cpu", "cpu.cfs_quota_us", unlimited(bounds.cpu_quota)),
        ("memory", "memory.limit_in_bytes", unlimited(bounds.memory)),
    ];
    for (controller, file, value) in files {
        let hierarchy = root.join(controller);
        // A kernel without the controller bounds no container either.
        if hierarchy.exists() {
            let folder = hierarchy.join(below);
            fs::create_dir_all(&folder)?;
            write(&folder, file, &value)?;
        }
    }
    Ok(())
}

fn make_v2(root: &Path, below: &str, bounds: Bounds) -> io::Result<()> {
    let mut folder = root.to_owned();
    for name in Path::new(below) {
        // Each folder lets the ones below it use the controllers.
        let there = fs::read_to_string(folder.join("cgroup.controllers"))?;
        let wanted = CONTROLLERS.iter().filter(|name| there.split_whitespace().any(|there| there == **name));
        let wanted: Vec<_> = wanted.map(|name| format!("+{name}")).collect();
        write(&folder, "cgroup.subtree_control", &wanted.join(" "))?;
        folder.push(name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let most = |bound: Option<i64>| bound.map_or_else(|| "max".to_owned(), |bound| bound.to_string());
    write(&folder, "cpu.weight", &weight(bounds.cpu_shares).to_string())?;
    write(&folder, "cpu.max", &format!("{} {CPU_PERIOD}", most(bounds.cpu_quota)))?;
    write(&folder, "memory.max", &most(bounds.memory))
}

/// From 2 to 262144 shares to 1 to 10000, as the container runtimes do.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = folder.join(file);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    fs::write(&path, value).map_err(named)
}

/// Removes a pod's cgroup, which the runtime leaves behind, from every hierarchy (v1 and v2).
pub fn remove(cgroup: &str) {
    let root = Path::new(ROOT);
    let below = cgroup.trim_start_matches('/');
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_folder(&hierarchy.join(below));
    }
}

/// With its children: a cgroup holds no files of its own, only folders that are cgroups.
fn remove_folder(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_folder(&child.path());
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(cgroup = %path.display(), %error, "cannot remove the cgroup");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDED: Bounds = Bounds { cpu_shares: 1024, cpu_quota: Some(50_000), memory: Some(1 << 20) };
    const OPEN: Bounds = Bounds { cpu_shares: 2, cpu_quota: None, memory: None };

    #[test]
    fn one_folder_for_each_controller() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            fs::create_dir(root.path().join(controller)).unwrap();
        }
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        make(root.path(), "/berth/podu", BOUNDED).unwrap();
        assert_eq!(
            (read("cpu/berth/podu/cpu.shares"), read("cpu/berth/podu/cpu.cfs_quota_us")),
            ("1024".into(), "50000".into())
        );
        assert_eq!(read("memory/berth/podu/memory.limit_in_bytes"), "1048576");
        make(root.path(), "/berth/podu", OPEN).unwrap();
        assert_eq!(
            (read("cpu/berth/podu/cpu.cfs_quota_us"), read("memory/berth/podu/memory.limit_in_bytes")),
            ("-1".into(), "-1".into())
        );
    }

    #[test]
    fn one_folder_for_all_controllers() {
        let root = tempfile::tempdir().unwrap();
        let berth = root.path().join("berth");
        fs::create_dir(&berth).unwrap();
        for folder in [root.path(), berth.as_path()] {
            fs::write(folder.join("cgroup.controllers"), "cpuset cpu io memory\n").unwrap();
        }
        make(root.path(), "/berth/podu", BOUNDED).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+cpu +memory", "what the kernel has");
        assert_eq!(read("berth/cgroup.subtree_control"), "+cpu +memory");
        assert_eq!(
            (read("berth/podu/cpu.max"), read("berth/podu/memory.max")),
            ("50000 100000".into(), "1048576".into())
        );
        make(root.path(), "/berth/podu", OPEN).unwrap();
        assert_eq!((read("berth/podu/cpu.max"), read("berth/podu/memory.max")), ("max 100000".into(), "max".into()));
    }

    #[test]
    fn shares_become_weights_over_the_whole_range() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
