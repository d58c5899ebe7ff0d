//! The process that keeps the lab's processes running.
//!
//! One per lab, held by a lock on a file in the lab's folder. It starts every process when those that it waits for
//! are ready, starts it again when it ends, and writes what it knows to the state file. It owns no containers: when it
//! dies, its processes run on without it and the next `up` takes over.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddrV4;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::{HISTORY, next_wait};
use crate::layout::{Layout, MARKER};
use crate::spec::{Config, Kind, Process, Ready, processes};
use crate::state::{Phase, ProcessState, State, now_ms};
use crate::system::{ProcessId, TICK, write_atomically};

/// A log that is longer than this when its process starts is set aside, in the place of the one set aside before.
const LOG_LIMIT: u64 = 8 << 20;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// How long one look at a process' readiness may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Runs the lab's processes until SIGTERM or SIGINT.
pub async fn supervise(config: Config) -> Result<()> {
    let lab = &config.layout;
    let _lock = lock(&lab.supervisor_lock())?;
    let specs = processes(&config);
    let pid = i32::try_from(std::process::id()).context("own process id")?;
    let (state, _) = watch::channel(State {
        supervisor: ProcessId::of(pid).context("cannot read own entry in /proc")?,
        processes: specs.iter().map(|spec| initial(spec, lab)).collect(),
    });

    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The writer outlives the processes: the last state that it writes is that all have stopped.
    let written = CancellationToken::new();
    let writer = tokio::spawn(write_states(lab.state_file(), state.subscribe(), written.clone()));
    let mut tasks = JoinSet::new();
    for spec in specs {
        let keeper = Keeper { spec, lab: lab.clone(), state: state.clone(), stop: stop.clone() };
        tasks.spawn(keeper.keep());
    }
    info!(lab = %lab.name, nodes = lab.nodes, "supervising");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        if let Err(e) = ended {
            error!("a keeper failed: {e}");
        }
    }
    written.cancel();
    writer.await.context("state writer")
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.try_lock()
        .map_err(|e| anyhow!("another supervisor holds {}: this lab is up already ({e})", path.display()))?;
    Ok(file)
}

fn initial(spec: &Process, lab: &Layout) -> ProcessState {
    ProcessState {
        name: spec.name.clone(),
        node: spec.node.clone(),
        phase: Phase::Waiting,
        process: None,
        started_ms: 0,
        ready_after_ms: None,
        restarts: 0,
        last_exit: None,
        log: lab.log(&spec.name),
    }
}

async fn write_states(path: std::path::PathBuf, mut state: watch::Receiver<State>, end: CancellationToken) {
    loop {
        let current = state.borrow_and_update().clone();
        let written = serde_json::to_vec_pretty(&current)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(write_atomically(&path, &bytes)?));
        if let Err(e) = written {
            error!("cannot write {}: {e:#}", path.display());
        }
        tokio::select! {
            biased;
            changed = state.changed() => if changed.is_err() { return },
            () = end.cancelled() => return,
        }
    }
}

/// Keeps one process running.
struct Keeper {
    spec: Process,
    lab: Layout,
    state: watch::Sender<State>,
    stop: CancellationToken,
}

/// Why a run is over.
enum End {
    Exited(ExitStatus),
    NotStarted(String),
    Stopped,
}

impl Keeper {
    async fn keep(self) {
        if self.stop.run_until_cancelled(self.wait_for_others()).await != Some(true) {
            self.update(|p| p.phase = Phase::Stopped);
            return;
        }
        let mut runs = VecDeque::with_capacity(HISTORY);
        loop {
            let started = Instant::now();
            let (text, done) = match self.run_once().await {
                End::Stopped => {
                    self.update(|p| {
                        p.phase = Phase::Stopped;
                        p.process = None;
                    });
                    return;
                }
                End::Exited(status) => (status.to_string(), status.success() && self.spec.kind == Kind::Task),
                End::NotStarted(reason) => (reason, false),
            };
            if done {
                let took = started.elapsed();
                self.update(|p| {
                    p.phase = Phase::Done;
                    p.process = None;
                    p.ready_after_ms = u64::try_from(took.as_millis()).ok();
                });
                return;
            }
            if runs.len() == HISTORY {
                runs.pop_front();
            }
            runs.push_back(started.elapsed());
            let wait = next_wait(runs.make_contiguous());
            warn!(process = self.spec.name, after = ?started.elapsed(), ?wait, "ended: {text}");
            self.update(|p| {
                p.phase = Phase::Backoff;
                p.process = None;
                p.restarts += 1;
                p.last_exit = Some(text);
            });
            let waited = self.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
            if waited.is_none() {
                self.update(|p| p.phase = Phase::Stopped);
                return;
            }
        }
    }

