//! `berth rollout`: how a change of a set's template reaches its pods, and how it is stopped, gone on with or undone.

mod history;
mod pause;
mod restart;
mod status;
mod undo;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pb::{
    Kind, Object,
    api::v1::{PatchRequest, PatchType},
    objects::StatefulSet,
};
use serde_json::Value;

use crate::{client::Client, target};

/// Commands about rollouts.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Follow the rollout of a set until it is complete
    Status(status::Args),
    /// Show the revisions of a set
    History(history::Args),
    /// Go back to an earlier revision
    Undo(undo::Args),
    /// Replace no more pods until the rollout is resumed; scaling and healing go on
    Pause(Which),
    /// Go on with a paused rollout
    Resume(Which),
    /// Replace all pods, by the set's update strategy
    Restart(Which),
}

/// A set.
#[derive(clap::Args, Debug)]
pub struct Which {
    /// The set: `sts web` or `sts/web`
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    what: Vec<String>,
}

/// Does what the command says.
pub async fn run(client: Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Status(args) => status::run(client, args).await,
        Command::History(args) => history::run(client, args).await,
        Command::Undo(args) => undo::run(client, args).await,
        Command::Pause(which) => pause::pause(client, &which).await,
        Command::Resume(which) => pause::resume(client, &which).await,
        Command::Restart(which) => restart::run(client, &which).await,
    }
}

impl Which {
    /// The name of the set.
    fn name(&self) -> Result<String> {
        let (kind, name) = target::one(&self.what, Some(Kind::StatefulSet))?;
        if kind != Kind::StatefulSet {
            bail!("a {kind} has no rollout, only a StatefulSet");
        }
        Ok(name)
    }

    /// The set as it is.
    async fn get(&self, client: &Client) -> Result<StatefulSet> {
        let object = client.get(Kind::StatefulSet, &self.name()?).await?;
        StatefulSet::from_any(object).ok().context("the API service answered with an object of another kind")
    }
}

/// Whether a set replaces no pods for now.
fn is_paused(set: &StatefulSet) -> bool {
    set.spec.as_ref().is_some_and(|spec| spec.paused)
}

/// Changes a part of a set.
async fn patch(client: &Client, set: &StatefulSet, patch: &Value) -> Result<()> {
    let request = PatchRequest {
        kind: Kind::StatefulSet.name().to_owned(),
        namespace: client.namespace.clone(),
        name: set.meta().name.clone(),
        r#type: PatchType::Merge.into(),
        patch: serde_json::to_vec(patch)?,
        ..PatchRequest::default()
    };
    client.api.clone().patch(request).await.map_err(|status| client.refused(&status))?;
    Ok(())
}
