//! `berth scale`: how many replicas a set shall have, or that one of its ordinals goes for good.

use std::process::ExitCode;

use anyhow::{Result, bail};
use pb::{
    Kind,
    api::v1::{RemoveOrdinalRequest, UpdateScaleRequest},
};

use crate::{client::Client, output, target};

/// Flags of `berth scale`.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("wanted").required(true).args(["replicas", "remove_ordinal"])))]
pub struct Args {
    /// The set: `sts web` or `sts/web`
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    what: Vec<String>,
    /// How many replicas
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    replicas: Option<i32>,
    /// Take this ordinal out, whichever it is: one replica less, and its number is never given again
    #[arg(long, value_name = "K")]
    remove_ordinal: Option<i32>,
    /// Only if the set has this many now
    #[arg(long, value_name = "N")]
    current_replicas: Option<i32>,
}

/// Scales.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let (kind, name) = target::one(&args.what, Some(Kind::StatefulSet))?;
    if kind != Kind::StatefulSet {
        bail!("a {kind} cannot be scaled, only a StatefulSet");
    }
    let resource_version = match args.current_replicas {
        Some(wanted) => checked(&client, &name, wanted).await?,
        None => String::new(),
    };
    let (namespace, called) = (client.namespace.clone(), output::called(kind, &name));
    if let Some(ordinal) = args.remove_ordinal {
        let request =
            RemoveOrdinalRequest { namespace, name: name.clone(), ordinal, resource_version, ..Default::default() };
        let answer = client.api.clone().remove_ordinal(request).await.map_err(|status| client.refused(&status))?;
        let left = answer.into_inner().set.and_then(|set| set.spec).and_then(|spec| spec.replicas).unwrap_or(0);
        println!("{called} scaled to {left}: {name}-{ordinal} goes, and ordinal {ordinal} is reserved");
    } else if let Some(replicas) = args.replicas {
        let request = UpdateScaleRequest { namespace, name, replicas, resource_version };
        client.api.clone().update_scale(request).await.map_err(|status| client.refused(&status))?;
        println!("{called} scaled");
    }
    Ok(ExitCode::SUCCESS)
}

/// The revision of a set that has as many replicas as it should have now.
async fn checked(client: &Client, name: &str, wanted: i32) -> Result<String> {
    let set = client.get(Kind::StatefulSet, name).await?;
    let spec = <pb::objects::StatefulSet as pb::Object>::peek(&set).and_then(|set| set.spec.as_ref());
    let now = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    if now != wanted {
        bail!("{name} shall have {now} replicas now, not {wanted}: nothing was changed");
    }
    Ok(set.meta().resource_version.clone())
}
