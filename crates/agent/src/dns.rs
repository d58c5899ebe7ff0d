//! The node's DNS: what its pods ask for names of Services and of each other.

mod server;
mod zone;

pub use server::{Zone, serve};
