//! Histories by chance, and a crash at every single call.

use pb::Kind;
use sim::{Crash, Options, When, run};
use store::Prefix;

#[test]
fn seeds_end_well() {
    let options = Options::default();
    for seed in 0..300 {
        if let Err(failure) = run(seed, &options) {
            panic!("{failure}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let options = Options::default();
    for seed in [3, 17, 255] {
        assert_eq!(run(seed, &options).unwrap(), run(seed, &options).unwrap());
    }
    assert_ne!(run(3, &options).unwrap().hash, run(17, &options).unwrap().hash);
}

/// What would be no test if it could not fail: without the guards on one kind some history breaks an invariant.
#[test]
fn a_controller_that_leaves_out_guards_is_found() {
    // Two revisions made at once are one history in thousands: the search begins not far from such a one.
    for (kind, first) in [(Kind::Pod, 0), (Kind::StatefulSet, 0), (Kind::ControllerRevision, 2000)] {
        let options = Options { blind_to: Some(Prefix::kind(kind)), ..Options::default() };
        let found = (first..first + 2000).find_map(|seed| run(seed, &options).err());
        let found = found.unwrap_or_else(|| panic!("guards on {kind} make no difference"));
        println!("without guards on {kind}: {found}");
    }
}

/// STALE-5: whatever call the controller dies at, and whether or not that call still does its work, the next one
/// brings the set to where it should be.
#[test]
fn a_crash_at_any_call_converges() {
    for when in [When::Before, When::After] {
        let mut after_calls = 0;
        loop {
            let options = Options { crash: Some(Crash { after_calls, when }), ..Options::default() };
            let calls = match run(7, &options) {
                Ok(outcome) => outcome.calls,
                Err(failure) => panic!("crash {when:?} call {after_calls}: {failure}"),
            };
            if after_calls > calls {
                assert!(calls > 40, "the script is worth it: {calls} calls");
                break;
            }
            after_calls += 1;
        }
    }
}
