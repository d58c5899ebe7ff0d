//! Plays seeds. Exits non-zero at the first one that fails, and says how to play it again.

use std::process::ExitCode;

use clap::Parser;
use sim::{Options, run};

/// Simulates the control plane under faults.
#[derive(Parser)]
struct Args {
    /// How many seeds to play.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Choices per seed while faults happen.
    #[arg(long, default_value_t = Options::default().steps)]
    steps: usize,
    /// Controllers that act at the same time.
    #[arg(long, default_value_t = Options::default().controllers)]
    controllers: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options { steps: args.steps, controllers: args.controllers, ..Options::default() };
    let (mut commits, mut last) = (0, 0);
    for seed in args.first..args.first.saturating_add(args.seeds) {
        match run(seed, &options) {
            Ok(outcome) => {
                commits += outcome.commits;
                last = outcome.hash;
            }
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} seeds, {commits} commits, each checked; hash of the last history {last:016x}", args.seeds);
    ExitCode::SUCCESS
}
