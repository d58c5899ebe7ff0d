//! Commands in running containers, with input and output as they come.
//!
//! A command lives as long as the call that asked for it: when the caller goes away, or the agent ends, the command and
//! all that it started in its session are hung up, then killed. Nothing is kept in memory beyond a few pieces; who does
//! not read holds the command up. All output comes before the exit code.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pb::{
    agent::v1::{ExecStreamRequest, ExecStreamResponse},
    api::v1::{self as api, exec_stream_request::Input, exec_stream_response::Output},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::{Receiver, Sender},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::fifos::{self, Fifos};
use crate::{
    containerd::{Containerd, Process, Size, describe},
    stream::waits,
};

/// Bytes of output in one message.
const PIECE: usize = 32 * 1024;

/// Messages that may wait for a slow reader.
const AHEAD: usize = 8;

/// How long what a command started and left behind may say nothing, before its output counts as ended.
const LINGER: Duration = Duration::from_secs(2);

/// What a command may take to end after it was hung up, and after it was killed.
const ENDING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The end of input as one types it.
const END_OF_TRANSMISSION: u8 = 4;

/// What a call gets.
pub type Answers = mpsc::Receiver<Result<ExecStreamResponse, Status>>;
type Answering = mpsc::Sender<Result<ExecStreamResponse, Status>>;

/// Runs commands.
#[derive(Clone, Debug)]
pub struct Commands {
    containerd: Containerd,
    home: PathBuf,
    count: Arc<AtomicU64>,
}

impl Commands {
    /// With FIFOs below the data folder.
    pub fn new(containerd: Containerd, data_dir: &std::path::Path) -> Self {
        Self { containerd, home: fifos::home(data_dir), count: Arc::default() }
    }

