//! `berth wait`: returns when objects are ready, or gone.

use std::{process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
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
    /// For what: `ready`, `deleted` or `condition=NAME`
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
    Condition(String),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "ready" => Ok(Until::Ready),
            "deleted" | "delete" => Ok(Until::Deleted),
            lower => match lower.strip_prefix("condition=") {
                Some(name) if !name.is_empty() => Ok(Until::Condition(name.to_owned())),
                _ => Err(format!("{text:?} is not ready, deleted or condition=NAME")),
            },
        }
    }
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
                Until::Condition(condition) => condition.clone(),
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
    let wanted = match until {
        Until::Deleted => return Ok(false),
        Until::Ready => "Ready",
        Until::Condition(name) => name,
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
        Some(Variant::StatefulSet(set)) => set.status.as_ref().map(|status| &status.conditions),
        Some(Variant::Pod(pod)) => pod.status.as_ref().map(|status| &status.conditions),
        Some(Variant::Node(node)) => node.status.as_ref().map(|status| &status.conditions),
        Some(Variant::PersistentVolumeClaim(claim)) => claim.status.as_ref().map(|status| &status.conditions),
        _ => bail!("objects of this kind have no conditions; only --for deleted can be waited for"),
    };
    Ok(!going && conditions.is_some_and(|conditions| super::holds(conditions, wanted)))
}
