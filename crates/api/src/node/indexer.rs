//! Keeps the index of what each node shall run in step with the caches.

use std::{collections::BTreeSet, sync::Arc};

use pb::{Kind, objects::PersistentVolume, objects::Pod};
use store::Key;

use super::bundles::Index;
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
        follow(Kind::ConfigMap),
        follow(Kind::Secret),
    );
}

async fn follow(shared: Arc<Shared>, kind: Kind) {
    let window: Arc<KindWindow> = shared.caches.of(kind).clone();
    loop {
        window.synced().await;
        let (known, revision) = window.known();
        if kind == Kind::Pod {
            all_pods(&shared.index, &known);
        } else {
            shared.index.everything_needed();
        }
        let mut follower = Follower::new(window.clone(), revision);
        // Ends when the window was filled anew: then so is the index.
        while let Ok(changes) = follower.next().await {
            for change in changes {
                note(&shared.index, kind, &change);
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

fn note(index: &Index, kind: Kind, change: &Change<Key, Stored>) {
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
        _ => index.needed(&change.key),
    }
}

fn claim_of(stored: &Stored) -> Option<Key> {
    let volume = stored.typed::<PersistentVolume>()?;
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::object(Kind::PersistentVolumeClaim, &claim.namespace, &claim.name))
}
