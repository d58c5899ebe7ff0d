//! Pods: what a spec and a template share, and what only a pod has.

use std::collections::{BTreeMap, BTreeSet};

use pb::objects::{Container, ContainerPort, PodSpec};

use super::{
    affinity,
    container::{self, Role},
    dns, named, not_negative, one_of, priority, security, spread, toleration, volume,
};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Seconds that a pod stops within if it says nothing.
const USUAL_GRACE: i64 = 30;

/// Checks a pod's spec. `claims` are volumes that a set adds to it.
pub(super) fn spec(spec: &PodSpec, claims: &[&str], path: &FieldPath, errors: &mut Errors) {
    let mut volumes: Vec<&str> = Vec::new();
    for (index, one) in spec.volumes.iter().enumerate() {
        let at = path.child("volumes").index(index);
        volume::check(one, &at, errors);
        if !one.name.is_empty() && volumes.contains(&one.name.as_str()) {
            errors.duplicate(&at.child("name"), one.name.as_str());
        }
        volumes.push(&one.name);
    }
    volumes.extend(claims);
    containers(spec, &volumes, path, errors);
    placement(spec, path, errors);

    one_of(&spec.restart_policy, &["Always", "OnFailure", "Never"], &path.child("restartPolicy"), errors);
    not_negative(
        spec.termination_grace_period_seconds.unwrap_or(0),
        &path.child("terminationGracePeriodSeconds"),
        errors,
    );
    if let Some(context) = &spec.security_context {
        security::pod(context, &path.child("securityContext"), errors);
    }
    for (index, secret) in spec.image_pull_secrets.iter().enumerate() {
        let at = path.child("imagePullSecrets").index(index).child("name");
        named(&secret.name, names::dns_subdomain, &at, errors);
    }
    dns::check(&spec.dns_policy, spec.dns_config.as_ref(), path, errors);
    dns::host_aliases(&spec.host_aliases, &path.child("hostAliases"), errors);
    priority::of_pod(spec, path, errors);
    for (index, gate) in spec.readiness_gates.iter().enumerate() {
        let at = path.child("readinessGates").index(index).child("conditionType");
        named(&gate.condition_type, names::label_key, &at, errors);
    }
    let deadline = spec.active_deadline_seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds));
    if let Some(seconds) = deadline {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, why);
    }
}

/// Where the pod may go.
fn placement(spec: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    super::meta::labels(&spec.node_selector, &path.child("nodeSelector"), errors);
    if let Some(rules) = &spec.affinity {
        affinity::check(rules, &path.child("affinity"), errors);
    }
    toleration::check(&spec.tolerations, &path.child("tolerations"), errors);
    let constraints = &spec.topology_spread_constraints;
    spread::check(constraints, &path.child("topologySpreadConstraints"), errors);
}

fn containers(spec: &PodSpec, volumes: &[&str], path: &FieldPath, errors: &mut Errors) {
    if spec.containers.is_empty() {
        errors.required(&path.child("containers"), "a pod has at least one container");
    }
    let grace = spec.termination_grace_period_seconds.unwrap_or(USUAL_GRACE);
    let mut seen = Vec::new();
    for (list, containers) in lists(spec) {
        for (index, one) in containers.iter().enumerate() {
            let at = path.child(list).index(index);
            let role = Role::of(one, list == INIT);
            container::check(one, role, grace, volumes, &at, errors);
            if !one.name.is_empty() && seen.contains(&one.name.as_str()) {
                errors.duplicate(&at.child("name"), one.name.as_str());
            }
            seen.push(&one.name);
        }
        container::duplicate_port_names(containers, &path.child(list), errors);
    }
    host_ports(spec, path, errors);
    named_containers(spec, path, errors);
}

const INIT: &str = "initContainers";

/// Both lists of containers, by their names.
fn lists(spec: &PodSpec) -> [(&'static str, &[Container]); 2] {
    [("containers", &spec.containers), (INIT, &spec.init_containers)]
}

/// A port of the node leads to one container. Init containers that end are gone when the others start.
fn host_ports(spec: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    let mut seen: BTreeSet<(&str, &str, i32)> = BTreeSet::new();
    for (list, containers) in lists(spec) {
        let running = containers.iter().enumerate().filter(|(_, one)| Role::of(one, list == INIT) != Role::Init);
        for (index, one) in running {
            for (place, port) in one.ports.iter().enumerate().filter(|(_, port)| port.host_port != 0) {
                let ContainerPort { protocol, host_ip, host_port, .. } = port;
                if !seen.insert((protocol, host_ip, *host_port)) {
                    let at = path.child(list).index(index).child("ports").index(place).child("hostPort");
                    errors.duplicate(&at, *host_port);
                }
            }
        }
    }
}

/// Whoever asks for the bound of another container names one that there is.
fn named_containers(spec: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    let mut asked: BTreeMap<String, &str> = BTreeMap::new();
    for (list, containers) in lists(spec) {
        for (index, one) in containers.iter().enumerate() {
            for (place, variable) in one.env.iter().enumerate() {
                let source = variable.value_from.as_ref().and_then(|from| from.resource_field_ref.as_ref());
                let at = path.child(list).index(index).child("env").index(place).child("valueFrom");
                asked.extend(source.map(|source| (at.as_str().to_owned(), source.container_name.as_str())));
            }
        }
    }
    for (index, one) in spec.volumes.iter().enumerate() {
        let at = path.child("volumes").index(index);
        let direct = one.downward_api.iter().map(|source| (at.child("downwardAPI"), source.items.as_slice()));
        let sources = one.projected.iter().flat_map(|projected| &projected.sources).enumerate();
        let nested = sources.filter_map(|(place, source)| {
            let items = source.downward_api.as_ref()?.items.as_slice();
            Some((at.child("projected").child("sources").index(place).child("downwardAPI"), items))
        });
        for (at, items) in direct.chain(nested) {
            for (place, item) in items.iter().enumerate() {
                let source = item.resource_field_ref.as_ref();
                let at = at.child("items").index(place);
                asked.extend(source.map(|source| (at.as_str().to_owned(), source.container_name.as_str())));
            }
        }
    }
    let there: BTreeSet<&str> = lists(spec).into_iter().flat_map(|(_, all)| all).map(|one| one.name.as_str()).collect();
    for (at, name) in asked.into_iter().filter(|(_, name)| !name.is_empty() && !there.contains(name)) {
        let all: Vec<_> = there.iter().copied().collect();
        let at = FieldPath::of(&at).child("resourceFieldRef").child("containerName");
        errors.not_found(&at, name, format!("the pod's containers are {}", all.join(", ")));
    }
}

/// The names in a pod's spec that a set writes itself, and that are therefore not looked at in a template.
pub(super) fn names(spec: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    for (field, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if !value.is_empty() {
            named(value, names::dns_label, &path.child(field), errors);
        }
    }
    if !spec.node_name.is_empty() {
        named(&spec.node_name, names::dns_subdomain, &path.child("nodeName"), errors);
    }
}
