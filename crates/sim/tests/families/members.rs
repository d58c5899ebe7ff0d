//! Which pods are the set's: adopted, released, left alone.

use pb::{Object, ObjectExt, objects::*};
use plan::gc::Propagation;
use sim::script::{Stage, Story};

use crate::hold;

fn disown(stage: &mut Stage, name: &str) {
    stage.edit::<Pod>(name, |pod| pod.meta_mut().owner_references.clear());
}

fn relabel(stage: &mut Stage, name: &str, app: &str) {
    stage.edit::<Pod>(name, |pod| drop(pod.meta_mut().labels.insert("app".to_owned(), app.to_owned())));
}

fn owner(stage: &Stage, name: &str) -> Option<String> {
    let pod = stage.pod(name)?;
    pod.meta().owner_references.iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
}

fn ours(stage: &mut Stage) -> Result<(), String> {
    let set = stage.set().map(|set| set.uid().to_owned());
    let strangers: Vec<_> =
        stage.all::<Pod>().iter().map(|pod| pod.name().to_owned()).filter(|name| owner(stage, name) != set).collect();
    if strangers.is_empty() { Ok(()) } else { Err(strangers.join(" ")) }
}

/// AD-1.
#[test]
fn adopts_a_pod_that_nobody_owns() {
    hold(
        &Story::new("orphan")
            .create(3)
            .settle()
            .mark()
            .then("web-1 has no owner", |stage| disown(stage, "web-1"))
            .settle()
            .kept("web-0 web-1 web-2")
            .expect("all are the set's", ours),
    );
}

/// AD-2: its name is free for a new pod only when it is gone.
#[test]
fn releases_a_pod_whose_labels_no_longer_match() {
    hold(
        &Story::new("release")
            .create(2)
            .settle()
            .mark()
            .then("web-1 gets another label", |stage| relabel(stage, "web-1", "other"))
            .rest()
            .kept("web-0 web-1")
            .expect("web-1 has no owner", |stage| owner(stage, "web-1").map_or(Ok(()), Err))
            .then("web-1 gets its label back", |stage| relabel(stage, "web-1", "web"))
            .settle()
            .kept("web-0 web-1")
            .expect("all are the set's", ours)
            .then("web-1 gets another label", |stage| relabel(stage, "web-1", "other"))
            .rest()
            .delete_pods(&["web-1"])
            .settle()
            .kept("web-0")
            .expect("all are the set's", ours),
    );
}

/// AD-3: a pod of somebody else keeps its name and is left alone.
#[test]
fn leaves_the_pod_of_somebody_else_alone() {
    hold(
        &Story::new("somebody else's")
            .create(1)
            .settle()
            .then("there is a web-1 of somebody else", |stage| {
                let Some(mut pod) = stage.pod("web-0") else { return };
                let uid = "other";
                let meta = pod.meta_mut();
                (meta.name, meta.uid) = ("web-1".to_owned(), uid.to_owned());
                meta.owner_references = vec![OwnerReference {
                    api_version: "apps/v1".to_owned(),
                    kind: "ReplicaSet".to_owned(),
                    name: "other".to_owned(),
                    uid: "r".to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }];
                pod.spec.get_or_insert_default().volumes.clear();
                stage.put(&pod);
            })
            .mark()
            .scale(2)
            .rest()
            .kept("web-0 web-1")
            .expect("it has its owner", |stage| match owner(stage, "web-1").as_deref() {
                Some("r") => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .delete_pods(&["web-1"])
            .settle()
            .kept("web-0")
            .pods("web-0:1 web-1:1"),
    );
}

/// ID-2: a pod whose name the set could never give is no member, whatever its labels.
#[test]
fn ignores_a_pod_of_a_foreign_name() {
    hold(
        &Story::new("foreign name")
            .create(1)
            .settle()
            .then("there are pods like it", |stage| {
                for name in ["web-x", "web-00", "web-1-0"] {
                    let Some(mut pod) = stage.pod("web-0") else { return };
                    let meta = pod.meta_mut();
                    (meta.name, meta.uid) = (name.to_owned(), name.to_owned());
                    meta.owner_references.clear();
                    pod.spec.get_or_insert_default().volumes.clear();
                    stage.put(&pod);
                }
            })
            .mark()
            .settle()
            .kept("web-0 web-00 web-1-0 web-x")
            .scale(0)
            .settle()
            .kept("web-00 web-1-0 web-x"),
    );
}

/// AD-1: a set that is going adopts nothing.
#[test]
fn a_set_that_is_being_deleted_adopts_nothing() {
    hold(
        &Story::new("deleting")
            .create(2)
            .settle()
            .then("web-0 does not stop", |stage| stage.stubborn("web-0", true))
            .delete_set(Propagation::Foreground)
            .rest()
            .pods("web-0:1~")
            .then("there is an orphan", |stage| {
                let Some(mut pod) = stage.pod("web-0") else { return };
                let meta = pod.meta_mut();
                (meta.name, meta.uid) = ("web-1".to_owned(), "orphan".to_owned());
                meta.owner_references.clear();
                meta.deletion_timestamp = None;
                pod.spec.get_or_insert_default().volumes.clear();
                stage.put(&pod);
            })
            .rest()
            .expect("it has no owner", |stage| owner(stage, "web-1").map_or(Ok(()), Err))
            .then("web-0 stops", |stage| stage.stubborn("web-0", false))
            .rest()
            .pods("web-1:1"),
    );
}

/// AD-1: a pod that is going is not adopted.
#[test]
fn a_pod_that_is_going_is_not_adopted() {
    hold(
        &Story::new("orphan that goes")
            .create(2)
            .settle()
            .then("web-1 goes, and has no owner", |stage| {
                stage.stubborn("web-1", true);
                stage.delete_pod("web-1");
                disown(stage, "web-1");
            })
            .rest()
            .expect("it has no owner", |stage| owner(stage, "web-1").map_or(Ok(()), Err))
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .settle()
            .pods("web-0:1 web-1:1")
            .expect("all are the set's", ours),
    );
}

/// DEL-2: nothing is made any more.
#[test]
fn a_set_that_is_being_deleted_makes_nothing() {
    hold(
        &Story::new("going")
            .create(3)
            .settle()
            .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
            .delete_set(Propagation::Foreground)
            .rest()
            .pods("web-1:1~")
            .then("web-1 stops", |stage| stage.stubborn("web-1", false))
            .rest()
            .pods("")
            .expect("there is no set", |stage| stage.set().map_or(Ok(()), |_| Err("there is one".to_owned()))),
    );
}

/// deletionOrder: Ordered: the highest pod goes first, each is gone before the next is asked to go.
#[test]
fn a_set_can_go_in_order() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        hold(
            &Story::new("goes in order")
                .create_with("3, deleted in order", |spec| spec.deletion_order = "Ordered".to_owned())
                .settle()
                .then("web-1 does not stop", |stage| stage.stubborn("web-1", true))
                .delete_set(propagation)
                .rest()
                .pods("web-0:1 web-1:1~")
                .then("web-1 stops", |stage| stage.stubborn("web-1", false))
                .rest()
                .pods("")
                .claims_if(|case| if case.delete_with_set { "" } else { "data-web-0 data-web-1 data-web-2" })
                .expect("there is no set", |stage| stage.set().map_or(Ok(()), |_| Err("there is one".to_owned()))),
        );
    }
}
