//! Plays seeds. Exits non-zero if one fails, with the shortest history that it can find and how to play it again.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use sim::{Options, many, shrink, tell};

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
    /// Only these choices of each seed, such as 0-12,40: a history that was made shorter.
    #[arg(long)]
    only: Option<Choices>,
    /// Seeds that are played at the same time. All processors if it is left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Tells only the hash of all histories.
    #[arg(long)]
    hash: bool,
    /// Tells every choice of the first seed's history.
    #[arg(long)]
    tell: bool,
}

/// Numbers of choices.
#[derive(Clone)]
struct Choices(Vec<usize>);

impl std::str::FromStr for Choices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        shrink::read_ranges(text).map(Self)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let only = args.only.clone().map(|choices| Arc::from(choices.0));
    let options = Options { steps: args.steps, controllers: args.controllers, only, ..Options::default() };
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    if args.tell {
        tell(args.first, &options).iter().for_each(|line| println!("{line}"));
        return ExitCode::SUCCESS;
    }
    let progress = |done: u64, took: Duration| {
        if !args.hash {
            eprintln!("{done} of {} seeds, {:.0} a second", args.seeds, per_second(done, took));
        }
    };
    let many = many::play(args.first..args.first.saturating_add(args.seeds), &options, threads, &progress);
    if let Some(failure) = &many.failure {
        if args.only.is_some() {
            tell(failure.seed, &options).iter().for_each(|line| eprintln!("{line}"));
        } else {
            eprintln!("seed {} fails: {}\nlooking for a shorter history…", failure.seed, failure.what.join("\n  "));
            eprintln!("{}", shrink::shrink(failure, &options));
        }
        return ExitCode::FAILURE;
    }
    if args.hash {
        println!("{:016x}", many.hash);
    } else {
        let rate = per_second(many.seeds, many.took);
        println!(
            "{} seeds, {} commits, each checked; 0 violations; {rate:.0} seeds a second; hash {:016x}",
            many.seeds, many.commits, many.hash
        );
    }
    ExitCode::SUCCESS
}

fn per_second(seeds: u64, took: Duration) -> f64 {
    seeds as f64 / took.as_secs_f64().max(0.001)
}
