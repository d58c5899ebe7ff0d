//! The node agent: runs the pods that the API service binds to its node.
//!
//! What to do next with a pod is decided by `plan::node`, a pure function of what is wanted and what is observed; this
//! crate observes and acts. One worker per pod acts serially; pods do not wait for each other. Invariants that live
//! here: no container of a pod starts that the API service has not named since the agent started (I1); a container
//! starts only with its own volume really mounted (I5); a pod counts as stopped only when the runtime says that its
//! sandbox is gone and no volume is mounted (I20, I21). Pods survive a restart of the agent: all that it needs to know
//! is kept by the runtime (labels) and the kernel (mounts).

mod api;
mod config;
mod facts;
mod hollow;
mod report;
mod session;
mod stream;

pub use config::Config;

use runtime::tasks::Tasks;
use tokio_util::sync::CancellationToken;

/// Runs the agent until `shutdown`. Containers keep running afterwards.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tasks = Tasks::new(&shutdown);
    if let Some(count) = config.hollow {
        hollow::start(&config, count, &tasks)?;
    }
    let server = runtime::server::Server::new("agent", config.listen());
    server.serve(shutdown).await?;
    tasks.finish(std::time::Duration::from_secs(5)).await;
    Ok(())
}
