//! `berth evict`: asks for pods to go as far as disruption budgets allow it.

use std::{pin::pin, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use pb::{
    Kind,
    api::v1::{EvictRequest, WatchRequest},
};
use tonic::{Code, Status};

use crate::{
    args::duration,
    client::Client,
    follow::{Follow, Told},
    output,
    target::{self, Target},
};

/// How often an eviction is tried again at once because others changed the pods at the same time.
const AT_ONCE: u32 = 5;

/// Flags of `berth evict`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pods: `web-0 web-1` or `pod/web-0`
    #[arg(required = true, value_name = "POD... | pod/POD...")]
    what: Vec<String>,
    /// Seconds that a pod may take to stop; the pod's own if absent
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    grace_period: Option<i64>,
    /// Wait until the budgets allow it, for ever or for as long as --wait=60s; without, a refusal is an error
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, require_equals = true)]
    wait: Option<Option<Duration>>,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

/// Evicts.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let evictions = async {
        for name in pods(&args.what)? {
            let done = match args.wait {
                Some(_) => once_allowed(&client, &args, &name).await,
                None => evict(&client, &args, &name).await.map_err(|status| client.refused(&status)),
            };
            match done {
                Ok(()) => {
                    let dry = if args.dry_run { " (dry run)" } else { "" };
                    println!("{} evicted{dry}", output::called(Kind::Pod, &name));
                }
                Err(error) => {
                    eprintln!("error: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(())
    };
    super::within(args.wait.flatten(), "the disruption budgets to allow it", evictions).await?;
    Ok(code)
}

/// The names of the pods: the kind may be left out.
fn pods(what: &[String]) -> Result<Vec<String>> {
    if what.iter().all(|one| !one.contains('/')) {
        return Ok(what.to_vec());
    }
    let name = |target: Target| match target {
        Target { kind: Kind::Pod, name: Some(name), .. } => Ok(name),
        Target { kind, .. } => bail!("a {kind} cannot be evicted, only a pod"),
    };
    target::targets(what)?.into_iter().map(name).collect()
}

async fn evict(client: &Client, args: &Args, name: &str) -> Result<(), Status> {
    let request = EvictRequest {
        namespace: client.namespace.clone(),
        pod: name.to_owned(),
        grace_period_seconds: args.grace_period,
        dry_run: args.dry_run,
        ..EvictRequest::default()
    };
    for _ in 0..AT_ONCE {
        match client.api.clone().evict(request.clone()).await {
            Err(status) if status.code() == Code::Aborted => {}
            answer => return answer.map(drop),
        }
    }
    client.api.clone().evict(request).await.map(drop)
}

/// Evicts a pod when the budgets allow it: tries again whenever a budget (its status counts the pods) or the pod itself
/// changes.
async fn once_allowed(client: &Client, args: &Args, name: &str) -> Result<()> {
    // The watches start with what is there, so no change falls between a try and them.
    let budgets = WatchRequest {
        kind: Kind::PodDisruptionBudget.name().to_owned(),
        namespace: client.namespace.clone(),
        ..WatchRequest::default()
    };
    let mut budget = pin!(change(Follow::new(client, budgets)));
    let mut pod = pin!(change(Follow::new(client, super::watch_of(client, Kind::Pod, name))));
    let mut told = false;
    loop {
        match evict(client, args, name).await {
            Ok(()) => return Ok(()),
            Err(status) if status.code() == Code::ResourceExhausted => {
                if !told {
                    eprintln!("{}; waiting", client.refused(&status));
                    told = true;
                }
            }
            Err(status) => return Err(client.refused(&status)),
        }
        tokio::select! {
            next = &mut budget => { let (_, follow) = next?; budget.set(change(follow)); }
            next = &mut pod => { let (_, follow) = next?; pod.set(change(follow)); }
        }
    }
}

/// The next change, and the watch to go on with.
async fn change(mut follow: Follow) -> Result<(Told, Follow)> {
    let told = follow.next().await?;
    Ok((told, follow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_with_or_without_their_kind() {
        let read = |what: &[&str]| pods(&what.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(&["web-0", "web-1"]).unwrap(), ["web-0", "web-1"]);
        assert_eq!(read(&["pod/web-0", "po/web-1"]).unwrap(), ["web-0", "web-1"]);
        assert!(read(&["sts/web"]).unwrap_err().to_string().contains("only a pod"));
        assert!(read(&["web-0", "pod/web-1"]).is_err());
    }
}