    /// Waits until each of the others has been ready once; false if the supervisor is going away.
    async fn wait_for_others(&self) -> bool {
        let mut state = self.state.subscribe();
        for other in &self.spec.after {
            let ready = |s: &State| s.process(other).is_some_and(|p| p.phase.settled());
            if state.wait_for(ready).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn run_once(&self) -> End {
        let started = Instant::now();
        let mut child = match self.start() {
            Ok(child) => child,
            Err(e) => return End::NotStarted(format!("{e:#}")),
        };
        let process = child.id().and_then(|pid| ProcessId::of(i32::try_from(pid).ok()?));
        self.update(|p| {
            p.phase = Phase::Starting;
            p.process = process;
            p.started_ms = now_ms();
            p.ready_after_ms = None;
        });
        let mut probe = pin!(until_ready(&self.spec.ready));
        let mut ready = false;
        loop {
            tokio::select! {
                status = child.wait() => return match status {
                    Ok(status) => End::Exited(status),
                    Err(e) => End::NotStarted(e.to_string()),
                },
                () = &mut probe, if !ready => {
                    ready = true;
                    info!(process = self.spec.name, after = ?started.elapsed(), "ready");
                    self.update(|p| {
                        p.phase = Phase::Ready;
                        p.ready_after_ms = u64::try_from(started.elapsed().as_millis()).ok();
                    });
                }
                () = self.stop.cancelled() => {
                    if let Err(e) = end(&mut child).await {
                        error!(process = self.spec.name, "cannot stop: {e:#}");
                    }
                    return End::Stopped;
                }
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let log = self.open_log()?;
        let argv = self.spec.command();
        let (program, args) = argv.split_first().context("empty command")?;
        Command::new(program)
            .args(args)
            .env(MARKER, self.lab.name.as_str())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))
    }

    fn open_log(&self) -> Result<File> {
        let path = self.lab.log(&self.spec.name);
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }

    fn update(&self, change: impl FnOnce(&mut ProcessState)) {
        self.state.send_modify(|state| {
            if let Some(p) = state.processes.iter_mut().find(|p| p.name == self.spec.name) {
                change(p);
            }
        });
    }
}

/// Asks a process to end, then makes it.
async fn end(child: &mut Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(e) => warn!("cannot send SIGTERM to {pid}: {e}"),
        }
    }
    if let Ok(ended) = tokio::time::timeout(GRACE, child.wait()).await {
        ended?;
        return Ok(());
    }
    child.kill().await?;
    Ok(())
}

/// Returns when the process is ready; the caller drops it when the process has ended.
async fn until_ready(ready: &Ready) {
    if *ready == Ready::Exit {
        return std::future::pending().await;
    }
    loop {
        if let Ok(true) = tokio::time::timeout(PROBE_LIMIT, probe(ready)).await {
            return;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn probe(ready: &Ready) -> bool {
    match ready {
        Ready::Tcp(address) => TcpStream::connect(*address).await.is_ok(),
        Ready::Unix(path) => UnixStream::connect(path).await.is_ok(),
        Ready::EtcdHealth(address) => etcd_healthy(*address).await.unwrap_or(false),
        Ready::Exit => false,
    }
}

async fn etcd_healthy(address: SocketAddrV4) -> Result<bool> {
    /// The answer is a few hundred bytes; whatever else listens there must not fill the memory.
    const LONGEST_ANSWER: u64 = 4096;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\nHost: etcd\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer).await?;
    Ok(answer.contains(r#""health":"true""#))
}
