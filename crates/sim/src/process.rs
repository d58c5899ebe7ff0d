//! One controller process: caches that lag, the real planner and apply step, one call at a time.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use controller::{
    observed::{Observed, SetKey},
    step::{self, Done, StatusPolicy, Surroundings},
    write::Wrote,
};
use model::identity::SetName;
use pb::{Kind, Object, ObjectExt, objects::*};
use store::{Guard, Key, MemStore, PageRequest, Prefix, Revision, objects};

use crate::{
    chance::Chance,
    ports::{Services, SimHost},
    wire::{Authors, Wire},
};

/// The revision that each cache shows.
#[derive(Clone, Copy, Debug)]
struct View {
    sets: Revision,
    pods: Revision,
    claims: Revision,
    revisions: Revision,
    services: Revision,
}

impl View {
    fn at(revision: Revision) -> Self {
        Self { sets: revision, pods: revision, claims: revision, revisions: revision, services: revision }
    }

    fn caches(&mut self) -> [&mut Revision; 5] {
        [&mut self.sets, &mut self.pods, &mut self.claims, &mut self.revisions, &mut self.services]
    }

    /// Whether the caches show what the process wrote itself.
    fn shows(&self, wrote: &Wrote) -> bool {
        self.sets >= wrote.sets
            && self.pods >= wrote.pods
            && self.claims >= wrote.claims
            && self.revisions >= wrote.revisions
            && self.services >= wrote.services
    }
}

/// A controller.
pub struct Process {
    store: MemStore,
    /// Its calls.
    pub wire: Wire,
    around: Surroundings,
    view: View,
    wrote: Wrote,
    running: Option<Pin<Box<dyn Future<Output = Done> + Send>>>,
}

/// What a turn of a process came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing to do as far as it sees, or it waits for its caches.
    Idle,
    /// It is in the middle of a step.
    Working,
    /// A step ended.
    Stepped,
    /// It crashed and starts again.
    Crashed,
}

impl Process {
    /// A process that has just started.
    pub fn new(store: &MemStore, host: &SimHost, authors: &Authors) -> Self {
        let wire = Wire::new(store.clone(), Arc::clone(authors));
        let services = || Services { store: store.clone(), wire: wire.clone(), host: host.clone() };
        let around = Surroundings {
            store: Arc::new(wire.clone()),
            placer: Arc::new(services()),
            volumes: Arc::new(services()),
            host: Arc::new(host.clone()),
            fence: None,
        };
        let view = View::at(store.revision());
        Self { store: store.clone(), wire, around, view, wrote: Wrote::default(), running: None }
    }

    /// Gives it a leader's fence. It believes in it until it gets another.
    pub fn lead(&mut self, fence: Guard) {
        self.around.fence = Some(fence);
    }

    /// Lets one cache see more, perhaps all.
    pub fn look(&mut self, chance: &mut Chance) {
        let now = self.store.revision();
        let which = chance.below(5);
        if let Some(cache) = self.view.caches().into_iter().nth(which) {
            let behind = usize::try_from(now - *cache).unwrap_or(0);
            let further = if chance.one_in(2) { behind } else { chance.below(behind + 1) };
            *cache += Revision::try_from(further).unwrap_or(0);
        }
    }

    /// Lets all caches see everything.
    pub fn look_at_all(&mut self) {
        self.view = View::at(self.store.revision());
    }

    /// Starts again: what it knew is gone, its caches list anew.
    fn restart(&mut self) {
        self.running = None;
        self.wrote = Wrote::default();
        self.look_at_all();
    }

    /// Starts a step if none is running; else lets the running one make one call.
    pub fn turn(&mut self, set: &SetKey, status: StatusPolicy) -> Turn {
        let running = match &mut self.running {
            Some(running) => running,
            None => {
                if !self.view.shows(&self.wrote) {
                    return Turn::Idle;
                }
                let Some(observed) = self.observe(set) else { return Turn::Idle };
                let plan = step::plan(&observed, self.around.host.as_ref());
                if plan.actions.is_empty() {
                    return Turn::Idle;
                }
                let around = self.around.clone();
                let step = async move { step::act(&observed, &plan, status, &around).await };
                self.running.insert(Box::pin(step))
            }
        };
        let polled = running.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if self.wire.take_crashed() {
            self.restart();
            return Turn::Crashed;
        }
        match polled {
            Poll::Pending => Turn::Working,
            Poll::Ready(done) => {
                self.wrote.merge(&done.wrote);
                self.running = None;
                Turn::Stepped
            }
        }
    }

    /// What a set waits for, as the process sees it.
    pub fn waits(&self, set: &SetKey) -> Vec<String> {
        let plan = self.observe(set).map(|observed| step::plan(&observed, self.around.host.as_ref()));
        plan.into_iter().flat_map(|plan| plan.waits).map(|wait| format!("waits: {wait}")).collect()
    }

    /// What the caches show around a set.
    fn observe(&self, key: &SetKey) -> Option<Observed> {
        let View { sets, pods, claims, revisions, services } = self.view;
        let namespace = &key.namespace;
        let one = Prefix::from_raw(Key::object(Kind::StatefulSet, namespace, &key.name).as_str());
        let set = self.list::<StatefulSet>(&one, sets).into_iter().find(|set| set.name() == key.name)?;
        let spec = set.spec.clone().unwrap_or_default();
        let start = format!("{}-", SetName::from(key.name.as_str()));
        let claims: Vec<_> = spec
            .volume_claim_templates
            .iter()
            .flat_map(|template| {
                let start = format!("{}-{start}", template.name());
                self.list(&Prefix::names(Kind::PersistentVolumeClaim, namespace, &start), claims)
            })
            .collect();
        let service = Prefix::names(Kind::Service, namespace, &spec.service_name);
        Some(Observed {
            set,
            pods: Observed::by_name(self.list(&Prefix::names(Kind::Pod, namespace, &start), pods)),
            pods_at: pods,
            claims: Observed::by_name(claims),
            revisions: Observed::by_name(
                self.list(&Prefix::names(Kind::ControllerRevision, namespace, &start), revisions),
            ),
            revisions_at: revisions,
            budgets: Vec::new(),
            service_exists: !self.list::<Service>(&service, services).is_empty(),
        })
    }

    fn list<T: Object>(&self, prefix: &Prefix, at: Revision) -> Vec<Arc<T>> {
        let request = PageRequest { revision: Some(at), ..PageRequest::default() };
        // The simulation compacts nothing, and its objects can all be decoded.
        let page = self.store.inspect(|model| model.list(prefix, &request));
        let items = page.map(|page| page.items).unwrap_or_default();
        items.iter().filter_map(|kv| objects::decode(kv).ok()).map(Arc::new).collect()
    }
}
