//! The virtual addresses of Services: which one a Service gets, and that no two have the same.
//!
//! Every address that is given out has a key of its own, written in the same transaction as its Service and deleted with
//! it: two Services that are made at the same moment, through whichever replica, cannot both get it. A key whose Service
//! is gone all the same (it could not be read, and was deleted by force) is taken over.
//!
//! As in Kubernetes the lower part of the range is left to addresses that people choose: it is given out only when the
//! rest is full.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

use bytes::Bytes;
use model::service::{address, is_virtual};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::Service,
};
use store::{Guard, Key, Op};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation, called},
    node::cidr::Network,
};

/// Where a Service says its address.
const FIELD: &str = "spec.clusterIP";
/// How often another address is chosen because others were faster than the cache.
const CHOICES: u32 = 16;

/// The range that virtual addresses are given out from, such as 10.96.0.0/16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    base: u32,
    bits: u8,
}

/// Not a range of virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of virtual addresses: expected an IPv4 network of /12 to /28, such as 10.96.0.0/16")]
pub struct BadServiceCidr(String);

impl FromStr for ServiceCidr {
    type Err = BadServiceCidr;

    fn from_str(text: &str) -> std::result::Result<Self, BadServiceCidr> {
        let read = || {
            let (address, bits) = text.split_once('/')?;
            let base = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let bits: u8 = bits.parse().ok().filter(|bits| (12..=28).contains(bits))?;
            (base & (u32::MAX >> bits) == 0).then_some(Self { base, bits })
        };
        read().ok_or_else(|| BadServiceCidr(text.to_owned()))
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl ServiceCidr {
    /// Offsets of the addresses that Services can have are 1 to this: neither the network nor its broadcast address.
    fn last(self) -> u32 {
        (u32::MAX >> self.bits) - 1
    }

    /// The last offset of the part that is left to people: a sixteenth, at least 16 and at most 256 addresses.
    fn reserved(self) -> u32 {
        ((self.last() + 2) / 16).clamp(16, 256).min(self.last())
    }

    /// Whether a Service can have this address.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.base).is_some_and(|offset| (1..=self.last()).contains(&offset))
    }

    /// Whether pods' addresses and virtual ones could be the same.
    pub fn overlaps(self, pods: Network) -> bool {
        let shorter = self.bits.min(pods.bits());
        let network = |base: u32| base & !(u32::MAX >> shorter);
        network(self.base) == network(pods.base())
    }

    /// A free address: the first one from a place that follows from `seed`, in the part that is given out, else in the
    /// part that is left to people. None if all are taken.
    fn choose(self, taken: &BTreeSet<Ipv4Addr>, seed: u32) -> Option<Ipv4Addr> {
        let free_from = |first: u32, last: u32| {
            let count = last.checked_sub(first)? + 1;
            let start = seed % count;
            // At most `taken` of them can be taken.
            (0..count)
                .map(|step| first + (start + step) % count)
                .map(|offset| Ipv4Addr::from(self.base + offset))
                .find(|address| !taken.contains(address))
        };
        free_from(self.reserved() + 1, self.last()).or_else(|| free_from(1, self.reserved()))
    }
}

/// What belongs to the write of a Service, in the same transaction.
#[derive(Debug, Default)]
pub struct Along {
    /// What must hold.
    pub guards: Vec<Guard>,
    /// What is written beside the Service.
    pub ops: Vec<Op>,
}

impl Along {
    fn service(object: &AnyObject) -> Option<&Service> {
        match &object.object {
            Some(Variant::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// Gives the address of a Service back.
    pub fn release(old: &AnyObject) -> Self {
        let held = Self::service(old).and_then(address);
        Self { guards: Vec::new(), ops: held.map(|ip| Op::Delete(Key::cluster_ip(ip))).into_iter().collect() }
    }
}

impl Shared {
    /// Gives a new or changed Service the address that it lacks, and takes back the one that it has no more. Nothing for
    /// objects of other kinds. Asking again may choose another address.
    ///
    /// # Errors
    /// When the address that the user chose is outside the range or taken, or when none is left.
    pub async fn with_address(&self, old: Option<&AnyObject>, new: &mut AnyObject) -> Result<Along> {
        let Some(Variant::Service(service)) = &mut new.object else { return Ok(Along::default()) };
        let held = old.and_then(Along::service).and_then(address);
        let wants = service.spec.as_ref().is_some_and(is_virtual);
        if wants && held.is_some() && address(service) == held {
            return Ok(Along::default());
        }
        let mut along = old.map(Along::release).unwrap_or_default();
        if !wants {
            return Ok(along);
        }
        let (address, guard) = match address(service) {
            Some(chosen) => (chosen, self.chosen(chosen).await?),
            None => self.given(service).await?,
        };
        let holder = Bytes::from(format!("{}/{}", service.namespace(), service.name()));
        let spec = service.spec.get_or_insert_default();
        spec.cluster_ip = address.to_string();
        spec.cluster_ips = vec![address.to_string()];
        along.guards.push(guard);
        along.ops.push(Op::Put(Key::cluster_ip(address), holder, None));
        Ok(along)
    }

    /// The guard under which an address that a user chose is free.
    async fn chosen(&self, address: Ipv4Addr) -> Result<Guard> {
        let cidr = self.settings.service_cidr;
        let refuse = |why: String| Error::Invalid(vec![Violation::value(FIELD, address.to_string(), why)]);
        if !cidr.contains(address) {
            return Err(refuse(format!(
                "must be an address of {cidr} (the API service's --service-cidr), but not its first or last; leave the \
                 field out to be given one"
            )));
        }
        match self.free(address).await? {
            Ok(guard) => Ok(guard),
            Err(holder) => {
                let (namespace, name) = holder.split_once('/').unwrap_or(("", &holder));
                let what = called(Kind::Service, namespace, name);
                Err(refuse(format!("is the address of {what}; leave the field out to be given a free one")))
            }
        }
    }

    /// An address for a Service that chose none, and the guard under which it is free.
    async fn given(&self, service: &Service) -> Result<(Ipv4Addr, Guard)> {
        let cidr = self.settings.service_cidr;
        let (known, _) = self.caches.of(Kind::Service).known();
        let services = known.iter().filter_map(|(_, stored)| stored.typed::<Service>());
        let mut taken: BTreeSet<_> = services.filter_map(address).collect();
        // Random, and of the Service: replicas that choose at the same moment seldom choose the same.
        let uid = uuid::Uuid::parse_str(&service.meta().uid).unwrap_or_else(|_| uuid::Uuid::new_v4());
        let seed = uid.as_fields().0;
        for _ in 0..CHOICES {
            let address = cidr.choose(&taken, seed).ok_or_else(|| {
                Error::Refused(format!(
                    "no virtual address is left in {cidr}: delete Services that are not used, make this one headless \
                     (clusterIP: None), or start the API service with a larger --service-cidr"
                ))
            })?;
            if let Ok(guard) = self.free(address).await? {
                return Ok((address, guard));
            }
            taken.insert(address);
        }
        Err(Error::contended(&called(Kind::Service, service.namespace(), service.name())))
    }

    /// The guard under which an address is free, or who has it.
    async fn free(&self, address: Ipv4Addr) -> Result<std::result::Result<Guard, String>> {
        let key = Key::cluster_ip(address);
        let Some(held) = self.store.get(&key).await? else { return Ok(Ok(Guard::Absent(key))) };
        let holder = String::from_utf8_lossy(&held.value).into_owned();
        let (namespace, name) = holder.split_once('/').unwrap_or_default();
        let found = match self.read(Kind::Service, namespace, name).await {
            Ok(found) => found,
            // It may well have the address.
            Err(Error::Undecodable(_)) => return Ok(Err(holder)),
            Err(error) => return Err(error),
        };
        let has_it =
            found.as_ref().and_then(Stored::typed::<Service>).and_then(model::service::address) == Some(address);
        Ok(if has_it { Err(holder) } else { Ok(Guard::ModRevision(key, held.mod_revision)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> ServiceCidr {
        text.parse().unwrap()
    }

    #[test]
    fn the_lower_part_is_given_out_last_and_nothing_twice() {
        // 30 addresses, 16 of them left to people.
        let small = cidr("10.96.0.0/27");
        let mut taken = BTreeSet::new();
        for round in 0..30_u32 {
            let given = small.choose(&taken, round.wrapping_mul(2_654_435_761)).unwrap();
            assert!(small.contains(given), "{given}");
            assert_eq!(given.octets()[3] > 16, round < 14, "{given} in round {round}");
            assert!(taken.insert(given));
        }
        assert_eq!(small.choose(&taken, 7), None);
        taken.remove(&Ipv4Addr::new(10, 96, 0, 3));
        assert_eq!(small.choose(&taken, 7), Some(Ipv4Addr::new(10, 96, 0, 3)));
    }

    #[test]
    fn small_ranges_are_used_up_to_the_last_address() {
        let smallest = cidr("10.96.0.0/28");
        let mut taken = BTreeSet::new();
        while let Some(given) = smallest.choose(&taken, u32::MAX) {
            taken.insert(given);
        }
        assert_eq!(taken.len(), 14);
    }

    #[test]
    fn what_is_in_a_range() {
        let range = cidr("10.96.0.0/16");
        assert!(range.contains(Ipv4Addr::new(10, 96, 0, 1)) && range.contains(Ipv4Addr::new(10, 96, 255, 254)));
        for outside in [[10, 96, 0, 0], [10, 96, 255, 255], [10, 97, 0, 1], [10, 95, 255, 255]] {
            assert!(!range.contains(outside.into()), "{outside:?}");
        }
        assert!(range.overlaps("10.96.4.0/24".parse().unwrap()) && range.overlaps("10.0.0.0/8".parse().unwrap()));
        assert!(!range.overlaps("10.77.0.0/16".parse().unwrap()));
        for bad in ["", "10.96.0.0", "10.96.0.1/16", "10.96.0.0/29", "10.0.0.0/8", "fd00::/112"] {
            assert!(bad.parse::<ServiceCidr>().is_err(), "{bad}");
        }
    }
}
