//! The node agent: runs the pods that the API service binds to its node.
//!
//! What to do next with a pod is decided by `plan::node`, a pure function of what is wanted and what is observed; this
//! crate observes and acts. One worker per pod acts serially; pods do not wait for each other. Invariants that live
//! here: no container of a pod starts that the API service has not named since the agent started (I1); a driver gets at
//! most one call at a time for a volume (I4); a container starts only with its own volume really mounted (I5); a pod
//! counts as stopped only when the runtime says that its sandbox is gone and no volume is mounted (I20, I21). Pods survive
//! a restart of the agent: all that it needs to know is kept by the runtime (labels), the kernel (mounts) and notes that
//! are on the disk before a volume's driver is called.

mod access;
mod act;
mod api;
pub mod archive;
mod beneath;
mod cgroup;
mod config;
mod containerd;
mod cri;
mod csi;
mod dns;
mod env;
mod events;
mod facts;
mod fields;
mod gc;
mod hollow;
mod hooks;
mod http;
mod images;
mod logs;
mod metrics;
mod mounts;
mod network;
mod node;
mod pods;
mod pressure;
mod probe;
mod report;
mod rotate;
mod session;
mod spec;
mod stream;
mod termination;
mod volumes;
mod worker;

use std::time::Duration;

pub use config::Config;
use runtime::tasks::Tasks;
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end. Containers keep running.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the agent until `shutdown`. Containers keep running afterwards.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let tasks = Tasks::new(&shutdown);
    let server = runtime::server::Server::new("agent", config.listen());
    let result = match config.hollow {
        Some(count) => {
            hollow::start(&config, count, &tasks)?;
            server.serve(shutdown).await
        }
        None => node::run(&config, server, &tasks, shutdown).await,
    };
    tasks.finish(DRAIN).await;
    result
}
