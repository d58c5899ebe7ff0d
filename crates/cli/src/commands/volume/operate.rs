//! `berth volume restore` and `berth volume move`: data as a whole. Both are asked for and then followed in the claims'
//! own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use anyhow::{Result, bail};
use pb::{
    Kind, ObjectExt,
    api::v1::{MoveVolumesRequest, RestoreVolumesRequest, WatchRequest},
    objects::{ClaimOperation, PersistentVolumeClaim},
};

use super::{Scope, Waiting, Watched, bytes, state};
use crate::{client::Client, commands::within, follow::Follow, output};

/// Between two lines about the same copy, in percent.
const STEP: i64 = 10;

/// Flags of `berth volume restore`.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// Whose data
    #[arg(value_name = "pod/POD | CLAIM")]
    into: String,
    /// The name that the snapshots were made under; for one claim also the name of one snapshot
    #[arg(long, value_name = "NAME")]
    from: String,
    /// Stop the pod for it; without, a pod that runs is an error
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Flags of `berth volume move`.
#[derive(clap::Args, Debug)]
pub struct MoveArgs {
    /// Whose data
    #[arg(value_name = "pod/POD | CLAIM")]
    of: String,
    /// The node that it goes to
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Stop the pod for it; without, a pod that runs is an error
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Restores.
pub async fn restore(client: Client, args: RestoreArgs) -> Result<ExitCode> {
    let into = Some(Scope::read(&args.into)?.owner(&client));
    let request = RestoreVolumesRequest { into, from: args.from.clone(), stop: args.stop };
    let asked = client.api.clone().restore_volumes(request).await.map_err(|status| client.refused(&status))?;
    let claims = asked.into_inner().claims;
    for claim in &claims {
        let from = state::operation(claim).map_or(args.from.as_str(), |operation| &operation.snapshot);
        println!("{} goes back to {from}", output::called(Kind::PersistentVolumeClaim, claim.name()));
    }
    followed(&client, &claims, args.waiting).await
}

/// Moves.
pub async fn relocate(client: Client, args: MoveArgs) -> Result<ExitCode> {
    let of = Some(Scope::read(&args.of)?.owner(&client));
    let request = MoveVolumesRequest { of, target_node: args.to.clone(), stop: args.stop };
    let asked = client.api.clone().move_volumes(request).await.map_err(|status| client.refused(&status))?;
    let claims = asked.into_inner().claims;
    for claim in &claims {
        println!("{} moves to {}", output::called(Kind::PersistentVolumeClaim, claim.name()), args.to);
    }
    followed(&client, &claims, args.waiting).await
}

/// Follows the operations until all have ended.
async fn followed(client: &Client, claims: &[PersistentVolumeClaim], waiting: Waiting) -> Result<ExitCode> {
    let id = |claim: &PersistentVolumeClaim| Some((claim.name().to_owned(), state::operation(claim)?.id.clone()));
    let wanted: BTreeMap<_, _> = claims.iter().filter_map(id).collect();
    if !waiting.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let names = wanted.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let what = format!("{names}; it goes on by itself: `berth volume ls` shows how far it is");
    within(waiting.timeout, &what, ended(client, wanted)).await
}

async fn ended(client: &Client, mut left: BTreeMap<String, String>) -> Result<ExitCode> {
    let watch = WatchRequest {
        kind: Kind::PersistentVolumeClaim.name().to_owned(),
        namespace: client.namespace.clone(),
        field_selector: match left.keys().collect::<Vec<_>>().as_slice() {
            [one] => format!("metadata.name={one}"),
            _ => String::new(),
        },
        ..WatchRequest::default()
    };
    let mut watched = Watched::<PersistentVolumeClaim>::new(Follow::new(client, watch));
    let (mut code, mut told) = (ExitCode::SUCCESS, BTreeSet::new());
    while !left.is_empty() {
        let claims = watched.next().await?;
        for (name, id) in left.clone() {
            let Some(claim) = claims.get(&name) else { bail!("claim {name} was deleted") };
            let Some(operation) = state::operation(claim).filter(|operation| operation.id == id) else {
                bail!("another operation took the place of this one; `berth volume describe {name}` shows it")
            };
            if let Some(line) = line(&name, operation)
                && told.insert(line.key)
            {
                if operation.phase == "Failed" {
                    eprintln!("error: {}", line.text);
                    code = ExitCode::FAILURE;
                } else {
                    println!("{}", line.text);
                }
            }
            if state::has_ended(operation) {
                left.remove(&name);
            }
        }
    }
    Ok(code)
}

/// A line about an operation, and what keeps it from being said twice.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    key: String,
    text: String,
}

fn line(claim: &str, operation: &ClaimOperation) -> Option<Line> {
    let ClaimOperation { phase, message, done_bytes, total_bytes, .. } = operation;
    let percent = bytes::percent(*done_bytes, *total_bytes);
    let text = match phase.as_str() {
        "Waiting" if message.is_empty() => return None,
        "Waiting" => format!("{claim}: waits: {message}"),
        "Copying" => match percent {
            Some(percent) => {
                format!("{claim}: {} of {} ({percent}%)", bytes::short(*done_bytes), bytes::short(*total_bytes))
            }
            None if message.is_empty() => format!("{claim}: begun"),
            None => format!("{claim}: {message}"),
        },
        "Done" => {
            let size = if *total_bytes > 0 { format!(" ({})", bytes::short(*total_bytes)) } else { String::new() };
            match operation.r#type.as_str() {
                "Move" => format!("{claim}: is on {} now{size}", operation.target_node),
                _ => format!("{claim}: has the data of {} now; what was there is kept{size}", operation.snapshot),
            }
        }
        "Failed" => format!("{claim}: {message}; its data is as it was"),
        _ => return None,
    };
    let step = percent.map_or(0, |percent| percent / STEP);
    let key = if phase == "Copying" && percent.is_some() { format!("{claim} {step}") } else { text.clone() };
    Some(Line { key, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(phase: &str, done: i64, message: &str) -> ClaimOperation {
        ClaimOperation {
            r#type: "Move".into(),
            target_node: "node-2".into(),
            phase: phase.into(),
            done_bytes: done,
            total_bytes: 1 << 30,
            message: message.into(),
            ..ClaimOperation::default()
        }
    }

    #[test]
    fn a_copy_is_told_every_tenth() {
        let copying = |done| line("www-web-0", &operation("Copying", done, "")).unwrap();
        assert_eq!(copying(256 << 20).text, "www-web-0: 256Mi of 1Gi (25%)");
        assert_eq!(copying(256 << 20).key, copying(260 << 20).key);
        assert_ne!(copying(256 << 20).key, copying(512 << 20).key);
    }

    #[test]
    fn ends_say_what_is_so_now() {
        let text = |phase, message| line("c", &operation(phase, 0, message)).map(|line| line.text);
        assert_eq!(text("Done", ""), Some("c: is on node-2 now (1Gi)".to_owned()));
        assert_eq!(text("Failed", "node-2 is full"), Some("c: node-2 is full; its data is as it was".to_owned()));
        assert_eq!(text("Waiting", "pod web-0 stops"), Some("c: waits: pod web-0 stops".to_owned()));
        assert_eq!(text("Waiting", ""), None);
    }
}
