//! `berth rollout pause` and `resume`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use pb::{Kind, ObjectExt, objects::StatefulSet};
use serde_json::{Value, json};

use super::{Which, is_paused, patch};
use crate::{client::Client, output};

/// Pauses.
pub async fn pause(client: Client, which: &Which) -> Result<ExitCode> {
    let set = which.get(&client).await?;
    if is_paused(&set) {
        bail!("{} is paused already", output::called(Kind::StatefulSet, set.name()));
    }
    change(&client, &set, json!(true), "paused").await
}

/// Goes on.
pub async fn resume(client: Client, which: &Which) -> Result<ExitCode> {
    let set = which.get(&client).await?;
    if !is_paused(&set) {
        bail!("{} is not paused", output::called(Kind::StatefulSet, set.name()));
    }
    change(&client, &set, Value::Null, "resumed").await
}

async fn change(client: &Client, set: &StatefulSet, paused: Value, done: &str) -> Result<ExitCode> {
    patch(client, set, &json!({"spec": {"paused": paused}})).await?;
    println!("{} {done}", output::called(Kind::StatefulSet, set.name()));
    Ok(ExitCode::SUCCESS)
}
