//! How long an ordinal takes, as a multiple of one commit of the store beneath, measured in the same run.
//!
//! A repetition brings up a set of 100 ordinals with one claim each on hollow nodes. Before, between and after the
//! repetitions the latency of one guarded commit of 2 KB is measured on the same etcd. The ratio of the two says how
//! far Berth is from the floor; seconds alone would say more about the machine.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use pb::{Kind, objects::Pod};
use serde_json::json;
use tests::{
    client::{Heard, is_ready, set_manifest},
    control::ControlPlane,
};

/// Measures ordered bring-up against raw etcd.
#[derive(Parser)]
struct Args {
    /// Ordinals of the set.
    #[arg(long, default_value_t = 100)]
    ordinals: i32,
    /// How often to repeat.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Hollow nodes.
    #[arg(long, default_value_t = 10)]
    nodes: u32,
    /// Where to write the result.
    #[arg(long, default_value = "target/bench.json")]
    out: PathBuf,
}

/// What one repetition measured.
struct BringUp {
    per_ordinal: Duration,
    ready_to_next: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let plane = ControlPlane::start(args.nodes).await?;
    let mut etcd = etcd_client::Client::connect([&plane.etcd.url], None).await.context("connect to etcd")?;

    // The first one warms everything up and is not counted.
    bring_up(&plane, "warm", args.ordinals.min(20)).await?;
    let mut commits = vec![commit_latency(&mut etcd).await?];
    let mut runs = Vec::new();
    for repetition in 0..args.repetitions {
        let run = bring_up(&plane, &format!("bench{repetition}"), args.ordinals).await?;
        let commit = commit_latency(&mut etcd).await?;
        let floor = (commits[commits.len() - 1] + commit) / 2;
        println!(
            "{repetition}: {:?} an ordinal, {:?} a commit: ratio {:.1}; ready to next {:?}",
            run.per_ordinal,
            floor,
            ratio(run.per_ordinal, floor),
            median(&run.ready_to_next)
        );
        commits.push(commit);
        runs.push((run, floor));
    }

    let ratios: Vec<f64> = runs.iter().map(|(run, floor)| ratio(run.per_ordinal, *floor)).collect();
    let gaps: Vec<Duration> = runs.iter().flat_map(|(run, _)| run.ready_to_next.iter().copied()).collect();
    let gap = median(&gaps);
    let gap_ratios: Vec<f64> = runs.iter().map(|(run, floor)| ratio(median(&run.ready_to_next), *floor)).collect();
    let result = json!({
        "ordinals": args.ordinals,
        "nodes": args.nodes,
        "repetitions": args.repetitions,
        "ordinal_over_commit": {"median": middle(&ratios), "all": ratios},
        "ready_to_next_over_commit": {"median": middle(&gap_ratios), "all": gap_ratios},
        "ordinal_us": runs.iter().map(|(run, _)| run.per_ordinal.as_micros() as u64).collect::<Vec<_>>(),
        "ready_to_next_us": {"median": gap.as_micros() as u64},
        "commit_us": commits.iter().map(|commit| commit.as_micros() as u64).collect::<Vec<_>>(),
    });
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&args.out, serde_json::to_string_pretty(&result)? + "\n")
        .with_context(|| format!("write {}", args.out.display()))?;
    println!(
        "time per ordinal / latency of a guarded 2 KB commit: {:.1} (goal: below 15, later 4)\n\
         \"k is Ready\" to \"k+1 exists\": {gap:?}, {:.1} commits\nwritten to {}",
        middle(&ratios),
        middle(&gap_ratios),
        args.out.display()
    );
    Ok(())
}

/// The median latency of one guarded commit of 2 KB by one client.
async fn commit_latency(etcd: &mut etcd_client::Client) -> Result<Duration> {
    const KEY: &str = "/bench/commit";
    let value = vec![7_u8; 2048];
    let mut revision = etcd.put(KEY, value.clone(), None).await?.header().map_or(0, |header| header.revision());
    let mut times = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        let txn = Txn::new().when([Compare::mod_revision(KEY, CompareOp::Equal, revision)]).and_then([TxnOp::put(
            KEY,
            value.clone(),
            None,
        )]);
        let response = etcd.txn(txn).await?;
        times.push(start.elapsed());
        anyhow::ensure!(response.succeeded(), "somebody else writes {KEY}");
        revision = response.header().map_or(0, |header| header.revision());
    }
    Ok(median(&times))
}

/// Brings a set up, measures it as a watching user hears of it, and takes it away again.
async fn bring_up(plane: &ControlPlane, name: &str, ordinals: i32) -> Result<BringUp> {
    let client = &plane.client;
    let selector = format!("app={name}");
    let (_, since) = client.list::<Pod>(&selector).await?;
    let last = format!("{name}-{}", ordinals - 1);
    let manifest = [set_manifest(name, ordinals)];
    let start = Instant::now();
    let (applied, heard) = tokio::join!(
        client.apply(&manifest),
        client.follow_pods(&selector, &since, Duration::from_secs(120), |heard| {
            pod_name(heard) == last && is_ready(&heard.pod)
        })
    );
    applied?;
    let heard = heard?;
    let end = heard.last().context("no pod came")?.at;
    let first = |wanted: &str, ready: bool| {
        heard.iter().find(|one| pod_name(one) == wanted && (!ready || is_ready(&one.pod))).map(|one| one.at)
    };
    let mut ready_to_next = Vec::new();
    for ordinal in 1..ordinals {
        let ready = first(&format!("{name}-{}", ordinal - 1), true).context("a pod was never ready")?;
        let exists = first(&format!("{name}-{ordinal}"), false).context("a pod was never there")?;
        ready_to_next.push(exists.saturating_duration_since(ready));
    }

    let (_, since) = client.list::<Pod>(&selector).await?;
    client.delete(Kind::StatefulSet, name).await?;
    let mut left = ordinals;
    client
        .follow_pods(&selector, &since, Duration::from_secs(120), |heard| {
            left -= i32::from(heard.event == pb::api::v1::EventType::Deleted);
            left == 0
        })
        .await?;
    Ok(BringUp { per_ordinal: (end - start) / ordinals.unsigned_abs(), ready_to_next })
}

fn pod_name(heard: &Heard) -> &str {
    heard.pod.metadata.as_ref().map_or("", |meta| &meta.name)
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn middle(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
