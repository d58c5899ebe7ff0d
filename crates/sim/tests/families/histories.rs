//! Some stories in words: what each write did, and whose it was. A change of behaviour shows here as a change of words.

use plan::gc::Propagation;
use sim::script::{Case, Story};

/// The story in these cases, compared with what it was.
fn tell(name: &str, story: &Story, cases: &[Case]) {
    let told: Vec<_> =
        cases.iter().map(|case| story.tell(*case).unwrap_or_else(|failure| panic!("{failure}"))).collect();
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(name, told.join("\n")) });
}

#[test]
fn pods_come_and_go() {
    let story = Story::new("created, one pod fails, scaled down");
    let story = story.create(3).settle().end("web-0", "Failed").settle().scale(1).settle();
    tell("pods_come_and_go", &story, &[Case::PLAIN, Case::PARALLEL]);
}

#[test]
fn claims_go_by_policy() {
    let story = Story::new("scaled down, deleted")
        .create(2)
        .settle()
        .scale(1)
        .settle()
        .delete_set(Propagation::Foreground)
        .rest();
    tell("claims_go_by_policy", &story, &[Case { delete_with_set: true, delete_when_scaled: true, ..Case::PLAIN }]);
}

#[test]
fn an_update_rolls_and_is_taken_back() {
    let story = Story::new("updated, taken back").create(2).settle().orderly().image("2").settle().image("1").settle();
    tell("an_update_rolls_and_is_taken_back", &story, &[Case::PLAIN]);
}

#[test]
fn a_broken_update_heals() {
    let story = Story::new("broken, mended").broken("2").create(2).settle().image("2").rest().image("3").settle();
    tell("a_broken_update_heals", &story, &[Case::PLAIN]);
}

#[test]
fn orphans_are_adopted() {
    let story =
        Story::new("left behind, adopted").create(2).settle().delete_set(Propagation::Orphan).rest().create(2).settle();
    tell("orphans_are_adopted", &story, &[Case { delete_with_set: true, ..Case::PLAIN }]);
}

#[test]
fn a_set_goes_in_order() {
    let story = Story::new("deleted in order")
        .create_with("3, deleted in order", |spec| "Ordered".clone_into(&mut spec.deletion_order));
    tell("a_set_goes_in_order", &story.settle().delete_set(Propagation::Background).rest(), &[Case::PLAIN]);
}
