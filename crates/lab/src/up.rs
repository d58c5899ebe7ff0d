//! `lab up`: from nothing, from a running lab or from what a crash left, to a lab that is whole.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cleanup::{LabId, remove_daemons};
use crate::handle::Lab;
use crate::layout::{Layout, MARKER, Subnet, config_file};
use crate::spec::{CLASSES, Config, containerd_config, folders};
use crate::state::{ProcessState, State};
use crate::system::{TICK, write_atomically};
use crate::{LabArgs, images, net, prerequisites};

/// How many of its last lines an error shows of a log.
const LOG_TAIL: usize = 8;

/// How the lab shall be.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Which lab
    #[command(flatten)]
    pub lab: LabArgs,
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// The network between the nodes, a private /24
    #[arg(long, default_value = "10.88.0.0/24")]
    pub subnet: Subnet,
    /// The API service's port; controller, scheduler and volume manager follow, etcd is 30 above
    #[arg(long, default_value_t = 7440)]
    pub port_base: u16,
    /// The range that every node's pod range is cut from
    #[arg(long, default_value = "10.77.0.0/16")]
    pub pod_cidr: String,
    /// The cluster's DNS domain
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The folder with the images' OCI archives [default: images beside the binary's folder, or /var/lib/berth/images]
    #[arg(long, env = "BERTH_IMAGES")]
    pub images: Option<PathBuf>,
    /// The binary that holds the roles [default: this one]
    #[arg(long, hide = true)]
    pub berth_bin: Option<PathBuf>,
    /// How many seconds the lab may take to be whole
    #[arg(long, default_value_t = 90)]
    pub timeout: u64,
}

/// Brings the lab up and returns when every process is ready and then `ready` has agreed, which gets the lab and what
/// is left of the time limit. Lines about progress go to `out`.
pub async fn up(
    args: &UpArgs,
    out: &mut impl Write,
    ready: impl AsyncFnOnce(&Lab, Duration) -> Result<()>,
) -> Result<Lab> {
    prerequisites::require_root()?;
    let started = Instant::now();
    let limit = Duration::from_secs(args.timeout);
    let cni_bin_dir = prerequisites::check_tools()?;
    let id = prepare_folder(args)?;
    let _lock = lock(&id.dir)?;

    let running = Lab::open(&id)?;
    let (lab, supervisor) = match running {
        Some(lab) if lab.supervisor()?.is_some() => {
            refuse_changes(&lab, args)?;
            net::ensure(lab.layout())?;
            writeln!(out, "lab {} is up already", id.name)?;
            (lab, None)
        }
        earlier => {
            if let Some(earlier) = &earlier {
                refuse_changes(earlier, args)?;
            }
            let config = configure(args, &id, cni_bin_dir)?;
            let orphans = remove_daemons(&id)?;
            if !orphans.is_empty() {
                writeln!(out, "took over after a crash: ended {} processes, containers run on", orphans.len())?;
            }
            prerequisites::check_ports(&config.layout)?;
            net::ensure(&config.layout)?;
            writeln!(out, "network   {} nodes on {}", config.layout.nodes, config.layout.subnet)?;
            let supervisor = start(&config)?;
            (Lab::new(config), Some(supervisor))
        }
    };
    wait_whole(&lab, supervisor, limit, out).await?;
    ready(&lab, limit.saturating_sub(started.elapsed())).await?;
    writeln!(
        out,
        "lab {} is up after {:.1} s: {} nodes, API at {}",
        id.name,
        started.elapsed().as_secs_f32(),
        lab.layout().nodes,
        lab.server()
    )?;
    Ok(lab)
}

fn prepare_folder(args: &UpArgs) -> Result<LabId> {
    let dir = args.lab.dir();
    let fresh = !dir.exists();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = fs::canonicalize(&dir)?;
    if !fresh && fs::read_dir(&dir)?.next().is_some() && !config_file(&dir).exists() {
        bail!("{} is not empty and is no lab's folder: choose another with --dir", dir.display());
    }
    Ok(LabId { name: args.lab.name.clone(), dir })
}

/// One command changes a lab at a time.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    if file.try_lock().is_err() {
        bail!("another `berth lab` command works on {}: wait until it has ended", dir.display());
    }
    Ok(file)
}

fn refuse_changes(lab: &Lab, args: &UpArgs) -> Result<()> {
    let layout = lab.layout();
    let same = layout.nodes == args.nodes && layout.subnet == args.subnet && layout.port_base == args.port_base;
    if same {
        return Ok(());
    }
    bail!(
        "lab {} is there with --nodes {} --subnet {} --port-base {}: run `berth lab down` before you change it",
        layout.name,
        layout.nodes,
        layout.subnet,
        layout.port_base
    )
}

