//! What a change of volumes' objects needs beside the object itself: whose it is, and what its class allows.

use model::quantity::Quantity;
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::{PersistentVolumeClaim, StorageClass},
};

use crate::{
    Shared,
    error::{Error, Result, called},
};

/// Where a claim says its size.
const SIZE: &str = "spec.resources.requests[storage]";

/// Attachments are the volume manager's: a person who made or ended one would have Berth believe what is not so.
pub fn owned_by_users(kind: Kind) -> Result<()> {
    if kind != Kind::VolumeAttachment {
        return Ok(());
    }
    Err(Error::Refused(
        "volumeattachments are made and ended by the volume manager alone: a volume is attached where a pod needs it; if \
         its node is gone for good, `berth taint node NODE node.kubernetes.io/out-of-service=off:NoExecute` or `berth \
         delete node NODE` lets it go"
            .to_owned(),
    ))
}

impl Shared {
    /// Whether others allow a change that is right by itself: it keeps to the policy, and a claim grows only if its class
    /// lets it (VOL-E1).
    pub async fn admit(&self, old: &AnyObject, new: &AnyObject) -> Result<()> {
        self.keep_to_policy(Some(old), new)?;
        if let Some(Variant::PriorityClass(class)) = &new.object {
            self.one_default(class).await?;
        }
        let (Some(Variant::PersistentVolumeClaim(old)), Some(Variant::PersistentVolumeClaim(new))) =
            (&old.object, &new.object)
        else {
            return Ok(());
        };
        let grows = size(old).zip(size(new)).is_some_and(|(old, new)| old < new);
        if !grows {
            return Ok(());
        }
        let class = new.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        if class.is_empty() {
            let why = "Forbidden: the claim has no class that allows it to grow: its volume was made by a person";
            return Err(Error::field(SIZE, why));
        }
        let stored = self.caches.get(Kind::StorageClass, "", class).await?;
        let Some(found) = stored.as_deref().and_then(|stored| stored.typed::<StorageClass>()) else {
            let what = called(Kind::StorageClass, "", class);
            return Err(Error::field(SIZE, format!("Forbidden: {what} of the claim does not exist; create it first")));
        };
        if found.allow_volume_expansion == Some(true) {
            return Ok(());
        }
        let why = format!(
            "Forbidden: storage class {class:?} does not let volumes grow; if its driver {} can, `berth apply` the class \
             with allowVolumeExpansion: true",
            found.provisioner
        );
        Err(Error::field(SIZE, why))
    }
}

/// What a claim asks for.
pub fn size(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let spec = claim.spec.as_ref()?;
    spec.resources.as_ref()?.requests.get("storage")?.value.parse().ok()
}
