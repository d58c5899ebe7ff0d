//! Does single actions of a plan: builds the objects, asks for a node and volumes, commits.

use std::{collections::BTreeMap, sync::Arc};

use model::{
    identity::ClaimName,
    mutant::{Mutant, planted},
};
use parking_lot::Mutex;
use pb::{Object, ObjectExt, objects::*};
use plan::statefulset::{
    Action, DeleteReason, Guard as PlanGuard, NewClaim, NewPod, Op, PodAt, Status, conditions, stamp,
};
use store::{Guard, Key, Prefix};

use crate::{
    events::Note,
    metrics,
    object::{born, born_claim, born_pod, may_vanish, terminating},
    observed::Observed,
    step::Surroundings,
    tell,
    write::{Draft, Fault, Wrote},
};

/// What an action did.
#[derive(Debug, Default)]
pub struct Made {
    /// What it wrote.
    pub wrote: Wrote,
    /// What to tell people.
    pub notes: Vec<Note>,
}

/// Why an action was not done.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub fault: Fault,
    /// What to tell people.
    pub notes: Vec<Note>,
}

/// Does the actions of one plan.
pub struct Apply<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) around: &'a Surroundings,
    /// Revisions that this plan made: pods are stamped from them before a cache shows them.
    made: Mutex<BTreeMap<String, Arc<ControllerRevision>>>,
}

impl<'a> Apply<'a> {
    /// For one plan, made from what was observed.
    pub fn new(observed: &'a Observed, around: &'a Surroundings) -> Self {
        Self { observed, around, made: Mutex::default() }
    }

    /// Does one action.
    pub async fn action(&self, action: &Action) -> Result<Made, Failure> {
        self.act(action).await.map_err(|fault| {
            let notes = tell::failure(self.observed.set.as_ref(), &action.op, &fault).into_iter().collect();
            Failure { fault, notes }
        })
    }

