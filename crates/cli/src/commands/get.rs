//! `berth get`: objects as a table or for programs, once or as they change.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use pb::{
    Kind,
    api::v1::{ListRequest, Object as AnyObject, WatchRequest},
};

use crate::{
    client::Client,
    follow::{Follow, Told},
    output::{
        self, Format, Shown,
        table::{Columns, Table},
    },
    target::{self, Target},
};

/// Flags of `berth get`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What: `pods`, `pods,pvc`, `all`, `pod web-0 web-1`, or `sts/web svc/nginx`; `statefulsets.apps` shows sets without
    /// what Berth adds, `statefulsets.berth` with it
    #[arg(required = true, value_name = "KIND [NAME...] | KIND/NAME")]
    what: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels, such as app=nginx,tier!=web
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Only objects with these fields, such as spec.nodeName=node-1
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Show what changes, as it changes
    #[arg(short, long)]
    watch: bool,
    /// Show the labels in a column
    #[arg(long)]
    show_labels: bool,
    /// No header over the table
    #[arg(long)]
    no_headers: bool,
    /// No error for an object that does not exist
    #[arg(long)]
    ignore_not_found: bool,
}

/// The objects of one target.
struct Found {
    kind: Kind,
    objects: Vec<AnyObject>,
    /// The revision that a watch goes on from.
    revision: String,
}

