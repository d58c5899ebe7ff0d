//! The pod networks of nodes: one /24 each, out of the cluster's.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

/// Bits of the network that one node gets: 254 addresses, of which CNI keeps a few.
const NODE_BITS: u8 = 24;

/// An IPv4 network such as 10.77.0.0/16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    base: u32,
    bits: u8,
}

/// Not a network that nodes' networks can be cut from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a pod network: expected an IPv4 network of at least /24, such as 10.77.0.0/16")]
pub struct BadNetwork(String);

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let read = || {
            let (address, bits) = text.split_once('/')?;
            let base = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let bits: u8 = bits.parse().ok().filter(|bits| (8..=NODE_BITS).contains(bits))?;
            let host_part = u32::MAX >> bits;
            (base & host_part == 0).then_some(Self { base, bits })
        };
        read().ok_or_else(|| BadNetwork(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl Network {
    /// The first address, as a number.
    pub fn base(self) -> u32 {
        self.base
    }

    /// How many bits all its addresses share.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// The first node network that nobody has; None when all are given away. The cluster's first one is left out, so
    /// that no node's gateway is the network's own address.
    pub fn first_free(self, taken: &BTreeSet<String>) -> Option<String> {
        let size = 1_u32 << (32 - NODE_BITS);
        let count = 1_u32 << (NODE_BITS - self.bits);
        let first = u32::from(count > 1);
        (first..count)
            .map(|at| Self { base: self.base + at * size, bits: NODE_BITS }.to_string())
            .find(|network| !taken.contains(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_the_first_network_that_is_free() {
        let cluster: Network = "10.77.0.0/16".parse().unwrap();
        let mut taken = BTreeSet::new();
        for expected in ["10.77.1.0/24", "10.77.2.0/24", "10.77.3.0/24"] {
            let free = cluster.first_free(&taken).unwrap();
            assert_eq!(free, expected);
            taken.insert(free);
        }
        taken.remove("10.77.2.0/24");
        assert_eq!(cluster.first_free(&taken).as_deref(), Some("10.77.2.0/24"));
    }

    #[test]
    fn a_full_cluster_has_none() {
        let cluster: Network = "10.77.0.0/23".parse().unwrap();
        assert_eq!(cluster.first_free(&["10.77.1.0/24".to_owned()].into()), None);
    }

    #[test]
    fn what_is_not_a_pod_network() {
        for bad in ["", "10.77.0.0", "10.77.0.1/16", "10.77.0.0/25", "10.77.0.0/x", "::/16", "10.0.0.0/33"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
