//! Disruption budgets: what they hold back, what lets it go on, and what they say of themselves.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use controller::{observed::Observed, write::Fault};
use pb::{Object, ObjectExt, objects::*};
use plan::statefulset::{Action, Op, Plan, stamp::REVISION_LABEL};
use store::MemStore;
use support::{NAMESPACE, Rig, make_ready, set, steps::Steps};

type Pods = BTreeMap<String, Pod>;
type Sets = BTreeMap<String, StatefulSet>;
type Budgets = BTreeMap<String, PodDisruptionBudget>;

/// A budget over pods with the label `tier`.
fn budget(max_unavailable: i32) -> PodDisruptionBudget {
    let match_labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
    PodDisruptionBudget {
        metadata: Some(ObjectMeta {
            name: "db".into(),
            namespace: NAMESPACE.into(),
            uid: "budget".into(),
            generation: 1,
            ..Default::default()
        }),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::int(max_unavailable)),
            selector: Some(LabelSelector { match_labels, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn tiered(name: &str, replicas: i32) -> StatefulSet {
    let mut set = set(name, replicas);
    let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.metadata.as_mut().unwrap().labels.insert("tier".into(), "db".into());
    set
}

async fn demand(rig: &Rig, change: impl Fn(&mut PodDisruptionBudgetSpec)) {
    rig.change("db", |budget: &mut PodDisruptionBudget| {
        change(budget.spec.as_mut().unwrap());
        budget.meta_mut().generation += 1;
    })
    .await;
}

async fn change_image(rig: &Rig, name: &str) {
    rig.change(name, |set: &mut StatefulSet| {
        let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
        template.spec.as_mut().unwrap().containers[0].image = "i:2".into();
        set.meta_mut().generation += 1;
    })
    .await;
}

async fn until_held_back(rig: &Rig, name: &str) {
    rig.until(&format!("{name} waits for the budget"), |sets: &Sets| {
        let status = sets.get(name).and_then(|set| set.status.as_ref());
        status.and_then(|status| status.blocked_on.as_ref()).is_some_and(|on| on.reason == "DisruptionBudget")
    })
    .await;
}

fn revisions(pods: &Pods) -> Vec<String> {
    pods.values().map(|pod| pod.meta().labels[REVISION_LABEL].clone()).collect()
}

#[tokio::test]
async fn an_update_waits_for_the_budget_and_goes_on_when_it_is_raised() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&budget(0)).await;
    rig.put(&tiered("web", 3)).await;
    rig.complete("web", 3).await;
    let before = revisions(&rig.list().await);
    change_image(&rig, "web").await;
    until_held_back(&rig, "web").await;
    let held = rig.list::<Pod>().await;
    assert_eq!(revisions(&held), before);
    assert!(held.values().all(|pod| !pod.is_terminating()));
    demand(&rig, |spec| spec.max_unavailable = Some(IntOrString::text("34%"))).await;
    rig.until("all pods are new", |pods: &Pods| pods.len() == 3 && !revisions(pods).contains(&before[0])).await;
    rig.complete("web", 3).await;
    rig.stop().await;
}

#[tokio::test]
async fn who_ignores_budgets_updates_all_the_same() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&budget(0)).await;
    let mut web = tiered("web", 2);
    web.spec.as_mut().unwrap().budget_policy = "Ignore".into();
    rig.put(&web).await;
    rig.complete("web", 2).await;
    let before = revisions(&rig.list().await);
    change_image(&rig, "web").await;
    rig.until("all pods are new", |pods: &Pods| pods.len() == 2 && !revisions(pods).contains(&before[0])).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_scale_down_goes_on_when_a_pod_of_another_set_is_ready() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&tiered("a", 3)).await;
    rig.put(&tiered("b", 2)).await;
    rig.complete("a", 3).await;
    rig.complete("b", 2).await;
    let mut four = budget(0);
    four.spec.as_mut().unwrap().max_unavailable = None;
    four.spec.as_mut().unwrap().min_available = Some(IntOrString::int(4));
    rig.put(&four).await;
    rig.change("b-1", |pod: &mut Pod| make_ready(pod, false)).await;
    rig.until("the budget says so", |budgets: &Budgets| {
        budgets["db"].status.as_ref().is_some_and(|status| status.current_healthy == 4)
    })
    .await;
    rig.scale("a", 2).await;
    until_held_back(&rig, "a").await;
    assert_eq!(rig.list::<Pod>().await.len(), 5);
    rig.change("b-1", |pod: &mut Pod| make_ready(pod, true)).await;
    rig.until("a-2 is gone", |pods: &Pods| pods.keys().eq(["a-0", "a-1", "b-0", "b-1"])).await;
    rig.complete("a", 2).await;
    // Nothing is left to lose: a pod that is not ready goes whatever the budget says.
    rig.change("b-1", |pod: &mut Pod| make_ready(pod, false)).await;
    rig.scale("b", 1).await;
    rig.until("b-1 is gone", |pods: &Pods| pods.keys().eq(["a-0", "a-1", "b-0"])).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_set_comes_down_to_nothing_within_its_budget() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&budget(1)).await;
    rig.put(&tiered("web", 3)).await;
    rig.complete("web", 3).await;
    // What may be away is counted from what there shall be.
    rig.scale("web", 0).await;
    rig.until("all pods are gone", Pods::is_empty).await;
    rig.stop().await;
}

