//! Histories by chance, and a crash at every single call.

use sim::{Crash, Options, When, run};

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
