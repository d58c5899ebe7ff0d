//! `berth delete`: asks for objects to go, and waits until they are gone.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::ValueEnum;
use pb::{
    Kind, Object,
    api::v1::{DeleteCollectionRequest, DeleteRequest, DeletedObject, Object as AnyObject, Propagation},
    objects::StatefulSet,
};
use tonic::Code;

use crate::{
    args::duration,
    client::Client,
    follow::{Follow, Told},
    manifest, output,
    target::{self, Target},
};

/// The finalizer of a set whose pods go in order.
const ORDERED_DELETION: &str = "berth.dev/ordered-deletion";

/// Objects that one request deletes.
const PAGE: i32 = 100;

/// Flags of `berth delete`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What: `pod web-0 web-1`, `sts/web svc/nginx`, or a kind with -l or --all
    #[arg(required_unless_present = "filename", value_name = "KIND NAME... | KIND/NAME")]
    what: Vec<String>,
    /// The objects of a file of YAML or JSON, of a folder of such files, or of - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "what")]
    filename: Vec<PathBuf>,
    /// Objects with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All objects of the kind in the namespace
    #[arg(long, conflicts_with = "selector")]
    all: bool,
    /// What becomes of dependents, such as the pods of a set
    #[arg(long, value_enum, default_value_t)]
    cascade: Cascade,
    /// Seconds that a pod may take to stop; the pod's own if absent
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
    /// Forget a pod at once, without waiting for its node: the same as --grace-period=0
    #[arg(long, conflicts_with = "grace_period")]
    force: bool,
    /// Return only when the objects are gone; --wait=false returns at once
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
    /// How long to wait; for ever if absent
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// No error for an object that does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Cascade {
    /// The object goes at once, dependents after it
    #[default]
    Background,
    /// Dependents go first
    Foreground,
    /// Dependents stay
    Orphan,
}

/// One object to delete.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
}

/// What to delete.
enum Wanted {
    /// One object.
    One(Doomed),
    /// All objects of a kind that a selector matches; an empty one matches all.
    All { kind: Kind, selector: String },
}

/// An object that is on its way, and its uid.
type Leaving = (Doomed, String);

/// Deletes.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let wanted = if args.filename.is_empty() { named(&client, &args)? } else { of_files(&client, &args)? };
    let mut code = ExitCode::SUCCESS;
    let mut leaving = Vec::new();
    for wanted in wanted {
        let done = match wanted {
            Wanted::One(one) => delete(&client, &args, one).await.map(|one| one.into_iter().collect()),
            Wanted::All { kind, selector } => delete_all(&client, &args, kind, selector).await,
        };
        match done {
            Ok(left) => leaving.extend::<Vec<Leaving>>(left),
            Err(error) => {
                eprintln!("error: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.wait && !args.dry_run {
        let work = async {
            for (one, uid) in &leaving {
                gone(&client, one, uid).await?;
            }
            Ok(())
        };
        super::within(args.timeout, "the objects to be gone", work).await?;
    }
    Ok(code)
}

fn named(client: &Client, args: &Args) -> Result<Vec<Wanted>> {
    let wanted = |Target { kind, name, .. }| match (name, &args.selector, args.all) {
        (Some(name), None, false) => Ok(Wanted::One(Doomed { kind, namespace: client.namespace_of(kind), name })),
        (Some(_), ..) => bail!("names cannot be given together with -l or --all"),
        (None, None, false) => bail!("name the {} to delete, or give -l or --all", kind.plural()),
        (None, selector, _) => Ok(Wanted::All { kind, selector: selector.clone().unwrap_or_default() }),
    };
    target::targets(&args.what)?.into_iter().map(wanted).collect()
}

/// The objects of manifests, last first: what was made last needs the others most.
fn of_files(client: &Client, args: &Args) -> Result<Vec<Wanted>> {
    let mut doomed = Vec::new();
    for source in manifest::read(&args.filename, false)? {
        for document in source.documents {
            let text = |at: &str| document.pointer(at).and_then(|value| value.as_str()).unwrap_or_default();
            let kind = target::kind(text("/kind")).map_err(|error| error.context(source.name.clone()))?;
            let name = text("/metadata/name").to_owned();
            if name.is_empty() {
                bail!("{}: metadata.name: Required value", source.name);
            }
            let namespace = match text("/metadata/namespace") {
                "" => client.namespace_of(kind),
                own => own.to_owned(),
            };
            doomed.push(Wanted::One(Doomed { kind, namespace, name }));
        }
    }
    doomed.reverse();
    Ok(doomed)
}

impl Args {
    fn propagation(&self) -> i32 {
        let propagation = match self.cascade {
            Cascade::Background => Propagation::Background,
            Cascade::Foreground => Propagation::Foreground,
            Cascade::Orphan => Propagation::Orphan,
        };
        propagation.into()
    }

    fn grace(&self) -> Option<i64> {
        if self.force { Some(0) } else { self.grace_period }
    }

    /// What else there is to say of a deletion.
    fn how(&self) -> &'static str {
        match (self.dry_run, self.force) {
            (true, _) => " (dry run)",
            (false, true) => " by force: if its node still runs it, two of a kind may run",
            (false, false) => "",
        }
    }
}

/// Asks for all objects that a selector matches to go; gives those that are still on their way.
async fn delete_all(client: &Client, args: &Args, kind: Kind, selector: String) -> Result<Vec<Leaving>> {
    let mut request = DeleteCollectionRequest {
        kind: kind.name().to_owned(),
        namespace: client.namespace_of(kind),
        label_selector: selector,
        propagation: args.propagation(),
        grace_period_seconds: args.grace(),
        dry_run: args.dry_run,
        limit: PAGE,
        ..DeleteCollectionRequest::default()
    };
    let (mut leaving, mut count) = (Vec::new(), 0);
    loop {
        let page = client.api.clone().delete_collection(request.clone()).await;
        let page = page.map_err(|status| client.refused(&status))?.into_inner();
        for DeletedObject { namespace, name, uid, gone } in page.items {
            println!("{} {name:?} deleted{}", output::typed(kind), args.how());
            if !gone {
                leaving.push((Doomed { kind, namespace, name }, uid));
            }
        }
        count += page.count;
        if page.r#continue.is_empty() {
            if count == 0 {
                eprintln!("no {} to delete", kind.plural());
            }
            return Ok(leaving);
        }
        request.r#continue = page.r#continue;
    }
}

