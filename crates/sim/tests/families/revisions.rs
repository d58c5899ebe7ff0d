//! Revisions: one for each template, as many as are needed.

use pb::{Object, ObjectExt, objects::*};
use sim::script::{Story, set_image};

use crate::hold;

#[test]
fn one_template_has_one_revision_whatever_else_changes() {
    hold(
        &Story::new("one template")
            .create(2)
            .settle()
            .revisions("1:1")
            .mark()
            .change("another strategy and limit", |spec| {
                spec.update_strategy =
                    Some(StatefulSetUpdateStrategy { r#type: "OnDelete".to_owned(), rolling_update: None });
                spec.revision_history_limit = Some(3);
                spec.min_ready_seconds = 5;
            })
            .settle()
            .revisions("1:1")
            .kept("web-0 web-1"),
    );
}

#[test]
fn a_new_template_has_a_new_revision() {
    let story = Story::new("new template").create(2).settle().orderly().image("2").settle().revisions("1:1 2:2");
    hold(&story.image("3").settle().revisions("1:1 2:2 3:3").pods("web-0:3 web-1:3"));
}

/// REV-6: an older template takes its revision up again, with a new number.
#[test]
fn an_older_template_takes_up_its_revision() {
    hold(
        &Story::new("roll back")
            .create(2)
            .settle()
            .image("2")
            .settle()
            .orderly()
            .image("1")
            .settle()
            .pods("web-0:1 web-1:1")
            .revisions("2:2 3:1")
            .image("2")
            .settle()
            .revisions("3:1 4:2"),
    );
}

/// REV-8: somebody has a revision of the name that this one would get.
fn collision(name: &'static str, same_data: bool) -> Story {
    Story::new(name).create(1).settle().image("2").then("somebody takes the name of the next revision", move |stage| {
        let Some(name) = stage.revision_due() else { return };
        let mut template = stage.set().and_then(|set| set.spec).and_then(|spec| spec.template);
        if !same_data {
            let mut spec = StatefulSetSpec { template, ..StatefulSetSpec::default() };
            set_image(&mut spec, "other");
            template = spec.template;
        }
        let mut taken = ControllerRevision {
            metadata: Some(ObjectMeta {
                name,
                namespace: stage.namespace().to_owned(),
                uid: "taken".to_owned(),
                // One with other data is not even the set's.
                labels: same_data.then(|| ("app".to_owned(), "web".to_owned())).into_iter().collect(),
                ..ObjectMeta::default()
            }),
            data: template,
            revision: 7,
            ..ControllerRevision::default()
        };
        taken.meta_mut().generation = 1;
        stage.put(&taken);
    })
}

#[test]
fn a_name_that_is_taken_by_another_template_is_not_used() {
    hold(
        &collision("collision", false)
            .sync()
            .expect("one collision is counted", |stage| match stage.status().collision_count {
                Some(1) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .settle()
            .pods("web-0:2")
            .revisions("1:1 2:2 7:other"),
    );
}

#[test]
fn a_name_that_is_taken_by_the_same_template_is_used() {
    hold(&collision("same data", true).settle().pods("web-0:2").expect("it is the one that was there", |stage| {
        let all = stage.all::<ControllerRevision>();
        let names: Vec<_> = all.iter().map(ObjectExt::name).collect();
        if all.len() == 2 && all.iter().any(|revision| revision.uid() == "taken") {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    }));
}

#[test]
fn the_history_keeps_as_many_as_it_should() {
    let mut story = Story::new("history limit").create_with("1, history 2", |spec| {
        spec.replicas = Some(1);
        spec.revision_history_limit = Some(2);
    });
    for version in ["2", "3", "4", "5"] {
        story = story.settle().image(version);
    }
    hold(
        &story
            .settle()
            .revisions("3:3 4:4 5:5")
            .change("history 0", |spec| spec.revision_history_limit = Some(0))
            .settle()
            .revisions("5:5"),
    );
}

/// REV-11: what a pod was made from stays, whatever the limit.
#[test]
fn the_revision_of_a_pod_stays() {
    hold(
        &Story::new("live revisions")
            .create_with("2, history 0", |spec| {
                spec.replicas = Some(2);
                spec.revision_history_limit = Some(0);
            })
            .settle()
            .change("partition 1", |spec| crate::update::rolling(spec, Some(1), None))
            .image("2")
            .settle()
            .revisions("1:1 2:2")
            .image("3")
            .settle()
            .pods("web-0:1 web-1:3")
            .revisions("1:1 3:3"),
    );
}

/// AD-5.
#[test]
fn revisions_that_nobody_owns_are_adopted() {
    hold(
        &Story::new("orphan revisions")
            .create(1)
            .settle()
            .then("the revision loses its owner", |stage| {
                for revision in stage.all::<ControllerRevision>() {
                    stage.edit::<ControllerRevision>(revision.name(), |revision| {
                        revision.meta_mut().owner_references.clear();
                    });
                }
            })
            .settle()
            .expect("it has its owner again", |stage| {
                let owned = stage
                    .all::<ControllerRevision>()
                    .iter()
                    .all(|revision| !revision.meta().owner_references.is_empty());
                if owned { Ok(()) } else { Err("it has none".to_owned()) }
            })
            .revisions("1:1"),
    );
}
