//! `berth drain`: closes a node to new pods and asks all of its pods to go, as far as disruption budgets allow it.
//!
//! Nothing is deleted past a budget: an eviction that is refused is tried again when a budget changes, and now and then.
//! A pod counts as gone when the API service says so, which it does when the node has stopped it.

mod progress;
mod rules;

use std::{
    future::pending,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{EvictRequest, Object as AnyObject, WatchRequest},
    objects::{Node, Pod},
};
use tonic::Code;

use self::{
    progress::{Answer, PodKey, Progress},
    rules::{Accepts, objection},
};
use crate::{
    args::duration,
    client::Client,
    commands::{cordon, holds},
    edit,
    follow::{Follow, Told},
    output,
};

/// Flags of `berth drain`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The nodes: `n1 n2` or `node/n1`
    #[arg(required = true, value_name = "NODE... | node/NODE...")]
    what: Vec<String>,
    /// Pods that belong to no set go too, though nobody makes them again
    #[arg(long)]
    force: bool,
    /// Pods with emptyDir volumes go too, though that data is lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Seconds that a pod may take to stop; the pod's own if absent
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..))]
    grace_period: Option<i64>,
    /// Give up after this long; the node stays cordoned. Never without it
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Only pods with these labels
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    pod_selector: String,
    /// Only check: say what would go, and what would not
    #[arg(long)]
    dry_run: bool,
    /// Taken for the sake of habit: there are no DaemonSets
    #[arg(long, hide = true)]
    ignore_daemonsets: bool,
}

/// Drains nodes, one after the other.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for node in cordon::nodes(&args.what)? {
        cordon::set(&client, &node, true, args.dry_run).await?;
        match drain(&client, &args, &node).await {
            Ok(()) => println!("{} drained{}", output::called(Kind::Node, &node), edit::dry(args.dry_run)),
            Err(error) => {
                eprintln!("error: {error:#}\n{} stays cordoned", output::called(Kind::Node, &node));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn drain(client: &Client, args: &Args, node: &str) -> Result<()> {
    let mut pods = Follow::new(client, of_node(args, node));
    let mut progress = Progress::default();
    let found = listed(&mut pods).await?;
    let accepts = Accepts { for_good: args.force, lost_data: args.delete_emptydir_data };
    let object = |pod: &Pod| Some(format!("\n  pod {}/{} {}", pod.namespace(), pod.name(), objection(pod, accepts)?));
    let objections: String = found.iter().filter_map(object).collect();
    if !objections.is_empty() {
        bail!("nothing was asked to go, because of:{objections}");
    }
    let now = Instant::now();
    found.iter().for_each(|pod| progress.add(key(pod), pod.uid(), now));
    if args.dry_run {
        return check(client, args, &progress).await;
    }
    tell_of_silence(client, node).await?;
    let work = follow(client, args, pods, &mut progress);
    let done = match args.timeout {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    };
    let left = || progress.left().iter().map(|line| format!("\n  {line}")).collect::<String>();
    done.unwrap_or_else(|| bail!("timed out after {:?}:{}", args.timeout.unwrap_or_default(), left()))
}

fn of_node(args: &Args, node: &str) -> WatchRequest {
    WatchRequest {
        kind: Kind::Pod.name().to_owned(),
        label_selector: args.pod_selector.clone(),
        field_selector: format!("spec.nodeName={node}"),
        ..WatchRequest::default()
    }
}

fn key(pod: &Pod) -> PodKey {
    (pod.namespace().to_owned(), pod.name().to_owned())
}

/// The pods that are there when a watch begins.
async fn listed(pods: &mut Follow) -> Result<Vec<Pod>> {
    let mut found: Vec<Pod> = Vec::new();
    loop {
        let (object, is) = match pods.next().await? {
            Told::Is(object) => (object, true),
            Told::Gone(object) => (object, false),
            Told::Anew => {
                found.clear();
                continue;
            }
            Told::Current => return Ok(found),
        };
        if let Ok(pod) = Pod::from_any(object) {
            found.retain(|other| key(other) != key(&pod));
            found.extend(is.then_some(pod));
        }
    }
}

/// Pods of a silent node do not stop by themselves: says what would help.
async fn tell_of_silence(client: &Client, name: &str) -> Result<()> {
    let node = Node::peek(&client.get(Kind::Node, name).await?).cloned().unwrap_or_default();
    if !node.status.is_some_and(|status| holds(&status.conditions, "Ready")) {
        eprintln!(
            "node {name} is not Ready: its pods go when its agent is back; if the machine is off, `berth taint node {name} \
             {}=off:NoExecute` lets them go",
            model::validate::OUT_OF_SERVICE
        );
    }
    Ok(())
}

/// Asks for each pod whether it could go now.
async fn check(client: &Client, args: &Args, progress: &Progress) -> Result<()> {
    for (pod, uid) in progress.due(Instant::now()) {
        let (namespace, name) = &pod;
        match ask(client, args, &pod, &uid).await? {
            Answer::Held(why) => println!("pod {namespace}/{name} would wait: {why}"),
            Answer::Asked | Answer::Gone => println!("pod {namespace}/{name} would be evicted"),
        }
    }
    Ok(())
}

/// Asks the pods to go until none is left.
async fn follow(client: &Client, args: &Args, mut pods: Follow, progress: &mut Progress) -> Result<()> {
    let all = WatchRequest { kind: Kind::PodDisruptionBudget.name().to_owned(), ..WatchRequest::default() };
    let mut budgets = Follow::new(client, all);
    loop {
        for (pod, uid) in progress.due(Instant::now()) {
            let (namespace, name) = &pod;
            let answer = ask(client, args, &pod, &uid).await?;
            match &answer {
                Answer::Asked => println!("evicting pod {namespace}/{name}"),
                Answer::Gone => println!("pod {namespace}/{name} evicted"),
                Answer::Held(_) => {}
            }
            if let Some(why) = progress.answered(&pod, answer, Instant::now()) {
                eprintln!("{why}; waiting");
            }
        }
        if progress.is_done() {
            return Ok(());
        }
        let next = progress.next();
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => pending().await,
            }
        };
        // Both watches keep their place when the other is heard first.
        tokio::select! {
            told = pods.next() => {
                for (namespace, name) in heard(progress, told?) {
                    println!("pod {namespace}/{name} evicted");
                }
            }
            told = budgets.next() => {
                if matches!(told?, Told::Is(_) | Told::Gone(_)) {
                    progress.stirred(Instant::now());
                }
            }
            () = due => {}
        }
    }
}

