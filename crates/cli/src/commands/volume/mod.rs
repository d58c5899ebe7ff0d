//! `berth volume`: the volumes of sets, pods and claims: how full they are, larger ones, snapshots, and data that goes
//! to another node or back to what it was.

mod bytes;
mod describe;
mod expand;
mod ls;
mod operate;
mod snapshot;
mod state;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use model::{identity::PodName, quantity::Quantity};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{ListRequest, UsedVolume, VolumeOwner, VolumeUsageRequest},
    objects::{PersistentVolumeClaim, Pod, StatefulSet},
};

use crate::{
    args::duration,
    client::Client,
    follow::{Follow, Told},
    target::{self, Target},
};

/// Commands about volumes.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show claims with their volumes: how full, how large, where, and what is being done with them
    Ls(ls::Args),
    /// Show everything about the volume of one claim
    Describe(describe::Args),
    /// Make the volumes of a set's claim template, or of one claim, larger
    Expand(expand::Args),
    /// Make snapshots of the data of a set, a pod or a claim
    Snapshot(snapshot::Args),
    /// Put the data of snapshots in the place of the data of a pod or a claim; what was there is kept
    Restore(operate::RestoreArgs),
    /// Take the data of a pod or a claim to another node
    Move(operate::MoveArgs),
}

/// How long a command waits.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Waiting {
    /// Return only when it is done; --wait=false returns as soon as it has been asked for
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
    /// How long to wait; for ever if absent
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

/// Does what the command says.
pub async fn run(client: Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Ls(args) => ls::run(client, args).await,
        Command::Describe(args) => describe::run(client, args).await,
        Command::Expand(args) => expand::run(client, args).await,
        Command::Snapshot(args) => snapshot::run(client, args).await,
        Command::Restore(args) => operate::restore(client, args).await,
        Command::Move(args) => operate::relocate(client, args).await,
    }
}

/// Whose volumes are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Set(String),
    Pod(String),
    Claim(String),
}

impl Scope {
    /// Reads `sts/web`, `pod/web-0`, `pvc/www-web-0`, or a claim by its bare name.
    fn read(text: &str) -> Result<Self> {
        if !text.contains('/') {
            return Ok(Self::Claim(text.to_owned()));
        }
        match target::targets(&[text.to_owned()])?.as_slice() {
            [Target { kind: Kind::StatefulSet, name: Some(name), .. }] => Ok(Self::Set(name.clone())),
            [Target { kind: Kind::Pod, name: Some(name), .. }] => Ok(Self::Pod(name.clone())),
            [Target { kind: Kind::PersistentVolumeClaim, name: Some(name), .. }] => Ok(Self::Claim(name.clone())),
            [Target { kind, .. }, ..] => bail!("a {kind} has no claims: name sts/SET, pod/POD or a claim"),
            [] => bail!("name sts/SET, pod/POD or a claim"),
        }
    }

    /// The same for the API service.
    fn owner(&self, client: &Client) -> VolumeOwner {
        let mut owner = VolumeOwner { namespace: client.namespace.clone(), ..VolumeOwner::default() };
        match self {
            Self::Set(name) => owner.stateful_set.clone_from(name),
            Self::Pod(name) => owner.pod.clone_from(name),
            Self::Claim(name) => owner.claim.clone_from(name),
        }
        owner
    }
}

/// The claims of the namespace that are meant; all without a scope.
async fn claims(client: &Client, scope: Option<&Scope>) -> Result<Vec<PersistentVolumeClaim>> {
    if let Some(Scope::Claim(name)) = scope {
        return Ok(vec![get(client, name).await?]);
    }
    let mut claims: Vec<PersistentVolumeClaim> = all(client).await?;
    match scope {
        Some(Scope::Set(name)) => {
            let set: StatefulSet = get(client, name).await?;
            claims.retain(|claim| pod_of(claim.name(), &set).is_some());
            // Ordinals count, letters do not: web-10 comes after web-9.
            claims.sort_by_key(|claim| {
                let pod = pod_of(claim.name(), &set);
                pod.as_ref().and_then(PodName::split).map(|(_, ordinal)| ordinal)
            });
        }
        Some(Scope::Pod(name)) => {
            let wanted = claims_of_pod(client, name).await?;
            claims.retain(|claim| wanted.matches(claim.name()));
        }
        Some(Scope::Claim(_)) | None => {}
    }
    Ok(claims)
}

/// The pod of a set that a claim is for, by its name.
fn pod_of(claim: &str, set: &StatefulSet) -> Option<PodName> {
    let templates = set.spec.iter().flat_map(|spec| &spec.volume_claim_templates);
    templates.filter_map(|template| claim.strip_prefix(template.name())?.strip_prefix('-')).find_map(|pod| {
        let pod = PodName::from(pod);
        let mine = pod.split().is_some_and(|(owner, _)| owner.as_str() == set.name());
        mine.then_some(pod)
    })
}

/// Which claims a pod has.
enum OfPod {
    /// Those that it names.
    Named(Vec<String>),
    /// Those of a set's templates, for a pod that is not there.
    Templates(Box<StatefulSet>, String),
}

