//! A lab: a whole Berth cluster on one machine, to develop against, to show and to break.
//!
//! The control plane and etcd run in the root network namespace; every node has a namespace of its own with its own
//! containerd, CSI drivers and agent, joined by a bridge. `up` is idempotent, `down` leaves nothing behind, also after
//! a crash of the lab itself at any moment.
//!
//! Modules: [`layout`] and [`spec`] say what a lab consists of and are pure; `supervisor` keeps it
//! running; [`cleanup`] finds and removes everything that belongs to it. This crate knows the roles only as command
//! lines and links none of them.

mod backoff;
pub mod cleanup;
mod handle;
mod images;
pub mod layout;
mod net;
mod prerequisites;
pub mod spec;
pub mod state;
mod supervisor;
pub mod system;
mod up;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};

pub use cleanup::{LabId, Remnant, leftovers};
pub use handle::Lab;
pub use layout::{LabName, Layout};
pub use up::{UpArgs, up};

/// How long `lab kill --wait` waits for the restart.
const RESTART_LIMIT: Duration = Duration::from_secs(30);

/// Which lab.
#[derive(Debug, Clone, Default, Args)]
pub struct LabArgs {
    /// The lab's name, which everything outside its folder carries
    #[arg(long, default_value_t)]
    pub name: LabName,
    /// The lab's folder [default: /var/lib/berth/NAME]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

impl LabArgs {
    /// The folder as given, or the default.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| layout::default_dir(&self.name))
    }

    /// The lab's identity, with the folder's links resolved if it exists.
    pub fn id(&self) -> Result<LabId> {
        let dir = self.dir();
        let dir = if dir.exists() { std::fs::canonicalize(&dir)? } else { std::path::absolute(&dir)? };
        if dir == Path::new("/") {
            bail!("--dir / cannot be a lab's folder");
        }
        Ok(LabId { name: self.name.clone(), dir })
    }

    fn open(&self) -> Result<Lab> {
        Lab::open(&self.id()?)?.with_context(|| format!("lab {} is not up: run `berth lab up`", self.name))
    }
}

/// `berth lab`: a cluster on this machine.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Bring the lab up, or make a running one whole
    Up(UpArgs),
    /// Show the lab's processes
    Status(LabArgs),
    /// Stop the lab and remove everything of it
    Down(LabArgs),
    /// Run a command in a node's network
    Exec {
        /// Which lab
        #[command(flatten)]
        lab: LabArgs,
        /// The node, such as node-1
        node: String,
        /// The command
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Kill one of the lab's processes with SIGKILL, to see it come back
    #[command(hide = true)]
    Kill {
        /// Which lab
        #[command(flatten)]
        lab: LabArgs,
        /// The process, as `status` names it
        process: String,
        /// Return when it is ready again
        #[arg(long)]
        wait: bool,
    },
    /// Keep the lab's processes running
    #[command(hide = true)]
    Supervise(LabArgs),
    /// Give a container runtime its images
    #[command(hide = true)]
    LoadImages {
        /// The runtime's socket
        #[arg(long)]
        socket: PathBuf,
        /// How the runtime stores images
        #[arg(long)]
        snapshotter: String,
        /// OCI archives
        archives: Vec<PathBuf>,
    },
}

