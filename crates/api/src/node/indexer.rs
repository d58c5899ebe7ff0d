//! Keeps the index of what each node shall run in step with the caches.

use std::{collections::BTreeSet, sync::Arc};

use pb::{
    Kind,
    objects::{PersistentVolume, Pod, VolumeAttachment},
};
use store::Key;

use super::bundles::{Index, Place};
use crate::{
    Shared,
    caches::{KindWindow, Stored},
    window::{Change, Follower, New},
};

/// Fills the index and keeps it up for as long as it is polled.
pub async fn index(shared: Arc<Shared>) {
    let follow = |kind: Kind| follow(shared.clone(), kind);
    tokio::join!(
        follow(Kind::Pod),
        follow(Kind::PersistentVolumeClaim),
        follow(Kind::PersistentVolume),
        follow(Kind::VolumeAttachment),
        follow(Kind::CsiDriver),
        follow(Kind::ConfigMap),
        follow(Kind::Secret),
    );
}

async fn follow(shared: Arc<Shared>, kind: Kind) {
    let window: Arc<KindWindow> = shared.caches.of(kind).clone();
    loop {
        window.synced().await;
        let (known, revision) = window.known();
        match kind {
            Kind::Pod => all_pods(&shared.index, &known),
            Kind::VolumeAttachment => all_attachments(&shared.index, &known),
            _ => shared.index.everything_needed(),
        }
        let mut follower = Follower::new(window.clone(), revision);
        // Ends when the window was filled anew: then so is the index.
        while let Ok(changes) = follower.next().await {
            for change in changes {
                note(&shared, kind, &change);
            }
        }
    }
}

fn all_pods(index: &Index, known: &[(Key, Arc<Stored>)]) {
    let there: BTreeSet<&Key> = known.iter().map(|(key, _)| key).collect();
    for gone in index.pods().iter().filter(|key| !there.contains(key)) {
        index.pod(gone, None);
    }
    for (key, stored) in known {
        index.pod(key, stored.typed::<Pod>());
    }
}

fn all_attachments(index: &Index, known: &[(Key, Arc<Stored>)]) {
    index.forget_attachments();
    for (key, stored) in known {
        index.attachment(key, None, place_of(stored));
    }
    index.everything_needed();
}

fn note(shared: &Shared, kind: Kind, change: &Change<Key, Stored>) {
    let index = &shared.index;
    let now = match &change.new {
        New::Is(stored) => Some(stored),
        New::Gone => None,
        // Its node goes on with what it was told last.
        New::Unknown(_) => return,
    };
    match kind {
        Kind::Pod => index.pod(&change.key, now.and_then(|stored| stored.typed::<Pod>())),
        // A volume is needed by way of the claim that it belongs, or belonged, to.
        Kind::PersistentVolume => {
            for claim in [now, change.old.as_ref()].into_iter().flatten().filter_map(|stored| claim_of(stored)) {
                index.needed(&claim);
            }
        }
        Kind::VolumeAttachment => {
            let (before, now) = (change.old.as_deref().and_then(place_of), now.and_then(|stored| place_of(stored)));
            index.attachment(&change.key, before.clone(), now.clone());
            for place in [now, before].into_iter().flatten() {
                // A volume that is not known yet wakes its claim's nodes itself when it comes.
                let volume = Key::object(Kind::PersistentVolume, "", place.volume());
                let volume = shared.caches.of(Kind::PersistentVolume).last_known(&volume);
                if let Some(claim) = volume.as_deref().and_then(claim_of) {
                    index.needed(&claim);
                }
            }
        }
        // There are few drivers, and they change hardly ever.
        Kind::CsiDriver => index.everything_needed(),
        _ => index.needed(&change.key),
    }
}

fn claim_of(stored: &Stored) -> Option<Key> {
    let volume = stored.typed::<PersistentVolume>()?;
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::object(Kind::PersistentVolumeClaim, &claim.namespace, &claim.name))
}

fn place_of(stored: &Stored) -> Option<Place> {
    Place::of(stored.typed::<VolumeAttachment>()?)
}
