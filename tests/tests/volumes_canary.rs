//! Canaries that write without end, while people and machines do to them what they do: nothing that was acknowledged is
//! ever lost, and no two writers ever write at once.
//!
//! `SEED=` repeats a run, `CANARY_OPS=` says how many operations there are, `CANARY_ON=local` on which storage alone, and
//! `CANARY_WITHOUT=snapshot,restore` leaves out operations that have one of these words.

use std::process::Command;

use anyhow::{Context, Result};
use tests::{
    LabGuard,
    canary::{set::Storage, story::Story},
    census::Watchman,
    client::Client,
    dice::{Dice, seed},
    process::berth_bin,
};

/// Enough to have had everything once or twice, in the time that `make test` has.
const OPERATIONS: usize = 30;

const STORAGES: [Storage; 2] = [
    Storage {
        name: "canary-local",
        driver: "local",
        parameters: &[("type", "directory")],
        size: 64,
        growth: 8,
        bound_to_node: true,
    },
    Storage {
        name: "canary-shared",
        driver: "shared",
        parameters: &[("type", "image"), ("fsType", "xfs")],
        size: 320,
        growth: 32,
        bound_to_node: false,
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn canaries_lose_nothing_that_was_acknowledged() -> Result<()> {
    let given = |name: &str| std::env::var(name).ok();
    let operations = given("CANARY_OPS").and_then(|count| count.parse().ok()).unwrap_or(OPERATIONS);
    let storages: Vec<Storage> =
        STORAGES.into_iter().filter(|one| given("CANARY_ON").is_none_or(|name| one.name.contains(&name))).collect();
    let seed = seed();
    println!("canaries: SEED={seed} CANARY_OPS={operations}");

    let lab = LabGuard::up()?;
    let client = Client::new(&lab.lab.server())?;
    lab.reach_pods(&client).await?;
    let watchman = Watchman::start();
    for (index, storage) in storages.iter().enumerate() {
        let dice = Dice::new(seed.wrapping_add(index as u64));
        let share = operations.div_ceil(storages.len());
        run(&lab, &client, *storage, dice, share).await.with_context(|| format!("SEED={seed}, {}", storage.name))?;
    }
    let looks = watchman.finish()?;
    println!("canaries: no identity was twice alive in {looks} looks at the process table");
    drop(lab);
    tests::nothing_is_left()
}

async fn run(lab: &LabGuard, client: &Client, storage: Storage, dice: Dice, operations: usize) -> Result<()> {
    let begun = Story::begin(lab, client, storage, dice).await;
    if begun.is_err() {
        explain(lab, storage.name);
        println!("{}", lab.complaints());
    }
    let mut story = begun?;
    let told = story.run(operations).await;
    if told.is_err() {
        println!("what happened:\n  {}", story.history().join("\n  "));
        for ordinal in 0..story.set().replicas {
            explain(lab, &story.set().pod(ordinal));
        }
        println!("{}", lab.complaints());
    }
    told?;
    let kept = story.acknowledged().await;
    println!("{}: {operations} operations, all of {kept} acknowledged records are there", storage.name);
    let ended = story.end().await;
    if ended.is_err() {
        println!("{}", lab.complaints());
    }
    ended.context("after the end")
}

/// What `berth why` says.
fn explain(lab: &LabGuard, pod: &str) {
    let ran = berth_bin()
        .and_then(|berth| Ok(Command::new(berth).args(["why", pod]).env("BERTH_SERVER", lab.lab.server()).output()?));
    match ran {
        Ok(ran) => println!(
            "--- berth why {pod}\n{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        ),
        Err(error) => println!("--- berth why {pod}: {error}"),
    }
}
