//! `berth scale`: how many replicas a set shall have.

use std::process::ExitCode;

use anyhow::{Result, bail};
use pb::{Kind, api::v1::UpdateScaleRequest};

use crate::{client::Client, output, target};

/// Flags of `berth scale`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The set: `sts web` or `sts/web`
    #[arg(required = true, value_name = "KIND NAME | KIND/NAME")]
    what: Vec<String>,
    /// How many replicas
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    replicas: i32,
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
    let mut request = UpdateScaleRequest {
        namespace: client.namespace.clone(),
        name: name.clone(),
        replicas: args.replicas,
        ..UpdateScaleRequest::default()
    };
    if let Some(wanted) = args.current_replicas {
        let set = client.get(kind, &name).await?;
        let spec = <pb::objects::StatefulSet as pb::Object>::peek(&set).and_then(|set| set.spec.as_ref());
        let now = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        if now != wanted {
            bail!("{name} shall have {now} replicas now, not {wanted}: nothing was changed");
        }
        request.resource_version.clone_from(&set.meta().resource_version);
    }
    client.api.clone().update_scale(request).await.map_err(|status| client.refused(&status))?;
    println!("{} scaled", output::called(kind, &name));
    Ok(ExitCode::SUCCESS)
}
