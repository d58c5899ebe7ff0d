//! What a changed set would do to its pods: the planner's own preview, over what is stored now.

use std::sync::Arc;

use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt as _,
    api::v1::ForeseenStep,
    objects::{
        ControllerRevision, PersistentVolumeClaim, Pod, PodDisruptionBudget, Service, StatefulSet, VolumeSnapshot,
    },
};
use plan::{
    budget::Budget,
    statefulset::{Objects, Snapshot, preview},
};

use tokio::task::spawn_blocking;

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result},
};

/// Replicas of a set up to which its pods are foreseen: each step is a plan over all of them.
const LARGEST: i32 = 2000;

fn typed<T: Object>(stored: &[Arc<Stored>]) -> Vec<&T> {
    stored.iter().filter_map(|stored| stored.typed()).collect()
}

/// What would become of the pods of a set, and why not all would come to the new revision; empty if they would.
pub type Foreseen = (Vec<ForeseenStep>, String);

impl Shared {
    /// Foresees what the controller would do if `set` were stored as it is here.
    pub async fn foresee(&self, set: &StatefulSet) -> Result<Foreseen> {
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        if replicas > LARGEST {
            return Ok((Vec::new(), format!("not foreseen: the set has {replicas} replicas, more than {LARGEST}")));
        }
        let namespace = set.namespace();
        let (pods, _) = self.caches.list(Kind::Pod, namespace).await?;
        let (sets, _) = self.caches.list(Kind::StatefulSet, namespace).await?;
        let (claims, _) = self.caches.list(Kind::PersistentVolumeClaim, namespace).await?;
        let (revisions, _) = self.caches.list(Kind::ControllerRevision, namespace).await?;
        let (services, _) = self.caches.list(Kind::Service, namespace).await?;
        let (budgets, _) = self.caches.list(Kind::PodDisruptionBudget, namespace).await?;
        let pods = typed::<Pod>(&pods);
        let mut sets = typed::<StatefulSet>(&sets);
        sets.retain(|stored| stored.name() != set.name());
        sets.push(set);
        let budgets = typed::<PodDisruptionBudget>(&budgets);
        let budgets: Vec<_> = budgets.into_iter().map(|budget| Budget::of(budget, &pods, &sets)).collect();
        let service = set.spec.as_ref().map_or("", |spec| spec.service_name.as_str());
        let objects = Objects {
            set,
            pods: &pods,
            claims: &typed::<PersistentVolumeClaim>(&claims),
            revisions: &typed::<ControllerRevision>(&revisions),
            service_exists: service.is_empty() || typed::<Service>(&services).iter().any(|one| one.name() == service),
            budgets: &budgets,
        };
        let (snapshots, _) = self.caches.list(Kind::VolumeSnapshot, namespace).await?;
        let snapshot = Snapshot::of(Timestamp::now(), objects).with_snapshots(typed::<VolumeSnapshot>(&snapshots));
        let seen = spawn_blocking(move || preview(&snapshot)).await;
        let seen =
            seen.map_err(|error| Error::Bug(format!("foreseeing what becomes of {} failed: {error}", set.name())))?;
        let step = |step: &plan::statefulset::Foreseen| ForeseenStep {
            pod: step.pod.to_string(),
            action: step.what.as_str().to_owned(),
            why: step.why.clone(),
        };
        let mut held_back: Vec<_> = seen.held_back.iter().map(ToString::to_string).collect();
        if seen.goes_on {
            held_back.push(format!("more would follow: only the first {} steps are shown", seen.steps.len()));
        }
        Ok((seen.steps.iter().map(step).collect(), held_back.join("; ")))
    }
}
