//! The table of all Services' endpoints, recomputed where a pod or a Service changed, and only told where it differs.

use std::{collections::BTreeSet, sync::Arc};

use pb::{
    Kind, ObjectExt,
    agent::v1::ServiceEndpoints,
    objects::{Pod, Service},
};
use store::{Key, Prefix};

use super::endpoints::endpoints;
use crate::{
    Shared,
    caches::{KindWindow, Stored},
    window::{Change, Follower, Lagged, New, Window, starting_with},
};

/// Endpoints by the key of their Service. Its revisions count changes of the table itself.
pub type EndpointsTable = Window<Key, ServiceEndpoints>;

/// Keeps the table for as long as it is polled.
pub async fn tabulate(shared: Arc<Shared>) {
    let (services, pods) = (shared.caches.of(Kind::Service).clone(), shared.caches.of(Kind::Pod).clone());
    services.synced().await;
    pods.synced().await;
    shared.endpoints.reset(0, []);
    loop {
        let mut services_from = Follower::new(services.clone(), services.revision());
        let mut pods_from = Follower::new(pods.clone(), pods.revision());
        let known = services.known().0.into_iter().map(|(key, _)| key);
        let tabled = shared.endpoints.known().0.into_iter().map(|(key, _)| key);
        let everything = known.chain(tabled).collect();
        recompute(&shared.endpoints, &services, &pods, everything);
        // Ends when a window was filled anew: then everything is looked at again.
        while let Ok(touched) = touched(&services, &mut services_from, &mut pods_from).await {
            recompute(&shared.endpoints, &services, &pods, touched);
        }
    }
}

/// Waits for changes, and gives the Services whose endpoints they may change.
async fn touched(
    services: &KindWindow,
    services_from: &mut Follower<Key, Stored>,
    pods_from: &mut Follower<Key, Stored>,
) -> Result<BTreeSet<Key>, Lagged> {
    tokio::select! {
        changes = services_from.next() => Ok(changes?.iter().map(|change| change.key.clone()).collect()),
        changes = pods_from.next() => {
            Ok(changes?.iter().flat_map(|change| services_of(services, change)).collect())
        }
    }
}

/// The Services for which a changed pod answers otherwise than before.
fn services_of(services: &KindWindow, change: &Change<Key, Stored>) -> Vec<Key> {
    let new = match &change.new {
        New::Is(stored) => stored.typed::<Pod>(),
        New::Gone => None,
        // It goes on answering as it did.
        New::Unknown(_) => return Vec::new(),
    };
    let old = change.old.as_deref().and_then(|stored| stored.typed::<Pod>());
    let here = Prefix::namespace(Kind::Service, change.key.namespace());
    let services = services.known_in(starting_with(&here));
    let differs = |service: &Service| endpoints(service, old).endpoints != endpoints(service, new).endpoints;
    let touched = services.iter().filter(|stored| stored.typed::<Service>().is_some_and(differs));
    touched.map(|stored| stored.key.clone()).collect()
}

fn recompute(table: &EndpointsTable, services: &KindWindow, pods: &KindWindow, touched: BTreeSet<Key>) {
    let changes: Vec<_> = touched.into_iter().filter_map(|key| change_of(table, services, pods, key)).collect();
    if !changes.is_empty() {
        table.apply(table.revision() + 1, changes);
    }
}

fn change_of(
    table: &EndpointsTable,
    services: &KindWindow,
    pods: &KindWindow,
    key: Key,
) -> Option<(Key, New<ServiceEndpoints>)> {
    let before = table.last_known(&key);
    let Some(service) = services.last_known(&key) else {
        return before.map(|_| (key, New::Gone));
    };
    let service = service.typed::<Service>()?;
    let here = pods.known_in(starting_with(&Prefix::namespace(Kind::Pod, service.namespace())));
    let now = endpoints(service, here.iter().filter_map(|stored| stored.typed::<Pod>()));
    (before.as_deref() != Some(&now)).then(|| (key, New::Is(Arc::new(now))))
}
