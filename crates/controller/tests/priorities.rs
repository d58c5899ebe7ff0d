//! Priorities of the pods of sets: from classes, written into pods and into nothing else.

mod support;

use std::{collections::BTreeMap, sync::Arc};

use pb::objects::*;
use store::MemStore;
use support::{Rig, set};

fn class(name: &str, value: i32) -> PriorityClass {
    let metadata = Some(ObjectMeta { name: name.to_owned(), ..ObjectMeta::default() });
    PriorityClass { metadata, value, ..PriorityClass::default() }
}

#[tokio::test]
async fn a_pod_gets_the_priority_of_its_class_once_that_exists_and_keeps_it() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut web = set("web", 2);
    let template = web.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.spec.as_mut().unwrap().priority_class_name = "high".to_owned();
    rig.put(&web).await;
    // Nothing is made while the class is missing, and people are told.
    rig.until("people are told which class is missing", |events: &BTreeMap<String, Event>| {
        let missing = r#"priorityClassName: Not found: "high""#;
        events.values().any(|event| event.reason == "FailedCreate" && event.message.contains(missing))
    })
    .await;
    assert!(rig.list::<Pod>().await.is_empty());

    rig.put(&class("high", 1000)).await;
    rig.complete("web", 2).await;
    let pods = rig.list::<Pod>().await;
    let priorities: Vec<_> = pods.values().map(|pod| pod.spec.as_ref().unwrap().priority).collect();
    assert_eq!(priorities, [Some(1000), Some(1000)]);
    let revisions = rig.list::<ControllerRevision>().await;
    let of_template = |revision: &ControllerRevision| revision.data.as_ref()?.spec.as_ref()?.priority;
    assert!(revisions.values().all(|revision| of_template(revision).is_none()), "a priority is part of no revision");
    rig.stop().await;
}
