//! What a claim of a set begins with: the data source of its template, as it is for one ordinal.
//!
//! The name in a template may hold `$(ordinal)`, the ordinal of the pod, and `$(previous)`, the ordinal before it. So
//! every pod can begin with a snapshot of its own, or with the data of the pod below. Who is the first, or would begin
//! with itself, begins empty.

use pb::objects::{PersistentVolumeClaimSpec, StatefulSetSpec, TypedLocalObjectReference};

use crate::{
    identity::{ClaimName, Ordinal},
    ordinals::Ordinals,
};

/// Stands for the ordinal of the pod.
pub const ORDINAL: &str = "$(ordinal)";
/// Stands for the ordinal before that of the pod.
pub const PREVIOUS: &str = "$(previous)";
/// Kind of a claim as a source: its volume is cloned.
pub const CLAIM: &str = "PersistentVolumeClaim";
/// Kind of a snapshot as a source.
pub const SNAPSHOT: &str = "VolumeSnapshot";
/// Group of snapshots.
pub const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";

/// Writes what the claim of one ordinal begins with into a copy of its template.
pub fn resolve(spec: &StatefulSetSpec, name: &ClaimName, ordinal: Ordinal, claim: &mut PersistentVolumeClaimSpec) {
    let ordinals = Ordinals::of(spec);
    let index = ordinals.index_of(ordinal);
    let previous = index.and_then(|index| index.checked_sub(1)).map(|index| ordinals.at(index));
    for source in [&mut claim.data_source, &mut claim.data_source_ref] {
        *source = source.take().and_then(|source| named(source, ordinal, previous)).filter(|source| {
            let itself = source.kind == CLAIM && source.name == name.as_str();
            !itself
        });
    }
}

/// The source for an ordinal; None if there is none before it.
fn named(
    mut source: TypedLocalObjectReference,
    ordinal: Ordinal,
    previous: Option<Ordinal>,
) -> Option<TypedLocalObjectReference> {
    if source.name.contains(PREVIOUS) {
        source.name = source.name.replace(PREVIOUS, &previous?.to_string());
    }
    source.name = source.name.replace(ORDINAL, &ordinal.to_string());
    Some(source)
}

#[cfg(test)]
mod tests {
    use pb::objects::{IntOrString, StatefulSetOrdinals};

    use super::*;

    fn begins_with(kind: &str, name: &str, ordinal: u32) -> Option<String> {
        let numbering = StatefulSetOrdinals { start: 2, reserved: vec![IntOrString::int(4)] };
        let spec = StatefulSetSpec { replicas: Some(4), ordinals: Some(numbering), ..StatefulSetSpec::default() };
        let source = TypedLocalObjectReference {
            api_group: (kind == SNAPSHOT).then(|| SNAPSHOT_GROUP.to_owned()),
            kind: kind.to_owned(),
            name: name.to_owned(),
        };
        let mut claim = PersistentVolumeClaimSpec { data_source: Some(source), ..PersistentVolumeClaimSpec::default() };
        resolve(&spec, &ClaimName::from(format!("data-web-{ordinal}").as_str()), Ordinal(ordinal), &mut claim);
        claim.data_source.map(|source| source.name)
    }

    #[test]
    fn each_ordinal_has_its_own_source() {
        assert_eq!(begins_with(SNAPSHOT, "good-data-web-$(ordinal)", 3).as_deref(), Some("good-data-web-3"));
        assert_eq!(begins_with(SNAPSHOT, "all-alike", 3).as_deref(), Some("all-alike"));
    }

    #[test]
    fn the_one_before_is_the_one_below_that_there_is() {
        assert_eq!(begins_with(CLAIM, "data-web-$(previous)", 3).as_deref(), Some("data-web-2"));
        assert_eq!(begins_with(CLAIM, "data-web-$(previous)", 5).as_deref(), Some("data-web-3"), "4 is reserved");
        assert_eq!(begins_with(CLAIM, "data-web-$(previous)", 2), None, "the first begins empty");
    }

    #[test]
    fn none_begins_with_itself() {
        assert_eq!(begins_with(CLAIM, "data-web-3", 3), None);
        assert_eq!(begins_with(CLAIM, "data-web-3", 5).as_deref(), Some("data-web-3"));
        assert_eq!(begins_with(SNAPSHOT, "data-web-3", 3).as_deref(), Some("data-web-3"), "another kind of object");
    }
}
