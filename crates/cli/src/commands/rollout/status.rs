//! `berth rollout status`: follows a set until its pods are as its spec wants them.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use model::selector::Selector;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::WatchRequest,
    objects::{Pod, StatefulSet},
};

use super::Which;
use crate::{
    args::duration,
    client::Client,
    commands::{watch_of, within},
    follow::{Follow, Told},
    progress::{Progress, judge},
};

/// Flags of `berth rollout status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// How long; for ever if absent
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Wait until it is complete; with --watch=false only say how far it is
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    watch: bool,
}

/// Follows.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let set = args.which.get(&client).await?;
    let name = set.name().to_owned();
    let selector = set.spec.as_ref().and_then(|spec| spec.selector.as_ref()).cloned().unwrap_or_default();
    let selector = Selector::of(&selector).with_context(|| format!("the selector of {name}"))?;
    let pods = WatchRequest {
        kind: Kind::Pod.name().to_owned(),
        namespace: client.namespace.clone(),
        label_selector: selector.to_string(),
        ..WatchRequest::default()
    };
    let work = Watching {
        set: Follow::new(&client, watch_of(&client, Kind::StatefulSet, &name)),
        pods: Follow::new(&client, pods),
        name: name.clone(),
        known: Known::default(),
    };
    within(args.timeout, &format!("the rollout of {name}; `berth why {name}` may know more"), work.run(args.watch))
        .await
}

struct Watching {
    set: Follow,
    pods: Follow,
    name: String,
    known: Known,
}

/// What is known so far; it is complete when both watches have told all that is so.
#[derive(Default)]
struct Known {
    set: Option<StatefulSet>,
    set_current: bool,
    pods: BTreeMap<String, Pod>,
    pods_current: bool,
}

impl Watching {
    async fn run(mut self, watch: bool) -> Result<ExitCode> {
        let mut last = String::new();
        loop {
            tokio::select! {
                told = self.set.next() => self.known.set(told?),
                told = self.pods.next() => self.known.pods(told?, &self.name),
            }
            if !self.known.set_current || !self.known.pods_current {
                continue;
            }
            let Some(set) = &self.known.set else { bail!("{} was deleted", self.name) };
            match judge(set, &self.known.pods) {
                Progress::Done(text) => {
                    println!("{text}");
                    return Ok(ExitCode::SUCCESS);
                }
                Progress::Failed(text) | Progress::Impossible(text) => bail!(text),
                Progress::Waiting(text) => {
                    if text != last {
                        println!("{text}");
                    }
                    last = text;
                }
            }
            if !watch {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

impl Known {
    fn set(&mut self, told: Told) {
        match told {
            Told::Is(object) => self.set = StatefulSet::from_any(object).ok(),
            Told::Gone(_) => self.set = None,
            Told::Current => self.set_current = true,
            Told::Anew => (self.set, self.set_current) = (None, false),
        }
    }

    fn pods(&mut self, told: Told, set: &str) {
        match told {
            Told::Is(object) => {
                if let Ok(pod) = Pod::from_any(object)
                    && controlled_by(&pod, set)
                {
                    self.pods.insert(pod.meta().name.clone(), pod);
                }
            }
            Told::Gone(object) => drop(self.pods.remove(&object.meta().name)),
            Told::Current => self.pods_current = true,
            Told::Anew => {
                self.pods.clear();
                self.pods_current = false;
            }
        }
    }
}

fn controlled_by(pod: &Pod, set: &str) -> bool {
    let owner = pod.meta().owner_references.iter().find(|owner| owner.controller == Some(true));
    owner.is_some_and(|owner| owner.kind == Kind::StatefulSet.name() && owner.name == set)
}
