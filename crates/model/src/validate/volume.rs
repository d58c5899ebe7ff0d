//! Volumes of a pod: exactly one source each, and files that stay within their volume.

use std::collections::BTreeSet;

use pb::objects::{
    DownwardApiVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, Volume,
    VolumeProjection,
};

use super::{
    env::{self, For},
    named, resources,
};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Modes of files are three octal digits.
const LARGEST_MODE: i32 = 0o777;
/// What may have to be at a path of the node.
const HOST_PATH_TYPES: [&str; 8] =
    ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

pub(super) fn check(volume: &Volume, path: &FieldPath, errors: &mut Errors) {
    named(&volume.name, names::dns_label, &path.child("name"), errors);
    let sources = [
        volume.persistent_volume_claim.is_some(),
        volume.empty_dir.is_some(),
        volume.config_map.is_some(),
        volume.secret.is_some(),
        volume.host_path.is_some(),
        volume.downward_api.is_some(),
        volume.projected.is_some(),
    ];
    match sources.iter().filter(|set| **set).count() {
        0 => errors.required(
            path,
            "must specify a volume type: persistentVolumeClaim, emptyDir, configMap, secret, downwardAPI, projected or hostPath",
        ),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 volume type"),
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        named(&claim.claim_name, names::dns_subdomain, &path.child("persistentVolumeClaim").child("claimName"), errors);
    }
    if let Some(dir) = &volume.empty_dir {
        empty_dir(dir, &path.child("emptyDir"), errors);
    }
    if let Some(source) = &volume.config_map {
        let at = path.child("configMap");
        named(&source.name, names::dns_subdomain, &at.child("name"), errors);
        keys(&source.items, source.default_mode, &at, errors);
    }
    if let Some(source) = &volume.secret {
        let at = path.child("secret");
        named(&source.secret_name, names::dns_subdomain, &at.child("secretName"), errors);
        keys(&source.items, source.default_mode, &at, errors);
    }
    if let Some(source) = &volume.host_path {
        host_path(source, &path.child("hostPath"), errors);
    }
    if let Some(source) = &volume.downward_api {
        let at = path.child("downwardAPI");
        mode(source.default_mode, &at.child("defaultMode"), errors);
        fields(&source.items, &at, errors);
    }
    if let Some(source) = &volume.projected {
        projected(source, &path.child("projected"), errors);
    }
}

fn empty_dir(dir: &EmptyDirVolumeSource, path: &FieldPath, errors: &mut Errors) {
    if !matches!(dir.medium.as_str(), "" | "Memory") {
        errors.not_supported(&path.child("medium"), &dir.medium, &["", "Memory"]);
    }
    let Some(limit) = &dir.size_limit else { return };
    let at = path.child("sizeLimit");
    resources::quantity(limit, &at, errors);
    if dir.medium != "Memory" {
        errors.forbidden(&at, "only enforced with medium Memory: set that, or leave the limit out");
    }
}

fn host_path(source: &HostPathVolumeSource, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("path");
    if source.path.is_empty() {
        errors.required(&at, "");
    } else if !source.path.starts_with('/') {
        errors.invalid(&at, source.path.as_str(), "must be an absolute path");
    } else {
        no_way_up(&source.path, &at, errors);
    }
    if let Some(kind) = source.r#type.as_deref().filter(|kind| !HOST_PATH_TYPES.contains(kind)) {
        errors.not_supported(&path.child("type"), kind, &HOST_PATH_TYPES);
    }
}

fn projected(source: &ProjectedVolumeSource, path: &FieldPath, errors: &mut Errors) {
    mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut seen = BTreeSet::new();
    for (index, one) in source.sources.iter().enumerate() {
        let at = path.child("sources").index(index);
        projection(one, &at, errors);
        for (file, at) in paths(one, &at) {
            if !file.is_empty() && !seen.insert(file) {
                errors.invalid(&at, file, "conflicting duplicate paths");
            }
        }
    }
}

fn projection(source: &VolumeProjection, path: &FieldPath, errors: &mut Errors) {
    let sources = [source.secret.is_some(), source.config_map.is_some(), source.downward_api.is_some()];
    match sources.iter().filter(|set| **set).count() {
        0 => errors.required(path, "must specify a source: secret, configMap or downwardAPI"),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 volume type per source"),
    }
    for (field, one) in [("secret", &source.secret), ("configMap", &source.config_map)] {
        if let Some(one) = one {
            let at = path.child(field);
            named(&one.name, names::dns_subdomain, &at.child("name"), errors);
            keys(&one.items, None, &at, errors);
        }
    }
    if let Some(one) = &source.downward_api {
        fields(&one.items, &path.child("downwardAPI"), errors);
    }
}

/// The files that a source is known to make, and where each is named.
fn paths<'s>(source: &'s VolumeProjection, path: &FieldPath) -> Vec<(&'s str, FieldPath)> {
    let place = |field: &str, index: usize| path.child(field).child("items").index(index).child("path");
    let mut all = Vec::new();
    for (field, one) in [("secret", &source.secret), ("configMap", &source.config_map)] {
        let items = one.iter().flat_map(|one| &one.items).enumerate();
        all.extend(items.map(|(index, item)| (item.path.as_str(), place(field, index))));
    }
    let items = source.downward_api.iter().flat_map(|one| &one.items).enumerate();
    all.extend(items.map(|(index, item)| (item.path.as_str(), place("downwardAPI", index))));
    all
}

fn keys(items: &[KeyToPath], default_mode: Option<i32>, path: &FieldPath, errors: &mut Errors) {
    mode(default_mode, &path.child("defaultMode"), errors);
    for (index, item) in items.iter().enumerate() {
        let at = path.child("items").index(index);
        named(&item.key, names::config_key, &at.child("key"), errors);
        mode(item.mode, &at.child("mode"), errors);
        file(&item.path, &at.child("path"), errors);
    }
}

fn fields(items: &[DownwardApiVolumeFile], path: &FieldPath, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        let at = path.child("items").index(index);
        file(&item.path, &at.child("path"), errors);
        mode(item.mode, &at.child("mode"), errors);
        match (&item.field_ref, &item.resource_field_ref) {
            (None, None) => errors.required(&at, "one of fieldRef and resourceFieldRef is required"),
            (Some(_), Some(_)) => errors.invalid(
                &at,
                item.path.as_str(),
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ),
            _ => {}
        }
        if let Some(field) = &item.field_ref {
            env::field_path(&field.field_path, For::File, &at.child("fieldRef").child("fieldPath"), errors);
        }
        if let Some(field) = &item.resource_field_ref {
            env::resource_field(field, For::File, &at.child("resourceFieldRef"), errors);
        }
    }
}

/// The path of a file in a volume.
fn file(text: &str, path: &FieldPath, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(path, "");
    } else if text.starts_with("..") && text != ".." && !text.starts_with("../") {
        // `..data` and its like are how files are replaced all at once.
        errors.invalid(path, text, "must not start with '..'");
    } else {
        descending(text, path, errors);
    }
}

/// A path that stays below where it begins.
pub(super) fn descending(text: &str, path: &FieldPath, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    } else {
        no_way_up(text, path, errors);
    }
}

fn no_way_up(text: &str, path: &FieldPath, errors: &mut Errors) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

fn mode(mode: Option<i32>, path: &FieldPath, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=LARGEST_MODE).contains(mode)) {
        errors.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}
