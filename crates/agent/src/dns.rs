//! The node's DNS: what its pods ask for names of Services and of each other.

mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod zone;

pub use server::{Zone, serve};
pub use upstream::{DnsUpstream, Upstream};
