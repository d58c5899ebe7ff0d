//! Many seeds, on several threads. What comes of it does not depend on how many.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::simulation::{Failure, Options, run};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What many seeds came to.
#[derive(Clone, Debug)]
pub struct Many {
    /// Seeds that were played, at least up to the one that failed.
    pub seeds: u64,
    /// Commits, each looked at.
    pub commits: usize,
    /// Over the hashes of all histories, in the order of their seeds.
    pub hash: u64,
    /// The lowest seed that failed.
    pub failure: Option<Failure>,
    /// How long it took.
    pub took: Duration,
}

/// Plays seeds until one fails. The lowest one that fails is the one that is told.
pub fn play(
    seeds: std::ops::Range<u64>,
    options: &Options,
    threads: usize,
    tell: &(dyn Fn(u64, Duration) + Sync),
) -> Many {
    let started = Instant::now();
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let (commits, done, told) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(Instant::now()));
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let hash = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return;
            }
            match run(seed, options) {
                Ok(outcome) => {
                    commits.fetch_add(outcome.commits, Ordering::Relaxed);
                    // A sum does not depend on the order.
                    hash.fetch_add(outcome.hash ^ seed.rotate_left(32), Ordering::Relaxed);
                }
                Err(failure) => {
                    // Lower seeds are played to the end: one of them may fail too.
                    end.fetch_min(seed, Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if found.as_ref().is_none_or(|found| found.seed > seed) {
                        *found = Some(failure);
                    }
                }
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.elapsed() >= TELL_EVERY {
                *told = Instant::now();
                tell(done, started.elapsed());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let failure = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seeds = done.into_inner();
    Many { seeds, commits: commits.into_inner(), hash: hash.into_inner(), failure, took: started.elapsed() }
}
