//! How a Berth service starts and lives.
//!
//! The one place that builds servers ([`server`]) and channels ([`channel`]), so that deadlines, keep-alives, traces and
//! (later) TLS are the same everywhere; the cache that decisions are read from ([`cache`]); the queue that wakes them
//! ([`queue`]); the leadership that fences them ([`leader`]); and the owner of every background task ([`tasks`]).

pub mod backoff;
pub mod cache;
pub mod channel;
pub mod config;
pub mod feed;
pub mod leader;
pub mod metrics;
pub mod mounts;
pub mod queue;
pub mod server;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod trace;

pub use cache::{Cache, Change, Changes, reflect, reflect_with};
pub use config::{CommonArgs, EtcdArgs};
pub use leader::Leadership;
pub use queue::Queue;
pub use server::Server;
pub use tasks::Tasks;
pub use tokio_util::sync::CancellationToken;
