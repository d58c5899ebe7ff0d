//! `berth rollout restart`: all pods are replaced as for a new template. What is new in it is an annotation that says
//! when.

use std::process::ExitCode;

use anyhow::{Result, bail};
use jiff::Timestamp;
use pb::{Kind, ObjectExt, objects::StatefulSet};
use serde_json::{Value, json};

use super::{Which, is_paused, patch};
use crate::{client::Client, output};

/// When the pods were last asked to be replaced.
const RESTARTED_AT: &str = "berth.dev/restartedAt";

/// Restarts.
pub async fn run(client: Client, which: &Which) -> Result<ExitCode> {
    let set = which.get(&client).await?;
    let called = output::called(Kind::StatefulSet, set.name());
    if is_paused(&set) {
        bail!("{called} is paused and would not restart: `berth rollout resume sts/{}` first", set.name());
    }
    patch(&client, &set, &restarted(Timestamp::now())).await?;
    println!("{called} restarted");
    if is_on_delete(&set) {
        eprintln!("note: its update strategy is OnDelete: each pod restarts when you delete it");
    }
    Ok(ExitCode::SUCCESS)
}

fn restarted(now: Timestamp) -> Value {
    // To the second, as other times in objects; a second restart within it is none.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now.to_string()}}}}})
}

fn is_on_delete(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.r#type == "OnDelete")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_an_annotation_of_the_template() {
        let patch = restarted("2026-01-31T12:00:00.123Z".parse().unwrap());
        let annotations = &patch["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(*annotations, json!({"berth.dev/restartedAt": "2026-01-31T12:00:00Z"}));
    }
}