fn configure(args: &UpArgs, id: &LabId, cni_bin_dir: PathBuf) -> Result<Config> {
    let berth = match &args.berth_bin {
        Some(path) => fs::canonicalize(path).with_context(|| format!("no binary at {}", path.display()))?,
        None => std::env::current_exe().context("cannot tell this program's own path")?,
    };
    let layout = Layout::new(id.name.clone(), id.dir.clone(), args.nodes, args.subnet, args.port_base)
        .map_err(anyhow::Error::msg)?;
    let images =
        images::find(args.images.as_deref(), &berth)?.into_iter().map(fs::canonicalize).collect::<io::Result<_>>()?;
    // The file tells that the folder is a lab's, so it comes before anything else in it.
    let config = Config {
        layout,
        berth,
        images,
        pod_cidr: args.pod_cidr.clone(),
        cluster_domain: args.cluster_domain.clone(),
        snapshotter: String::new(),
        cni_bin_dir,
    };
    write_config(&config)?;
    let config = Config { snapshotter: prerequisites::choose_snapshotter(&id.dir)?, ..config };
    write_config(&config)?;
    for folder in folders(&config.layout) {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(config.layout.classes_file(), CLASSES)?;
    for node in config.layout.all_nodes() {
        fs::write(config.layout.containerd_config(node), containerd_config(&config, node))?;
    }
    Ok(config)
}

fn write_config(config: &Config) -> Result<()> {
    let path = config.layout.config_file();
    write_atomically(&path, &serde_json::to_vec_pretty(config)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Starts the supervisor, which lives on when this command has ended.
fn start(config: &Config) -> Result<Child> {
    let lab = &config.layout;
    // An old state must not be taken for the new supervisor's.
    match fs::remove_file(lab.state_file()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let log = OpenOptions::new().append(true).create(true).open(lab.log("supervisor"))?;
    Command::new(&config.berth)
        .args(["lab", "supervise", "--dir"])
        .arg(&lab.dir)
        .args(["--name", lab.name.as_str()])
        .env(MARKER, lab.name.as_str())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", config.berth.display()))
}

/// Waits for every process, telling of each as it comes.
async fn wait_whole(lab: &Lab, mut supervisor: Option<Child>, limit: Duration, out: &mut impl Write) -> Result<()> {
    let started = Instant::now();
    let mut told = BTreeSet::new();
    loop {
        let state = lab.state()?;
        if let Some(state) = &state {
            for process in &state.processes {
                if process.phase.settled() && told.insert(process.name.clone()) {
                    tell(process, out)?;
                }
            }
            if state.unsettled().is_empty() && lab.supervisor()?.is_some() {
                return Ok(());
            }
        }
        let dead = match &mut supervisor {
            Some(child) => child.try_wait()?.is_some(),
            None => lab.supervisor()?.is_none(),
        };
        if dead || started.elapsed() >= limit {
            let why = if dead { "the lab's supervisor ended" } else { "the lab is not whole in time" };
            let missing = state.as_ref().map(State::unsettled).unwrap_or_default();
            bail!("{why}.\n{}", explain(lab, &missing));
        }
        tokio::time::sleep(TICK).await;
    }
}

fn tell(process: &ProcessState, out: &mut impl Write) -> io::Result<()> {
    let seconds = process.ready_after_ms.unwrap_or(0);
    let restarts = match process.restarts {
        0 => String::new(),
        n => format!("  (restarted {n} times)"),
    };
    writeln!(out, "{:<20} {} {}.{:02} s{restarts}", process.name, process.phase, seconds / 1000, seconds % 1000 / 10)
}

/// What an `up` that failed says: each process that is missing, why it is, and where to look.
fn explain(lab: &Lab, missing: &[&ProcessState]) -> String {
    let mut text = String::new();
    for process in missing {
        let exit = match (&process.last_exit, process.restarts) {
            (Some(exit), n) => format!(", ended {n} times, last with {exit}"),
            (None, _) => String::new(),
        };
        text.push_str(&format!("{} is {}{exit}\n", process.name, process.phase));
        // Who only waits for another has nothing to tell.
        if process.started_ms > 0 {
            push_tail(&mut text, &process.log);
        }
    }
    if missing.is_empty() {
        push_tail(&mut text, &lab.log("supervisor"));
    }
    text.push_str("It is left as it is: `berth lab status` shows it, `berth lab down` removes it.");
    text
}

fn push_tail(text: &mut String, log: &Path) {
    text.push_str(&format!("  {}:\n", log.display()));
    let lines: Vec<String> = File::open(log)
        .map(|file| io::BufReader::new(file).lines().map_while(Result::ok).collect())
        .unwrap_or_default();
    for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
        text.push_str(&format!("    {line}\n"));
    }
}
