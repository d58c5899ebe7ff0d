//! `berth rollout history`: the revisions of a set, and what each of them is to it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::ListRequest,
    objects::{ControllerRevision, StatefulSet},
};

use super::Which;
use crate::{
    age,
    client::Client,
    output::{self, table::Table},
};

/// Why a change was made, in the words of whoever made it.
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// Flags of `berth rollout history`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Show the template of this revision
    #[arg(long, value_name = "N")]
    revision: Option<i64>,
}

/// Shows.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let set = args.which.get(&client).await?;
    let list = ListRequest {
        kind: Kind::ControllerRevision.name().to_owned(),
        namespace: client.namespace.clone(),
        ..ListRequest::default()
    };
    let (objects, _) = client.list(list).await?;
    let mut revisions: Vec<_> =
        objects.into_iter().filter_map(|object| ControllerRevision::from_any(object).ok()).collect();
    revisions.retain(|revision| is_of(revision, &set));
    revisions.sort_by_key(|revision| revision.revision);
    let called = output::called(Kind::StatefulSet, set.name());
    match args.revision {
        None => print!("{called}\n{}", table(&set, &revisions, Timestamp::now())),
        Some(number) => {
            let Some(revision) = revisions.iter().find(|revision| revision.revision == number) else {
                let numbers: Vec<_> = revisions.iter().map(|revision| revision.revision.to_string()).collect();
                bail!("{called} has no revision {number}; its revisions are {}", numbers.join(", "));
            };
            let template = serde_json::to_value(&revision.data).context("show a template as YAML")?;
            print!("{called} at revision {number} ({})\n{}", revision.name(), output::yaml(&template)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_of(revision: &ControllerRevision, set: &StatefulSet) -> bool {
    let owners = &revision.meta().owner_references;
    owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == set.uid())
}

fn table(set: &StatefulSet, revisions: &[ControllerRevision], now: Timestamp) -> Table {
    let mut table = Table::new(["REVISION", "NAME", "AGE", "STATE", "CHANGE-CAUSE"]);
    for revision in revisions {
        let meta = revision.meta();
        let cause = meta.annotations.get(CHANGE_CAUSE).map_or("<none>", String::as_str);
        table.push([
            revision.revision.to_string(),
            meta.name.clone(),
            age::since(meta.creation_timestamp.as_ref(), now),
            state(set, &meta.name),
            cause.to_owned(),
        ]);
    }
    table
}

/// What a revision is to the set: where it comes from and goes to, where it last was with all pods, what failed.
fn state(set: &StatefulSet, revision: &str) -> String {
    let status = set.status.clone().unwrap_or_default();
    let roles = [
        (&status.current_revision, "current"),
        (&status.update_revision, "update"),
        (&status.complete_revision, "complete"),
        (&status.failed_revision, "failed"),
    ];
    let roles: Vec<_> = roles.into_iter().filter(|(name, _)| *name == revision).map(|(_, role)| role).collect();
    if roles.is_empty() { "-".to_owned() } else { roles.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_each_revision_is_to_the_set() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "u"},
            "status": {"currentRevision": "web-b", "updateRevision": "web-c", "completeRevision": "web-b"},
        }))
        .unwrap();
        let revision = |name: &str, number: i64, annotations: serde_json::Value| -> ControllerRevision {
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
                    "ownerReferences": [{"kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]},
                "revision": number,
            }))
            .unwrap()
        };
        let revisions = [
            revision("web-a", 1, json!({})),
            revision("web-b", 2, json!({"kubernetes.io/change-cause": "nginx 1.27"})),
            revision("web-c", 3, json!({})),
        ];
        assert!(revisions.iter().all(|revision| is_of(revision, &set)));
        let shown = table(&set, &revisions, "2026-01-01T00:01:00Z".parse().unwrap()).to_string();
        assert_eq!(
            shown,
            "REVISION   NAME    AGE   STATE              CHANGE-CAUSE\n\
             1          web-a   60s   -                  <none>\n\
             2          web-b   60s   current,complete   nginx 1.27\n\
             3          web-c   60s   update             <none>\n"
        );
    }
}
