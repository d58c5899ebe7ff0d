//! What the simulation found once, told as stories: seeds name other histories after any change, stories do not.

use plan::gc::Propagation;
use sim::script::{Faults, Story};

fn hold(story: Story) {
    match story.hold(Faults::Spread) {
        Ok(tally) => println!("{} histories, {} commits", tally.histories, tally.commits),
        Err(failure) => panic!("{failure}"),
    }
}

/// It took the revision of its old self for its own, which was collected under its pods.
#[test]
fn a_set_that_is_made_again_takes_no_revision_of_its_old_self() {
    let story = Story::new("made again");
    hold(story.create(2).settle().delete_set(Propagation::Background).create(2).settle().image("2").settle());
}

/// Two of them waited for each other, and nothing healed them: they were out of range.
#[test]
fn a_set_with_several_broken_pods_can_be_scaled_to_nothing() {
    let story = Story::new("scaled away although broken").only(|case| !case.parallel);
    let story = story.create_with("3, started together", |spec| spec.max_concurrent_start = Some(3));
    let story = story.settle().broken("2").image("2").rest();
    hold(story.scale(0).image("3").settle().pods(""));
}
