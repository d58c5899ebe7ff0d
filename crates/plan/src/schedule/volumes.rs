//! Who uses which claims where, and what of it keeps a pod away from a node: how many volumes of a driver a node can
//! have, and claims that one node, or one pod, may have at a time.
//!
//! Claims and volumes are seen at other times than pods. What is not known yet counts against the pod that asks: a
//! claim whose driver is not known counts as one of every driver, one whose access modes are not known as one that a
//! single pod may have. So nothing is given away because a cache lags; what comes to be known makes room at most.

use std::collections::{BTreeMap, BTreeSet};

use pb::{
    ObjectExt,
    objects::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
};

use super::{PodName, Reason, Request};

/// What a node's allocatable says of the volumes of a driver, before the driver's name.
pub const LIMIT_PREFIX: &str = "attachable-volumes-csi-";

/// A claim: its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ClaimName {
    /// The name of this claim.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        Self { namespace: claim.namespace().to_owned(), name: claim.name().to_owned() }
    }
}

/// The claims of a pod with the CSI drivers of their volumes, as far as they are known.
pub type Claims = BTreeMap<ClaimName, Option<String>>;

/// The claims that a pod uses, each once, in the order of its volumes.
pub fn claims_of(pod: &Pod) -> Vec<ClaimName> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let mut seen = BTreeSet::new();
    volumes
        .filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone()))
        .filter(|name| seen.insert(name.clone()))
        .map(|name| ClaimName { namespace: pod.namespace().to_owned(), name })
        .collect()
}

/// How many volumes of each driver the node can have; a driver that it does not name has no bound.
pub(super) fn limits_of(node: &Node) -> BTreeMap<String, usize> {
    let allocatable = node.status.iter().flat_map(|status| &status.allocatable);
    let limit = |(resource, quantity): (&String, &pb::objects::Quantity)| {
        let driver = resource.strip_prefix(LIMIT_PREFIX)?;
        let amount = quantity.value.parse::<model::quantity::Quantity>().map_or(0, |amount| amount.as_units());
        Some((driver.to_owned(), usize::try_from(amount).unwrap_or(0)))
    };
    allocatable.filter_map(limit).collect()
}

/// By whom a claim may be used at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// By one pod (ReadWriteOncePod).
    Pod,
    /// By the pods of one node (ReadWriteOnce).
    Node,
    /// By any.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ClaimFacts {
    sharing: Sharing,
    /// Empty while the claim is not bound.
    volume: String,
    revision: i64,
}

impl ClaimFacts {
    fn of(claim: &PersistentVolumeClaim) -> Self {
        let spec = claim.spec.as_ref();
        let modes = spec.map(|spec| spec.access_modes.as_slice()).unwrap_or_default();
        let has = |mode: &str| modes.iter().any(|m| m == mode);
        let sharing = match () {
            () if has("ReadWriteOncePod") => Sharing::Pod,
            () if has("ReadWriteMany") || has("ReadOnlyMany") => Sharing::Any,
            () => Sharing::Node,
        };
        let volume = spec.map(|spec| spec.volume_name.clone()).unwrap_or_default();
        Self { sharing, volume, revision: claim.mod_revision() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeFacts {
    /// Empty if the volume is no driver's.
    driver: String,
    revision: i64,
}

/// A pod that has a claim, or was promised a node for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    pod: PodName,
    node: String,
    driver: Option<String>,
}

/// What is known of claims and volumes, and who uses them.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    claims: BTreeMap<ClaimName, ClaimFacts>,
    volumes: BTreeMap<String, VolumeFacts>,
    users: BTreeMap<ClaimName, Vec<User>>,
    /// The same by node: how many users a claim has there.
    nodes: BTreeMap<String, BTreeMap<ClaimName, u32>>,
}

impl Volumes {
    /// Takes over a state of a claim, unless a newer one is known. Returns whether that may make room.
    pub(super) fn set_claim(&mut self, claim: &PersistentVolumeClaim) -> bool {
        let (name, facts) = (ClaimName::of(claim), ClaimFacts::of(claim));
        let known = self.claims.get(&name);
        if known.is_some_and(|known| known.revision > facts.revision) {
            return false;
        }
        let news = known.is_none_or(|known| (known.sharing, &known.volume) != (facts.sharing, &facts.volume));
        let counts = news && self.users.contains_key(&name);
        self.claims.insert(name, facts);
        counts
    }

    /// The claim went at this revision of the store.
    pub(super) fn remove_claim(&mut self, name: &ClaimName, revision: i64) {
        if self.claims.get(name).is_some_and(|known| known.revision <= revision) {
            self.claims.remove(name);
        }
    }

    /// Takes over a state of a volume, unless a newer one is known. Returns whether that may make room.
    pub(super) fn set_volume(&mut self, volume: &PersistentVolume) -> bool {
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        let driver = csi.map(|csi| csi.driver.clone()).unwrap_or_default();
        let facts = VolumeFacts { driver, revision: volume.mod_revision() };
        let known = self.volumes.get(volume.name());
        if known.is_some_and(|known| known.revision > facts.revision) {
            return false;
        }
        let news = known.is_none_or(|known| known.driver != facts.driver);
        self.volumes.insert(volume.name().to_owned(), facts);
        news
    }

