//! The messages of `proto/`, and their Kubernetes JSON.
//!
//! Objects are plain data: what they mean stands in `model`. Decisions taken here: the JSON form of every object equals
//! Kubernetes' (the same names, numbers stay numbers, quantities keep the form in which they were written). The gRPC
//! stubs are there under the feature `services`, so that pure crates can use the messages alone.

pub mod json;
mod kind;
mod object;
pub mod schema;
mod time;

pub use kind::{Kind, UnknownKind};
pub use object::{Object, ObjectExt};

/// What the code generator made of `proto/berth`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated; documented in the .proto files")]
mod generated {
    /// `berth.*`
    pub mod berth {
        /// Metadata.
        pub mod meta {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.meta.v1.rs"));
            }
        }
        /// Pods, volumes, Services, nodes.
        pub mod core {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.core.v1.rs"));
            }
        }
        /// StatefulSets.
        pub mod apps {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.apps.v1.rs"));
            }
        }
        /// Disruption budgets.
        pub mod policy {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.policy.v1.rs"));
            }
        }
        /// Priority classes.
        pub mod scheduling {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.scheduling.v1.rs"));
            }
        }
        /// Storage classes.
        pub mod storage {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.storage.v1.rs"));
            }
        }
        /// The API service.
        pub mod api {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.api.v1.rs"));
            }
        }
        /// Node agents.
        pub mod agent {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.agent.v1.rs"));
            }
        }
        /// The scheduler.
        pub mod scheduler {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.scheduler.v1.rs"));
            }
        }
        /// The volume manager.
        pub mod volumes {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/berth.volumes.v1.rs"));
            }
        }
    }
    /// containerd's own services.
    pub mod containerd {
        /// Events.
        pub mod events {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/containerd.services.events.v1.rs"));
            }
        }
        /// Processes in containers.
        pub mod tasks {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/containerd.services.tasks.v1.rs"));
            }
        }
        /// What containers were made from.
        pub mod containers {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/containerd.services.containers.v1.rs"));
            }
        }
    }
    /// How plugins make themselves known to a node.
    pub mod pluginregistration {
        include!(concat!(env!("OUT_DIR"), "/pluginregistration.rs"));
    }
    /// The Container Storage Interface.
    pub mod csi {
        /// Version 1.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
        }
    }
}

pub use generated::berth::{agent, api, apps, core, meta, policy, scheduler, scheduling, storage, volumes};
pub use generated::containerd;
pub use generated::csi;
pub use generated::pluginregistration;

/// Every message at hand under one name: what most users of this crate import.
pub mod objects {
    pub use crate::generated::berth::apps::v1::*;
    pub use crate::generated::berth::core::v1::*;
    pub use crate::generated::berth::meta::v1::*;
    pub use crate::generated::berth::policy::v1::*;
    pub use crate::generated::berth::scheduling::v1::*;
    pub use crate::generated::berth::storage::v1::*;
}

/// The encoded `FileDescriptorSet` of all of `proto/`, for reflection and for checks of the contracts.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
