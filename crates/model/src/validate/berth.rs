//! What Berth adds to a set: every field that `berth/v1` has and `apps/v1` has not.
//!
//! All of them may be changed at any time. None is given a default in the stored object, so that a set that uses none
//! of them is the same in both views.

use std::collections::{BTreeMap, BTreeSet};

use pb::objects::{
    Container, ContainerOverride, IntOrString, PodSpec, StatefulSetOverride, StatefulSetSpec, VolumeClaimOverride,
};
use serde_json::Value;

use super::{env, meta, resources};
use crate::{
    error::{Errors, FieldPath},
    identity::Ordinal,
    ordinals::{OrdinalRanges, Ordinals},
    overrides,
};

/// The highest ordinal that there can be: names and labels have room for ten digits, and programs for 32 bits.
pub(super) const HIGHEST: u32 = i32::MAX.unsigned_abs();

/// Entries of a list of ordinals.
const LONGEST_LIST: usize = 1000;
/// Ordinals and ranges in all overrides of a set together: what comes of every combination of them is looked at.
const RANGES_OF_OVERRIDES: usize = 500;

pub(super) fn check(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let choices = [
        ("deletionOrder", &spec.deletion_order, ["Parallel", "Ordered"]),
        ("budgetPolicy", &spec.budget_policy, ["Respect", "Ignore"]),
    ];
    for (field, value, supported) in choices {
        if !value.is_empty() && !supported.contains(&value.as_str()) {
            errors.not_supported(&path.child(field), value, &supported);
        }
    }
    max_concurrent_start(spec, &path.child("maxConcurrentStart"), errors);
    progress(spec, &path.child("progressDeadlineSeconds"), errors);
    reserved(spec, &path.child("ordinals").child("reserved"), errors);
    all_overrides(spec, &path.child("overrides"), errors);
    volume_policy(spec, &path.child("volumePolicy"), errors);
}

/// Every field says what happens and when; one that could never act is a mistake.
fn volume_policy(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let Some(policy) = &spec.volume_policy else { return };
    let supported = ["Wait", "Recreate"];
    if !policy.on_node_lost.is_empty() && !supported.contains(&policy.on_node_lost.as_str()) {
        errors.not_supported(&path.child("onNodeLost"), &policy.on_node_lost, &supported);
    }
    if let Some(after) = policy.recreate_after_seconds {
        let at = path.child("recreateAfterSeconds");
        if after < 0 {
            errors.invalid(&at, after, "must be greater than or equal to 0");
        } else if policy.on_node_lost != "Recreate" {
            errors.forbidden(&at, "only with onNodeLost Recreate: nothing is made anew otherwise; leave it out");
        }
    }
    if policy.restore_on_revert && !policy.snapshot_before_update {
        let why = "restoreOnRevert takes the data back to the snapshot from before the update: set it to true";
        errors.required(&path.child("snapshotBeforeUpdate"), why);
    }
    if policy.restore_on_revert && !spec.auto_revert {
        let why = "restoreOnRevert acts when a rollout is reverted: set autoRevert to true";
        errors.required(&FieldPath::of("spec").child("autoRevert"), why);
    }
}

fn max_concurrent_start(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let Some(window) = spec.max_concurrent_start else { return };
    if window < 1 {
        errors.invalid(path, window, "must be greater than or equal to 1");
    } else if spec.pod_management_policy == "Parallel" {
        let why = "only with podManagementPolicy OrderedReady: with Parallel all pods start at once; leave it out";
        errors.forbidden(path, why);
    }
}

fn progress(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    match spec.progress_deadline_seconds {
        None if spec.auto_revert => {
            errors.required(path, "autoRevert acts when a deadline is missed: give one, such as 600");
        }
        None => {}
        Some(deadline) if deadline < 1 => errors.invalid(path, deadline, "must be greater than 0"),
        Some(deadline) if deadline <= spec.min_ready_seconds => {
            let why = format!(
                "must be greater than minReadySeconds ({}): no pod can be available before",
                spec.min_ready_seconds
            );
            errors.invalid(path, deadline, why);
        }
        Some(_) => {}
    }
}

