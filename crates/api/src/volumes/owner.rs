//! Whose claims are meant: those of a set, of a pod, or one.

use model::{
    identity::{Ordinal, PodName, SetName},
    ordinals::Ordinals,
};
use pb::{
    Kind, Object as _, ObjectExt,
    api::v1::VolumeOwner,
    objects::{PersistentVolumeClaim, Pod, StatefulSet},
};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation, called},
    scale::namespace_or_default,
};

/// Whose claims are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// All claims of a set's pods.
    Set(String),
    /// All claims of a pod, also while it is not there.
    Pod(String),
    /// One claim.
    Claim(String),
}

impl Owner {
    /// Reads an owner and its namespace. `field` is where it stands in the request.
    pub fn read(owner: Option<&VolumeOwner>, field: &str) -> Result<(String, Self)> {
        let owner = owner.cloned().unwrap_or_default();
        let namespace = namespace_or_default(&owner.namespace).to_owned();
        let VolumeOwner { stateful_set, pod, claim, .. } = owner;
        match [stateful_set.as_str(), &pod, &claim] {
            [_, "", ""] if !stateful_set.is_empty() => Ok((namespace, Self::Set(stateful_set))),
            ["", _, ""] if !pod.is_empty() => Ok((namespace, Self::Pod(pod))),
            ["", "", _] if !claim.is_empty() => Ok((namespace, Self::Claim(claim))),
            _ => Err(Error::Invalid(vec![Violation::new(
                field,
                "Required value: exactly one of statefulSet, pod and claim has to be named",
            )])),
        }
    }
}

impl Shared {
    /// The claims that are meant, as the store has them now, in order of ordinals and templates.
    pub async fn claims_of(&self, namespace: &str, owner: &Owner) -> Result<Vec<Stored>> {
        let names = match owner {
            Owner::Claim(name) => vec![name.clone()],
            Owner::Set(name) => {
                let set: StatefulSet = self.caches.get_typed(namespace, name).await?;
                let ordinals = Ordinals::of(&set.spec.clone().unwrap_or_default());
                ordinals.iter().flat_map(|ordinal| of_ordinal(&set, ordinal)).collect()
            }
            Owner::Pod(name) => self.names_of_pod(namespace, name).await?,
        };
        if names.is_empty() {
            return Err(Error::Refused(format!("{} has no claims: it keeps no data", owner.called(namespace))));
        }
        let mut claims = Vec::with_capacity(names.len());
        for name in names {
            let kind = Kind::PersistentVolumeClaim;
            let claim = self.read(kind, namespace, &name).await?;
            claims.push(
                claim.ok_or_else(|| Error::NotFound { what: called(kind, namespace, &name), hint: owner.hint() })?,
            );
        }
        Ok(claims)
    }

    async fn names_of_pod(&self, namespace: &str, name: &str) -> Result<Vec<String>> {
        if let Some((set, ordinal)) = PodName::from(name).split()
            && let Some(stored) = self.caches.get(Kind::StatefulSet, namespace, set.as_str()).await?
            && let Some(set) = stored.typed::<StatefulSet>()
        {
            return Ok(of_ordinal(set, ordinal));
        }
        let pod: Pod = self.caches.get_typed(namespace, name).await.map_err(|error| match error {
            Error::NotFound { what, .. } => Error::NotFound {
                what,
                hint: ", nor is there a set that it would belong to; name a claim of it (`berth get pvc`)".to_owned(),
            },
            error => error,
        })?;
        Ok(claims_named(&pod).map(str::to_owned).collect())
    }
}

/// The claims of one ordinal of a set, in order of its templates.
fn of_ordinal(set: &StatefulSet, ordinal: Ordinal) -> Vec<String> {
    let (name, templates) = (SetName::from(set.name()), set.spec.iter().flat_map(|spec| &spec.volume_claim_templates));
    templates.map(|template| name.claim(template.name(), ordinal).to_string()).collect()
}

/// The claims that a pod names.
pub fn claims_named(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| source.claim_name.as_str())
}

impl Owner {
    fn called(&self, namespace: &str) -> String {
        match self {
            Self::Set(name) => called(Kind::StatefulSet, namespace, name),
            Self::Pod(name) => called(Kind::Pod, namespace, name),
            Self::Claim(name) => called(Kind::PersistentVolumeClaim, namespace, name),
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Set(name) => format!(" yet; `berth why sts/{name}` says what its pod waits for"),
            Self::Pod(name) => format!(" yet; `berth why {name}` says what the pod waits for"),
            Self::Claim(_) => "; `berth get pvc` lists what there is".to_owned(),
        }
    }
}

/// A stored claim.
pub fn claim_in(stored: &Stored) -> Result<&PersistentVolumeClaim> {
    PersistentVolumeClaim::peek(&stored.object).ok_or_else(|| Error::Bug(format!("{} is no claim", stored.key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_is_meant() {
        let read = |set: &str, pod: &str, claim: &str| {
            let owner = VolumeOwner {
                stateful_set: set.into(),
                pod: pod.into(),
                claim: claim.into(),
                ..VolumeOwner::default()
            };
            Owner::read(Some(&owner), "of").map_err(|error| error.to_string())
        };
        assert_eq!(read("", "web-0", ""), Ok(("default".to_owned(), Owner::Pod("web-0".to_owned()))));
        for (set, pod, claim) in [("", "", ""), ("web", "web-0", ""), ("web", "", "www-web-0")] {
            assert!(read(set, pod, claim).unwrap_err().starts_with("of: Required value: exactly one"));
        }
    }
}