    async fn act(&self, action: &Action) -> Result<Made, Fault> {
        let unguarded = matches!(action.op, Op::UpdateStatus(_)) && planted(Mutant::StatusResurrects);
        let mut draft = Draft::new(if unguarded { Vec::new() } else { self.guards(&action.guards) });
        let set = self.observed.set.as_ref();
        let mut notes = Vec::new();
        match &action.op {
            Op::CreatePod(new) => return self.create_pod(new, draft).await,
            Op::CreateClaim(new) => return self.create_claim(new, draft).await,
            Op::DeletePod { pod, why, .. } => return self.delete_pod(self.pod(pod.as_str())?, why, draft).await,
            Op::UpdateStatus(status) => {
                notes.extend(missed_deadline(set, status));
                let mut set = set.clone();
                stamp::status(status, set.status.get_or_insert_default());
                draft.put(&set);
                metrics::get().status_writes.inc();
            }
            Op::CreateService { name } => {
                draft.create(&born(stamp::service(set, name), self.around.host.birth()));
                notes.push(Note::normal(set, "SuccessfulCreate", format!("created the headless service {name}")));
            }
            Op::CreateRevision { name, number, .. } => {
                draft.guard([self.no_newer_revision()]);
                let revision = born(stamp::revision(set, name.as_str(), *number), self.around.host.birth());
                draft.create(&revision);
                self.made.lock().insert(name.to_string(), Arc::new(revision));
            }
            Op::AdoptRevision { name } => {
                let mut revision = self.revision(name.as_str())?.as_ref().clone();
                stamp::adopt(revision.meta_mut(), set);
                draft.put(&revision);
            }
            Op::RenumberRevision { name, number } => {
                draft.guard([self.no_newer_revision()]);
                let mut revision = self.revision(name.as_str())?.as_ref().clone();
                revision.revision = *number;
                draft.put(&revision);
            }
            Op::RevertTemplate { from, to } => {
                let set = reverted(set, self.revision(to.as_str())?.data.clone(), from.as_str());
                draft.put(&set);
                let what =
                    format!("set the template back from revision {from} to {to}: it missed the progress deadline");
                notes.push(Note::warning(&set, conditions::ROLLOUT_REVERTED, what));
            }
            Op::ReleaseSet => {
                draft.guard([self.no_other_pod()]);
                let mut set = set.clone();
                set.meta_mut().finalizers.retain(|finalizer| finalizer != stamp::ORDERED_DELETION);
                if set.meta().finalizers.is_empty() {
                    draft.delete(&set);
                } else {
                    draft.put(&set);
                }
            }
            Op::DeleteRevision { name } => draft.delete(self.revision(name.as_str())?.as_ref()),
            Op::AdoptPod { pod } => {
                let mut pod = self.pod(pod.as_str())?.clone();
                stamp::adopt(pod.meta_mut(), set);
                draft.put(&pod);
                notes.push(Note::normal(set, "SuccessfulUpdate", format!("adopted pod {}", pod.name())));
            }
            Op::ReleasePod { pod } => {
                let mut pod = self.pod(pod.as_str())?.clone();
                stamp::release(pod.meta_mut(), set);
                draft.put(&pod);
                let what = format!("released pod {}: its labels no longer match the selector", pod.name());
                notes.push(Note::normal(set, "SuccessfulUpdate", what));
            }
            Op::UpdateClaimOwners { claim, owners } => {
                let mut claim = self.claim(claim.as_str())?.clone();
                let meta = claim.meta_mut();
                meta.owner_references = stamp::owner_references(&meta.owner_references, owners);
                draft.put(&claim);
                let what = format!("put the owners of claim {} right", claim.name());
                notes.push(Note::normal(set, "SuccessfulUpdate", what));
            }
            Op::FitClaim { claim, template, ordinal, grow } => {
                let mut claim = self.claim(claim.as_str())?.clone();
                stamp::fit(set, &mut claim, template, *ordinal, *grow);
                draft.put(&claim);
                notes.push(fitted(set, &claim, *grow));
            }
            Op::CreateSnapshot(new) => {
                draft.create(&born(stamp::snapshot(set, new), self.around.host.birth()));
                let what = format!("asked for snapshot {} of claim {} before the update", new.name, new.claim);
                notes.push(Note::normal(set, "SnapshotBeforeUpdate", what));
            }
            Op::RestoreClaims { claims, .. } => {
                for (name, snapshot) in claims {
                    let mut claim = self.claim(name.as_str())?.clone();
                    let now = Time::from(self.around.host.now());
                    stamp::restore(&mut claim, self.around.host.uid(), snapshot, now);
                    draft.put(&claim);
                    let what = format!("asked for the data of claim {name} to be taken back to snapshot {snapshot}");
                    notes.push(Note::normal(set, "RestoreOnRevert", what));
                }
            }
            Op::RecreateVolumes { pod, claims, .. } => {
                if let Some(pod) = pod {
                    self.ask_to_go(self.pod(pod.as_str())?, &mut draft);
                }
                for name in claims {
                    let mut claim = self.claim(name.as_str())?.clone();
                    claim.meta_mut().deletion_timestamp = Some(Time::from(self.around.host.now()));
                    if claim.meta().finalizers.is_empty() {
                        draft.delete(&claim);
                    } else {
                        draft.put(&claim);
                    }
                }
                notes.push(given_up(set, claims));
            }
            Op::RepairPod { pod, ordinal, identity, storage } => {
                let mut pod = self.pod(pod.as_str())?.clone();
                if *identity {
                    let name = pod.name().into();
                    stamp::identify(&mut pod, &name, *ordinal);
                }
                if *storage {
                    stamp::connect(&mut pod, set, *ordinal);
                }
                draft.put(&pod);
                notes.push(Note::normal(set, "SuccessfulUpdate", format!("put pod {} right", pod.name())));
            }
        }
        let wrote = self.commit(draft).await?;
        Ok(Made { wrote, notes })
    }

    pub(crate) async fn commit(&self, draft: Draft) -> Result<Wrote, Fault> {
        draft.commit(self.around.store.as_ref(), self.around.fence.as_ref()).await
    }

    /// Asks for graceful deletion: the node's agent stops the pod and frees the name. A pod without a node goes at
    /// once: nothing of it runs anywhere (NL-5).
    async fn delete_pod(&self, pod: &Pod, why: &DeleteReason, mut draft: Draft) -> Result<Made, Fault> {
        let set = self.observed.set.as_ref();
        self.ask_to_go(pod, &mut draft);
        match why {
            DeleteReason::SetDeleted => draft.guard([self.no_other_pod()]),
            DeleteReason::ScaledAway | DeleteReason::Outdated { .. } => draft.guard(self.no_other_budget()),
            DeleteReason::Ended(_) | DeleteReason::VolumesLost => {}
        }
        let wrote = self.commit(draft).await?;
        metrics::get().pods_deleted.inc();
        let what = format!("asked pod {} to go: {why}", pod.name());
        Ok(Made { wrote, notes: vec![Note::normal(set, "SuccessfulDelete", what)] })
    }

