//! The priorities of pods that the controller makes: from the PriorityClasses, as they are known when a pod is made.
//!
//! A priority is part of the pod and of no revision: a class that comes or goes replaces no pod. A pod whose class does
//! not exist is not made (as in Kubernetes, an event says so), and is tried again when the class comes.

use std::sync::Arc;

use model::{error::FieldPath, priority::Classes};
use pb::{
    Kind, ObjectExt,
    objects::{Pod, PriorityClass, StatefulSet},
};
use runtime::{
    Cache,
    cache::{Change, reflect},
    queue::Queue,
    tasks::Tasks,
};
use store::{Prefix, Store};

use crate::{caches::Caches, observed::SetKey, write::Fault};

/// The classes; by default those alone that exist without objects.
#[derive(Clone, Default)]
pub struct Priorities(Option<Cache<PriorityClass>>);

impl Priorities {
    /// Starts to follow the classes of a store.
    pub fn start(store: &Arc<dyn Store>, tasks: &Tasks) -> Self {
        Self(Some(reflect(Arc::clone(store), Prefix::kind(Kind::PriorityClass), tasks)))
    }

    /// Waits until the classes are known.
    pub async fn synced(&self) {
        if let Some(cache) = &self.0 {
            cache.synced().await;
        }
    }

    /// Writes the priority of a new pod into it.
    pub(crate) fn admit(&self, pod: &mut Pod) -> Result<(), Fault> {
        let known = self.0.as_ref().map(Cache::all).unwrap_or_default();
        let spec = pod.spec.get_or_insert_default();
        let admitted = Classes::of(known.iter().map(Arc::as_ref)).admit(spec, &FieldPath::of("spec.template.spec"));
        let Err(errors) = admitted else { return Ok(()) };
        // What cannot be read is not absent: the class may be there.
        let unknown = self.0.as_ref().map(|cache| cache.undecodable(&Prefix::kind(Kind::PriorityClass)));
        match unknown.into_iter().flatten().find(|unknown| unknown.key.name() == spec.priority_class_name) {
            Some(unknown) => Err(Fault::Undecodable(unknown)),
            None => {
                let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
                Err(Fault::Refused(texts.join("; ")))
            }
        }
    }

    /// Wakes the sets that name a class when it comes, for as long as it runs.
    pub async fn wake(&self, caches: &Caches, queue: &Queue<SetKey>) {
        let Some(cache) = &self.0 else { return };
        let mut changes = cache.subscribe();
        let names = |set: &StatefulSet, class: Option<&str>| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            let named = template.and_then(|template| template.spec.as_ref()).map(|spec| &spec.priority_class_name);
            named.is_some_and(|named| !named.is_empty() && class.is_none_or(|class| class == named))
        };
        while let Some(change) = changes.next().await {
            let class = match &change {
                Change::Applied { old: None, new, .. } => Some(new.name()),
                Change::Resynced => None,
                Change::Applied { .. } | Change::Deleted { .. } => continue,
            };
            let sets = caches.sets.all().into_iter().filter(|set| names(set, class));
            sets.for_each(|set| queue.add(SetKey::of(&set)));
        }
    }
}
