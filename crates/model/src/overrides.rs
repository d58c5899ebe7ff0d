//! What single ordinals have otherwise than the template: resources, variables, nodes, size of storage.
//!
//! Overrides are no part of a revision, which belongs to the whole set. What a pod was made from is its revision and the
//! digest of its ordinal's overrides: when either changes, that pod is outdated and no other.

use pb::objects::{
    Container, ContainerOverride, PersistentVolumeClaimSpec, PodSpec, Quantity, ResourceRequirements,
    StatefulSetOverride, StatefulSetSpec,
};

use crate::{
    identity::Ordinal,
    ordinals::OrdinalRanges,
    revision::{RevisionHash, TemplateBytes},
};

/// Name of the resource that a claim asks for.
const STORAGE: &str = "storage";

/// Stands for what an override changes in a pod; empty if it changes nothing there. Sizes of claims are not part of it:
/// a claim outlives its pods, and making the pod anew would not change it.
pub fn digest(one: &StatefulSetOverride) -> String {
    let in_pod = StatefulSetOverride { ordinals: Vec::new(), volume_claims: Vec::new(), ..one.clone() };
    if in_pod == StatefulSetOverride::default() {
        return String::new();
    }
    // The mapping writes plain fields and maps; there is nothing in it that JSON could not hold.
    let json = serde_json::to_value(&in_pod).unwrap_or_default();
    RevisionHash::of(&TemplateBytes::from_json(&json), 0).to_string()
}

/// The digests of all overrides of one ordinal, in their order; empty if there are none.
pub fn joined<'a>(digests: impl IntoIterator<Item = &'a str>) -> String {
    let digests: Vec<_> = digests.into_iter().filter(|digest| !digest.is_empty()).collect();
    digests.join(".")
}

/// The overrides of one ordinal, in their order.
pub fn of(spec: &StatefulSetSpec, ordinal: Ordinal) -> impl Iterator<Item = &StatefulSetOverride> {
    spec.overrides.iter().filter(move |one| OrdinalRanges::of(&one.ordinals).contains(ordinal))
}

/// Writes the overrides of one ordinal into its pod.
pub fn pod(spec: &StatefulSetSpec, ordinal: Ordinal, pod: &mut PodSpec) {
    for one in of(spec, ordinal) {
        pod.node_selector.extend(one.node_selector.clone());
        for change in &one.containers {
            let containers = pod.init_containers.iter_mut().chain(&mut pod.containers);
            containers.filter(|container| container.name == change.name).for_each(|at| container(change, at));
        }
    }
}

fn container(change: &ContainerOverride, container: &mut Container) {
    for variable in &change.env {
        container.env.retain(|present| present.name != variable.name);
        container.env.push(variable.clone());
    }
    if let Some(ResourceRequirements { limits, requests, .. }) = &change.resources {
        let resources = container.resources.get_or_insert_default();
        // A limit without a request asks for as much, as everywhere.
        let requested = limits.iter().filter(|(name, _)| !requests.contains_key(*name));
        resources.requests.extend(requested.map(|(name, limit)| (name.clone(), limit.clone())));
        resources.limits.extend(limits.clone());
        resources.requests.extend(requests.clone());
    }
}

/// Writes the size that the overrides of one ordinal give into a claim of the template `template`.
pub fn claim(spec: &StatefulSetSpec, ordinal: Ordinal, template: &str, claim: &mut PersistentVolumeClaimSpec) {
    let sizes = of(spec, ordinal).flat_map(|one| &one.volume_claims).filter(|one| one.name == template);
    let size: Option<&Quantity> = sizes.filter_map(|one| one.storage.as_ref()).last();
    if let Some(size) = size {
        let requests = &mut claim.resources.get_or_insert_default().requests;
        requests.insert(STORAGE.to_owned(), size.clone());
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{EnvVar, IntOrString, VolumeClaimOverride};

    use super::*;

    fn sized(ordinals: &str, cpu: &str, storage: &str) -> StatefulSetOverride {
        let quantity = |text: &str| Quantity { value: text.to_owned() };
        StatefulSetOverride {
            ordinals: vec![IntOrString::text(ordinals)],
            containers: vec![ContainerOverride {
                name: "db".to_owned(),
                env: vec![EnvVar { name: "ROLE".to_owned(), value: cpu.to_owned(), ..EnvVar::default() }],
                resources: Some(ResourceRequirements {
                    limits: [("cpu".to_owned(), quantity(cpu))].into(),
                    ..ResourceRequirements::default()
                }),
            }],
            volume_claims: vec![VolumeClaimOverride { name: "data".to_owned(), storage: Some(quantity(storage)) }],
            ..StatefulSetOverride::default()
        }
    }

    #[test]
    fn a_later_override_wins_for_its_ordinals_alone() {
        let spec = StatefulSetSpec {
            overrides: vec![sized("0-2", "1", "1Gi"), sized("2", "4", "9Gi")],
            ..StatefulSetSpec::default()
        };
        let made = |ordinal: u32| {
            let mut made = PodSpec {
                containers: vec![Container { name: "db".to_owned(), ..Container::default() }],
                ..PodSpec::default()
            };
            pod(&spec, Ordinal(ordinal), &mut made);
            let container = made.containers.remove(0);
            let resources = container.resources.unwrap_or_default();
            let cpu = resources.requests.get("cpu").map(|cpu| cpu.value.clone());
            (cpu, container.env.iter().map(|variable| variable.value.clone()).collect::<Vec<_>>())
        };
        assert_eq!(made(1), (Some("1".to_owned()), vec!["1".to_owned()]));
        assert_eq!(made(2), (Some("4".to_owned()), vec!["4".to_owned()]));
        assert_eq!(made(3), (None, vec![]));

        let mut size = PersistentVolumeClaimSpec::default();
        claim(&spec, Ordinal(2), "data", &mut size);
        assert_eq!(size.resources.unwrap().requests["storage"].value, "9Gi");
    }

    #[test]
    fn a_digest_stands_for_the_pod_alone() {
        assert_eq!(digest(&sized("0", "1", "1Gi")), digest(&sized("1", "1", "2Gi")));
        assert_ne!(digest(&sized("0", "1", "1Gi")), digest(&sized("0", "2", "1Gi")));
        let storage = StatefulSetOverride { containers: Vec::new(), ..sized("0", "1", "1Gi") };
        assert_eq!(digest(&storage), "");
    }
}
