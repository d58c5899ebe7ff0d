//! `berth volume expand`: larger volumes, of one claim or of all claims of a set's template.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use model::quantity::Quantity;
use pb::{
    Kind, ObjectExt,
    api::v1::{PatchRequest, PatchType},
    objects::{PersistentVolumeClaim, StatefulSet},
};
use serde_json::{Value, json};

use super::{Scope, Waiting, Watched, get, size, state};
use crate::{
    client::Client,
    commands::{watch_of, within},
    follow::Follow,
    output,
};

/// Flags of `berth volume expand`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What: a set, all of whose claims of one template grow, or one claim
    #[arg(value_name = "sts/SET | CLAIM")]
    what: String,
    /// With a set: the claim template; may be left out if the set has one
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// How large: more than it is now
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Quantity,
    #[command(flatten)]
    waiting: Waiting,
}

/// Expands.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let what = format!("{} to have {}", args.what, args.size);
    match Scope::read(&args.what)? {
        Scope::Set(name) => {
            let set = expand_set(&client, &name, &args).await?;
            println!("{} asks for {} now", output::called(Kind::StatefulSet, &name), args.size);
            if args.waiting.wait {
                within(args.waiting.timeout, &what, set_grown(&client, &name, &set.0, set.1)).await?;
            }
        }
        Scope::Claim(name) => {
            if args.template.is_some() {
                bail!("--template goes with a set: write sts/SET, or leave it out");
            }
            let patch = json!({"spec": {"resources": {"requests": {"storage": args.size.to_string()}}}});
            patched(&client, Kind::PersistentVolumeClaim, &name, PatchType::Merge, &patch).await?;
            println!("{} asks for {} now", output::called(Kind::PersistentVolumeClaim, &name), args.size);
            if args.waiting.wait {
                within(args.waiting.timeout, &what, claim_grown(&client, &name, args.size)).await?;
            }
        }
        Scope::Pod(name) => {
            bail!("the volumes of pod {name} grow with its set (sts/SET --template T), or one claim at a time (CLAIM)")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes the size in a set's claim template; its name, and the set's generation then.
async fn expand_set(client: &Client, name: &str, args: &Args) -> Result<(String, i64)> {
    let set: StatefulSet = get(client, name).await?;
    let templates = set.spec.as_ref().map(|spec| spec.volume_claim_templates.as_slice()).unwrap_or_default();
    let names: Vec<&str> = templates.iter().map(|template| template.name()).collect();
    let at = match (&args.template, names.as_slice()) {
        (_, []) => bail!("set {name} has no claim templates: it keeps no data"),
        (None, [_]) => 0,
        (None, many) => {
            bail!("set {name} has several claim templates: say which with --template ({})", many.join(", "))
        }
        (Some(wanted), many) => many
            .iter()
            .position(|name| name == wanted)
            .with_context(|| format!("set {name} has no claim template {wanted:?}; it has {}", many.join(", ")))?,
    };
    let template = names.get(at).copied().unwrap_or_default();
    let path = format!("/spec/volumeClaimTemplates/{at}");
    // The test keeps this from another template if the list was changed meanwhile.
    let patch = json!([
        {"op": "test", "path": format!("{path}/metadata/name"), "value": template},
        {"op": "replace", "path": format!("{path}/spec/resources/requests/storage"), "value": args.size.to_string()},
    ]);
    let object = patched(client, Kind::StatefulSet, name, PatchType::Json, &patch).await?;
    Ok((template.to_owned(), object.meta().generation))
}

async fn patched(
    client: &Client,
    kind: Kind,
    name: &str,
    form: PatchType,
    patch: &Value,
) -> Result<pb::api::v1::Object> {
    let request = PatchRequest {
        kind: kind.name().to_owned(),
        namespace: client.namespace.clone(),
        name: name.to_owned(),
        r#type: form.into(),
        patch: serde_json::to_vec(patch)?,
        ..PatchRequest::default()
    };
    let answer = client.api.clone().patch(request).await.map_err(|status| client.refused(&status))?;
    answer.into_inner().object.context("the API service answered without an object")
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Waiting(String),
    Done(String),
    Failed(String),
}

async fn set_grown(client: &Client, name: &str, template: &str, generation: i64) -> Result<()> {
    let mut sets = Watched::<StatefulSet>::new(Follow::new(client, watch_of(client, Kind::StatefulSet, name)));
    let mut last = String::new();
    loop {
        let Some(set) = sets.next().await?.get(name) else { bail!("set {name} was deleted") };
        if told(of_set(set, template, generation), &mut last)? {
            return Ok(());
        }
    }
}

async fn claim_grown(client: &Client, name: &str, size: Quantity) -> Result<()> {
    let kind = Kind::PersistentVolumeClaim;
    let mut claims = Watched::<PersistentVolumeClaim>::new(Follow::new(client, watch_of(client, kind, name)));
    let mut last = String::new();
    loop {
        let Some(claim) = claims.next().await?.get(name) else { bail!("claim {name} was deleted") };
        if told(of_claim(claim, size), &mut last)? {
            return Ok(());
        }
    }
}

/// Says what is new; whether it is done.
fn told(progress: Progress, last: &mut String) -> Result<bool> {
    match progress {
        Progress::Done(text) => {
            println!("{text}");
            Ok(true)
        }
        Progress::Failed(text) => bail!(text),
        Progress::Waiting(text) => {
            if text != *last {
                println!("{text}");
            }
            *last = text;
            Ok(false)
        }
    }
}

fn of_set(set: &StatefulSet, template: &str, generation: i64) -> Progress {
    let status = set.status.clone().unwrap_or_default();
    if status.observed_generation < generation {
        return Progress::Waiting("Waiting for the controller to take note of the change...".to_owned());
    }
    let Some(claims) = status.volume_claims.iter().find(|claims| claims.name == template) else {
        return Progress::Waiting(format!("Waiting for the controller to look at the claims of {template}..."));
    };
    let so_far =
        format!("{} of {} claims of {template} are as large as that", claims.fitting_replicas, claims.replicas);
    if claims.fitting_replicas >= claims.replicas {
        return Progress::Done(format!("{so_far}; all that come will be"));
    }
    let which = claims.expanding.map_or(String::new(), |ordinal| format!(", that of {}-{ordinal} grows", set.name()));
    let why = if claims.message.is_empty() { String::new() } else { format!(": {}", claims.message) };
    Progress::Waiting(format!("{so_far}{which}{why}"))
}

fn of_claim(claim: &PersistentVolumeClaim, size: Quantity) -> Progress {
    let (name, status) = (claim.name(), claim.status.clone().unwrap_or_default());
    let has = status.capacity.get("storage").and_then(|size| size.value.parse::<Quantity>().ok());
    if has.is_some_and(|has| has >= size) {
        return Progress::Done(format!("{name} has {} now", state::size(claim)));
    }
    let said = |condition: &str| state::holds(claim, condition).map(|condition| condition.message.clone());
    match state::word(claim).as_str() {
        "CannotGrow" => {
            let why = said("ControllerResizeError").or_else(|| said("Resizing")).unwrap_or_default();
            Progress::Failed(format!(
                "{name} cannot grow: {why}; ask for less with `berth volume expand {name} --size SIZE`, or make room"
            ))
        }
        "GrowsOnStart" => {
            let why = said("FileSystemResizePending").filter(|why| !why.is_empty());
            let why = why.unwrap_or_else(|| "its file system grows when its pod is started (again)".to_owned());
            Progress::Waiting(format!("{name}: {} waits: {why}", state::size(claim)))
        }
        word => Progress::Waiting(format!("{name}: {} ({word})", state::size(claim))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(claims: Value) -> StatefulSet {
        let status = json!({"observedGeneration": 2, "volumeClaims": [claims]});
        serde_json::from_value(json!({"metadata": {"name": "web"}, "status": status})).unwrap()
    }

    #[test]
    fn a_set_is_done_when_all_its_claims_are() {
        let claims =
            json!({"name": "www", "replicas": 3, "fittingReplicas": 1, "expanding": 1, "message": "slow disk"});
        let text = "1 of 3 claims of www are as large as that, that of web-1 grows: slow disk";
        assert_eq!(of_set(&set(claims.clone()), "www", 2), Progress::Waiting(text.to_owned()));
        assert!(matches!(of_set(&set(claims), "www", 3), Progress::Waiting(text) if text.contains("take note")));
        let claims = json!({"name": "www", "replicas": 3, "fittingReplicas": 3});
        assert!(matches!(of_set(&set(claims), "www", 2), Progress::Done(_)));
    }

    #[test]
    fn a_claim_says_what_it_waits_for() {
        let claim = |status: Value| -> PersistentVolumeClaim {
            let spec = json!({"resources": {"requests": {"storage": "2Gi"}}});
            serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": spec, "status": status})).unwrap()
        };
        let wanted = "2Gi".parse().unwrap();
        assert_eq!(
            of_claim(&claim(json!({"capacity": {"storage": "2Gi"}})), wanted),
            Progress::Done("data has 2Gi now".to_owned())
        );
        let pending = json!({
            "phase": "Bound", "capacity": {"storage": "1Gi"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True", "message": "start the pod again"}],
        });
        assert_eq!(
            of_claim(&claim(pending), wanted),
            Progress::Waiting("data: 1Gi -> 2Gi waits: start the pod again".to_owned())
        );
        let infeasible = json!({
            "capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"},
            "conditions": [{"type": "ControllerResizeError", "status": "True", "message": "the disk is full"}],
        });
        assert!(
            matches!(of_claim(&claim(infeasible), wanted), Progress::Failed(text) if text.contains("the disk is full"))
        );
    }
}
