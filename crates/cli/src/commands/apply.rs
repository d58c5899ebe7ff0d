//! `berth apply`: the objects of a manifest, all of them or, if one is invalid, none.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::ValueEnum;
use pb::api::v1::{ApplyRequest, ApplyResult, FieldValidation};

use crate::{
    client::Client,
    manifest::{self, Source},
    output::{self, Format, table::Columns},
};

/// Flags of `berth apply`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A file of YAML or JSON, a folder of such files, or - for standard input
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Look into the folder's folders too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only check, and say what would be done: to the objects, and to which pods in which order
    #[arg(long)]
    dry_run: bool,
    /// What to do with fields that Berth does not know or not support
    #[arg(long, value_enum, default_value_t)]
    validate: Validate,
    /// What to print of the objects
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// What becomes of fields that Berth does not know or not support.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Validate {
    /// Refuse the manifest, and name each
    #[default]
    Strict,
    /// Drop them, and warn of each
    Warn,
}

/// Applies.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let sources = manifest::read(&args.filename, args.recursive)?;
    let results = send(&client, &sources, args.dry_run, args.validate).await?;
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => {
            let objects: Vec<_> = results.into_iter().filter_map(|result| result.object).collect();
            let value = match objects.as_slice() {
                [one] => output::to_json(one)?,
                many => output::list(many)?,
            };
            output::write_value(&mut std::io::stdout(), &value, format)?;
        }
        format => {
            let suffix = if args.dry_run { " (dry run)" } else { "" };
            for result in &results {
                let Some(object) = &result.object else { continue };
                let Some(kind) = object.kind() else { continue };
                let called = output::called(kind, &object.meta().name);
                match format {
                    Some(Format::Name) => println!("{called}"),
                    _ => println!("{called} {}{suffix}", result.outcome),
                }
            }
            if format != Some(Format::Name) {
                results.iter().for_each(|result| print!("{}", foreseen(result)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends manifests to the API service, and prints its warnings.
pub async fn send(client: &Client, sources: &[Source], dry_run: bool, validate: Validate) -> Result<Vec<ApplyResult>> {
    let names = sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
    let documents = sources.iter().flat_map(|source| &source.documents);
    let validation = match validate {
        Validate::Strict => FieldValidation::Strict,
        Validate::Warn => FieldValidation::Warn,
    };
    let request = ApplyRequest {
        manifests: documents.map(serde_json::to_vec).collect::<Result<_, _>>()?,
        namespace: client.namespace.clone(),
        dry_run,
        field_validation: validation.into(),
    };
    let answer = client.api.clone().apply(request).await.map_err(|status| client.refused_in(&status, &names))?;
    let results = answer.into_inner().results;
    for warning in results.iter().flat_map(|result| &result.warnings) {
        eprintln!("Warning: {warning}");
    }
    Ok(results)
}

/// What a changed set would do to its pods, in words.
pub fn foreseen(result: &ApplyResult) -> String {
    let Some((kind, object)) = result.object.as_ref().and_then(|object| Some((object.kind()?, object))) else {
        return String::new();
    };
    let mut out = String::new();
    if result.outcome == "unchanged" {
        return out;
    }
    let called = output::called(kind, &object.meta().name);
    if !result.foreseen.is_empty() {
        let mut columns = Columns::default();
        let rows: Vec<_> = result.foreseen.iter().map(|step| [&step.action, &step.pod].map(String::as_str)).collect();
        rows.iter().for_each(|row| columns.fit(row));
        out.push_str(&format!("{called} would, in this order:\n"));
        for step in &result.foreseen {
            out.push_str(&format!("  {}\n", columns.line(&[&step.action, &step.pod, &step.why])));
        }
    }
    if !result.held_back.is_empty() {
        out.push_str(&format!("{called} would hold back:\n"));
        result.held_back.split("; ").for_each(|held| out.push_str(&format!("  {held}\n")));
    }
    out
}