impl Command {
    /// Carries the command out. `ready` is asked by `up` when every process is ready, and says when the cluster is;
    /// it gets the lab and the time that is left. The answer is the process' exit code.
    pub async fn run(self, ready: impl AsyncFnOnce(&Lab, Duration) -> Result<()>) -> Result<std::process::ExitCode> {
        let mut out = std::io::stdout();
        match self {
            Self::Up(args) => drop(up(&args, &mut out, ready).await?),
            Self::Status(args) => return status(&args, &mut out),
            Self::Down(args) => {
                prerequisites::require_root()?;
                down(&args.id()?, &mut out)?;
            }
            Self::Exec { lab, node, command } => {
                let lab = lab.open()?;
                let (program, args) = command.split_first().context("no command")?;
                let ended = lab
                    .command_on(lab.node(&node)?, program)
                    .args(args)
                    .status()
                    .context("cannot run nsenter: install util-linux")?;
                let code = ended.code().and_then(|code| u8::try_from(code).ok());
                return Ok(code.unwrap_or(1).into());
            }
            Self::Kill { lab, process, wait } => {
                let lab = lab.open()?;
                let old = lab.kill(&process)?;
                writeln!(out, "killed {process} ({})", old.pid)?;
                if wait {
                    lab.restarted(&process, old, RESTART_LIMIT).await?;
                    writeln!(out, "{process} is ready again")?;
                }
            }
            Self::Supervise(args) => supervise(&args).await?,
            Self::LoadImages { socket, snapshotter, archives } => {
                images::load(&socket, &snapshotter, &archives).await?
            }
        }
        Ok(std::process::ExitCode::SUCCESS)
    }
}

async fn supervise(args: &LabArgs) -> Result<()> {
    // A session of its own: no terminal's hang-up or Ctrl-C reaches it. It fails only where it is one already.
    if let Err(e) = nix::unistd::setsid() {
        tracing::debug!("already a session of its own: {e}");
    }
    let logging = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    if let Err(e) = logging {
        tracing::debug!("logging is set up already: {e}");
    }
    supervisor::supervise(args.open()?.config().clone()).await
}

fn status(args: &LabArgs, out: &mut impl Write) -> Result<std::process::ExitCode> {
    let Some(lab) = Lab::open(&args.id()?)? else {
        writeln!(out, "lab {} is not up", args.name)?;
        return Ok(3.into());
    };
    let Some(state) = lab.state()? else {
        writeln!(out, "lab {} has no supervisor: run `berth lab up`", args.name)?;
        return Ok(1.into());
    };
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["PROCESS", "NODE", "PID", "STATE", "RESTARTS", "UPTIME", "LOG"]);
    let mut whole = true;
    for process in &state.processes {
        let alive = process.process.filter(|id| id.alive());
        let lost = process.process.is_some() && alive.is_none();
        whole &= process.phase.settled() && !lost;
        table.add_row([
            process.name.clone(),
            process.node.clone().unwrap_or_else(|| "-".to_owned()),
            alive.map_or_else(|| "-".to_owned(), |id| id.pid.to_string()),
            if lost { "ended".to_owned() } else { process.phase.to_string() },
            process.restarts.to_string(),
            alive.map_or_else(|| "-".to_owned(), |_| uptime(process.started_ms)),
            process.log.display().to_string(),
        ]);
    }
    writeln!(out, "{table}")?;
    if lab.supervisor()?.is_none() {
        writeln!(out, "the supervisor has ended: run `berth lab up` to take over, or `berth lab down`")?;
        whole = false;
    }
    Ok(if whole { 0 } else { 1 }.into())
}

fn uptime(started_ms: u64) -> String {
    let seconds = state::now_ms().saturating_sub(started_ms) / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

/// Removes everything of a lab, whatever state it is in, and proves it. Returns what was removed.
pub fn down(id: &LabId, out: &mut impl Write) -> Result<Vec<Remnant>> {
    Lab::refuse_other_folder(id)?;
    let _lock = id.dir.exists().then(|| up::lock(&id.dir)).transpose()?;
    let mut lines = Vec::new();
    let removed = cleanup::remove_all(id, |what, n| lines.push(format!("removed {n} {what}")))?;
    for line in &lines {
        writeln!(out, "{line}")?;
    }
    if removed.is_empty() {
        writeln!(out, "lab {} is not up: nothing to remove", id.name)?;
    } else {
        writeln!(out, "lab {} is down, nothing of it is left", id.name)?;
    }
    Ok(removed)
}