/// Takes in what the watch of the pods tells; gives those that are gone.
fn heard(progress: &mut Progress, told: Told) -> Vec<PodKey> {
    let of = |object: &AnyObject| (object.meta().namespace.clone(), object.meta().name.clone());
    match told {
        Told::Gone(object) => Some(of(&object)).filter(|pod| progress.gone(pod)).into_iter().collect(),
        Told::Is(object) => {
            let uid = object.meta().uid.clone();
            Some(of(&object)).filter(|pod| progress.seen(pod, &uid)).into_iter().collect()
        }
        Told::Anew => {
            progress.anew();
            Vec::new()
        }
        Told::Current => progress.current(),
    }
}

/// Asks for the eviction of a pod.
async fn ask(client: &Client, args: &Args, (namespace, name): &PodKey, uid: &str) -> Result<Answer> {
    let request = EvictRequest {
        namespace: namespace.clone(),
        pod: name.clone(),
        uid: uid.to_owned(),
        grace_period_seconds: args.grace_period,
        dry_run: args.dry_run,
    };
    match client.api.clone().evict(request).await {
        Ok(answer) if answer.get_ref().gone => Ok(Answer::Gone),
        Ok(_) => Ok(Answer::Asked),
        Err(status) => match status.code() {
            Code::NotFound => Ok(Answer::Gone),
            // A budget; others who change the pods at the same time, among them who took the pod's place; a service that
            // is away for a moment. Were it away for good, the watches would say so.
            Code::ResourceExhausted | Code::Aborted | Code::Unavailable | Code::DeadlineExceeded => {
                Ok(Answer::Held(format!("{:#}", client.refused(&status))))
            }
            _ => Err(client.refused(&status)),
        },
    }
}

#[cfg(test)]
mod tests;
