//! What a change is foreseen to do, in words, and that it then does that.

use plan::{
    budget::{Budget, Counted, Demand, Health, Unhealthy},
    statefulset::{PodAt, Preview, What, preview},
};

use crate::{Event, Shape, cluster::Cluster, happen, settle, stories::PLAIN, stories::settled};

/// A preview as people read it.
fn told(preview: &Preview) -> Vec<String> {
    let steps = preview.steps.iter().map(|step| format!("{} {}: {}", step.what.as_str(), step.pod, step.why));
    steps.chain(preview.held_back.iter().map(|held| format!("not {held}"))).collect()
}

/// What would become of a settled set.
fn foreseen(shape: &Shape, events: &[Event]) -> Vec<String> {
    let mut cluster = settled(shape);
    events.iter().for_each(|event| happen(&mut cluster, event));
    told(&preview(&cluster.snapshot()))
        .into_iter()
        .map(|line| match line.split_once("of revision ") {
            Some((line, _)) => format!("{line}of the new revision"),
            None => line,
        })
        .collect()
}

#[test]
fn a_new_set_is_created_from_the_bottom_and_a_settled_one_stays() {
    let new = Cluster::new(crate::set(&PLAIN));
    let created = ["web-0", "web-1", "web-2"].map(|pod| format!("create {pod}: its ordinal has no pod"));
    assert_eq!(told(&preview(&new.snapshot())), created);
    assert_eq!(foreseen(&PLAIN, &[]), [""; 0]);
}

#[test]
fn a_new_template_replaces_from_the_top_down_to_the_partition() {
    let replaced = |pod| format!("replace {pod}: it is replaced by one of the new revision");
    assert_eq!(foreseen(&PLAIN, &[Event::Template(1)]), ["web-2", "web-1", "web-0"].map(replaced));
    let canary = Shape { partition: Some(2), ..PLAIN };
    assert_eq!(
        foreseen(&canary, &[Event::Template(1)]),
        [replaced("web-2"), "not web-0, web-1: kept as they are by partition 2".to_owned()]
    );
    let by_hand = Shape { on_delete: true, ..PLAIN };
    assert_eq!(
        foreseen(&by_hand, &[Event::Template(1)]),
        ["not web-0, web-1, web-2: replaced when you delete them (OnDelete)"]
    );
}

#[test]
fn scaling_and_a_new_template_at_once_are_told_in_their_order() {
    let mut cluster = settled(&PLAIN);
    happen(&mut cluster, &Event::Scale(1));
    happen(&mut cluster, &Event::Template(1));
    let foreseen = preview(&cluster.snapshot());
    let steps: Vec<_> = foreseen.steps.iter().map(|step| format!("{} {}", step.what.as_str(), step.pod)).collect();
    assert_eq!(steps, ["delete web-2", "delete web-1", "replace web-0"]);
    let plan = cluster.plan();
    let [What::Delete, What::Delete, What::Replace { from, to }] = [0, 1, 2].map(|at| foreseen.steps[at].what.clone())
    else {
        panic!("{foreseen:?}")
    };
    assert_eq!((from, Some(to)), (plan.status.current_revision, plan.status.update_revision));
    settle(&mut cluster);
    assert_eq!(cluster.pod_names(), ["web-0"]);
}

#[test]
fn what_is_under_way_comes_to_its_end_first() {
    let steps = foreseen(&PLAIN, &[Event::DeletePod(1), Event::Unready(0), Event::Scale(4)]);
    assert_eq!(steps, ["create web-1: its ordinal has no pod", "create web-3: its ordinal has no pod"]);
}

#[test]
fn a_set_of_very_many_pods_is_shown_up_to_a_limit() {
    let mut cluster = Cluster::new(crate::set(&Shape { parallel: true, ..PLAIN }));
    happen(&mut cluster, &Event::Scale(1500));
    let preview = preview(&cluster.snapshot());
    assert_eq!((preview.steps.len(), preview.goes_on), (1000, true));
}

#[test]
fn a_disruption_budget_holds_back_what_it_would_hold_back() {
    let demanding = |available: u32| {
        let mut cluster = settled(&PLAIN);
        happen(&mut cluster, &Event::Template(1));
        let mut snapshot = cluster.snapshot();
        let count = |pod: &plan::statefulset::PodView| Counted {
            pod: PodAt { pod: pod.name.clone(), uid: pod.uid.clone(), at: pod.at },
            health: Health::Healthy,
        };
        snapshot.budgets = vec![Budget {
            name: "pdb".to_owned(),
            uid: "b".into(),
            at: model::identity::ModRevision(1),
            demand: Demand::MinAvailable(model::bound::Bound::Count(available)),
            unhealthy: Unhealthy::default(),
            pods: snapshot.pods.iter().map(count).collect(),
            wanted: 3,
        }];
        preview(&snapshot)
    };
    let replaced: Vec<_> = demanding(2).steps.into_iter().map(|step| step.pod.to_string()).collect();
    assert_eq!(replaced, ["web-2", "web-1", "web-0"], "one at a time is within the budget");
    let held = demanding(3);
    assert_eq!(held.steps, []);
    let why = "not web-2 is to go, but disruption budget pdb (minAvailable 3) needs 3 of 3 pods healthy and has 3";
    assert_eq!(told(&held), [why]);
}
