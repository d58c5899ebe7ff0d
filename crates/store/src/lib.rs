//! The store: objects under keys, changed by guarded transactions, told by watches.
//!
//! [`Store`] is the contract; [`MemStore`] and [`EtcdStore`] keep it, and one conformance suite holds
//! both to it. [`objects`] puts types on it: keys, decoding, `resourceVersion`.
//!
//! What this crate must never do: turn an unknown result into a failure or a success (it reads back), turn an error or
//! an undecodable object into "not found", or skip an event of a watch.

mod etcd;
pub mod key;
mod kv;
pub mod mem;
pub mod objects;
#[cfg(feature = "testing")]
pub mod testing;

pub use etcd::{EtcdConfig, EtcdStore};
pub use key::{Key, Prefix};
pub use kv::{
    Error, Event, Guard, Kv, LeaseId, Op, Page, PageRequest, Result, Revision, Store, Txn, TxnOutcome, WatchItem,
    WatchStream,
};
pub use mem::MemStore;