fn reserved(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let Some(numbering) = spec.ordinals.as_ref().filter(|numbering| !numbering.reserved.is_empty()) else { return };
    if !ranges(&numbering.reserved, path, errors) {
        return;
    }
    let without = i64::from(numbering.start) + i64::from(spec.replicas.unwrap_or(1)) - 1;
    let ordinals = Ordinals::of(spec);
    let Some(last) = ordinals.count.checked_sub(1).map(|index| ordinals.at(index)) else { return };
    // What leads too far without them is told at `start`.
    if last.0 > HIGHEST && without <= i64::from(HIGHEST) {
        let why = format!("with these left out the set's last ordinal would be beyond {HIGHEST}");
        errors.invalid(path, json(&numbering.reserved), why);
    }
}

/// Checks ordinals and ranges; says whether all are sound.
fn ranges(items: &[IntOrString], path: &FieldPath, errors: &mut Errors) -> bool {
    if items.len() > LONGEST_LIST {
        let why = format!("must have at most {LONGEST_LIST} items: write neighbours as a range such as \"5-7\"");
        errors.too_long(path, why);
        return false;
    }
    let mut sound = true;
    for (index, item) in items.iter().enumerate() {
        let why = match OrdinalRanges::range(item) {
            Err(broken) => broken.to_string(),
            Ok((_, last)) if last.0 > HIGHEST => format!("must not be beyond {HIGHEST}"),
            Ok(_) => continue,
        };
        errors.invalid(&path.index(index), json(item), why);
        sound = false;
    }
    sound
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> Value {
    // Shown to the user beside what is wrong with it; numbers and texts always have a form.
    serde_json::to_value(value).unwrap_or_default()
}

fn all_overrides(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let many: usize = spec.overrides.iter().map(|one| one.ordinals.len().max(1)).sum();
    if many > RANGES_OF_OVERRIDES {
        let why = format!("all overrides together may name at most {RANGES_OF_OVERRIDES} ordinals and ranges");
        errors.too_long(path, why);
        return;
    }
    let template = spec.template.as_ref().and_then(|template| template.spec.clone()).unwrap_or_default();
    let containers: Vec<_> =
        template.containers.iter().chain(&template.init_containers).map(|one| one.name.as_str()).collect();
    let claims: Vec<_> =
        spec.volume_claim_templates.iter().filter_map(|claim| Some(claim.metadata.as_ref()?.name.as_str())).collect();
    let mut own = Errors::default();
    for (index, one) in spec.overrides.iter().enumerate() {
        check_override(one, &containers, &claims, &path.index(index), &mut own);
    }
    if own.is_empty() {
        together(spec, &template, path, &mut own);
    }
    errors.extend(own);
}

fn check_override(
    one: &StatefulSetOverride,
    containers: &[&str],
    claims: &[&str],
    path: &FieldPath,
    errors: &mut Errors,
) {
    let ordinals = path.child("ordinals");
    if one.ordinals.is_empty() {
        errors.required(&ordinals, "the ordinals that are different, such as [0, \"2-4\"]");
    }
    ranges(&one.ordinals, &ordinals, errors);
    if one.node_selector.is_empty() && one.containers.is_empty() && one.volume_claims.is_empty() {
        errors.required(path, "what is different: nodeSelector, containers or volumeClaims");
    }
    meta::labels(&one.node_selector, &path.child("nodeSelector"), errors);
    let names = one.containers.iter().map(|container| container.name.as_str());
    existing(names, containers, "containers of the template", &path.child("containers"), errors);
    for (index, container) in one.containers.iter().enumerate() {
        check_container(container, &path.child("containers").index(index), errors);
    }
    let names = one.volume_claims.iter().map(|claim| claim.name.as_str());
    existing(names, claims, "volumeClaimTemplates", &path.child("volumeClaims"), errors);
    for (index, claim) in one.volume_claims.iter().enumerate() {
        check_claim(claim, &path.child("volumeClaims").index(index), errors);
    }
}

/// Names in a list: each there, known, and once.
fn existing<'a>(
    names: impl Iterator<Item = &'a str>,
    known: &[&str],
    of_what: &str,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let mut seen = Vec::new();
    for (index, name) in names.enumerate() {
        let at = path.index(index).child("name");
        if name.is_empty() {
            errors.required(&at, format!("one of the {of_what}"));
        } else if !known.contains(&name) {
            let why = match known {
                [] => format!("there are no {of_what}"),
                known => format!("the {of_what} are {}", known.join(", ")),
            };
            errors.not_found(&at, name, why);
        } else if seen.contains(&name) {
            errors.duplicate(&at, name);
        }
        seen.push(name);
    }
}

