//! Why a set, a pod or a claim is not there yet: gathers what is known and asks [`explain`], which is pure.

mod advice;
mod claim;
mod explain;
mod pod;

use std::sync::Arc;

use jiff::Timestamp;
use model::identity::PodName;
use pb::{
    Kind, Object,
    api::v1::{WhyRequest, WhyResponse},
    objects::{
        ControllerRevision, CsiDriver, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, StatefulSet,
        StorageClass, VolumeAttachment, VolumeSnapshot,
    },
};
use plan::budget::Budget;

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result},
    write::DEFAULT_NAMESPACE,
};
use explain::{Asked, Facts};

/// What can be asked about.
const ASKED: [Kind; 3] = [Kind::StatefulSet, Kind::Pod, Kind::PersistentVolumeClaim];

fn typed<T: Object>(stored: &[Arc<Stored>]) -> Vec<&T> {
    stored.iter().filter_map(|stored| stored.typed()).collect()
}

impl Shared {
    /// Explains why a set, a pod or a claim is not there yet.
    pub async fn why(&self, request: WhyRequest) -> Result<WhyResponse> {
        let namespace = if request.namespace.is_empty() { DEFAULT_NAMESPACE } else { &request.namespace };
        let (kind, name) = match request.name.split_once('/') {
            Some((kind, name)) => (Some(crate::error::parse_kind(kind)?), name),
            None => (None, request.name.as_str()),
        };
        if kind.is_some_and(|kind| !ASKED.contains(&kind)) {
            let why = "Unsupported value: only a statefulset, a pod or a persistentvolumeclaim can be asked about";
            return Err(Error::field("name", why));
        }
        let wanted = |this| kind.is_none_or(|kind| kind == this);
        let (pods, _) = self.caches.list(Kind::Pod, namespace).await?;
        let (sets, _) = self.caches.list(Kind::StatefulSet, namespace).await?;
        let (claims, _) = self.caches.list(Kind::PersistentVolumeClaim, namespace).await?;
        let (revisions, _) = self.caches.list(Kind::ControllerRevision, namespace).await?;
        let (services, _) = self.caches.list(Kind::Service, namespace).await?;
        let (nodes, _) = self.caches.list(Kind::Node, "").await?;
        let (events, _) = self.caches.list(Kind::Event, namespace).await?;
        let (snapshots, _) = self.caches.list(Kind::VolumeSnapshot, namespace).await?;
        let (volumes, _) = self.caches.list(Kind::PersistentVolume, "").await?;
        let (classes, _) = self.caches.list(Kind::StorageClass, "").await?;
        let (drivers, _) = self.caches.list(Kind::CsiDriver, "").await?;
        let (attachments, _) = self.caches.list(Kind::VolumeAttachment, "").await?;
        let sets: Vec<&StatefulSet> = typed(&sets);
        let set_named = |name: &str| sets.iter().find(|set| set.meta().name == name).copied();
        let pod_name = PodName::from(name);
        let set_of_pod = || pod_name.split().and_then(|(set, _)| set_named(set.as_str()));
        let pods: Vec<&Pod> = typed(&pods);
        let (budgets, _) = self.caches.list(Kind::PodDisruptionBudget, namespace).await?;
        let budgets: Vec<Budget> = typed(&budgets).into_iter().map(|budget| Budget::of(budget, &pods, &sets)).collect();
        let claims: Vec<&PersistentVolumeClaim> = typed(&claims);
        let claim_exists = claims.iter().any(|claim| claim.meta().name == name);
        let pod_exists = pods.iter().any(|pod| pod.meta().name == name);
        let (asked, set) = match (set_named(name).filter(|_| wanted(Kind::StatefulSet)), set_of_pod()) {
            (Some(set), _) => (Asked::Set, Some(set)),
            (None, set) if wanted(Kind::Pod) && pod_exists => (Asked::Pod(pod_name.clone()), set),
            (None, _) if wanted(Kind::PersistentVolumeClaim) && claim_exists => (Asked::Claim(name.to_owned()), None),
            (None, set) if wanted(Kind::Pod) && set.is_some() => (Asked::Pod(pod_name.clone()), set),
            _ => {
                let what = format!("statefulset, pod or claim {namespace}/{name}");
                return Err(Error::NotFound {
                    what,
                    hint: "; `berth get sts,pods,pvc` lists what there is".to_owned(),
                });
            }
        };
        let facts = Facts {
            now: Timestamp::now(),
            set,
            pods: &pods,
            claims: &claims,
            revisions: &typed::<ControllerRevision>(&revisions),
            services: &typed::<Service>(&services),
            nodes: &typed::<Node>(&nodes),
            budgets: &budgets,
            events: &typed::<Event>(&events),
            volumes: &typed::<PersistentVolume>(&volumes),
            classes: &typed::<StorageClass>(&classes),
            drivers: &typed::<CsiDriver>(&drivers),
            attachments: &typed::<VolumeAttachment>(&attachments),
            snapshots: &typed::<VolumeSnapshot>(&snapshots),
        };
        Ok(explain::explain(&asked, &facts))
    }
}
