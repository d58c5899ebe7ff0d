//! Who lives: the workload processes on this machine, read from the process table and not from any store.
//!
//! The lab's nodes share the machine's process table, so that one look sees the processes of all nodes at one moment,
//! whatever the services believe.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, bail};

/// The commands that the tests' workloads run as the first process of their containers.
const WORKLOADS: [&str; 2] = ["nginx", "canary"];
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(10);

/// The first processes of all workload containers: host name (which is the pod's identity) to process ids.
pub fn census() -> BTreeMap<String, Vec<u32>> {
    let mut alive: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return alive };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(identity) = identity(pid) {
            alive.entry(identity).or_default().push(pid);
        }
    }
    alive
}

/// The first processes of all containers of pods whose names begin so, whatever they run: pod to process ids.
pub fn containers_of(prefix: &str) -> BTreeMap<String, BTreeSet<u32>> {
    let mut alive: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return alive };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(pod) = host_of_first(pid).filter(|pod| pod.starts_with(prefix)) {
            alive.entry(pod).or_default().insert(pid);
        }
    }
    alive
}

/// The pod that a process is the workload of. A process that ends while we look is none.
fn identity(pid: u32) -> Option<String> {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if WORKLOADS.contains(&command.trim()) { host_of_first(pid) } else { None }
}

/// The host name of a process that is the first one of a container.
fn host_of_first(pid: u32) -> Option<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let status = read("status")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let first_of_container = ids.split_whitespace().count() > 1 && ids.split_whitespace().last() == Some("1");
    // A zombie executes nothing.
    let dead = status.lines().any(|line| line.starts_with("State:") && (line.contains('Z') || line.contains('X')));
    if !first_of_container || dead {
        return None;
    }
    // Not the environment: nginx writes its title over it.
    read("root/etc/hostname").map(|name| name.trim().to_owned())
}

/// A watch over [`census`] in the background: remembers whether any identity was ever twice alive.
pub struct Watchman {
    stop: Arc<AtomicBool>,
    looks: JoinHandle<(u64, Option<String>)>,
}

impl Watchman {
    /// Starts looking.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut looks = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Some((identity, pids)) = census().into_iter().find(|(_, pids)| pids.len() > 1) {
                        return (looks, Some(format!("{identity} lived twice, as processes {pids:?}")));
                    }
                    looks += 1;
                    std::thread::sleep(PERIOD);
                }
                (looks, None)
            }
        });
        Self { stop, looks }
    }

    /// Stops looking; an error if an identity was twice alive. Gives the number of looks.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.looks.join() {
            Ok((looks, None)) => Ok(looks),
            Ok((_, Some(finding))) => bail!(finding),
            Err(_) => bail!("the watchman panicked"),
        }
    }
}