    /// Ends the commands that an agent before this one has left.
    pub async fn clean(&self) -> io::Result<()> {
        for (process, folder) in fifos::left(&self.home)? {
            for wait in waits() {
                match self.discard(&process).await {
                    Ok(()) => break,
                    Err(error) => tracing::warn!(%error, ?process, "a command of an earlier agent is not ended yet"),
                }
                tokio::time::sleep(wait).await;
            }
            fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    async fn discard(&self, process: &Process) -> Result<(), Status> {
        self.containerd.kill(process, Signal::SIGKILL).await?;
        match timeout(ENDING.1, self.containerd.wait(process)).await {
            Ok(Err(status)) if status.code() != Code::NotFound => Err(status),
            Ok(_) => self.containerd.delete(process).await,
            Err(_) => Err(Status::deadline_exceeded("it does not end")),
        }
    }

    /// Starts a command in a running container.
    pub async fn start(&self, container: &str, wanted: &api::ExecStart) -> Result<Command, Status> {
        let size = size(wanted.size.as_ref())?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        // No two agents of a node begin at the same nanosecond.
        let id = format!("exec-{:x}-{number}", Timestamp::now().as_nanosecond());
        let process = Process { container: container.to_owned(), id };
        let spec = describe(&self.containerd.process_of(container).await?, &wanted.command, wanted.tty, size);
        let failed = |error: io::Error| Status::internal(format!("cannot make the FIFOs of a command: {error}"));
        let fifos = Fifos::make(&self.home, &process, wanted.stdin, !wanted.tty).map_err(failed)?;
        let (stdout, stderr) = fifos.outputs().map_err(failed)?;
        self.containerd.make(&process, fifos.ends(), wanted.tty, &spec).await?;
        let pid = match self.containerd.start(&process).await {
            Ok(pid) => pid,
            Err(status) => {
                if let Err(error) = self.containerd.delete(&process).await {
                    tracing::warn!(%error, ?process, "what is left of a command that did not start cannot be removed");
                }
                return Err(status);
            }
        };
        let command = Command {
            containerd: self.containerd.clone(),
            process,
            pid,
            fifos,
            terminal: wanted.tty,
            outputs: Some((stdout, stderr)),
        };
        if let Some(size) = size.filter(|_| wanted.tty) {
            // An older runtime does not know a first size.
            command.resize(size).await;
        }
        Ok(command)
    }
}

fn size(size: Option<&api::TerminalSize>) -> Result<Option<Size>, Status> {
    let read = |size: &api::TerminalSize| {
        Some(Size { width: u16::try_from(size.width).ok()?, height: u16::try_from(size.height).ok()? })
    };
    match size {
        None => Ok(None),
        Some(size) => {
            let bad = || Status::invalid_argument("size: columns and lines must be from 0 to 65535");
            read(size).ok_or_else(bad).map(Some)
        }
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Command {
    containerd: Containerd,
    process: Process,
    /// On the host; leader of the session of all that the command starts.
    pid: u32,
    fifos: Fifos,
    terminal: bool,
    outputs: Option<(Receiver, Option<Receiver>)>,
}

impl Command {
    /// Room for what a call gets.
    pub fn answers() -> (Answering, Answers) {
        mpsc::channel(AHEAD)
    }

    /// Carries input and output until the command ends, the caller goes away, or the agent does.
    pub async fn carry(mut self, requests: Streaming<ExecStreamRequest>, out: Answering, stop: CancellationToken) {
        let ended = tokio::select! {
            ended = self.serve(requests, &out) => ended,
            () = out.closed() => Err(Status::cancelled("the caller went away")),
            () = stop.cancelled() => Err(Status::unavailable(
                "the agent of the node is being restarted, and the command has been ended: run it again",
            )),
        };
        match ended {
            Ok(code) => {
                // Behind all output, however long the caller takes to read that.
                let telling = out.send(Ok(answer(Output::ExitCode(code))));
                drop(stop.run_until_cancelled(telling).await);
            }
            Err(status) => {
                self.end().await;
                // The caller may be gone.
                drop(out.send_timeout(Err(status), ENDING.0).await);
            }
        }
        drop(out);
        if let Err(status) = self.containerd.delete(&self.process).await {
            tracing::warn!(%status, process = ?self.process, "what is left of a command cannot be removed");
        }
    }

    async fn serve(&mut self, requests: Streaming<ExecStreamRequest>, out: &Answering) -> Result<i32, Status> {
        let Some((stdout, stderr)) = self.outputs.take() else { return Err(Status::internal("the output is taken")) };
        let exited = CancellationToken::new();
        let outputs = async {
            tokio::try_join!(copy(stdout, out, &exited, Output::Stdout), async {
                match stderr {
                    Some(stderr) => copy(stderr, out, &exited, Output::Stderr).await,
                    None => Ok(()),
                }
            })
        };
        let ending = async {
            let code = self.wait().await;
            exited.cancel();
            code
        };
        let both = async { tokio::join!(ending, outputs) };
        tokio::pin!(both);
        let (code, output) = tokio::select! {
            both = &mut both => both,
            fed = self.feed(requests) => {
                fed?;
                both.await
            }
        };
        output?;
        code
    }

    /// Waits for the end; a containerd that is started anew is asked again.
    async fn wait(&self) -> Result<i32, Status> {
        for wait in waits() {
            match self.containerd.wait(&self.process).await {
                Ok(code) => return Ok(i32::try_from(code).unwrap_or(i32::MAX)),
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    tracing::debug!(%status, "waiting for the end of a command: asking again");
                }
                Err(status) => return Err(status),
            }
            tokio::time::sleep(wait).await;
        }
        Err(Status::unavailable("the container runtime does not answer"))
    }

    /// Hands on what the caller sends, until it sends no more.
    async fn feed(&self, mut requests: Streaming<ExecStreamRequest>) -> Result<(), Status> {
        let failed = |error: io::Error| Status::internal(format!("the command's input cannot be opened: {error}"));
        let mut stdin = self.fifos.input().await.map_err(failed)?;
        loop {
            let input = requests.message().await?.map(|message| message.request.and_then(|request| request.input));
            match input {
                Some(Some(Input::Stdin(bytes))) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&bytes).await.is_err()
                    {
                        // It reads no more; what it has to say about that comes as its output or exit code.
                        stdin = None;
                    }
                }
                Some(Some(Input::Resize(wanted))) => {
                    if let Some(wanted) = size(Some(&wanted))?.filter(|_| self.terminal) {
                        self.resize(wanted).await;
                    }
                }
                Some(Some(Input::Start(_))) => {
                    return Err(Status::invalid_argument("start: a command has begun already"));
                }
                Some(Some(Input::StdinClosed(false)) | None) => {}
                Some(Some(Input::StdinClosed(true))) => self.close(stdin.take()).await,
                None => {
                    self.close(stdin.take()).await;
                    return Ok(());
                }
            }
        }
    }

    async fn close(&self, stdin: Option<Sender>) {
        let Some(mut pipe) = stdin else { return };
        if self.terminal {
            // A terminal has no end but its own; the command is told as a person at it would.
            drop(pipe.write_all(&[END_OF_TRANSMISSION]).await);
            return;
        }
        drop(pipe);
        if let Err(status) = self.containerd.close_stdin(&self.process).await {
            tracing::warn!(%status, "the end of a command's input cannot be told");
        }
    }

    async fn resize(&self, size: Size) {
        // It may have ended just now; a terminal of the old size is no reason to break off.
        if let Err(status) = self.containerd.resize(&self.process, size).await {
            tracing::debug!(%status, "a terminal keeps its size");
        }
    }

    /// Hangs the command up, and kills it if that does not end it.
    async fn end(&self) {
        for (signal, limit) in [(Signal::SIGHUP, ENDING.0), (Signal::SIGKILL, ENDING.1)] {
            for pid in session(self.pid, &self.process.container) {
                if let Err(error) = kill(pid, signal) {
                    // Who has ended meanwhile needs none.
                    tracing::debug!(%pid, %error, "a process of a command gets no signal");
                }
            }
            if let Err(status) = self.containerd.kill(&self.process, signal).await {
                tracing::warn!(%status, process = ?self.process, ?signal, "a command cannot be signalled");
            }
            if timeout(limit, self.wait()).await.is_ok() && session(self.pid, &self.process.container).is_empty() {
                return;
            }
        }
    }
}

fn answer(output: Output) -> ExecStreamResponse {
    ExecStreamResponse { response: Some(api::ExecStreamResponse { output: Some(output) }) }
}

async fn copy(
    mut from: Receiver,
    out: &Answering,
    exited: &CancellationToken,
    output: fn(Vec<u8>) -> Output,
) -> Result<(), Status> {
    let mut piece = vec![0; PIECE];
    loop {
        let left_behind = async {
            exited.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let length = tokio::select! {
            biased;
            length = from.read(&mut piece) => {
                length.map_err(|error| Status::internal(format!("the command's output cannot be read: {error}")))?
            }
            () = left_behind => 0,
        };
        if length == 0 {
            return Ok(());
        }
        let bytes = piece.get(..length).unwrap_or_default().to_vec();
        out.send(Ok(answer(output(bytes)))).await.map_err(|_| Status::cancelled("the caller went away"))?;
    }
}

/// The processes of a session whose leader belongs to a container. The runtime gives each command a session of its own,
/// and the kernel gives no process the number of a session that has members.
fn session(leader: u32, container: &str) -> Vec<Pid> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let of_container =
            || fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|cgroup| cgroup.contains(container));
        if session_of(&stat) == Some(leader) && of_container() {
            members.push(Pid::from_raw(pid));
        }
    }
    members
}

/// The session in a line of /proc/PID/stat; None for a process that has ended.
fn session_of(stat: &str) -> Option<u32> {
    // A program's name may have spaces and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(2)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_whatever_its_program_is_called() {
        assert_eq!(session_of("12 (a) b (c) S 1 12 11 34816 -1"), Some(11));
        assert_eq!(session_of("12 (sh) Z 1 12 11 34816 -1"), None);
        assert_eq!(session_of(""), None);
    }
}
