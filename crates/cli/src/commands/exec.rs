//! `berth exec`: runs a command in a container. Its output and its exit code are the command's own.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use pb::{Kind, api::v1::ExecRequest};
use tonic::Request;

use crate::{args::duration, client::Client, target};

/// Flags of `berth exec`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod: `web-0` or `pod/web-0`
    pod: String,
    /// The container; may be left out if the pod has one
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
    /// How long the command may take
    #[arg(long, value_parser = duration, default_value = "30s")]
    timeout: Duration,
    /// The command, behind --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What the answer may take beyond the command.
const MARGIN: Duration = Duration::from_secs(5);

/// Runs the command.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let (kind, pod) = target::one(&[args.pod], Some(Kind::Pod))?;
    if kind != Kind::Pod {
        bail!("a command can run in a pod only, not in a {kind}");
    }
    let mut request = Request::new(ExecRequest {
        namespace: client.namespace.clone(),
        pod,
        container: args.container,
        command: args.command,
        timeout_seconds: i32::try_from(args.timeout.as_secs().max(1)).unwrap_or(i32::MAX),
    });
    request.set_timeout(args.timeout.saturating_add(MARGIN));
    let answer = client.streams.clone().exec(request).await.map_err(|status| client.refused(&status))?.into_inner();
    io::stdout().write_all(&answer.stdout)?;
    io::stdout().flush()?;
    io::stderr().write_all(&answer.stderr)?;
    // A shell's exit codes are a byte; what does not fit must not look like success.
    let code = u8::try_from(answer.exit_code).unwrap_or(u8::MAX);
    Ok(ExitCode::from(code))
}
