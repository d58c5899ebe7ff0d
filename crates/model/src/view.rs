//! The two views of a set: `berth/v1` shows everything, `apps/v1` leaves out what Berth adds.
//!
//! There is one object. What Berth adds are fields of the same spec, and a write through `apps/v1` keeps them as they
//! are: whoever knows nothing of them can neither lose nor change them. Without a view, a set is shown as `berth/v1` if
//! it makes use of any of these fields and as `apps/v1` if not, so that a manifest written for Kubernetes comes back as
//! it went in.
//!
//! Invariant that lives here: `strip`, then `keep`, gives the spec and the status back.

use pb::objects::{StatefulSet, StatefulSetOrdinals, StatefulSetSpec, StatefulSetStatus};
use serde_json::Value;

use crate::error::{Errors, FieldPath};

/// The version without what Berth adds.
pub const APPS: &str = "apps/v1";
/// The version with everything.
pub const BERTH: &str = "berth/v1";

/// What to do about a field of Berth's under `apps/v1`.
pub const ADVICE: &str = "Berth has this field and apps/v1 does not: write apiVersion: berth/v1";

/// Berth's own fields of a spec, by their names in JSON.
pub(crate) const OF_THE_SPEC: [&str; 8] = [
    "deletionOrder",
    "progressDeadlineSeconds",
    "autoRevert",
    "maxConcurrentStart",
    "paused",
    "overrides",
    "budgetPolicy",
    "volumePolicy",
];
/// Berth's own field of a spec's ordinals.
const RESERVED: &str = "reserved";

/// How a set is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Everything, under the version that shows all that is set.
    #[default]
    Whole,
    /// `apps/v1`: without what Berth adds.
    Apps,
    /// `berth/v1`: everything.
    Berth,
}

impl View {
    /// The view of this name; None if there is none. No name is [`View::Whole`].
    pub fn of(api_version: &str) -> Option<Self> {
        match api_version {
            "" => Some(Self::Whole),
            APPS => Some(Self::Apps),
            BERTH => Some(Self::Berth),
            _ => None,
        }
    }

    /// Shows a set in this view.
    pub fn show(self, set: &mut StatefulSet) {
        match self {
            Self::Whole => stamp(set),
            Self::Berth => set.api_version = BERTH.to_owned(),
            Self::Apps => {
                strip(set);
                set.api_version = APPS.to_owned();
            }
        }
    }
}

/// Whether a field, named as in JSON, of a message is one that Berth adds to what is wanted of a set.
pub fn is_own(message: &str, field: &str) -> bool {
    match message {
        "StatefulSetSpec" => OF_THE_SPEC.contains(&field),
        "StatefulSetOrdinals" => field == RESERVED,
        _ => false,
    }
}

/// Writes the version that shows all that is set.
pub fn stamp(set: &mut StatefulSet) {
    let own = set.spec.as_ref().is_some_and(|spec| own_spec(spec) != StatefulSetSpec::default());
    set.api_version = if own { BERTH } else { APPS }.to_owned();
}

/// Takes out what Berth adds.
pub fn strip(set: &mut StatefulSet) {
    if let Some(spec) = &mut set.spec {
        let reserving = spec.ordinals.take_if(|ordinals| !ordinals.reserved.is_empty());
        if let Some(StatefulSetOrdinals { start: start @ 1.., .. }) = reserving {
            spec.ordinals = Some(StatefulSetOrdinals { start, reserved: Vec::new() });
        }
        write_own_spec(StatefulSetSpec::default(), spec);
    }
    if let Some(status) = &mut set.status {
        write_own_status(StatefulSetStatus::default(), status);
    }
}

/// Gives `new`, which was written in the view without them, Berth's fields of `old`.
pub fn keep(old: &StatefulSet, new: &mut StatefulSet) {
    if let Some(old) = &old.spec {
        let own = own_spec(old);
        if own != StatefulSetSpec::default() {
            let spec = new.spec.get_or_insert_default();
            if let Some(StatefulSetOrdinals { reserved, .. }) = &own.ordinals {
                spec.ordinals.get_or_insert_default().reserved.clone_from(reserved);
            }
            write_own_spec(own, spec);
        }
    }
    if let Some(old) = &old.status {
        let own = own_status(old);
        if own != StatefulSetStatus::default() {
            write_own_status(own, new.status.get_or_insert_default());
        }
    }
}

