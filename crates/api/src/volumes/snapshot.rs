//! Snapshots of many claims at once: all of them are asked for in one write, or none.
//!
//! Each is of one moment of its own volume. Berth does not stop the pods: whoever needs one moment for all of a set
//! lets the program flush, or stops it.

use model::names;
use pb::{
    Kind, Object as _, ObjectExt,
    api::v1::{SnapshotVolumesRequest, SnapshotVolumesResponse},
    objects::{ObjectMeta, VolumeSnapshot, VolumeSnapshotSource, VolumeSnapshotSpec},
};
use store::{Guard, Key, Op, Txn, objects::put_any};

use super::owner::{Owner, claim_in};
use crate::{
    Shared,
    error::{Error, Result, Violation, called},
    write::newborn,
};

/// On a snapshot: the group that it was made in.
pub const GROUP: &str = "volume.berth.dev/group";

/// How often the write is tried again when the namespace is changed at the same time.
const ATTEMPTS: usize = 5;
/// Guards beside one for each snapshot.
const OTHER_GUARDS: usize = 1;

/// The snapshot of a claim in a group.
pub fn named(group: &str, claim: &str) -> String {
    format!("{group}-{claim}")
}

impl Shared {
    /// Makes a snapshot of each claim that is meant.
    pub async fn snapshot_volumes(&self, request: SnapshotVolumesRequest) -> Result<SnapshotVolumesResponse> {
        let (namespace, owner) = Owner::read(request.of.as_ref(), "of")?;
        let group = checked(&request.group)?;
        let claims = self.claims_of(&namespace, &owner).await?;
        let most = Txn::MAX - OTHER_GUARDS;
        if claims.len() > most {
            return Err(Error::Refused(format!(
                "these are {} claims, and at most {most} snapshots are made at once; make them pod by pod under one group",
                claims.len()
            )));
        }
        let mut snapshots = Vec::with_capacity(claims.len());
        for stored in &claims {
            let claim = claim_in(stored)?;
            ready(claim, &namespace)?;
            snapshots.push(newborn(snapshot(group, claim.name(), &namespace).into_any())?);
        }
        let key = |snapshot: &pb::api::v1::Object| Key::object(Kind::VolumeSnapshot, &namespace, &snapshot.meta().name);
        let ops: Vec<Op> = snapshots.iter().filter_map(put_any).collect();
        for attempt in 0..ATTEMPTS {
            let mut guards: Vec<_> = snapshots.iter().map(|snapshot| Guard::Absent(key(snapshot))).collect();
            guards.push(self.namespace_guard(&namespace, attempt > 0).await?);
            if let Some(revision) = self.commit(Kind::VolumeSnapshot, guards, ops.clone()).await? {
                let made = snapshots.into_iter().filter_map(|snapshot| VolumeSnapshot::from_any(snapshot).ok());
                let stamped = made.map(|mut snapshot| {
                    snapshot.meta_mut().resource_version = revision.to_string();
                    snapshot
                });
                return Ok(SnapshotVolumesResponse { snapshots: stamped.collect() });
            }
            for snapshot in &snapshots {
                let name = &snapshot.meta().name;
                if self.read(Kind::VolumeSnapshot, &namespace, name).await?.is_some() {
                    let what = called(Kind::VolumeSnapshot, &namespace, name);
                    return Err(Error::Conflict(format!(
                        "{what} exists already, so no snapshot was made; choose another name than {group:?}, or delete \
                         the old ones (`berth get volumesnapshots -l {GROUP}={group}`)"
                    )));
                }
            }
        }
        Err(Error::contended(&format!("namespace {namespace}")))
    }
}

fn checked(group: &str) -> Result<&str> {
    if group.is_empty() {
        return Err(Error::field("group", "Required value: a name for the snapshots, such as before-upgrade"));
    }
    let sound = names::dns_subdomain(group).and_then(|()| names::label_value(group));
    sound.map_err(|broken| Error::Invalid(vec![Violation::value("group", group, broken)]))?;
    Ok(group)
}

/// A claim whose data can be told now.
fn ready(claim: &pb::objects::PersistentVolumeClaim, namespace: &str) -> Result<()> {
    let what = called(Kind::PersistentVolumeClaim, namespace, claim.name());
    if claim.is_terminating() {
        return Err(Error::Refused(format!("{what} is being deleted: no snapshot can be made of it")));
    }
    if claim.spec.as_ref().is_none_or(|spec| spec.volume_name.is_empty()) {
        return Err(Error::Refused(format!(
            "{what} has no volume yet, so there is no data to snapshot; it gets one when its pod has a node"
        )));
    }
    Ok(())
}

fn snapshot(group: &str, claim: &str, namespace: &str) -> VolumeSnapshot {
    VolumeSnapshot {
        metadata: Some(ObjectMeta {
            name: named(group, claim),
            namespace: namespace.to_owned(),
            labels: [(GROUP.to_owned(), group.to_owned())].into(),
            ..ObjectMeta::default()
        }),
        spec: Some(VolumeSnapshotSpec {
            source: Some(VolumeSnapshotSource { persistent_volume_claim_name: claim.to_owned() }),
        }),
        ..VolumeSnapshot::default()
    }
}
