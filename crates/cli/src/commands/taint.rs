//! `berth taint`: says of a node why pods shall keep away from it or go from it, or no longer.
//!
//! One taint is special: `node.kubernetes.io/out-of-service`, the word of a person that a machine is off. The pods of a
//! node that is not Ready and has it are forgotten at once.

use std::process::ExitCode;

use anyhow::{Result, bail};
use model::validate::OUT_OF_SERVICE;
use pb::{Kind, api::v1::object::Object as Variant, objects::Taint};

use crate::{client::Client, edit, output, target};

/// What a taint does to pods that do not tolerate it: they do not come, rather do not come, or go.
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Flags of `berth taint`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The node and its taints: KEY=VALUE:EFFECT or KEY:EFFECT adds one, KEY:EFFECT- or KEY- takes it away
    #[arg(required = true, value_name = "node NAME TAINT | node/NAME TAINT")]
    what: Vec<String>,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

/// What becomes of a node's taints.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// One is added, in place of one of its key and effect.
    Add(Taint),
    /// Those of a key go, or one of them.
    Remove { key: String, effect: Option<String> },
}

impl Change {
    fn read(text: &str) -> Result<Self> {
        if let Some(text) = text.strip_suffix('-') {
            let (key, effect) = text.split_once(':').map_or((text, None), |(key, effect)| (key, Some(effect)));
            return Ok(Self::Remove { key: key.to_owned(), effect: effect.map(str::to_owned) });
        }
        let Some((named, effect)) = text.rsplit_once(':') else {
            bail!("{text:?} is no taint: write KEY=VALUE:EFFECT to add one, KEY:EFFECT- to take it away");
        };
        if !EFFECTS.contains(&effect) {
            bail!("{effect:?} is no effect of a taint: write one of {}", EFFECTS.join(", "));
        }
        let (key, value) = named.split_once('=').unwrap_or((named, ""));
        let taint = Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned(), time_added: None };
        Ok(Self::Add(taint))
    }

    fn make(&self, taints: &mut Vec<Taint>) {
        match self {
            Self::Add(new) => {
                taints.retain(|old| (&old.key, &old.effect) != (&new.key, &new.effect));
                taints.push(new.clone());
            }
            Self::Remove { key, effect } => {
                taints.retain(|old| old.key != *key || effect.as_ref().is_some_and(|effect| *effect != old.effect));
            }
        }
    }
}

/// Taints.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let named = if args.what.first().is_some_and(|first| first.contains('/')) { 1 } else { 2 };
    let (what, texts) = args.what.split_at(named.min(args.what.len()));
    let (kind, name) = target::one(what, None)?;
    if kind != Kind::Node {
        bail!("a {kind} cannot be tainted, only a Node");
    }
    if texts.is_empty() {
        bail!("name a taint, such as gpu=yes:NoSchedule, or gpu- to take it away");
    }
    let changes = texts.iter().map(|text| Change::read(text)).collect::<Result<Vec<_>>>()?;
    let changed = edit::object(&client, kind, &name, args.dry_run, |object| {
        let Some(Variant::Node(node)) = &mut object.object else { bail!("{name} is no node") };
        let taints = &mut node.spec.get_or_insert_default().taints;
        changes.iter().for_each(|change| change.make(taints));
        Ok(())
    });
    let adds = |change: &Change| matches!(change, Change::Add(_));
    let done = match (changed.await?, changes.iter().any(adds)) {
        (false, _) => "unchanged",
        (true, true) => "tainted",
        (true, false) => "untainted",
    };
    println!("{} {done}{}", output::called(kind, &name), edit::dry(args.dry_run));
    if changes.iter().any(|change| matches!(change, Change::Add(taint) if taint.key == OUT_OF_SERVICE)) {
        println!("if the node is not Ready its pods are forgotten now: the machine must be off");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_come_and_go_as_they_are_written() {
        let mut taints = Vec::new();
        let mut after = |text: &str| {
            Change::read(text).unwrap().make(&mut taints);
            taints.iter().map(|t: &Taint| format!("{}={}:{}", t.key, t.value, t.effect)).collect::<Vec<_>>()
        };
        assert_eq!(after("a/b=off:NoExecute"), ["a/b=off:NoExecute"]);
        assert_eq!(after("a/b:NoSchedule"), ["a/b=off:NoExecute", "a/b=:NoSchedule"]);
        assert_eq!(after("a/b=gone:NoExecute"), ["a/b=:NoSchedule", "a/b=gone:NoExecute"]);
        assert_eq!(after("a/b:NoExecute-"), ["a/b=:NoSchedule"]);
        assert_eq!(after("a/b-"), [""; 0]);
        assert!(Change::read("a/b").unwrap_err().to_string().contains("KEY=VALUE:EFFECT"));
        assert!(Change::read("a/b=c:Never").unwrap_err().to_string().contains("PreferNoSchedule"));
    }
}
