//! `berth label` and `berth annotate`: what objects are told apart by, and what is noted of them.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result, bail};
use pb::{
    Kind,
    api::v1::{ListRequest, Object as AnyObject},
    objects::ObjectMeta,
};

use crate::{
    client::Client,
    edit, output,
    target::{self, Target},
};

/// Which of both maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// What selectors look at.
    Labels,
    /// What they do not look at.
    Annotations,
}

/// Flags of `berth label` and `berth annotate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Of what, and which: KEY=VALUE sets one, KEY- takes it away
    #[arg(required = true, value_name = "KIND NAME... | KIND/NAME | KEY=VALUE | KEY-")]
    what: Vec<String>,
    /// Change what is set already
    #[arg(long)]
    overwrite: bool,
    /// All objects of the kind with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All objects of the kind in the namespace
    #[arg(long, conflicts_with = "selector")]
    all: bool,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

/// What becomes of one key: its value, or None for none.
type Change = (String, Option<String>);

/// Labels, or annotates.
pub async fn run(client: Client, args: Args, map: Map) -> Result<ExitCode> {
    let (what, changes) = split(&args.what)?;
    let mut code = ExitCode::SUCCESS;
    for (kind, name) in objects(&client, &args, &what).await? {
        let change = |object: &mut AnyObject| {
            let meta = object.meta_mut().context("the API service answered without an object")?;
            apply(meta, map, &changes, args.overwrite)
        };
        match edit::object(&client, kind, &name, args.dry_run, change).await {
            Ok(changed) => {
                let word = said(map, &changes, changed);
                println!("{} {word}{}", output::called(kind, &name), edit::dry(args.dry_run));
            }
            Err(error) => {
                eprintln!("error: {}: {error:#}", output::called(kind, &name));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// What is meant, and what shall become of it. A change has a `=` or ends with `-`, which no name does.
fn split(args: &[String]) -> Result<(Vec<String>, Vec<Change>)> {
    let is_change = |text: &&String| text.contains('=') || text.ends_with('-');
    let (changes, what): (Vec<_>, Vec<_>) = args.iter().partition(is_change);
    if changes.is_empty() {
        bail!("say what to set, such as tier=db, or what to take away, such as tier-");
    }
    let read = |text: &String| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.trim_end_matches('-').to_owned(), None),
    };
    Ok((what.into_iter().cloned().collect(), changes.into_iter().map(read).collect()))
}

async fn objects(client: &Client, args: &Args, what: &[String]) -> Result<Vec<(Kind, String)>> {
    let mut named = Vec::new();
    for Target { kind, name, .. } in target::targets(what)? {
        match (name, &args.selector, args.all) {
            (Some(name), None, false) => named.push((kind, name)),
            (None, selector, all) if all || selector.is_some() => {
                let request = ListRequest {
                    kind: kind.name().to_owned(),
                    namespace: client.namespace_of(kind),
                    label_selector: selector.clone().unwrap_or_default(),
                    ..ListRequest::default()
                };
                let (items, _) = client.list(request).await?;
                named.extend(items.iter().map(|item| (kind, item.meta().name.clone())));
            }
            (Some(_), ..) => bail!("name objects, or choose them with -l or --all, not both"),
            (None, ..) => bail!("name the objects, or choose them with -l or --all"),
        }
    }
    Ok(named)
}

/// Makes the changes; fails if one would change a value that is there and `overwrite` was not said.
fn apply(meta: &mut ObjectMeta, map: Map, changes: &[Change], overwrite: bool) -> Result<()> {
    let entries: &mut BTreeMap<String, String> = match map {
        Map::Labels => &mut meta.labels,
        Map::Annotations => &mut meta.annotations,
    };
    for (key, value) in changes {
        match (entries.get(key), value) {
            (Some(is), Some(value)) if is != value && !overwrite => {
                bail!("{key:?} is {is:?} already: --overwrite changes it");
            }
            (_, Some(value)) => drop(entries.insert(key.clone(), value.clone())),
            (_, None) => drop(entries.remove(key)),
        }
    }
    Ok(())
}

fn said(map: Map, changes: &[Change], changed: bool) -> &'static str {
    let sets = changes.iter().any(|(_, value)| value.is_some());
    match (map, sets, changed) {
        (Map::Labels, true, true) => "labeled",
        (Map::Labels, false, true) => "unlabeled",
        (Map::Labels, _, false) => "not labeled: nothing to change",
        (Map::Annotations, _, true) => "annotated",
        (Map::Annotations, _, false) => "not annotated: nothing to change",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> (Vec<String>, Vec<Change>) {
        split(&args.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn objects_and_changes_are_told_apart() {
        let (what, changes) = read(&["pod", "web-0", "example.com/tier=db", "old-", "empty="]);
        assert_eq!(what, ["pod", "web-0"]);
        let is = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(changes, [is("example.com/tier", Some("db")), is("old", None), is("empty", Some(""))]);
        assert_eq!(read(&["pod/web-0", "url=http://x/?a=b"]).1, [is("url", Some("http://x/?a=b"))]);
        assert!(split(&["pod".to_owned(), "web-0".to_owned()]).is_err());
    }

    #[test]
    fn a_value_changes_only_if_that_was_said() {
        let mut meta = ObjectMeta { labels: [("tier".to_owned(), "web".to_owned())].into(), ..ObjectMeta::default() };
        let (_, changes) = read(&["tier=db"]);
        assert!(apply(&mut meta, Map::Labels, &changes, false).unwrap_err().to_string().contains("--overwrite"));
        apply(&mut meta, Map::Labels, &changes, true).unwrap();
        apply(&mut meta, Map::Labels, &changes, false).unwrap();
        assert_eq!(meta.labels["tier"], "db");
        apply(&mut meta, Map::Annotations, &changes, false).unwrap();
        apply(&mut meta, Map::Labels, &read(&["tier-", "gone-"]).1, false).unwrap();
        assert!(meta.labels.is_empty() && meta.annotations.len() == 1);
    }
}
