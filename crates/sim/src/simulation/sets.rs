//! The sets of a history: what they are when they are made, and how their users change them.

use std::collections::BTreeMap;

use pb::objects::*;

use crate::{chance::Chance, nodes::BROKEN};

/// Namespace of everything.
pub const NAMESPACE: &str = "default";
/// The sets. One is named like a pod of the other, so that names by prefix are easily mixed up.
pub const NAMES: [&str; 2] = ["web", "web-1"];
/// Label of pods: their set. The label `app` is the same for all.
const OF: &str = "set";

/// A new set. A plain one has no surprises.
pub fn new(name: &str, uid: String, chance: &mut Chance, plain: bool) -> StatefulSet {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned()), (OF.to_owned(), name.to_owned())]);
    let size = BTreeMap::from([("storage".to_owned(), Quantity { value: "1Gi".to_owned() })]);
    let claim = PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "www".to_owned(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: vec!["ReadWriteOnce".to_owned()],
            resources: Some(VolumeResourceRequirements { requests: size, ..VolumeResourceRequirements::default() }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    let mut spec = StatefulSetSpec {
        replicas: Some(3),
        selector: Some(LabelSelector { match_labels: labels.clone(), ..LabelSelector::default() }),
        template: Some(PodTemplateSpec {
            metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
            spec: Some(PodSpec {
                containers: vec![Container { name: "c".to_owned(), ..Container::default() }],
                ..PodSpec::default()
            }),
        }),
        volume_claim_templates: vec![claim],
        service_name: format!("{name}-svc"),
        pod_management_policy: "OrderedReady".to_owned(),
        update_strategy: Some(rolling(Some(0), None)),
        ..StatefulSetSpec::default()
    };
    set_version(&mut spec, "1");
    if !plain {
        spec.replicas = Some(count(chance, 5));
        if chance.one_in(4) {
            spec.pod_management_policy = "Parallel".to_owned();
        }
        if chance.one_in(3) {
            let mut other = spec.volume_claim_templates.first().cloned().unwrap_or_default();
            other.metadata.get_or_insert_default().name = "wal".to_owned();
            spec.volume_claim_templates.push(other);
        }
        if chance.one_in(3) {
            volume_policy(&mut spec, chance);
        }
        for _ in 0..chance.below(4) {
            change(&mut spec, chance);
        }
    }
    let metadata = ObjectMeta {
        name: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        uid,
        generation: 1,
        ..ObjectMeta::default()
    };
    StatefulSet { metadata: Some(metadata), spec: Some(spec), ..StatefulSet::default() }
}

/// Runs another version of the program.
pub fn set_version(spec: &mut StatefulSetSpec, version: &str) {
    if let Some(container) = containers(spec).first_mut() {
        container.image = format!("app:{version}");
    }
}

fn containers(spec: &mut StatefulSetSpec) -> &mut Vec<Container> {
    &mut spec.template.get_or_insert_default().spec.get_or_insert_default().containers
}

/// Whether pods like this never become ready.
pub fn is_broken(pod: Option<&PodSpec>) -> bool {
    pod.is_some_and(|pod| pod.containers.iter().any(|container| container.image.contains(BROKEN)))
}

/// Makes possible what is wanted: a template that works, nobody who holds it up, no partition that keeps broken pods.
pub fn repair(spec: &mut StatefulSetSpec, version: &str, pods_are_broken: bool) {
    if is_broken(spec.template.as_ref().and_then(|template| template.spec.as_ref())) {
        set_version(spec, version);
    }
    spec.paused = false;
    let rolling = spec.update_strategy.as_mut().and_then(|strategy| strategy.rolling_update.as_mut());
    if let Some(rolling) = rolling.filter(|_| pods_are_broken) {
        rolling.partition = Some(0);
    }
}

/// A spec in one line, without what is the same for all.
pub fn describe(spec: &StatefulSetSpec) -> String {
    let plain = StatefulSetSpec {
        selector: None,
        template: None,
        volume_claim_templates: Vec::new(),
        service_name: String::new(),
        ..spec.clone()
    };
    let containers = spec.template.iter().flat_map(|template| &template.spec).flat_map(|pod| &pod.containers);
    let images: Vec<_> = containers.map(|container| container.image.as_str()).collect();
    format!("{images:?} {}", serde_json::to_string(&plain).unwrap_or_default())
}

/// One change of a spec, and what it is.
pub fn change(spec: &mut StatefulSetSpec, chance: &mut Chance) -> String {
    match chance.below(20) {
        0..=2 => {
            spec.replicas = Some(count(chance, 6));
            format!("scale to {}", spec.replicas.unwrap_or(0))
        }
        3..=5 => {
            let version = match chance.below(7) {
                0 | 1 => format!("{BROKEN}{}", chance.below(2)),
                good => (good / 2).to_string(),
            };
            set_version(spec, &version);
            format!("template {version}")
        }
        6 => strategy(spec, chance),
        7 => {
            spec.min_ready_seconds = chance.one_of(&[0, 5, 15]);
            format!("minReadySeconds {}", spec.min_ready_seconds)
        }
        8 => numbering(spec, chance),
        9 => {
            let word = |delete: bool| if delete { "Delete" } else { "Retain" }.to_owned();
            let (when_deleted, when_scaled) = (word(chance.one_in(2)), word(chance.one_in(2)));
            let what = format!("whenDeleted {when_deleted}, whenScaled {when_scaled}");
            let policy = PersistentVolumeClaimRetentionPolicy { when_deleted, when_scaled };
            spec.persistent_volume_claim_retention_policy = Some(policy);
            what
        }
        10 => {
            if spec.pod_management_policy != "Parallel" {
                spec.max_concurrent_start = chance.one_of(&[None, Some(2), Some(3)]);
            }
            format!("maxConcurrentStart {:?}", spec.max_concurrent_start)
        }
        11 => {
            spec.paused = !spec.paused;
            format!("paused {}", spec.paused)
        }
        12 => {
            spec.revision_history_limit = Some(chance.one_of(&[0, 1, 2]));
            format!("revisionHistoryLimit {:?}", spec.revision_history_limit)
        }
        13 => {
            spec.deletion_order = chance.one_of(&["Ordered", "Parallel"]).to_owned();
            spec.budget_policy = chance.one_of(&["", "", "Ignore"]).to_owned();
            format!("deletionOrder {}, budgetPolicy {:?}", spec.deletion_order, spec.budget_policy)
        }
        14 => {
            spec.progress_deadline_seconds = chance.one_of(&[None, Some(60), Some(300)]);
            spec.auto_revert = spec.progress_deadline_seconds.is_some() && chance.one_in(2);
            format!("progressDeadlineSeconds {:?}, autoRevert {}", spec.progress_deadline_seconds, spec.auto_revert)
        }
        15 => overrides(spec, chance),
        16 | 17 => {
            let size = chance.one_of(&["2Gi", "3Gi"]);
            for template in &mut spec.volume_claim_templates {
                let resources = template.spec.get_or_insert_default().resources.get_or_insert_default();
                resources.requests.insert("storage".to_owned(), Quantity { value: size.to_owned() });
            }
            format!("claims of {size}")
        }
        18 => {
            let value = chance.below(3).to_string();
            for template in &mut spec.volume_claim_templates {
                template.metadata.get_or_insert_default().labels.insert("tier".to_owned(), value.clone());
            }
            format!("claims of tier {value}")
        }
        _ => volume_policy(spec, chance),
    }
}

fn volume_policy(spec: &mut StatefulSetSpec, chance: &mut Chance) -> String {
    let (recreate, snapshot_before_update) = (chance.one_in(2), chance.one_in(2));
    let policy = StatefulSetVolumePolicy {
        on_node_lost: if recreate { "Recreate" } else { "" }.to_owned(),
        recreate_after_seconds: recreate.then_some(chance.one_of(&[0, 30, 120])),
        snapshot_before_update,
        restore_on_revert: snapshot_before_update && spec.auto_revert,
    };
    spec.volume_policy = Some(policy.clone());
    format!("{policy:?}")
}

fn strategy(spec: &mut StatefulSetSpec, chance: &mut Chance) -> String {
    let strategy = match chance.below(8) {
        0 => StatefulSetUpdateStrategy { r#type: "OnDelete".to_owned(), rolling_update: None },
        1 => StatefulSetUpdateStrategy { r#type: "Recreate".to_owned(), rolling_update: None },
        2 | 3 => rolling(Some(count(chance, 4)), None),
        4 => rolling(Some(0), Some(IntOrString::text("50%"))),
        5 => rolling(Some(count(chance, 2)), Some(IntOrString::int(2))),
        6 => rolling(Some(0), Some(IntOrString::int(1))),
        _ => rolling(Some(0), None),
    };
    let bounds = strategy.rolling_update.clone().unwrap_or_default();
    let bound = bounds.max_unavailable.map(|bound| format!("{:?}", bound.kind)).unwrap_or_default();
    let what = format!("{} partition {} maxUnavailable {bound}", strategy.r#type, bounds.partition.unwrap_or(0));
    spec.update_strategy = Some(strategy);
    what
}

fn rolling(partition: Option<i32>, max_unavailable: Option<IntOrString>) -> StatefulSetUpdateStrategy {
    StatefulSetUpdateStrategy {
        r#type: "RollingUpdate".to_owned(),
        rolling_update: Some(RollingUpdateStatefulSetStrategy { partition, max_unavailable }),
    }
}

fn numbering(spec: &mut StatefulSetSpec, chance: &mut Chance) -> String {
    let numbering = spec.ordinals.get_or_insert_default();
    if chance.one_in(2) {
        numbering.start = chance.one_of(&[0, 0, 1, 3]);
    } else {
        numbering.reserved = match chance.below(4) {
            0 => vec![IntOrString::int(1)],
            1 => vec![IntOrString::text("1-2")],
            2 => vec![IntOrString::int(0), IntOrString::int(3)],
            _ => Vec::new(),
        };
    }
    let reserved = numbering.reserved.iter().map(|one| format!("{:?}", one.kind)).collect::<Vec<_>>().join(" ");
    format!("start {} reserved [{reserved}]", numbering.start)
}

fn overrides(spec: &mut StatefulSetSpec, chance: &mut Chance) -> String {
    let variable = |value: usize| EnvVar { name: "ROLE".to_owned(), value: value.to_string(), ..EnvVar::default() };
    spec.overrides = match chance.below(3) {
        0 => Vec::new(),
        value => {
            let env = vec![variable(value)];
            let container = ContainerOverride { name: "c".to_owned(), env, ..ContainerOverride::default() };
            vec![StatefulSetOverride {
                ordinals: vec![IntOrString::int(count(chance, 3))],
                containers: vec![container],
                ..StatefulSetOverride::default()
            }]
        }
    };
    format!("{} overrides", spec.overrides.len())
}

fn count(chance: &mut Chance, below: usize) -> i32 {
    i32::try_from(chance.below(below)).unwrap_or(0)
}

/// A disruption budget over the pods of a set.
pub fn budget(name: &str, uid: String, chance: &mut Chance) -> PodDisruptionBudget {
    let labels = BTreeMap::from([(OF.to_owned(), name.to_owned())]);
    let mut spec = PodDisruptionBudgetSpec {
        selector: Some(LabelSelector { match_labels: labels, ..LabelSelector::default() }),
        ..PodDisruptionBudgetSpec::default()
    };
    match chance.below(4) {
        0 => spec.min_available = Some(IntOrString::int(2)),
        1 => spec.min_available = Some(IntOrString::text("50%")),
        2 => spec.max_unavailable = Some(IntOrString::int(0)),
        _ => spec.max_unavailable = Some(IntOrString::int(1)),
    }
    let metadata = ObjectMeta {
        name: format!("{name}-budget"),
        namespace: NAMESPACE.to_owned(),
        uid,
        generation: 1,
        ..ObjectMeta::default()
    };
    PodDisruptionBudget { metadata: Some(metadata), spec: Some(spec), ..PodDisruptionBudget::default() }
}

#[cfg(test)]
mod tests {
    use model::{default, validate};
    use pb::Object;

    use super::*;

    #[test]
    fn a_set_and_a_budget_would_pass_the_front_door() {
        let mut chance = Chance::of(1, 1);
        for name in NAMES {
            let budget = budget(name, "uid".to_owned(), &mut chance);
            for mut object in [new(name, "uid".to_owned(), &mut chance, true).into_any(), budget.into_any()] {
                default::object(&mut object);
                assert_eq!(validate::create(&object), []);
            }
        }
    }
}