    fn ask_to_go(&self, pod: &Pod, draft: &mut Draft) {
        if may_vanish(pod) {
            draft.delete(pod);
        } else {
            draft.put(&terminating(pod.clone(), Time::from(self.around.host.now())));
        }
    }

    pub(crate) fn pod(&self, name: &str) -> Result<&'a Pod, Fault> {
        self.observed.pods.get(name).map(Arc::as_ref).ok_or_else(|| unobserved("pod", name))
    }

    pub(crate) fn claim(&self, name: &str) -> Result<&'a PersistentVolumeClaim, Fault> {
        self.observed.claims.get(name).map(Arc::as_ref).ok_or_else(|| unobserved("claim", name))
    }

    pub(crate) fn revision(&self, name: &str) -> Result<Arc<ControllerRevision>, Fault> {
        let observed = || self.observed.revisions.get(name).cloned();
        self.made.lock().get(name).cloned().or_else(observed).ok_or_else(|| unobserved("revision", name))
    }

    /// A pod that can wait goes as far as disruption budgets let it: none may have come that was not seen.
    fn no_other_budget(&self) -> Option<Guard> {
        let set = self.observed.set.as_ref();
        let ignored = set.spec.as_ref().is_some_and(|spec| spec.budget_policy == "Ignore");
        let range = Prefix::namespace(PodDisruptionBudget::KIND, set.namespace());
        (!ignored).then_some(Guard::PrefixNotNewer(range, self.observed.budgets_at))
    }

    /// A number is one more than that of every other revision: none may have come that was not seen (I11).
    fn no_newer_revision(&self) -> Guard {
        let set = self.observed.set.as_ref();
        let start = format!("{}-", set.name());
        let range = Prefix::names(ControllerRevision::KIND, set.namespace(), &start);
        Guard::PrefixNotNewer(range, self.observed.revisions_at)
    }

    /// The pods go one after the other: none of them may be there that was not seen.
    fn no_other_pod(&self) -> Guard {
        let set = self.observed.set.as_ref();
        let start = format!("{}-", set.name());
        Guard::PrefixNotNewer(Prefix::names(Pod::KIND, set.namespace(), &start), self.observed.pods_at)
    }

    /// The claim that a template makes, with the owners that the policy gives it.
    pub(crate) fn new_claim(&self, new: &NewClaim) -> Result<PersistentVolumeClaim, Fault> {
        let claim = stamp::claim(&self.observed.set, new);
        let claim = claim.ok_or_else(|| unobserved("claim template", &new.template))?;
        Ok(born_claim(claim, self.around.host.birth()))
    }

    /// The pod of an ordinal, without a node.
    pub(crate) fn new_pod(&self, new: &NewPod) -> Result<Pod, Fault> {
        let revision = self.revision(new.revision.as_str())?;
        let template = revision.data.clone().unwrap_or_default();
        let mut pod = born_pod(stamp::pod(&self.observed.set, &template, new), self.around.host.birth());
        self.around.priorities.admit(&mut pod)?;
        if let Some(trace) = runtime::trace::current() {
            pod.meta_mut().annotations.insert(runtime::trace::ANNOTATION.to_owned(), trace);
        }
        Ok(pod)
    }

    /// The guards of a plan as the store compares them. A revision of the store names one state of one object, so
    /// uids need no guard of their own.
    fn guards(&self, guards: &[PlanGuard]) -> Vec<Guard> {
        let namespace = self.observed.set.namespace();
        let key = |kind, name: &str| Key::object(kind, namespace, name);
        let (mut out, mut together) = (Vec::new(), BTreeMap::new());
        for guard in guards {
            match guard {
                PlanGuard::SetUnchanged { .. } if planted(Mutant::IgnoreSet) => {}
                PlanGuard::SetUnchanged { at, .. } => {
                    out.push(Guard::ModRevision(Key::of(self.observed.set.as_ref()), at.0));
                }
                PlanGuard::PodUnchanged(_) if planted(Mutant::DeleteIgnoresPod) => {}
                PlanGuard::PodUnchanged(pod) => out.push(self.pod_unchanged(pod)),
                PlanGuard::PodsUnchanged(pods) => together.extend(pods.iter().map(|pod| (&pod.pod, pod))),
                PlanGuard::BudgetUnchanged(budget) => {
                    out.push(Guard::ModRevision(key(PodDisruptionBudget::KIND, &budget.name), budget.at.0));
                }
                PlanGuard::PodAbsent(name) => out.push(Guard::Absent(key(Pod::KIND, name.as_str()))),
                PlanGuard::ClaimUnchanged { claim, at, .. } => {
                    out.push(Guard::ModRevision(key(PersistentVolumeClaim::KIND, claim.as_str()), at.0));
                }
                PlanGuard::ClaimAbsent(name) => {
                    out.push(Guard::Absent(key(PersistentVolumeClaim::KIND, name.as_str())));
                }
                PlanGuard::RevisionUnchanged { name, at, .. } => {
                    out.push(Guard::ModRevision(key(ControllerRevision::KIND, name.as_str()), at.0));
                }
                PlanGuard::RevisionAbsent(name) => {
                    out.push(Guard::Absent(key(ControllerRevision::KIND, name.as_str())));
                }
                PlanGuard::ServiceAbsent(name) => out.push(Guard::Absent(key(Service::KIND, name))),
            }
        }
        out.extend(self.pods_unchanged(&together.into_values().collect::<Vec<_>>()));
        out
    }

    fn pods_unchanged(&self, pods: &[&PodAt]) -> Vec<Guard> {
        let set = &self.observed.set;
        let key = |pod: &PodAt| Key::object(Pod::KIND, set.namespace(), pod.pod.as_str());
        let keys = pods.iter().map(|pod| (key(pod), pod.at.0)).collect();
        Guard::unchanged(keys, |apart| {
            let own = format!("{}-", set.name());
            // Pods of other sets are among them only where a budget counts them.
            let start = if apart.iter().all(|(key, _)| key.name().starts_with(&own)) { own.as_str() } else { "" };
            (Prefix::names(Pod::KIND, set.namespace(), start), self.observed.pods_at)
        })
    }

    fn pod_unchanged(&self, pod: &PodAt) -> Guard {
        let key = Key::object(Pod::KIND, self.observed.set.namespace(), pod.pod.as_str());
        Guard::ModRevision(key, pod.at.0)
    }
}

