//! `berth volume snapshot`: snapshots of many claims under one name.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::{Result, bail};
use pb::{
    Kind, ObjectExt,
    api::v1::{SnapshotVolumesRequest, WatchRequest},
    objects::VolumeSnapshot,
};

use super::{Scope, Waiting, Watched};
use crate::{client::Client, commands::within, follow::Follow, output};

/// On a snapshot: the group that it was made in.
const GROUP: &str = "volume.berth.dev/group";

/// Flags of `berth volume snapshot`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Whose data
    #[arg(value_name = "sts/SET | pod/POD | CLAIM")]
    of: String,
    /// A name for the snapshots: they are called NAME-CLAIM, and `berth volume restore --from NAME` finds them
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Makes snapshots.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let of = Some(Scope::read(&args.of)?.owner(&client));
    let request = SnapshotVolumesRequest { of, group: args.name.clone() };
    let made = client.api.clone().snapshot_volumes(request).await.map_err(|status| client.refused(&status))?;
    let snapshots = made.into_inner().snapshots;
    for snapshot in &snapshots {
        println!("{} created", output::called(Kind::VolumeSnapshot, snapshot.name()));
    }
    if args.waiting.wait {
        let wanted = snapshots.iter().map(|snapshot| snapshot.name().to_owned()).collect();
        let what =
            format!("the snapshots of {} to be ready; `berth get vs -l {GROUP}={}` shows them", args.of, args.name);
        within(args.waiting.timeout, &what, ready(&client, &args.name, wanted)).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until all are ready.
async fn ready(client: &Client, group: &str, wanted: BTreeSet<String>) -> Result<()> {
    let watch = WatchRequest {
        kind: Kind::VolumeSnapshot.name().to_owned(),
        namespace: client.namespace.clone(),
        label_selector: format!("{GROUP}={group}"),
        ..WatchRequest::default()
    };
    let mut watched = Watched::<VolumeSnapshot>::new(Follow::new(client, watch));
    let (mut told, mut left) = (BTreeSet::new(), wanted);
    while !left.is_empty() {
        let snapshots = watched.next().await?;
        for name in left.clone() {
            let Some(snapshot) = snapshots.get(&name) else { bail!("snapshot {name} was deleted before it was ready") };
            let status = snapshot.status.clone().unwrap_or_default();
            if status.ready_to_use {
                let size = status.restore_size.map_or(String::new(), |size| format!(" ({})", size.value));
                println!("{} ready{size}", output::called(Kind::VolumeSnapshot, &name));
                left.remove(&name);
            } else if let Some(error) = status.error
                && told.insert((name.clone(), error.message.clone()))
            {
                eprintln!("note: {name} is not ready: {}; it is tried again", error.message);
            }
        }
    }
    Ok(())
}
