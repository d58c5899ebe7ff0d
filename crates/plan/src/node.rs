//! What a node does next with one pod.
//!
//! [`decide`] takes what is wanted, what the container runtime shows, what the probes say and which steps failed, and
//! answers with the actions that are due now, the status to report, and the moment to look again. It is asked after every
//! change; it remembers nothing. All that must outlive an agent is kept by the runtime: attempts and crash counts stand in
//! the containers' labels and annotations.
//!
//! Invariants that live here: nothing starts unless it is wanted ([`Wanted::Run`]); a pod that has ended stays ended; a
//! container starts only when the pod's volumes are mounted (I5); a pod counts as stopped only when the runtime knows no
//! sandbox and no container of it and no volume is mounted (I20, I21).

pub mod images;
mod lifecycle;
mod observed;
pub mod pressure;
pub mod probe;
mod progress;
pub mod restart;
mod run;
mod status;
mod stop;
#[cfg(test)]
mod tests;

pub use lifecycle::{Action, Failure, Plan, Snapshot, Step, Wanted, decide, grace};
pub use observed::{Container, ContainerState, Effort, Fatal, Hook, Runtime, Sandbox, Verdicts, Volumes};
pub use status::{CONDITIONS, is_urgent};
