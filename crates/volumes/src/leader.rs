//! What the leader does: all that writes objects about volumes. Its fence is in every transaction.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use runtime::{Leadership, Tasks};

use crate::{VolumeManager, attach, binder, expand, known_drivers, lost, operation, orphans, reclaim, snapshot};

/// Starts every worker. Each ends when leadership is lost.
fn workers(manager: &VolumeManager, leadership: &Leadership) -> Vec<BoxFuture<'static, ()>> {
    let (m, l) = (|| manager.clone(), || leadership.clone());
    vec![
        reclaim::run(m(), l()).boxed(),
        attach::run(m(), l()).boxed(),
        orphans::run(m(), l()).boxed(),
        binder::run(m(), l()).boxed(),
        known_drivers::run(m(), l()).boxed(),
        expand::run(m(), l()).boxed(),
        snapshot::run(m(), l()).boxed(),
        operation::run(m(), l()).boxed(),
        lost::run(m(), l()).boxed(),
    ]
}

impl VolumeManager {
    /// Looks after volumes, whenever this process leads.
    pub fn lead(&self, identity: String, tasks: &Tasks) {
        let (manager, shutdown) = (self.clone(), tasks.token().clone());
        tasks.spawn_graceful("leader", async move {
            let store = Arc::clone(&manager.inner.store);
            let work = |leadership: Leadership| {
                let all = futures::future::join_all(workers(&manager, &leadership));
                async move {
                    all.await;
                }
            };
            runtime::leader::lead(store, "volumes", &identity, &shutdown, work).await;
        });
    }
}
