//! `berth exec`: runs a command in a container. Its input, its output and its exit code are the command's own.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use pb::{
    ObjectExt,
    api::v1::{ExecStart, ExecStreamRequest, exec_stream_request::Input, exec_stream_response::Output},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{args::duration, client::Client, commands::within, pick::Choice, terminal};

/// Flags of `berth exec`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod: `web-0` or `pod/web-0`; `sts/web` is one of its pods
    pod: String,
    /// The container; may be left out if the pod has one
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
    /// Hand standard input to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// How long the command may take; for ever if absent
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// The command, behind --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Messages to the command that may wait.
const AHEAD: usize = 4;

type Sending = mpsc::Sender<ExecStreamRequest>;

/// Runs the command.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let pod = match Choice::read(&args.pod)? {
        Choice::Pod(name) => name,
        choice => choice.one(&client).await?.name().to_owned(),
    };
    let mut tty = args.tty;
    if tty && args.stdin && !terminal::is_input() {
        eprintln!("note: the command gets no terminal (-t), because standard input is none");
        tty = false;
    }
    let what = args.command.join(" ");
    let start = ExecStart {
        namespace: client.namespace.clone(),
        pod,
        container: args.container,
        command: args.command,
        stdin: args.stdin,
        tty,
        size: if tty { terminal::size() } else { None },
    };
    within(args.timeout, &format!("{what:?} to end; it has been ended"), converse(&client, start)).await
}

/// Carries input and output until the command ends.
async fn converse(client: &Client, start: ExecStart) -> Result<ExitCode> {
    let (stdin, tty) = (start.stdin, start.tty);
    let refused = |status: tonic::Status| client.refused(&status);
    let (sender, requests) = mpsc::channel(AHEAD);
    sender.send(message(Input::Start(start))).await?;
    let call = client.streams.clone().exec_stream(ReceiverStream::new(requests)).await;
    let mut answers = call.map_err(refused)?.into_inner();
    // The terminal is taken only for a command that runs, and given back when this returns, however it does.
    let _raw = if stdin && tty { Some(terminal::Raw::take()?) } else { None };
    let mut ended = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    tokio::select! {
        code = show(&mut answers, client) => code,
        fed = feed(&sender, stdin, tty) => {
            fed?;
            show(&mut answers, client).await
        }
        _ = ended.recv() => bail!("ended by a signal, and the command with it"),
        _ = hung_up.recv() => bail!("the terminal hung up, and the command was ended with it"),
    }
}

/// Shows what the command writes, until its exit code comes.
async fn show(answers: &mut Streaming<pb::api::v1::ExecStreamResponse>, client: &Client) -> Result<ExitCode> {
    while let Some(answer) = answers.message().await.map_err(|status| client.refused(&status))? {
        match answer.output {
            Some(Output::Stdout(bytes)) => write(&mut io::stdout(), &bytes)?,
            Some(Output::Stderr(bytes)) => write(&mut io::stderr(), &bytes)?,
            // A shell's exit codes are a byte; what does not fit must not look like success.
            Some(Output::ExitCode(code)) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
            None => {}
        }
    }
    bail!("the command's output ended without an exit code: whether it succeeded is not known")
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Hands on the input and the terminal's size; does not return while there is a terminal.
async fn feed(to: &Sending, stdin: bool, tty: bool) -> Result<()> {
    let mut input = if stdin { Some(terminal::input()) } else { None };
    let mut resized = signal(SignalKind::window_change())?;
    loop {
        let next = async {
            match &mut input {
                Some(input) => input.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            piece = next => match piece {
                Some(bytes) => Input::Stdin(bytes),
                None => {
                    input = None;
                    Input::StdinClosed(true)
                }
            },
            _ = resized.recv() => match terminal::size().filter(|_| tty) {
                Some(size) => Input::Resize(size),
                None => continue,
            },
        };
        if to.send(self::message(message)).await.is_err() {
            // The call is over; why, the answers say.
            return Ok(());
        }
    }
}

fn message(input: Input) -> ExecStreamRequest {
    ExecStreamRequest { input: Some(input) }
}
