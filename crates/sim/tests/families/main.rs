//! Families of stories.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod claims;
mod control;
mod members;
mod revisions;
mod update;

use sim::script::{Faults, Story};

/// The story holds in every case, also when any one call goes wrong.
fn hold(story: &Story) {
    let faults = if std::env::var_os("EVERY_FAULT").is_some() { Faults::Every } else { Faults::Spread };
    match story.hold(faults) {
        Ok(tally) => println!("{} histories, {} commits", tally.histories, tally.commits),
        Err(failure) => panic!("{failure}"),
    }
}