/// The set with the template of an older revision, as if somebody had set it back by hand, and with what it came from.
fn reverted(set: &StatefulSet, template: Option<PodTemplateSpec>, from: &str) -> StatefulSet {
    let mut set = set.clone();
    set.spec.get_or_insert_default().template = template;
    set.meta_mut().generation += 1;
    from.clone_into(&mut set.status.get_or_insert_default().failed_revision);
    set
}

/// What to tell people when a set comes to have missed its deadline.
fn missed_deadline(set: &StatefulSet, status: &Status) -> Option<Note> {
    let before = set.status.iter().flat_map(|status| &status.conditions);
    let known = before.into_iter().any(|condition| condition.reason == conditions::DEADLINE_EXCEEDED);
    let mut missed = status.conditions.iter().filter(|condition| condition.reason == conditions::DEADLINE_EXCEEDED);
    let missed = missed.next().filter(|_| !known)?;
    Some(Note::warning(set, conditions::DEADLINE_EXCEEDED, missed.message.clone()))
}

/// What to tell people of a claim that was made as its template says.
fn fitted(set: &StatefulSet, claim: &PersistentVolumeClaim, grow: bool) -> Note {
    let size = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.get("storage"));
    match size.filter(|_| grow) {
        Some(size) => {
            let what = format!("asked claim {} to grow to {}", claim.name(), size.value);
            Note::normal(set, "ClaimExpanding", what)
        }
        None => {
            let what = format!("gave claim {} the labels and annotations of its template", claim.name());
            Note::normal(set, "SuccessfulUpdate", what)
        }
    }
}

/// What to tell people of volumes that are given up.
fn given_up(set: &StatefulSet, claims: &[ClaimName]) -> Note {
    let names: Vec<_> = claims.iter().map(ClaimName::as_str).collect();
    let what = format!(
        "gave up {}: a node of theirs is gone for good; they are made anew, empty (volumePolicy.onNodeLost)",
        names.join(", ")
    );
    Note::warning(set, "VolumesRecreated", what)
}

fn unobserved(what: &str, name: &str) -> Fault {
    Fault::Nonsense(format!("the plan speaks of {what} {name}, which was not observed"))
}
