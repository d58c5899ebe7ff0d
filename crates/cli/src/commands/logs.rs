//! `berth logs`: what a container wrote.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Result, bail};
use pb::{Kind, api::v1::LogsRequest};

use crate::{client::Client, target};

/// Flags of `berth logs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod: `web-0` or `pod/web-0`
    pod: String,
    /// The container; may be left out if the pod has one
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
    /// Go on as the container writes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    /// The run before the present one
    #[arg(short, long)]
    previous: bool,
    /// Start each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Prints.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let (kind, pod) = target::one(&[args.pod], Some(Kind::Pod))?;
    if kind != Kind::Pod {
        bail!("only pods have logs, not a {kind}");
    }
    let request = LogsRequest {
        namespace: client.namespace.clone(),
        pod,
        container: args.container,
        follow: args.follow,
        tail_lines: args.tail.filter(|lines| *lines >= 0),
        previous: args.previous,
        timestamps: args.timestamps,
        ..LogsRequest::default()
    };
    let refused = |status: tonic::Status| client.refused(&status);
    let mut stream = client.streams.clone().logs(request).await.map_err(refused)?.into_inner();
    let mut out = io::stdout().lock();
    while let Some(piece) = stream.message().await.map_err(refused)? {
        out.write_all(&piece.data)?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}
