//! What others do in the middle of the controller's work, at every single moment of it: what it saw is no longer so, and
//! the guards of its writes have to notice.

use pb::{Kind, Object, objects::*};
use plan::gc::Propagation;
use sim::script::{Faults, Stage, Story, set_image};
use store::Prefix;

use crate::hold;

fn gone(stage: &mut Stage) -> Result<(), String> {
    stage.set().map_or(Ok(()), |_| Err("the set is there".to_owned()))
}

/// The cache says that the set lives, and it is being deleted (DeletionTimestampRace): that nothing is adopted then is a
/// law of all stories. A claim of the orphan holds a set that is deleted in the foreground until the orphan is gone.
#[test]
fn a_set_that_is_deleted_while_it_adopts_takes_only_what_it_had() {
    for propagation in [Propagation::Background, Propagation::Foreground, Propagation::Orphan] {
        hold(
            &Story::new("deleted while it adopts")
                .create(2)
                .settle()
                .then("web-1 has no owner", |stage| {
                    stage.edit::<Pod>("web-1", |pod| pod.meta_mut().owner_references.clear());
                })
                .meanwhile("the set is deleted", move |stage| stage.delete_set(propagation))
                .rest()
                .delete_pods(&["web-1"])
                .rest()
                .pods(if propagation == Propagation::Orphan { "web-0:1" } else { "" })
                .expect("there is no set", gone),
        );
    }
}

#[test]
fn a_set_that_is_deleted_while_it_grows_leaves_no_pod() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        hold(
            &Story::new("deleted while it grows")
                .create(1)
                .settle()
                .scale(3)
                .meanwhile("the set is deleted", move |stage| stage.delete_set(propagation))
                .rest()
                .pods("")
                .revisions("")
                .expect("there is no set", gone),
        );
    }
}

/// I27: what is decided about the old set is not done to the new one.
#[test]
fn a_set_that_is_made_anew_while_it_grows_starts_from_nothing() {
    hold(
        &Story::new("made anew while it grows")
            // What the old set had more than the new one is nobody's.
            .unsteady_claims()
            .create(1)
            .settle()
            .mark()
            .scale(3)
            .meanwhile("the set is deleted and made anew", |stage| {
                stage.delete_set(Propagation::Background);
                stage.create(|spec| spec.replicas = Some(2));
            })
            .settle()
            .kept("")
            .pods("web-0:1 web-1:1"),
    );
}

fn up_again() -> Story {
    Story::new("up again")
        .create(3)
        .settle()
        .scale(1)
        .meanwhile("scale to 3", |stage| stage.change(|spec| spec.replicas = Some(3)))
        .settle()
        .pods("web-0:1 web-1:1 web-2:1")
        .claims("data-web-0 data-web-1 data-web-2")
}

/// RET-4.
#[test]
fn a_set_that_is_scaled_up_again_while_it_shrinks_has_all_its_pods_and_claims() {
    hold(&up_again());
}

/// What would be no test if it could not fail: a controller that leaves out guards is found.
#[test]
fn a_controller_that_leaves_out_guards_is_found() {
    for (kind, story) in [(Kind::Pod, unready_while_it_grows()), (Kind::StatefulSet, up_again())] {
        let held = story.blind_to(Prefix::kind(kind)).hold(Faults::Every);
        let found = held.err().unwrap_or_else(|| panic!("guards on {kind} make no difference"));
        println!("without guards on {kind}: {found}");
    }
}

fn unready_while_it_grows() -> Story {
    Story::new("unready while it grows")
        .create(2)
        .settle()
        .scale(4)
        .meanwhile("web-0 is not ready", |stage| stage.unready("web-0"))
        .rest()
        .ready()
        .settle()
        .image("2")
        .meanwhile("web-0 is not ready", |stage| stage.unready("web-0"))
        .rest()
        .ready()
        .settle()
        .pods("web-0:2 web-1:2 web-2:2 web-3:2")
}

/// I7, I9: the pods that a creation or an update rests on.
#[test]
fn a_pod_that_turns_unready_stops_what_rests_on_it() {
    hold(&unready_while_it_grows());
}

#[test]
fn a_pod_that_fails_while_the_set_grows_comes_back() {
    hold(
        &Story::new("fails while it grows")
            .create(3)
            .meanwhile("web-0 fails", |stage| stage.end("web-0", "Failed"))
            .settle()
            .pods("web-0:1 web-1:1 web-2:1"),
    );
}

/// REV-6, UPD-5.
#[test]
fn an_update_that_is_taken_back_in_the_middle_leaves_no_trace() {
    hold(
        &Story::new("taken back in the middle")
            .create(3)
            .settle()
            .image("2")
            .meanwhile("image 1", |stage| stage.change(|spec| set_image(spec, "1")))
            .settle()
            .pods("web-0:1 web-1:1 web-2:1"),
    );
}

#[test]
fn a_partition_that_is_raised_in_the_middle_holds() {
    hold(
        &Story::new("partition raised")
            .create(4)
            .settle()
            .image("2")
            .meanwhile("partition 2", |stage| {
                stage.change(|spec| crate::update::rolling(spec, Some(2), None));
            })
            .settle()
            .change("partition 0", |spec| crate::update::rolling(spec, Some(0), None))
            .settle()
            .pods("web-0:2 web-1:2 web-2:2 web-3:2"),
    );
}

#[test]
fn a_claim_that_is_deleted_while_its_pod_is_made_is_replaced_with_it() {
    hold(
        &Story::new("claim deleted meanwhile")
            .create(2)
            .settle()
            .delete_pods(&["web-1"])
            .meanwhile("its claim is deleted", |stage| stage.delete_claim("data-web-1"))
            .rest()
            .delete_pods(&["web-1"])
            .settle()
            .pods("web-0:1 web-1:1")
            .claims("data-web-0 data-web-1"),
    );
}

#[test]
fn a_name_that_somebody_takes_in_the_middle_is_not_fought_over() {
    hold(
        &Story::new("name taken")
            .create(1)
            .settle()
            .mark()
            .scale(2)
            .meanwhile("somebody else makes a web-1", |stage| {
                let Some(mut pod) = stage.pod("web-0").filter(|_| stage.pod("web-1").is_none()) else { return };
                let meta = pod.meta_mut();
                (meta.name, meta.uid) = ("web-1".to_owned(), "other".to_owned());
                meta.labels.insert("app".to_owned(), "other".to_owned());
                meta.owner_references.clear();
                pod.spec.get_or_insert_default().volumes.clear();
                stage.put(&pod);
            })
            .rest()
            .then("web-1 is deleted", |stage| stage.delete_pod("web-1"))
            .settle()
            .kept("web-0")
            .pods("web-0:1 web-1:1"),
    );
}
