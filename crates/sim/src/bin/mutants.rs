//! Plants one mistake after the other and plays seeds until the simulation finds it. Exits non-zero if one survives.

use std::process::ExitCode;

use clap::Parser;
use model::mutant::{Mutant, plant};
use sim::{Options, many};

/// Shows that the simulation finds mistakes.
#[derive(Parser)]
struct Args {
    /// Seeds that are played at most for each mistake.
    #[arg(long, default_value_t = 3000)]
    seeds: u64,
    /// Only mistakes whose name contains this.
    #[arg(long, default_value = "")]
    name: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let threads = std::thread::available_parallelism().map(usize::from).unwrap_or(1);
    let (mut found, mut survived) = (0, Vec::new());
    println!("{:<26} {:>6}  {:<14} what it breaks", "mutant", "seeds", "found by");
    for mutant in Mutant::ALL.iter().copied().filter(|mutant| format!("{mutant:?}").contains(&args.name)) {
        plant(Some(mutant));
        let many = many::play(0..args.seeds, &Options::default(), threads, &|_, _| {});
        let name = format!("{mutant:?}");
        match many.failure {
            Some(failure) => {
                found += 1;
                println!("{name:<26} {:>6}  {:<14} {}", failure.seed + 1, failure.invariant, mutant.about());
            }
            None => {
                println!("{name:<26} {:>6}  {:<14} {}", "-", "SURVIVED", mutant.about());
                survived.push(name);
            }
        }
    }
    plant(None);
    println!("{found} of {} found", found + survived.len());
    if survived.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
