//! What users do, as the API service carries it out.

use std::collections::BTreeSet;

use check::Actor;
use controller::{host::Host, object};
use model::{default, identity::PodName, validate};
use pb::{Object, ObjectExt, objects::*};
use plan::{
    budget::{self, Budget},
    gc::Propagation,
    statefulset::stamp,
};
use store::{Guard, Key, Op, Txn, objects};

use super::{
    Simulation,
    sets::{self, NAMES, NAMESPACE},
};
use crate::{chance::Chance, ports, storage};

impl Simulation {
    /// A user wants something.
    pub(super) fn user(&mut self, chance: &mut Chance) {
        let name = chance.one_of(&NAMES);
        match chance.below(13) {
            0..=5 => self.change_by_chance(name, chance),
            6 => self.delete_set(name, chance),
            7 => self.create_set(name, chance, false),
            8 => self.budget(name, chance),
            10 => {
                let claims = ports::list::<PersistentVolumeClaim>(&self.store);
                if let Some(Txn { guards, ops }) = chance.pick(&claims).and_then(storage::hold) {
                    self.say(|| "  the data of a claim is to be moved".to_owned());
                    self.commit(guards, ops, Actor::User);
                }
            }
            9 => {
                let claims = ports::list::<PersistentVolumeClaim>(&self.store);
                if let Some(claim) = chance.pick(&claims) {
                    self.delete_claim(claim.clone());
                }
            }
            _ => {
                let pods = ports::list::<Pod>(&self.store);
                let Some(pod) = chance.pick(&pods).cloned() else { return };
                match chance.below(5) {
                    0 => self.forget_pod(&pod),
                    1 | 2 => self.evict(&pod),
                    _ => self.delete_pod(pod.name()),
                }
            }
        }
    }

    /// Creates a set if there is none of the name.
    pub(super) fn create_set(&mut self, name: &str, chance: &mut Chance, plain: bool) {
        let set = sets::new(name, self.host.uid(), chance, plain);
        let mut any = set.into_any();
        default::object(&mut any);
        let errors = validate::create(&any);
        if !errors.is_empty() {
            self.say(|| format!("  {name} is refused: {errors:?}"));
            return;
        }
        let Some(set) = StatefulSet::peek(&any).cloned() else { return };
        let created = self.commit(vec![objects::absent(&set)], vec![objects::put(&set)], Actor::User);
        self.say(|| match created {
            Some(_) => format!("  create {name}: {}", sets::describe(&set.spec.clone().unwrap_or_default())),
            None => format!("  {name} is there already"),
        });
    }

    fn change_by_chance(&mut self, name: &str, chance: &mut Chance) {
        let mut what = String::new();
        let changed = self.change_set(name, |spec| what = sets::change(spec, chance));
        self.say(|| format!("  {name}: {what}{}", if changed { "" } else { " (no change)" }));
    }

    /// Changes the spec of a set if the API service would let it pass. Says whether it did.
    pub(super) fn change_set(&mut self, name: &str, change: impl FnOnce(&mut StatefulSetSpec)) -> bool {
        let Some(before) = ports::get::<StatefulSet>(&self.store, NAMESPACE, name) else { return false };
        let guards = vec![objects::unchanged(&before)];
        let mut set = before.clone();
        change(set.spec.get_or_insert_default());
        if set.spec == before.spec {
            return false;
        }
        set.meta_mut().generation += 1;
        let (old, mut new) = (before.into_any(), set.into_any());
        default::object(&mut new);
        let refused = !validate::create(&new).is_empty() || !validate::update(&old, &new).is_empty();
        let Some(set) = StatefulSet::peek(&new).filter(|_| !refused) else { return false };
        self.commit(guards, vec![objects::put(set)], Actor::User).is_some()
    }

    fn delete_set(&mut self, name: &str, chance: &mut Chance) {
        let Some(mut set) = ports::get::<StatefulSet>(&self.store, NAMESPACE, name) else { return };
        let how = match chance.below(4) {
            0 => Propagation::Foreground,
            1 => Propagation::Orphan,
            _ => Propagation::Background,
        };
        let guards = vec![objects::unchanged(&set)];
        let in_order = set.spec.as_ref().is_some_and(|spec| spec.deletion_order == "Ordered");
        let ordered = Some(stamp::ORDERED_DELETION).filter(|_| in_order && how != Propagation::Orphan);
        let now = Time::from(self.host.now());
        let meta = set.meta_mut();
        if meta.deletion_timestamp.is_some() {
            return;
        }
        meta.deletion_timestamp = Some(now);
        meta.finalizers.extend(how.finalizer().into_iter().chain(ordered).map(str::to_owned));
        self.say(|| format!("  delete {name} {how:?} {}", ordered.unwrap_or_default()));
        let op = if set.meta().finalizers.is_empty() { Op::Delete(Key::of(&set)) } else { objects::put(&set) };
        self.commit(guards, vec![op], Actor::User);
    }