/// Asks for an object to go; gives it back if it is still on its way.
async fn delete(client: &Client, args: &Args, one: Doomed) -> Result<Option<Leaving>> {
    let request = DeleteRequest {
        kind: one.kind.name().to_owned(),
        namespace: one.namespace.clone(),
        name: one.name.clone(),
        propagation: args.propagation(),
        grace_period_seconds: args.grace(),
        dry_run: args.dry_run,
        ..DeleteRequest::default()
    };
    let answer = match client.api.clone().delete(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::NotFound && args.ignore_not_found => return Ok(None),
        Err(status) => return Err(client.refused(&status)),
    };
    let in_order = answer.object.as_ref().filter(|object| !answer.gone && goes_in_order(object));
    let how =
        if in_order.is_some() { ": its pods go one after the other, the highest ordinal first" } else { args.how() };
    println!("{} {:?} deleted{how}", output::typed(one.kind), one.name);
    Ok(answer.object.filter(|_| !answer.gone).map(|object| (one, object.meta().uid.clone())))
}

/// Returns when the object is gone; another of the same name is not it.
async fn gone(client: &Client, one: &Doomed, uid: &str) -> Result<()> {
    let mut request = super::watch_of(client, one.kind, &one.name);
    request.namespace.clone_from(&one.namespace);
    let mut follow = Follow::new(client, request);
    let (mut there, mut told) = (false, String::new());
    loop {
        match follow.next().await? {
            Told::Is(object) if object.meta().uid == uid => {
                there = true;
                if let Some(text) = leaving(&object).filter(|text| *text != told) {
                    println!("{text}");
                    told = text;
                }
            }
            Told::Is(_) | Told::Gone(_) => return Ok(()),
            Told::Current if !there => return Ok(()),
            Told::Current => {}
            Told::Anew => there = false,
        }
    }
}

/// Whether an object is a set whose pods go in order before it.
fn goes_in_order(object: &AnyObject) -> bool {
    object.meta().finalizers.iter().any(|finalizer| finalizer == ORDERED_DELETION)
}

/// How far a set is whose pods go in order.
fn leaving(object: &AnyObject) -> Option<String> {
    let set = StatefulSet::peek(object).filter(|_| goes_in_order(object))?;
    let status = set.status.clone().unwrap_or_default();
    let name = &object.meta().name;
    let left = match status.replicas {
        1 => "1 pod is left".to_owned(),
        count => format!("{count} pods are left"),
    };
    let blocked = status.blocked_on.and_then(|blocked| Some((blocked.ordinal?, blocked.reason)));
    Some(match blocked {
        Some((ordinal, reason)) if reason == "PodLeaving" => format!("{left}, {name}-{ordinal} is stopping"),
        _ => left,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_told_how_far_a_set_is_that_goes_in_order() {
        let set = |finalizers: &[&str], status| {
            let json = json!({"metadata": {"name": "web", "finalizers": finalizers}, "status": status});
            AnyObject::from_json(Kind::StatefulSet, json).unwrap()
        };
        let stopping = json!({"replicas": 2, "blockedOn": {"ordinal": 1, "reason": "PodLeaving"}});
        let told = leaving(&set(&[ORDERED_DELETION], stopping.clone()));
        assert_eq!(told.as_deref(), Some("2 pods are left, web-1 is stopping"));
        assert_eq!(leaving(&set(&[ORDERED_DELETION], json!({"replicas": 1}))).as_deref(), Some("1 pod is left"));
        assert_eq!(leaving(&set(&["foregroundDeletion"], stopping)), None);
    }
}