/// Gets.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let targets = target::targets(&args.what)?;
    let named = targets.iter().any(|target| target.name.is_some());
    if named && !(args.selector.is_empty() && args.field_selector.is_empty()) {
        bail!("a selector cannot be given together with names");
    }
    if named && args.all_namespaces {
        bail!("a name cannot be looked up in all namespaces: give one with -n");
    }
    if args.watch {
        return watch(&client, &args, &targets).await;
    }
    let mut found: Vec<Found> = Vec::new();
    let mut missing = Vec::new();
    for target in &targets {
        match one(&client, &args, target).await? {
            Ok(some) => match found.iter_mut().find(|f| f.kind == some.kind && target.name.is_some()) {
                Some(same) => same.objects.extend(some.objects),
                None => found.push(some),
            },
            Err(nothing) => missing.push(nothing),
        }
    }
    print(&args, &client, &found, named)?;
    for what in &missing {
        eprintln!("error: {what}");
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The objects of a target; the inner error says that a named one does not exist.
async fn one(client: &Client, args: &Args, target: &Target) -> Result<Result<Found, String>> {
    let kind = target.kind;
    let Some(name) = &target.name else {
        let mut list = list_request(client, args, target);
        if kind.namespaced() && args.all_namespaces {
            list.namespace.clear();
        }
        let (mut objects, revision) = client.list(list).await?;
        if kind == Kind::Event {
            objects.sort_by_key(last_seen);
        }
        return Ok(Ok(Found { kind, objects, revision }));
    };
    match client.find(kind, name, target.view).await? {
        Some(object) => {
            let revision = object.meta().resource_version.clone();
            Ok(Ok(Found { kind, objects: vec![object], revision }))
        }
        None if args.ignore_not_found => Ok(Ok(Found { kind, objects: Vec::new(), revision: String::new() })),
        None => Ok(Err(not_found(client, kind, name))),
    }
}

fn not_found(client: &Client, kind: Kind, name: &str) -> String {
    let place = if kind.namespaced() { format!(" in namespace {}", client.namespace) } else { String::new() };
    format!("{} {name:?} not found{place}", kind.plural())
}

fn last_seen(object: &AnyObject) -> (i64, i32) {
    let event = <pb::objects::Event as pb::Object>::peek(object);
    let last = event.and_then(|event| event.last_timestamp).or(object.meta().creation_timestamp);
    last.map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn list_request(client: &Client, args: &Args, target: &Target) -> ListRequest {
    ListRequest {
        kind: target.kind.name().to_owned(),
        namespace: client.namespace_of(target.kind),
        label_selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        api_version: target.view.to_owned(),
        ..ListRequest::default()
    }
}

fn shown(args: &Args, kinds: usize) -> Shown {
    Shown {
        wide: args.output == Format::Wide,
        namespace: args.all_namespaces,
        kind: kinds > 1,
        labels: args.show_labels,
    }
}

fn print(args: &Args, client: &Client, found: &[Found], named: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json | Format::Yaml => {
            let objects: Vec<_> = found.iter().flat_map(|found| found.objects.iter().cloned()).collect();
            let value = match objects.as_slice() {
                [] if named => return Ok(()),
                [one] if named => output::to_json(one)?,
                many => output::list(many)?,
            };
            output::write_value(&mut out, &value, args.output)
        }
        Format::Name => {
            for found in found {
                for object in &found.objects {
                    writeln!(out, "{}", output::called(found.kind, &object.meta().name))?;
                }
            }
            Ok(())
        }
        Format::Table | Format::Wide => {
            let shown = shown(args, found.len());
            let now = Timestamp::now();
            let mut first = true;
            for found in found.iter().filter(|found| !found.objects.is_empty()) {
                if !first {
                    writeln!(out)?;
                }
                first = false;
                let mut table = Table::new(shown.header(found.kind));
                found.objects.iter().for_each(|object| table.push(shown.row(object, now)));
                let text = table.to_string();
                let skip = if args.no_headers { text.find('\n').map_or(0, |at| at + 1) } else { 0 };
                write!(out, "{}", &text[skip..])?;
            }
            if first && !named {
                let place = match () {
                    () if args.all_namespaces || found.iter().all(|found| !found.kind.namespaced()) => String::new(),
                    () => format!(" in namespace {}", client.namespace),
                };
                eprintln!("No resources found{place}.");
            }
            Ok(())
        }
    }
}

async fn watch(client: &Client, args: &Args, targets: &[Target]) -> Result<ExitCode> {
    let [target] = targets else { bail!("one kind, or one object, can be watched at a time") };
    let kind = target.kind;
    let list = list_request(client, args, target);
    let mut request = WatchRequest {
        kind: list.kind,
        namespace: if args.all_namespaces { String::new() } else { list.namespace },
        label_selector: list.label_selector,
        field_selector: list.field_selector,
        api_version: list.api_version,
        ..WatchRequest::default()
    };
    if let Some(name) = &target.name {
        request.field_selector = format!("metadata.name={name}");
    }
    let mut printer = Printer::new(args, kind);
    match one(client, args, target).await? {
        Ok(found) => {
            printer.all(&found.objects)?;
            request.resource_version = found.revision;
        }
        Err(nothing) => bail!(nothing),
    }
    let mut follow = Follow::new(client, request);
    loop {
        match follow.next().await? {
            Told::Is(object) | Told::Gone(object) => printer.all(&[object])?,
            Told::Current | Told::Anew => {}
        }
    }
}

/// Prints objects as they come.
struct Printer<'a> {
    args: &'a Args,
    kind: Kind,
    shown: Shown,
    columns: Columns,
    begun: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args, kind: Kind) -> Self {
        let mut columns = Columns::default();
        if kind == Kind::Pod {
            // Room for what a pod is likely to become, so that later rows stand under the first.
            let usual = if args.all_namespaces {
                &["", "", "", "ContainerCreating"][..]
            } else {
                &["", "", "ContainerCreating"]
            };
            columns.fit(usual);
        }
        Self { args, kind, shown: shown(args, 1), columns, begun: false }
    }

    fn all(&mut self, objects: &[AnyObject]) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match self.args.output {
            Format::Json | Format::Yaml => {
                for object in objects {
                    if self.begun && self.args.output == Format::Yaml {
                        writeln!(out, "---")?;
                    }
                    self.begun = true;
                    output::write_value(&mut out, &output::to_json(object)?, self.args.output)?;
                }
            }
            Format::Name => {
                for object in objects {
                    writeln!(out, "{}", output::called(self.kind, &object.meta().name))?;
                }
            }
            Format::Table | Format::Wide => {
                let now = Timestamp::now();
                let header = self.shown.header(self.kind);
                let rows: Vec<_> = objects.iter().map(|object| self.shown.row(object, now)).collect();
                self.columns.fit(&header);
                rows.iter().for_each(|row| self.columns.fit(row));
                if !self.begun && !self.args.no_headers {
                    writeln!(out, "{}", self.columns.line(&header))?;
                }
                self.begun = true;
                for row in &rows {
                    writeln!(out, "{}", self.columns.line(row))?;
                }
            }
        }
        out.flush().context("write to standard output")
    }
}
