//! What node agents call: who they are, what they shall run, what they see, and the tables that their DNS and routes are
//! made from.

pub mod bundles;
pub mod cidr;
pub mod endpoints;
mod indexer;
mod pods;
pub mod register;
mod report;
mod table;
mod tell;

pub use indexer::index;
pub use table::{EndpointsTable, tabulate};