/// Names what Berth adds in a set that was written in the view without it.
pub fn refuse(set: &StatefulSet, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let own = set.spec.as_ref().map(own_spec).unwrap_or_default();
    // The mapping writes plain fields; there is nothing in it that JSON could not hold.
    let json = serde_json::to_value(own).unwrap_or_default();
    for field in OF_THE_SPEC.iter().filter(|field| json.get(**field).is_some()) {
        errors.forbidden(&path.child(field), ADVICE);
    }
    if json.pointer("/ordinals/reserved").is_some() {
        errors.forbidden(&path.child("ordinals").child(RESERVED), ADVICE);
    }
}

/// Takes what Berth adds out of a manifest of the view without it: it was dropped there, and is nobody's wish.
pub fn forget(manifest: &mut Value) {
    let Some(spec) = manifest.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.retain(|field, _| !OF_THE_SPEC.contains(&field.as_str()));
    if let Some(ordinals) = spec.get_mut("ordinals").and_then(Value::as_object_mut) {
        ordinals.remove(RESERVED);
    }
}

/// Adds to `want`, a manifest of the view without them, Berth's fields of the manifest `last`: whoever applies the one
/// and then again a manifest of the whole view is understood to take back what the latter does not name any more.
pub fn carry(last: &Value, want: &mut Value) {
    let spec = |field: &str| last.get("spec")?.get(field).cloned();
    let carried = OF_THE_SPEC.iter().filter_map(|field| Some(((*field).to_owned(), spec(field)?)));
    let reserved = spec("ordinals").and_then(|ordinals| ordinals.get(RESERVED).cloned());
    let Some(into) = want.get_mut("spec").and_then(Value::as_object_mut) else { return };
    into.extend(carried);
    if let Some(reserved) = reserved {
        let ordinals = into.entry("ordinals").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(ordinals) = ordinals.as_object_mut() {
            ordinals.insert(RESERVED.to_owned(), reserved);
        }
    }
}

/// What Berth adds, by itself.
fn own_spec(spec: &StatefulSetSpec) -> StatefulSetSpec {
    let reserved = spec.ordinals.as_ref().map(|ordinals| ordinals.reserved.clone()).filter(|list| !list.is_empty());
    let mut own = StatefulSetSpec {
        ordinals: reserved.map(|reserved| StatefulSetOrdinals { start: 0, reserved }),
        ..StatefulSetSpec::default()
    };
    write_own_spec(spec.clone(), &mut own);
    own
}

/// Writes all of `from` that Berth adds, except reserved ordinals, over what `into` has of it.
fn write_own_spec(from: StatefulSetSpec, into: &mut StatefulSetSpec) {
    into.deletion_order = from.deletion_order;
    into.progress_deadline_seconds = from.progress_deadline_seconds;
    into.auto_revert = from.auto_revert;
    into.max_concurrent_start = from.max_concurrent_start;
    into.paused = from.paused;
    into.overrides = from.overrides;
    into.budget_policy = from.budget_policy;
    into.volume_policy = from.volume_policy;
}

fn own_status(status: &StatefulSetStatus) -> StatefulSetStatus {
    let mut own = StatefulSetStatus::default();
    write_own_status(status.clone(), &mut own);
    own
}

fn write_own_status(from: StatefulSetStatus, into: &mut StatefulSetStatus) {
    into.blocked_on = from.blocked_on;
    into.complete_revision = from.complete_revision;
    into.last_progress_time = from.last_progress_time;
    into.failed_revision = from.failed_revision;
    into.volume_claims = from.volume_claims;
}

#[cfg(test)]
mod tests {
    use pb::objects::{IntOrString, StatefulSetBlockedOn, StatefulSetOverride, StatefulSetVolumePolicy};
    use proptest::{option, prelude::*, sample::select};
    use prost::Message;
    use serde_json::json;

    use super::*;

    fn specs() -> impl Strategy<Value = StatefulSetSpec> {
        let word = || select(vec!["", "Ordered", "Ignore"]).prop_map(str::to_owned);
        let override_ = || StatefulSetOverride {
            ordinals: vec![IntOrString::int(1)],
            node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
            ..StatefulSetOverride::default()
        };
        let ordinals = (0..3i32, 0..3usize).prop_map(|(start, reserved)| StatefulSetOrdinals {
            start,
            reserved: vec![IntOrString::text("5-7"); reserved],
        });
        let theirs = (option::of(0..5i32), word(), option::of(ordinals));
        let ours = (word(), option::of(0..9i32), any::<bool>(), option::of(0..4i32), any::<bool>(), 0..3usize, word());
        (theirs, ours).prop_map(move |((replicas, service_name, ordinals), ours)| StatefulSetSpec {
            replicas,
            service_name,
            ordinals,
            deletion_order: ours.0,
            progress_deadline_seconds: ours.1,
            auto_revert: ours.2,
            max_concurrent_start: ours.3,
            paused: ours.4,
            overrides: vec![override_(); ours.5],
            volume_policy: ours.1.map(|seconds| StatefulSetVolumePolicy {
                on_node_lost: "Recreate".to_owned(),
                recreate_after_seconds: Some(seconds),
                ..StatefulSetVolumePolicy::default()
            }),
            budget_policy: ours.6,
            ..StatefulSetSpec::default()
        })
    }