    /// The volume went at this revision of the store.
    pub(super) fn remove_volume(&mut self, name: &str, revision: i64) {
        if self.volumes.get(name).is_some_and(|known| known.revision <= revision) {
            self.volumes.remove(name);
        }
    }

    /// Begins anew from a list of all claims as of a revision of the store. What is known from later revisions stays.
    pub(super) fn reset_claims<'a>(&mut self, claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>, as_of: i64) {
        self.claims.retain(|_, known| known.revision > as_of);
        for claim in claims {
            self.set_claim(claim);
        }
    }

    /// The same with all volumes.
    pub(super) fn reset_volumes<'a>(&mut self, volumes: impl IntoIterator<Item = &'a PersistentVolume>, as_of: i64) {
        self.volumes.retain(|_, known| known.revision > as_of);
        for volume in volumes {
            self.set_volume(volume);
        }
    }

    /// A pod has these claims on a node, or was promised it.
    pub(super) fn take(&mut self, pod: &PodName, node: &str, claims: &Claims) {
        for (claim, driver) in claims {
            let user = User { pod: pod.clone(), node: node.to_owned(), driver: driver.clone() };
            self.users.entry(claim.clone()).or_default().push(user);
            *self.nodes.entry(node.to_owned()).or_default().entry(claim.clone()).or_default() += 1;
        }
    }

    /// What was taken before is given back.
    pub(super) fn untake(&mut self, pod: &PodName, node: &str, claims: &Claims) {
        for (claim, driver) in claims {
            if let Some(users) = self.users.get_mut(claim) {
                let user = User { pod: pod.clone(), node: node.to_owned(), driver: driver.clone() };
                if let Some(index) = users.iter().position(|known| *known == user) {
                    users.swap_remove(index);
                }
                if users.is_empty() {
                    self.users.remove(claim);
                }
            }
            if let Some(on_node) = self.nodes.get_mut(node) {
                if let Some(count) = on_node.get_mut(claim) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        on_node.remove(claim);
                    }
                }
                if on_node.is_empty() {
                    self.nodes.remove(node);
                }
            }
        }
    }

    /// What keeps the pod's claims away from a node that can have `limits` volumes of each driver. The pod that had
    /// the name before is taken as gone.
    pub(super) fn rule_out(&self, request: &Request, node: &str, limits: &BTreeMap<String, usize>) -> Option<Reason> {
        if request.claims.is_empty() {
            return None;
        }
        let in_use = request.claims.keys().find_map(|claim| self.in_use(claim, &request.name, node));
        in_use.or_else(|| self.too_many(request, node, limits).then_some(Reason::TooManyVolumes))
    }

    fn in_use(&self, claim: &ClaimName, pod: &PodName, node: &str) -> Option<Reason> {
        let mut others = self.users.get(claim).into_iter().flatten().filter(|user| user.pod != *pod);
        let sharing = self.claims.get(claim).map_or(Sharing::Pod, |facts| facts.sharing);
        let other = match sharing {
            Sharing::Pod => others.next(),
            Sharing::Node => others.find(|user| user.node != node),
            Sharing::Any => None,
        }?;
        let elsewhere = (sharing == Sharing::Node).then(|| other.node.clone());
        Some(Reason::ClaimInUse { claim: claim.name.clone(), pod: other.pod.name.clone(), elsewhere })
    }

    /// Whether the node would have more volumes of a driver than it can. In as many steps as it has volumes.
    fn too_many(&self, request: &Request, node: &str, limits: &BTreeMap<String, usize>) -> bool {
        if limits.is_empty() {
            return false;
        }
        let asked: Vec<Option<&str>> = request.claims.iter().map(|(claim, hint)| self.driver(claim, hint)).collect();
        let is = |of: Option<&str>, driver: &str| of.is_none_or(|of| of == driver);
        limits.iter().filter(|(driver, _)| asked.iter().any(|of| is(*of, driver))).any(|(driver, limit)| {
            let others = self.nodes.get(node).into_iter().flatten().filter(|(claim, _)| {
                !request.claims.contains_key(claim) && self.counts(claim, node, &request.name, driver)
            });
            others.count() + asked.iter().filter(|of| is(**of, driver)).count() > *limit
        })
    }

    /// Whether another pod has the claim on the node, and the claim is, or may be, one of the driver.
    fn counts(&self, claim: &ClaimName, node: &str, except: &PodName, driver: &str) -> bool {
        let users = self.users.get(claim).into_iter().flatten();
        let mut users = users.filter(|user| user.node == node && user.pod != *except);
        users.any(|user| self.driver(claim, &user.driver).is_none_or(|of| of == driver))
    }

    /// The driver of a claim's volume: as it is stored, else as who asked for a place was told.
    fn driver<'a>(&'a self, claim: &ClaimName, told: &'a Option<String>) -> Option<&'a str> {
        let stored = self.claims.get(claim).and_then(|facts| self.volumes.get(&facts.volume));
        stored.map(|volume| volume.driver.as_str()).or(told.as_deref())
    }
}

#[cfg(test)]
mod tests;
