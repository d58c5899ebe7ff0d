//! Pods: what a spec and a template share, and what only a pod has.

use pb::objects::{KeyToPath, PodSpec, Volume};

use super::{container, named, not_negative, one_of, resources};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Modes of files are three octal digits.
const LARGEST_MODE: i32 = 0o777;

/// Checks a pod's spec. `claims` are volumes that a set adds to it.
pub(super) fn spec(spec: &PodSpec, claims: &[&str], path: &FieldPath, errors: &mut Errors) {
    let mut volumes: Vec<&str> = Vec::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        let at = path.child("volumes").index(index);
        check_volume(volume, &at, errors);
        if !volume.name.is_empty() && volumes.contains(&volume.name.as_str()) {
            errors.duplicate(&at.child("name"), volume.name.as_str());
        }
        volumes.push(&volume.name);
    }
    volumes.extend(claims);

    if spec.containers.is_empty() {
        errors.required(&path.child("containers"), "a pod has at least one container");
    }
    let mut seen = Vec::new();
    let lists = [("containers", &spec.containers, false), ("initContainers", &spec.init_containers, true)];
    for (list, containers, init) in lists {
        for (index, one) in containers.iter().enumerate() {
            let at = path.child(list).index(index);
            container::check(one, init, &volumes, &at, errors);
            if !one.name.is_empty() && seen.contains(&one.name.as_str()) {
                errors.duplicate(&at.child("name"), one.name.as_str());
            }
            seen.push(&one.name);
        }
        container::duplicate_port_names(containers, &path.child(list), errors);
    }

    one_of(&spec.restart_policy, &["Always", "OnFailure", "Never"], &path.child("restartPolicy"), errors);
    not_negative(
        spec.termination_grace_period_seconds.unwrap_or(0),
        &path.child("terminationGracePeriodSeconds"),
        errors,
    );
    super::meta::labels(&spec.node_selector, &path.child("nodeSelector"), errors);
    if let Some(context) = &spec.security_context {
        let at = path.child("securityContext");
        not_negative(context.run_as_user.unwrap_or(0), &at.child("runAsUser"), errors);
        not_negative(context.run_as_group.unwrap_or(0), &at.child("runAsGroup"), errors);
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

fn check_volume(volume: &Volume, path: &FieldPath, errors: &mut Errors) {
    named(&volume.name, names::dns_label, &path.child("name"), errors);
    let sources = [
        volume.persistent_volume_claim.is_some(),
        volume.empty_dir.is_some(),
        volume.config_map.is_some(),
        volume.secret.is_some(),
    ];
    match sources.iter().filter(|set| **set).count() {
        0 => errors.required(path, "must specify a volume type: persistentVolumeClaim, emptyDir, configMap or secret"),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 volume type"),
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        named(&claim.claim_name, names::dns_subdomain, &path.child("persistentVolumeClaim").child("claimName"), errors);
    }
    if let Some(dir) = &volume.empty_dir {
        let at = path.child("emptyDir");
        if !matches!(dir.medium.as_str(), "" | "Memory") {
            errors.not_supported(&at.child("medium"), &dir.medium, &["", "Memory"]);
        }
        if let Some(limit) = &dir.size_limit {
            resources::quantity(limit, &at.child("sizeLimit"), errors);
            if dir.medium != "Memory" {
                errors.forbidden(
                    &at.child("sizeLimit"),
                    "only enforced with medium Memory: set that, or leave the limit out",
                );
            }
        }
    }
    if let Some(source) = &volume.config_map {
        let at = path.child("configMap");
        named(&source.name, names::dns_subdomain, &at.child("name"), errors);
        files(&source.items, source.default_mode, &at, errors);
    }
    if let Some(source) = &volume.secret {
        let at = path.child("secret");
        named(&source.secret_name, names::dns_subdomain, &at.child("secretName"), errors);
        files(&source.items, source.default_mode, &at, errors);
    }
}

fn files(items: &[KeyToPath], default_mode: Option<i32>, path: &FieldPath, errors: &mut Errors) {
    mode(default_mode, &path.child("defaultMode"), errors);
    for (index, item) in items.iter().enumerate() {
        let at = path.child("items").index(index);
        named(&item.key, names::config_key, &at.child("key"), errors);
        mode(item.mode, &at.child("mode"), errors);
        let to = at.child("path");
        if item.path.is_empty() {
            errors.required(&to, "");
        } else if item.path.starts_with('/') {
            errors.invalid(&to, item.path.as_str(), "must be a relative path");
        } else if item.path.split('/').any(|part| part == "..") {
            errors.invalid(&to, item.path.as_str(), "must not contain '..'");
        }
    }
}

fn mode(mode: Option<i32>, path: &FieldPath, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=LARGEST_MODE).contains(mode)) {
        errors.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}