    fn sets() -> impl Strategy<Value = StatefulSet> {
        let status = (0..3i32, any::<bool>(), select(vec!["", "web-a"])).prop_map(|(replicas, blocked, revision)| {
            StatefulSetStatus {
                replicas,
                blocked_on: blocked.then(StatefulSetBlockedOn::default),
                complete_revision: revision.to_owned(),
                ..StatefulSetStatus::default()
            }
        });
        (option::of(specs()), option::of(status)).prop_map(|(spec, status)| StatefulSet {
            spec,
            status,
            ..StatefulSet::default()
        })
    }

    proptest! {
        #[test]
        fn what_is_stripped_is_kept(mut set in sets()) {
            View::Whole.show(&mut set);
            let mut through_apps = set.clone();
            View::Apps.show(&mut through_apps);
            let mut errors = Errors::default();
            refuse(&through_apps, &mut errors);
            prop_assert!(errors.is_empty(), "nothing of Berth's is left to see");
            prop_assert_eq!(through_apps.api_version.as_str(), APPS);
            keep(&set, &mut through_apps);
            stamp(&mut through_apps);
            prop_assert_eq!(through_apps, set);
        }

        #[test]
        fn a_write_through_apps_changes_what_apps_shows_alone(old in sets(), written in sets()) {
            let mut new = written;
            View::Apps.show(&mut new);
            let wanted = new.clone();
            keep(&old, &mut new);
            let own = |set: &StatefulSet| set.spec.as_ref().map(own_spec).unwrap_or_default();
            prop_assert_eq!(own(&new), own(&old));
            View::Apps.show(&mut new);
            let theirs = |set: &StatefulSet| {
                let spec = set.spec.clone().unwrap_or_default();
                (spec.replicas, spec.service_name, spec.ordinals.unwrap_or_default().start)
            };
            prop_assert_eq!(theirs(&new), theirs(&wanted));
        }
    }

    /// In `proto/` the numbers from 50 on are Berth's. A field that is added there and forgotten here would leak into
    /// apps/v1 and be lost by a write through it.
    #[test]
    fn every_field_that_berth_adds_is_known_here() {
        let files = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
        let messages: Vec<_> = files.file.into_iter().flat_map(|file| file.message_type).collect();
        let added = |name: &str| {
            let message = messages.iter().find(|message| message.name() == name).unwrap();
            let own = message.field.iter().filter(|field| field.number() >= 50);
            own.map(|field| field.json_name().to_owned()).collect::<Vec<_>>()
        };
        let mut spec = added("StatefulSetSpec");
        spec.sort();
        let mut known = OF_THE_SPEC.to_vec();
        known.sort_unstable();
        assert_eq!(spec, known);
        assert_eq!(added("StatefulSetOrdinals"), [RESERVED]);
        let status = ["blockedOn", "completeRevision", "lastProgressTime", "failedRevision", "volumeClaims"];
        assert_eq!(added("StatefulSetStatus"), status, "write_own_status knows these");
    }

    #[test]
    fn the_version_tells_whether_berths_fields_are_in_use() {
        let shown = |spec: Value| {
            let mut set = StatefulSet { spec: serde_json::from_value(spec).unwrap(), ..StatefulSet::default() };
            View::Whole.show(&mut set);
            set.api_version
        };
        assert_eq!(shown(json!({"replicas": 3, "ordinals": {"start": 5}})), APPS);
        assert_eq!(shown(json!({"replicas": 3, "ordinals": {"reserved": [1]}})), BERTH);
        assert_eq!(shown(json!({"paused": true})), BERTH);
        assert_eq!(shown(json!({"paused": false, "overrides": []})), APPS);
    }

    #[test]
    fn a_manifest_of_apps_remembers_what_berth_was_asked_for() {
        let last = json!({"spec": {"paused": true, "replicas": 3, "ordinals": {"start": 1, "reserved": [2]}}});
        let mut want = json!({"spec": {"replicas": 5}});
        carry(&last, &mut want);
        assert_eq!(want, json!({"spec": {"replicas": 5, "paused": true, "ordinals": {"reserved": [2]}}}));
        forget(&mut want);
        assert_eq!(want, json!({"spec": {"replicas": 5, "ordinals": {}}}));
    }
}