fn check_container(change: &ContainerOverride, path: &FieldPath, errors: &mut Errors) {
    for (index, variable) in change.env.iter().enumerate() {
        env::variable(variable, &path.child("env").index(index), errors);
    }
    if let Some(amounts) = &change.resources {
        resources::container(&amounts.requests, &amounts.limits, &path.child("resources"), errors);
    }
    if change.env.is_empty() && change.resources.is_none() {
        errors.required(path, "what is different: env or resources");
    }
}

fn check_claim(change: &VolumeClaimOverride, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("storage");
    let Some(size) = &change.storage else {
        errors.required(&at, "the size of the volume, such as 10Gi");
        return;
    };
    if resources::quantity(size, &at, errors).is_some_and(|amount| amount.is_zero()) {
        errors.invalid(&at, size.value.as_str(), "must be greater than zero");
    }
}

/// Checks what comes of the template and all overrides of one ordinal: a request may be fine by itself and beyond the
/// limit that the template or another override gives. The overrides that an ordinal has change only where a range begins
/// or has just ended, so that looking at those ordinals is looking at all.
fn together(spec: &StatefulSetSpec, template: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    let ends = spec.overrides.iter().flat_map(|one| &one.ordinals).filter_map(|item| OrdinalRanges::range(item).ok());
    let edges: BTreeSet<u32> = ends.flat_map(|(first, last)| [first.0, last.0.saturating_add(1)]).collect();
    let ordinals: Vec<_> = spec.overrides.iter().map(|one| OrdinalRanges::of(&one.ordinals)).collect();
    // What is wrong with the template itself is told there.
    let is_troubled = |container: &&Container| {
        let (mut own, amounts) = (Errors::default(), container.resources.clone().unwrap_or_default());
        resources::within(&amounts.requests, &amounts.limits, path, &mut own);
        !own.is_empty()
    };
    let containers = template.init_containers.iter().chain(&template.containers);
    let troubled: Vec<_> = containers.filter(is_troubled).map(|container| container.name.as_str()).collect();
    for ordinal in edges.into_iter().map(Ordinal) {
        // The last override that changes a container's resources is where the mistake is told.
        let mut last = BTreeMap::new();
        for (index, one) in spec.overrides.iter().enumerate() {
            if !ordinals.get(index).is_some_and(|ordinals| ordinals.contains(ordinal)) {
                continue;
            }
            for (at, change) in one.containers.iter().enumerate().filter(|(_, change)| change.resources.is_some()) {
                last.insert(change.name.as_str(), path.index(index).child("containers").index(at).child("resources"));
            }
        }
        if last.is_empty() {
            continue;
        }
        let mut pod = template.clone();
        overrides::pod(spec, ordinal, &mut pod);
        for container in pod.init_containers.iter().chain(&pod.containers) {
            if let (Some(path), Some(amounts)) = (last.get(container.name.as_str()), &container.resources)
                && !troubled.contains(&container.name.as_str())
            {
                resources::within(&amounts.requests, &amounts.limits, path, errors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};
    use serde_json::json;

    use super::super::{
        create,
        tests::{bad, good, updated, web, with},
    };
    use crate::{identity::SetName, names, ordinals::Ordinals, revision::TemplateBytes};

    fn berth() -> serde_json::Value {
        with(web(), "/apiVersion", json!("berth/v1"))
    }

    fn with_spec(fields: serde_json::Value) -> serde_json::Value {
        let mut set = berth();
        for (field, value) in fields.as_object().unwrap() {
            set["spec"][field] = value.clone();
        }
        set
    }

    /// The mistakes in a set with these fields.
    fn mistakes(fields: serde_json::Value) -> Vec<String> {
        bad(&with_spec(fields))
    }

    fn everything() -> serde_json::Value {
        with_spec(json!({
            "replicas": 3,
            "ordinals": {"start": 1, "reserved": [3, "5-7"]},
            "deletionOrder": "Ordered",
            "progressDeadlineSeconds": 600,
            "autoRevert": true,
            "maxConcurrentStart": 2,
            "paused": true,
            "budgetPolicy": "Ignore",
            "volumePolicy": {"onNodeLost": "Recreate", "recreateAfterSeconds": 60, "snapshotBeforeUpdate": true,
                "restoreOnRevert": true},
            "updateStrategy": {"type": "Recreate"},
            "overrides": [
                {"ordinals": ["1-2", 4], "nodeSelector": {"disk": "ssd"}},
                {"ordinals": [4], "containers": [{"name": "nginx", "env": [{"name": "ROLE", "value": "leader"}],
                    "resources": {"limits": {"memory": "4Gi"}}}], "volumeClaims": [{"name": "www", "storage": "10Gi"}]},
            ],
        }))
    }

    #[test]
    fn everything_at_once_is_valid_and_comes_back_as_it_went_in() {
        let set = good(&everything());
        let json = set.to_json().unwrap();
        assert_eq!(json["spec"]["overrides"], everything()["spec"]["overrides"]);
        assert_eq!(json["spec"]["ordinals"], everything()["spec"]["ordinals"]);
        assert_eq!(good(&json), set);
    }

    #[test]
    fn berths_fields_get_no_defaults() {
        let (plain, ours) = (good(&web()).to_json().unwrap(), good(&berth()).to_json().unwrap());
        assert_eq!(plain["spec"], ours["spec"]);
    }

    #[test]
    fn under_apps_v1_each_of_them_is_refused() {
        let mut fields = vec!["spec.ordinals.reserved".to_owned()];
        fields.extend(crate::view::OF_THE_SPEC.iter().map(|field| format!("spec.{field}")));
        fields.sort();
        let expected: Vec<_> = fields
            .iter()
            .map(|field| {
                format!("{field}: Forbidden: Berth has this field and apps/v1 does not: write apiVersion: berth/v1")
            })
            .collect();
        assert_eq!(bad(&with(everything(), "/apiVersion", json!("apps/v1"))), expected);
        let null = with(web(), "/spec/paused", json!(null));
        good(&null);
    }

    #[test]
    fn all_of_them_may_change() {
        assert_eq!(updated(&berth(), &everything()), [""; 0]);
        assert_eq!(updated(&everything(), &berth()), [""; 0]);
    }

    #[test]
    fn words_and_numbers() {
        assert_eq!(
            mistakes(json!({
                "deletionOrder": "Backwards", "budgetPolicy": "Never", "maxConcurrentStart": 0, "minReadySeconds": 30,
                "progressDeadlineSeconds": 30,
            })),
            [
                r#"spec.budgetPolicy: Unsupported value: "Never": supported values: "Respect", "Ignore""#,
                r#"spec.deletionOrder: Unsupported value: "Backwards": supported values: "Parallel", "Ordered""#,
                "spec.maxConcurrentStart: Invalid value: 0: must be greater than or equal to 1",
                "spec.progressDeadlineSeconds: Invalid value: 30: must be greater than minReadySeconds (30): no pod can be available before",
            ]
        );
        let parallel = json!({"maxConcurrentStart": 3, "podManagementPolicy": "Parallel", "autoRevert": true});
        assert_eq!(
            mistakes(parallel),
            [
                "spec.maxConcurrentStart: Forbidden: only with podManagementPolicy OrderedReady: with Parallel all pods start at once; leave it out",
                "spec.progressDeadlineSeconds: Required value: autoRevert acts when a deadline is missed: give one, such as 600",
            ]
        );
        assert_eq!(mistakes(json!({"progressDeadlineSeconds": 0})).len(), 1);
    }

    #[test]
    fn recreate_rolls_nothing() {
        good(&with_spec(json!({"updateStrategy": {"type": "Recreate"}})));
        good(&with(web(), "/spec/updateStrategy", json!({"type": "Recreate"})));
        let both = json!({"updateStrategy": {"type": "Recreate", "rollingUpdate": {"partition": 1}}});
        assert_eq!(
            mistakes(both),
            [
                r#"spec.updateStrategy.rollingUpdate: Invalid value: {"partition":1}: only allowed for updateStrategy 'RollingUpdate'"#
            ]
        );
    }

    #[test]
    fn reserved_ordinals_are_ordinals() {
        assert_eq!(
            mistakes(json!({"ordinals": {"reserved": [-1, "7-5", "07", "a", "2147483648"]}})),
            [
                r#"spec.ordinals.reserved[0]: Invalid value: -1: must be an ordinal such as 3, or a range such as "5-7""#,
                r#"spec.ordinals.reserved[1]: Invalid value: "7-5": must not end before it begins"#,
                r#"spec.ordinals.reserved[2]: Invalid value: "07": must be an ordinal such as 3, or a range such as "5-7""#,
                r#"spec.ordinals.reserved[3]: Invalid value: "a": must be an ordinal such as 3, or a range such as "5-7""#,
                r#"spec.ordinals.reserved[4]: Invalid value: "2147483648": must not be beyond 2147483647"#,
            ]
        );
        let full = |replicas: i32| json!({"replicas": replicas, "ordinals": {"start": 2_147_483_640, "reserved": ["2147483641-2147483645"]}});
        good(&with_spec(full(3)));
        assert!(mistakes(full(4))[0].starts_with("spec.ordinals.reserved: Invalid value"), "{:?}", mistakes(full(4)));
        assert!(mistakes(full(9))[0].starts_with("spec.ordinals.start: Invalid value"), "told once, and where it is");
        assert_eq!(mistakes(full(9)).len(), 1);
        assert_eq!(mistakes(json!({"ordinals": {"reserved": vec![1; 1001]}})).len(), 1);
    }

    #[test]
    fn an_override_changes_what_there_is() {
        assert_eq!(
            mistakes(json!({"overrides": [
                {"ordinals": []},
                {"ordinals": ["3-1"], "containers": [{"name": "ngnix", "env": [{"name": "A=B"}]}]},
                {"ordinals": [0], "volumeClaims": [{"name": "data", "storage": "1Gi"}, {"name": "www"}, {"name": "www", "storage": "0"}]},
                {"ordinals": [0], "nodeSelector": {"a b": "x"}, "containers": [{"name": "nginx", "resources": {"limits": {"gpu": "1"}}}, {"name": ""}]},
            ]})),
            [
                "spec.overrides[0]: Required value: what is different: nodeSelector, containers or volumeClaims",
                "spec.overrides[0].ordinals: Required value: the ordinals that are different, such as [0, \"2-4\"]",
                r#"spec.overrides[1].containers[0].env[0].name: Invalid value: "A=B": must consist of printable ASCII characters other than '='"#,
                r#"spec.overrides[1].containers[0].name: Not found: "ngnix": the containers of the template are nginx"#,
                r#"spec.overrides[1].ordinals[0]: Invalid value: "3-1": must not end before it begins"#,
                r#"spec.overrides[2].volumeClaims[0].name: Not found: "data": the volumeClaimTemplates are www"#,
                "spec.overrides[2].volumeClaims[1].storage: Required value: the size of the volume, such as 10Gi",
                r#"spec.overrides[2].volumeClaims[2].name: Duplicate value: "www""#,
                r#"spec.overrides[2].volumeClaims[2].storage: Invalid value: "0": must be greater than zero"#,
                r#"spec.overrides[3].containers[0].resources.limits[gpu]: Unsupported value: "gpu": supported values: "cpu", "memory"; others are not supported by Berth yet: leave them out"#,
                "spec.overrides[3].containers[1]: Required value: what is different: env or resources",
                "spec.overrides[3].containers[1].name: Required value: one of the containers of the template",
                r#"spec.overrides[3].nodeSelector: Invalid value: "a b": as a key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, with an optional DNS prefix and '/' (such as MyName, my.name or example.com/my-name)"#,
            ]
        );
    }

    #[test]
    fn overrides_are_judged_by_what_comes_of_them() {
        let cpu = |ordinals: &str, kind: &str, amount: &str| json!({"ordinals": [ordinals], "containers": [{"name": "nginx", "resources": {kind: {"cpu": amount}}}]});
        let limited = cpu("0-3", "limits", "1");
        // Apart from each other both are fine.
        good(&with_spec(json!({"overrides": [limited.clone(), cpu("4-9", "requests", "2")]})));
        assert_eq!(
            mistakes(json!({"overrides": [limited.clone(), cpu("3-9", "requests", "2")]})),
            [
                r#"spec.overrides[1].containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#
            ]
        );
        let template = with_spec(json!({"overrides": [cpu("5", "requests", "2")]}));
        let template = with(template, "/spec/template/spec/containers/0/resources", json!({"limits": {"cpu": "1"}}));
        assert_eq!(bad(&template).len(), 1);
        assert_eq!(mistakes(json!({"overrides": vec![limited; 501]})).len(), 1);
    }

    proptest! {
        /// No set that is valid can fail later because a name overflows (#64023).
        #[test]
        fn a_valid_set_gives_valid_names_alone(
            name in "[a-z0-9]([-a-z0-9]{0,66}[a-z0-9])?",
            template in "[a-z]([-a-z0-9]{0,66}[a-z0-9])?",
            replicas in prop_oneof![0..5i32, 2_147_483_640..=i32::MAX],
            start in prop_oneof![0..5i32, 2_147_483_640..=i32::MAX],
            reserved in collection::vec(prop_oneof![0..9u32, 2_147_483_600..=u32::MAX], 0..4),
            collisions in option::of(any::<u32>()),
        ) {
            let reserved: Vec<_> = reserved.iter().map(u32::to_string).collect();
            let mut json = with_spec(json!({"replicas": replicas, "ordinals": {"start": start, "reserved": reserved}}));
            json["metadata"]["name"] = json!(name);
            json["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = json!(template);
            json["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([]);
            let mut set = pb::api::v1::Object::from_json(pb::Kind::StatefulSet, json).unwrap();
            crate::default::object(&mut set);
            let valid = create(&set).is_empty();
            prop_assert!(valid || name.len() > 52 || template.len() > 63 || start > 5 || replicas > 5 || reserved.iter().any(|text| text.len() > 1));
            if !valid {
                return Ok(());
            }
            let set: pb::objects::StatefulSet = pb::Object::from_any(set).unwrap();
            let ordinals = Ordinals::of(set.spec.as_ref().unwrap());
            let name = SetName::from(name.as_str());
            let last = ordinals.count.checked_sub(1).map(|index| ordinals.at(index));
            for ordinal in last.into_iter().chain((ordinals.count > 0).then(|| ordinals.at(0))) {
                prop_assert!(ordinal.0 <= super::HIGHEST);
                let pod = name.pod(ordinal);
                prop_assert_eq!(names::dns_label(pod.as_str()), Ok(()), "also the host name and a label");
                prop_assert_eq!(names::label_value(pod.as_str()), Ok(()));
                prop_assert_eq!(names::dns_subdomain(name.claim(&template, ordinal).as_str()), Ok(()));
                prop_assert_eq!(name.ordinal_of(&pod), Some(ordinal));
            }
            let bytes = TemplateBytes::new(template.as_bytes());
            let revision = bytes.revision_name(&name, collisions.unwrap_or(0));
            prop_assert_eq!(names::label_value(revision.as_str()), Ok(()), "a label of each pod");
            prop_assert_eq!(names::dns_subdomain(revision.as_str()), Ok(()));
            prop_assert_eq!(names::dns_label(&template), Ok(()), "the name of a volume");
        }
    }
}
