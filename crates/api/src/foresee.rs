//! What a changed set would do to its pods: the planner's own preview, over what is stored now.

use std::sync::Arc;

use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt as _,
    api::v1::ForeseenStep,
    objects::{ControllerRevision, PersistentVolumeClaim, Pod, PodDisruptionBudget, Service, StatefulSet},
};
use plan::{
    budget::Budget,
    statefulset::{Objects, Snapshot, preview},
};

use crate::{Shared, caches::Stored, error::Result};

fn typed<T: Object>(stored: &[Arc<Stored>]) -> Vec<&T> {
    stored.iter().filter_map(|stored| stored.typed()).collect()
}

/// What would become of the pods of a set, and why not all would come to the new revision; empty if they would.
pub type Foreseen = (Vec<ForeseenStep>, String);

impl Shared {
    /// Foresees what the controller would do if `set` were stored as it is here.
    pub async fn foresee(&self, set: &StatefulSet) -> Result<Foreseen> {
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
        let seen = preview(&Snapshot::of(Timestamp::now(), objects));
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
