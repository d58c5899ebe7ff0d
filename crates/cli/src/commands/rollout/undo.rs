//! `berth rollout undo`: back to the template of an earlier revision.

use std::process::ExitCode;

use anyhow::{Context, Result};
use pb::{
    Kind,
    api::v1::{UndoRolloutRequest, UndoRolloutResponse},
    objects::{PodTemplateSpec, StatefulSet},
};

use super::{Which, is_paused};
use crate::{
    client::Client,
    output::{self, unified},
};

/// Flags of `berth rollout undo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Number of the revision, as in `berth rollout history`; the one before the present template if absent
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    to_revision: i64,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Goes back.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let before = if args.dry_run { Some(args.which.get(&client).await?) } else { None };
    let name = args.which.name()?;
    let request = UndoRolloutRequest {
        namespace: client.namespace.clone(),
        name: name.clone(),
        to_revision: args.to_revision,
        dry_run: args.dry_run,
    };
    let answer = client.api.clone().undo_rollout(request).await.map_err(|status| client.refused(&status))?.into_inner();
    if let (Some(before), Some(after), false) = (&before, &answer.set, answer.unchanged) {
        print!(
            "{}",
            unified(&template(before)?, &template(after)?, "present", &format!("revision {}", answer.revision))
        );
    }
    print!("{}", told(&name, &answer, args.dry_run));
    Ok(ExitCode::SUCCESS)
}

fn template(set: &StatefulSet) -> Result<String> {
    let template: PodTemplateSpec = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    output::yaml(&serde_json::to_value(template).context("show a template as YAML")?)
}

fn told(name: &str, answer: &UndoRolloutResponse, dry_run: bool) -> String {
    let called = output::called(Kind::StatefulSet, name);
    let revision = answer.revision;
    if answer.unchanged {
        return format!("{called} skipped rollback (its template is that of revision {revision} already)\n");
    }
    let suffix = if dry_run { " (dry run)" } else { "" };
    let mut out = format!("{called} rolled back to revision {revision}{suffix}\n");
    if answer.set.as_ref().is_some_and(is_paused) {
        out.push_str(&format!("{name} is paused: it rolls out after `berth rollout resume sts/{name}`\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use pb::objects::StatefulSetSpec;

    use super::*;

    #[test]
    fn says_what_became_of_it() {
        let set = |paused| {
            let spec = StatefulSetSpec { paused, ..StatefulSetSpec::default() };
            Some(StatefulSet { spec: Some(spec), ..StatefulSet::default() })
        };
        let answer = |paused, unchanged| UndoRolloutResponse { set: set(paused), revision: 2, unchanged };
        assert_eq!(told("web", &answer(false, false), false), "statefulset.apps/web rolled back to revision 2\n");
        assert_eq!(
            told("web", &answer(true, false), true),
            "statefulset.apps/web rolled back to revision 2 (dry run)\nweb is paused: it rolls out after `berth rollout resume sts/web`\n"
        );
        assert_eq!(
            told("web", &answer(true, true), false),
            "statefulset.apps/web skipped rollback (its template is that of revision 2 already)\n"
        );
    }
}
