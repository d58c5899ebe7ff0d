//! `berth wait`: returns when objects are ready, or gone.

use std::{process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::Condition,
};

use crate::{
    args::duration,
    client::Client,
    follow::{Follow, Told},
    output, target,
};

/// Flags of `berth wait`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What: `pod web-0 web-1` or `pod/web-0 sts/web`
    #[arg(required = true, value_name = "KIND NAME... | KIND/NAME")]
    what: Vec<String>,
    /// For what: `ready`, `deleted`, `condition=NAME` or `condition=NAME=False`
    #[arg(long = "for", default_value = "ready", value_name = "WHAT")]
    until: Until,
    /// How long
    #[arg(long, value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Until {
    Ready,
    Deleted,
    /// The condition, in small letters, and the status that is waited for.
    Condition(String, &'static str),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "ready" => Ok(Until::Ready),
            "deleted" | "delete" => Ok(Until::Deleted),
            lower => match lower.strip_prefix("condition=") {
                Some(wanted) if !wanted.is_empty() && !wanted.starts_with('=') => condition(wanted),
                _ => Err(format!("{text:?} is not ready, deleted, condition=NAME or condition=NAME=False")),
            },
        }
    }
}

/// `available` or `degraded=false`.
fn condition(wanted: &str) -> Result<Until, String> {
    let (name, status) = wanted.split_once('=').unwrap_or((wanted, "true"));
    let status = match status {
        "true" => "True",
        "false" => "False",
        "unknown" => "Unknown",
        other => return Err(format!("a condition is True, False or Unknown, never {other:?}")),
    };
    Ok(Until::Condition(name.to_owned(), status))
}

/// Waits.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let work = async {
        for target in target::targets(&args.what)? {
            let name = target.name.context("name the objects to wait for, such as pod/web-0")?;
            one(&client, target.kind, &name, &args.until).await?;
            let how = match &args.until {
                Until::Ready => "ready".to_owned(),
                Until::Deleted => "gone".to_owned(),
                Until::Condition(condition, "True") => condition.clone(),
                Until::Condition(condition, status) => format!("{condition} {status}"),
            };
            println!("{} {how}", output::called(target.kind, &name));
        }
        Ok(())
    };
    super::within(Some(args.timeout), &args.what.join(" "), work).await?;
    Ok(ExitCode::SUCCESS)
}

async fn one(client: &Client, kind: Kind, name: &str, until: &Until) -> Result<()> {
    let mut follow = Follow::new(client, super::watch_of(client, kind, name));
    let mut there = false;
    loop {
        match (follow.next().await?, until) {
            (Told::Gone(_), Until::Deleted) => return Ok(()),
            (Told::Current, Until::Deleted) if !there => return Ok(()),
            (Told::Is(object), until) => {
                there = true;
                if is_so(&object, until)? {
                    return Ok(());
                }
            }
            (Told::Gone(_) | Told::Anew, _) => there = false,
            (Told::Current, _) => {}
        }
    }
}

fn is_so(object: &AnyObject, until: &Until) -> Result<bool> {
    let (wanted, status) = match until {
        Until::Deleted => return Ok(false),
        Until::Ready => ("Ready", "True"),
        Until::Condition(name, status) => (name.as_str(), *status),
    };
    let going = object.meta().deletion_timestamp.is_some();
    let conditions = match &object.object {
        Some(Variant::StatefulSet(set)) if *until == Until::Ready => {
            let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = set.status.clone().unwrap_or_default();
            let seen = status.observed_generation >= object.meta().generation;
            return Ok(!going && seen && status.ready_replicas == wanted && status.replicas == wanted);
        }
        Some(Variant::PersistentVolumeClaim(claim)) if *until == Until::Ready => {
            return Ok(claim.status.as_ref().is_some_and(|status| status.phase == "Bound"));
        }
        // Until the controller has seen what was asked for last, its conditions speak of what was before.
        Some(Variant::StatefulSet(set)) => {
            let seen = set.status.as_ref().filter(|status| status.observed_generation >= object.meta().generation);
            seen.map(|status| &status.conditions)
        }
        Some(Variant::Pod(pod)) => pod.status.as_ref().map(|status| &status.conditions),
        Some(Variant::Node(node)) => node.status.as_ref().map(|status| &status.conditions),
        Some(Variant::PersistentVolumeClaim(claim)) => claim.status.as_ref().map(|status| &status.conditions),
        _ => bail!("objects of this kind have no conditions; only --for deleted can be waited for"),
    };
    let is = |condition: &Condition| condition.r#type.eq_ignore_ascii_case(wanted) && condition.status == status;
    Ok(!going && conditions.is_some_and(|conditions| conditions.iter().any(is)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is(set: &AnyObject, until: &str) -> bool {
        is_so(set, &until.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_condition_of_a_set_counts_once_the_last_change_was_seen() {
        let set = |observed: i64| {
            let conditions = json!([{"type": "Available", "status": "True"}, {"type": "Degraded", "status": "False"}]);
            let status = json!({"observedGeneration": observed, "conditions": conditions});
            let json = json!({"metadata": {"name": "web", "generation": 2}, "status": status});
            AnyObject::from_json(Kind::StatefulSet, json).unwrap()
        };
        assert!(is(&set(2), "condition=Available"));
        assert!(is(&set(2), "condition=degraded=False"));
        assert!(!is(&set(2), "condition=Degraded"));
        assert!(!is(&set(1), "condition=Available"));
        assert!("condition=".parse::<Until>().is_err() && "condition=a=b".parse::<Until>().is_err());
    }
}