    fn delete_claim(&mut self, mut claim: PersistentVolumeClaim) {
        if claim.is_terminating() {
            return;
        }
        let guards = vec![objects::unchanged(&claim)];
        claim.meta_mut().deletion_timestamp = Some(Time::from(self.host.now()));
        self.say(|| format!("  delete claim {}", claim.name()));
        self.commit(guards, vec![objects::put(&claim)], Actor::User);
    }

    /// Makes, changes or deletes the disruption budget of a set.
    fn budget(&mut self, name: &str, chance: &mut Chance) {
        let new = sets::budget(name, self.host.uid(), chance);
        let op = if chance.one_in(3) { Op::Delete(Key::of(&new)) } else { objects::put(&new) };
        let bounds = new.spec.unwrap_or_default();
        self.say(|| match op {
            Op::Delete(_) => format!("  no budget for {name}"),
            Op::Put(..) => format!("  budget for {name}: {:?} {:?}", bounds.min_available, bounds.max_unavailable),
        });
        self.commit(Vec::new(), vec![op], Actor::User);
    }

    /// Asks a pod to go, as far as disruption budgets let it.
    fn evict(&mut self, pod: &Pod) {
        if pod.is_terminating() {
            return;
        }
        let (pods, sets) = (ports::list::<Pod>(&self.store), ports::list::<StatefulSet>(&self.store));
        let (pods, sets): (Vec<_>, Vec<_>) = (pods.iter().collect(), sets.iter().collect());
        let budgets = ports::list::<PodDisruptionBudget>(&self.store);
        let budgets: Vec<_> = budgets.iter().map(|budget| Budget::of(budget, &pods, &sets)).collect();
        match budget::may_go(&budgets, &PodName::from(pod.name()), &BTreeSet::new()) {
            Ok(_) => {
                self.say(|| format!("  evict {}", pod.name()));
                self.ask_to_go(pod, Actor::Evictor);
            }
            Err(refusal) => self.say(|| format!("  evict {}: {refusal}", pod.name())),
        }
    }

    /// Forgets a pod by force, whatever runs (NL-6).
    fn forget_pod(&mut self, pod: &Pod) {
        self.say(|| format!("  forget {} by force", pod.name()));
        self.nodes.forget_by_force(pod);
        self.commit(vec![objects::unchanged(pod)], vec![Op::Delete(Key::of(pod))], Actor::User);
    }

    /// Asks a pod to go.
    pub(super) fn delete_pod(&mut self, name: &str) {
        let Some(pod) = ports::get::<Pod>(&self.store, NAMESPACE, name).filter(|pod| !pod.is_terminating()) else {
            return;
        };
        self.say(|| format!("  delete {name}"));
        self.ask_to_go(&pod, Actor::User);
    }

    fn ask_to_go(&mut self, pod: &Pod, by: Actor) {
        let op = if object::may_vanish(pod) {
            Op::Delete(Key::of(pod))
        } else {
            objects::put(&object::terminating(pod.clone(), Time::from(self.host.now())))
        };
        self.commit(vec![objects::unchanged(pod)], vec![op], by);
    }

    /// Users no longer want what cannot be: templates that do not work, budgets that hold everything up.
    pub(super) fn be_reasonable(&mut self) {
        let pods = ports::list::<Pod>(&self.store);
        for name in NAMES {
            // What a user holds back by hand only a user can heal.
            let of_set = |pod: &&Pod| pod.meta().owner_references.iter().any(|owner| owner.name == name);
            let broken: Vec<_> = pods.iter().filter(of_set).filter(|pod| sets::is_broken(pod.spec.as_ref())).collect();
            let remembered = ports::list::<ControllerRevision>(&self.store)
                .into_iter()
                .any(|revision| sets::is_broken(revision.data.as_ref().and_then(|template| template.spec.as_ref())));
            let mut on_delete = false;
            self.change_set(name, |spec| {
                sets::repair(spec, "good", remembered);
                on_delete = spec.update_strategy.as_ref().is_some_and(|strategy| strategy.r#type == "OnDelete");
            });
            for pod in broken.iter().filter(|_| on_delete) {
                self.delete_pod(pod.name());
            }
        }
        for budget in ports::list::<PodDisruptionBudget>(&self.store) {
            let guards: Vec<Guard> = vec![objects::unchanged(&budget)];
            self.commit(guards, vec![Op::Delete(Key::of(&budget))], Actor::User);
        }
    }
}
