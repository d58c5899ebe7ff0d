//! The owner of background tasks: each has a name, ends when its owner says so, and is waited for.
//!
//! A task that panics takes the process down (see [`crate::telemetry`]): a service that lost a part of itself must be
//! started again, not go on half.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// Owner of a group of tasks. Dropping it ends them.
#[derive(Debug)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// An owner whose tasks end with the token, or before.
    pub fn new(token: &CancellationToken) -> Self {
        Self { token: token.child_token(), tracker: TaskTracker::new() }
    }

    /// Runs a future until it is done or the owner ends it.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let span = tracing::debug_span!("task", name);
        self.tracker.spawn(async move { token.run_until_cancelled_owned(future).await }.instrument(span));
    }

    /// Runs a future that ends by itself soon after the token is cancelled.
    pub fn spawn_graceful<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(future.instrument(tracing::debug_span!("task", name)));
    }

    /// What ends the tasks.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Ends the tasks and waits for them, up to a deadline.
    pub async fn finish(self, deadline: Duration) {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), ?deadline, "background tasks did not end in time");
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
