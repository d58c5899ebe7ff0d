//! Families of stories.

use sim::script::Story;

mod control;

/// The story holds in every case, also when any one call goes wrong.
fn hold(story: &Story) {
    match story.hold() {
        Ok(tally) => println!("{tally:?}"),
        Err(failure) => panic!("{failure}"),
    }
}
