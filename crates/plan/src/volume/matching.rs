//! Volumes that people made, and the claims that may get them.

use pb::{
    Object, ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim},
};

use super::{bound_to, claim_of, phase, requested_bytes, volume_size};

/// Whether a volume waits for a claim: it has none, or one that has not got it yet.
pub fn is_free(volume: &PersistentVolume) -> bool {
    !volume.is_terminating()
        && matches!(phase(volume), "" | "Available")
        && claim_of(volume).is_none_or(|owner| owner.uid.is_empty() || phase(volume) != "Bound")
}

/// The volumes of these that a claim of a class may get. Those that are kept for this claim leave no others.
pub(super) fn candidates<'a>(
    claim: &PersistentVolumeClaim,
    class: &str,
    volumes: impl IntoIterator<Item = &'a PersistentVolume>,
) -> Vec<&'a PersistentVolume> {
    let fit: Vec<_> = volumes.into_iter().filter(|volume| misfit(claim, class, volume).is_none()).collect();
    let (kept, free): (Vec<_>, Vec<_>) = fit.into_iter().partition(|volume| claim_of(volume).is_some());
    if kept.is_empty() { free } else { kept }
}

/// Why a claim of a class may not get a volume; None if it may.
pub(super) fn misfit(claim: &PersistentVolumeClaim, class: &str, volume: &PersistentVolume) -> Option<String> {
    let empty = pb::objects::PersistentVolumeSpec::default();
    let has = volume.spec.as_ref().unwrap_or(&empty);
    let wants = claim.spec.as_ref();
    let named = bound_to(claim);
    if !is_free(volume) {
        return Some(format!("it is not free (phase {:?})", phase(volume)));
    }
    if named.is_some_and(|name| name != volume.name()) {
        return Some("the claim names another".to_owned());
    }
    let kept = match claim_of(volume) {
        Some(owner) => {
            let same = owner.namespace == claim.namespace() && owner.name == claim.name();
            if !same || !(owner.uid.is_empty() || owner.uid == claim.uid()) {
                return Some(format!("it is kept for claim {}/{}", owner.namespace, owner.name));
            }
            true
        }
        None => false,
    };
    if has.storage_class_name != class {
        return Some(format!("its class is {:?}, not {class:?}", has.storage_class_name));
    }
    let mode = |mode: Option<&str>| mode.filter(|mode| !mode.is_empty()).unwrap_or("Filesystem").to_owned();
    if mode(has.volume_mode.as_deref()) != mode(wants.and_then(|wants| wants.volume_mode.as_deref())) {
        return Some(format!("its volumeMode is {:?}", mode(has.volume_mode.as_deref())));
    }
    match requested_bytes(claim) {
        Some(needed) if volume_size(volume) >= needed => {}
        _ => return Some(format!("it has {} bytes, which is too little", volume_size(volume))),
    }
    let modes = wants.map(|wants| wants.access_modes.as_slice()).unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !has.access_modes.contains(mode)) {
        return Some(format!("it cannot be used {mode}"));
    }
    let selector = wants.and_then(|wants| wants.selector.as_ref()).filter(|_| named.is_none() && !kept);
    let selected = selector.is_none_or(|selector| {
        model::selector::Selector::of(selector).is_ok_and(|selector| selector.matches(&volume.meta().labels))
    });
    (!selected).then(|| "its labels are not what the claim selects".to_owned())
}

/// The smallest of these volumes, then the first by name: what a claim gets.
pub fn smallest<'a>(volumes: impl IntoIterator<Item = &'a PersistentVolume>) -> Option<&'a PersistentVolume> {
    volumes.into_iter().min_by_key(|volume| (volume_size(volume), volume.name()))
}