impl OfPod {
    fn matches(&self, claim: &str) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| name == claim),
            Self::Templates(set, pod) => pod_of(claim, set).is_some_and(|owner| owner.as_str() == pod),
        }
    }
}

async fn claims_of_pod(client: &Client, name: &str) -> Result<OfPod> {
    if let Some(object) = client.find(Kind::Pod, name, "").await?
        && let Ok(pod) = Pod::from_any(object)
    {
        return Ok(OfPod::Named(named_by(&pod).map(str::to_owned).collect()));
    }
    if let Some((set, _)) = PodName::from(name).split()
        && let Some(object) = client.find(Kind::StatefulSet, set.as_str(), "").await?
        && let Ok(set) = StatefulSet::from_any(object)
    {
        return Ok(OfPod::Templates(Box::new(set), name.to_owned()));
    }
    bail!("there is no pod {name:?} in namespace {}, nor a set that it would belong to", client.namespace)
}

/// The claims that a pod names.
fn named_by(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| source.claim_name.as_str())
}

/// One object by its name.
async fn get<T: Object>(client: &Client, name: &str) -> Result<T> {
    let object = client.get(T::KIND, name).await?;
    T::from_any(object).ok().context("the API service answered with an object of another kind")
}

/// All objects of a kind in the namespace.
async fn all<T: Object>(client: &Client) -> Result<Vec<T>> {
    let list = ListRequest {
        kind: T::KIND.name().to_owned(),
        namespace: client.namespace_of(T::KIND),
        ..ListRequest::default()
    };
    let (objects, _) = client.list(list).await?;
    Ok(objects.into_iter().filter_map(|object| T::from_any(object).ok()).collect())
}

/// Volumes that one question about usage names.
const ASKED_AT_ONCE: usize = 500;

/// How full volumes are, by their names. A volume manager that does not answer is told on standard error: a table
/// without this is better than none.
async fn usage(client: &Client, volumes: Vec<String>) -> BTreeMap<String, UsedVolume> {
    let mut used = BTreeMap::new();
    for volumes in volumes.chunks(ASKED_AT_ONCE) {
        match client.api.clone().volume_usage(VolumeUsageRequest { volumes: volumes.to_vec() }).await {
            Ok(answer) => used.extend(answer.into_inner().volumes.into_iter().map(|one| (one.volume.clone(), one))),
            Err(status) => {
                eprintln!("note: {}", client.refused(&status));
                return used;
            }
        }
    }
    used
}

/// The name of the volume that a claim is bound to; empty if there is none.
fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().map_or("", |spec| &spec.volume_name)
}

/// A size that a person writes.
fn size(text: &str) -> Result<Quantity, String> {
    match text.parse::<Quantity>() {
        Ok(size) if size.is_zero() || size.is_negative() => Err("must be greater than zero".to_owned()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// Objects of a kind as a watch tells them, by name.
struct Watched<T> {
    follow: Follow,
    objects: BTreeMap<String, T>,
    current: bool,
}

impl<T: Object> Watched<T> {
    fn new(follow: Follow) -> Self {
        Self { follow, objects: BTreeMap::new(), current: false }
    }

    /// Waits for a change; all objects, once all that is so has been told.
    async fn next(&mut self) -> Result<&BTreeMap<String, T>> {
        loop {
            match self.follow.next().await? {
                Told::Is(object) => {
                    if let Ok(object) = T::from_any(object) {
                        self.objects.insert(object.name().to_owned(), object);
                    }
                }
                Told::Gone(object) => drop(self.objects.remove(&object.meta().name)),
                Told::Current => self.current = true,
                Told::Anew => (self.objects, self.current) = (BTreeMap::new(), false),
            }
            if self.current {
                return Ok(&self.objects);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes() {
        let read = |text: &str| Scope::read(text).map_err(|error| error.to_string());
        assert_eq!(read("sts/web"), Ok(Scope::Set("web".to_owned())));
        assert_eq!(read("pod/web-0"), Ok(Scope::Pod("web-0".to_owned())));
        assert_eq!(read("www-web-0"), Ok(Scope::Claim("www-web-0".to_owned())));
        assert_eq!(read("pvc/www-web-0"), Ok(Scope::Claim("www-web-0".to_owned())));
        assert!(read("svc/web").unwrap_err().contains("name sts/SET, pod/POD or a claim"));
    }

    #[test]
    fn a_claim_tells_its_pod() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"volumeClaimTemplates": [{"metadata": {"name": "www"}}, {"metadata": {"name": "www-log"}}]},
        }))
        .unwrap();
        assert_eq!(pod_of("www-web-10", &set), Some(PodName::from("web-10")));
        assert_eq!(pod_of("www-log-web-1", &set), Some(PodName::from("web-1")));
        for other in ["www-other-0", "www-web", "web-0", "www-web-01"] {
            assert_eq!(pod_of(other, &set), None, "{other}");
        }
    }

    #[test]
    fn sizes() {
        assert!(size("2Gi").is_ok());
        for bad in ["0", "-1Gi", "2 Gi", "many"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