/// Steps until the plan deletes a pod next, and stops before.
async fn until_a_pod_is_to_go(steps: &Steps, name: &str) -> (Observed, Plan) {
    loop {
        let mut seen = steps.see(name);
        let is_deletion = |action: &Action| matches!(action.op, Op::DeletePod { .. });
        if seen.1.actions.iter().all(is_deletion) && !seen.1.actions.is_empty() {
            return seen;
        }
        seen.1.actions.retain(|action| !is_deletion(action));
        assert!(!seen.1.actions.is_empty(), "{name} does nothing: {:?}", seen.1.waits);
        assert!(steps.act(&seen).await.is_none());
    }
}

/// Two complete sets under a budget of 1, each with a new template, and nobody at work.
async fn two_sets_with_a_new_template() -> (Rig, Steps) {
    let mut rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&budget(1)).await;
    for name in ["a", "b"] {
        rig.put(&tiered(name, 2)).await;
        rig.complete(name, 2).await;
    }
    rig.until("the budget has counted", |budgets: &Budgets| {
        budgets["db"].status.as_ref().is_some_and(|status| status.current_healthy == 4)
    })
    .await;
    rig.pause().await;
    change_image(&rig, "a").await;
    change_image(&rig, "b").await;
    let steps = Steps::over(rig.store.clone()).await;
    (rig, steps)
}

fn going(pods: &Pods) -> Vec<&str> {
    pods.iter().filter(|(_, pod)| pod.is_terminating()).map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn of_two_sets_that_saw_the_same_only_one_goes_on() {
    let (rig, steps) = two_sets_with_a_new_template().await;
    let (a, b) = (until_a_pod_is_to_go(&steps, "a").await, until_a_pod_is_to_go(&steps, "b").await);
    assert!(steps.act(&a).await.is_none());
    assert!(matches!(steps.act(&b).await, Some(Fault::Conflict)), "a pod that it counts on has gone");
    assert_eq!(going(&rig.list().await), ["a-1"]);
}

#[tokio::test]
async fn a_budget_that_was_changed_meanwhile_is_asked_again() {
    let (rig, steps) = two_sets_with_a_new_template().await;
    let a = until_a_pod_is_to_go(&steps, "a").await;
    demand(&rig, |spec| spec.max_unavailable = Some(IntOrString::int(0))).await;
    assert!(matches!(steps.act(&a).await, Some(Fault::Conflict)));
    assert!(going(&rig.list().await).is_empty());
}

#[tokio::test]
async fn a_budget_says_what_it_comes_to() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&budget(1)).await;
    rig.put(&tiered("web", 3)).await;
    let says = |budgets: &Budgets, numbers: [i32; 4], observed| {
        let status = budgets["db"].status.clone().unwrap_or_default();
        let said = [status.disruptions_allowed, status.current_healthy, status.desired_healthy, status.expected_pods];
        said == numbers && status.observed_generation == observed
    };
    rig.until("one of three may go", |budgets: &Budgets| says(budgets, [1, 3, 2, 3], 1)).await;
    rig.change("web-1", |pod: &mut Pod| make_ready(pod, false)).await;
    rig.until("none may go", |budgets: &Budgets| says(budgets, [0, 2, 2, 3], 1)).await;
    demand(&rig, |spec| spec.max_unavailable = Some(IntOrString::text("50%"))).await;
    rig.until("one may go again", |budgets: &Budgets| says(budgets, [1, 2, 1, 3], 2)).await;
    let condition = rig.get::<PodDisruptionBudget>("db").await.unwrap().status.unwrap().conditions.remove(0);
    assert_eq!((condition.r#type.as_str(), condition.status.as_str()), ("DisruptionAllowed", "True"));
    assert_eq!(condition.reason, "SufficientPods");
    rig.stop().await;
}
