//! A plan in the making: the snapshot, what was found in it, and what the steps have asked for so far.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::{
    identity::{ClaimName, Ordinal, PodName, RevisionName},
    mutant::{Mutant, planted},
};

use super::{
    action::{Action, DeleteReason, Guard, NewClaim, NewPod, NewSnapshot, Op},
    grow::{Fit, Growth},
    members::Members,
    revisions::Revisions,
    snapshot::{ClaimOwner, ClaimView, PodView, Policy, Snapshot},
    wait::{Wait, WaitReason},
};

/// What a step says about going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next one may be looked at.
    Go,
    /// Something is under way; OrderedReady looks no further, Parallel does.
    Stop,
    /// An obstacle; Parallel finishes the batch and looks no further either.
    Fail,
}

/// What the deletion of a pod rests on, beside the set and the pod itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestsOn {
    /// Nothing: it would be right whatever the other pods do.
    Itself,
    /// The other pods in range that are available stay so (I8, I9).
    Peers,
}

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub snapshot: &'a Snapshot,
    pub revisions: Revisions,
    pub members: Members<'a>,
    pub actions: Vec<Action>,
    pub waits: Vec<Wait>,
    /// How far claims have grown.
    pub growth: Growth,
    /// After how long to plan again although nothing happened, for what waits for time.
    pub look_again: Option<Duration>,
    /// Pods that the plan deletes.
    deleted: BTreeSet<PodName>,
    /// Those of them that it deletes because they are outdated.
    replaced: BTreeSet<PodName>,
    /// Owners of claims that the plan creates or changes: later steps see them as they will be.
    owners: BTreeMap<ClaimName, Vec<ClaimOwner>>,
}

impl<'a> Draft<'a> {
    /// Starts with the actions and findings of the first steps.
    pub fn new(snapshot: &'a Snapshot, members: Members<'a>, revisions: Revisions, actions: Vec<Action>) -> Self {
        let (deleted, replaced, owners, growth) = Default::default();
        let (waits, look_again) = (Vec::new(), None);
        Self { snapshot, revisions, members, actions, waits, growth, look_again, deleted, replaced, owners }
    }

    /// Whether pods come and go one after the other.
    pub fn in_order(&self) -> bool {
        self.snapshot.set.policy == Policy::OrderedReady
    }

    /// The ordinal at an index.
    pub fn ordinal(&self, index: u32) -> Ordinal {
        self.snapshot.set.ordinals.at(index)
    }

    /// The claim if it exists.
    pub fn claim(&self, name: &ClaimName) -> Option<&'a ClaimView> {
        self.snapshot.claims.get(name)
    }

    /// The owners of a claim as they will be after the actions so far; None if there is no such claim.
    pub fn owners_of(&self, name: &ClaimName) -> Option<&[ClaimOwner]> {
        let planned = self.owners.get(name).map(Vec::as_slice);
        planned.or_else(|| self.claim(name).map(|claim| claim.owners.as_slice()))
    }

    /// Whether the plan deletes this pod.
    pub fn deletes(&self, pod: &PodName) -> bool {
        self.deleted.contains(pod)
    }

    /// Whether the plan creates the pod of this ordinal.
    pub fn creates(&self, ordinal: Ordinal) -> bool {
        self.actions.iter().any(|action| matches!(&action.op, Op::CreatePod(new) if new.ordinal == ordinal))
    }

    /// How many pods the plan deletes because they are outdated.
    pub fn replaced(&self) -> i32 {
        i32::try_from(self.replaced.len()).unwrap_or(i32::MAX)
    }

    /// Whether a pod is not what would be made at the update revision: the template or what its ordinal has otherwise
    /// was changed since.
    pub fn is_outdated(&self, pod: &PodView) -> bool {
        let overrides = self.snapshot.set.overrides_of(&pod.name);
        let differs = pod.overrides != overrides && !planted(Mutant::IgnoreOverrides);
        pod.revision.as_ref() != Some(&self.revisions.update) || differs
    }

    /// The revision that a pod made now is made from (REV-12).
    pub fn revision_of_new_pod(&self, ordinal: Ordinal) -> &RevisionName {
        let index = self.snapshot.set.ordinals.index_of(ordinal);
        let kept_back = self.revisions.kept_back(&self.snapshot.set, &self.members);
        let outdated = index.is_some_and(|index| index < kept_back);
        if outdated { &self.revisions.current } else { &self.revisions.update }
    }

    /// Notes something that is waited for.
    pub fn wait(&mut self, ordinal: Ordinal, reason: WaitReason) {
        let pod = self.snapshot.set.name.pod(ordinal);
        self.waits.push(Wait { ordinal: Some(ordinal), pod, reason });
    }

    /// Plans again after so long, or earlier.
    pub fn look_again(&mut self, after: Option<Duration>) {
        self.look_again = self.look_again.into_iter().chain(after).min();
    }

    /// Guards that the set is as it was seen.
    pub fn set_unchanged(&self) -> Guard {
        set_unchanged(self.snapshot)
    }

    /// Asks for a pod with the claims that it lacks.
    pub fn create_pod(&mut self, new: NewPod) {
        let mut guards = vec![self.set_unchanged(), Guard::PodAbsent(new.pod.clone())];
        guards.extend(new.claims.iter().map(|claim| Guard::ClaimAbsent(claim.name.clone())));
        guards.extend(new.reused.iter().filter_map(|name| self.claim(name)).map(claim_unchanged));
        if self.in_order() && !planted(Mutant::CreateIgnoresPeers) {
            guards.push(self.peers_unchanged(|peer| peer < new.ordinal));
        }
        for claim in &new.claims {
            self.owners.insert(claim.name.clone(), claim.owners.clone());
        }
        self.actions.push(Action { op: Op::CreatePod(new), guards });
    }

    /// Asks for a claim alone.
    pub fn create_claim(&mut self, claim: NewClaim) {
        let guards = vec![self.set_unchanged(), Guard::ClaimAbsent(claim.name.clone())];
        self.owners.insert(claim.name.clone(), claim.owners.clone());
        self.actions.push(Action { op: Op::CreateClaim(claim), guards });
    }

    /// Asks for other owners of a claim.
    pub fn update_claim_owners(&mut self, claim: &'a ClaimView, owners: Vec<ClaimOwner>) {
        let guards = vec![self.set_unchanged(), claim_unchanged(claim)];
        self.owners.insert(claim.name.clone(), owners.clone());
        self.actions.push(Action { op: Op::UpdateClaimOwners { claim: claim.name.clone(), owners }, guards });
    }

    /// Asks for a claim to be made as its template says, unless the plan changes it already.
    pub fn fit_claim(&mut self, claim: &ClaimView, fit: Fit) {
        if self.owners.contains_key(&claim.name) || self.uses(&claim.name) {
            return;
        }
        let Fit { claim: name, template, ordinal, grow } = fit;
        let guards = vec![self.set_unchanged(), claim_unchanged(claim)];
        self.actions.push(Action { op: Op::FitClaim { claim: name, template, ordinal, grow }, guards });
    }

    /// Whether the plan gives this claim to a pod, or takes it away.
    fn uses(&self, claim: &ClaimName) -> bool {
        self.actions.iter().any(|action| match &action.op {
            Op::CreatePod(new) => new.marks && new.reused.contains(claim),
            Op::RestoreClaims { claims, .. } => claims.iter().any(|(name, _)| name == claim),
            Op::RecreateVolumes { claims, .. } => claims.contains(claim),
            _ => false,
        })
    }

    /// Asks for a snapshot of a claim that no pod has now.
    pub fn create_snapshot(&mut self, claim: &ClaimView, new: NewSnapshot) {
        let pod = self.snapshot.set.name.pod(new.ordinal);
        let guards = vec![self.set_unchanged(), Guard::PodAbsent(pod), claim_unchanged(claim)];
        self.actions.push(Action { op: Op::CreateSnapshot(new), guards });
    }

    /// Asks for claims of an ordinal without a pod to be taken back to snapshots, all together.
    pub fn restore_claims(&mut self, ordinal: Ordinal, claims: Vec<(&ClaimView, String)>) {
        let mut guards = vec![self.set_unchanged(), Guard::PodAbsent(self.snapshot.set.name.pod(ordinal))];
        guards.extend(claims.iter().map(|(claim, _)| claim_unchanged(claim)));
        let claims = claims.into_iter().map(|(claim, from)| (claim.name.clone(), from)).collect();
        self.actions.push(Action { op: Op::RestoreClaims { ordinal, claims }, guards });
    }

    /// Asks for the pod and the claims of an ordinal to go. What the other pods are is part of it.
    pub fn recreate_volumes(&mut self, ordinal: Ordinal, pod: Option<&PodView>, claims: &[&ClaimView]) {
        let mut guards = vec![self.set_unchanged()];
        guards.push(pod.map_or_else(|| Guard::PodAbsent(self.snapshot.set.name.pod(ordinal)), PodView::unchanged));
        guards.extend(claims.iter().map(|claim| claim_unchanged(claim)));
        guards.push(self.peers_unchanged(|peer| peer != ordinal));
        let going = pod.filter(|pod| !pod.terminating && self.deleted.insert(pod.name.clone()));
        let pod = going.map(|pod| pod.name.clone());
        let claims = claims.iter().map(|claim| claim.name.clone()).collect();
        self.actions.push(Action { op: Op::RecreateVolumes { ordinal, pod, claims }, guards });
    }

    /// Asks for a pod's labels and volumes to be put right.
    pub fn repair_pod(&mut self, pod: &PodView, ordinal: Ordinal, identity: bool, storage: bool) {
        let guards = vec![self.set_unchanged(), pod.unchanged()];
        self.actions.push(Action { op: Op::RepairPod { pod: pod.name.clone(), ordinal, identity, storage }, guards });
    }

    /// Asks for a pod to be deleted to come back anew, once.
    pub fn replace(&mut self, pod: &PodView, ordinal: Ordinal, rests_on: RestsOn) {
        self.replaced.insert(pod.name.clone());
        let why = DeleteReason::Outdated { from: pod.revision.clone(), to: self.revisions.update.clone() };
        self.delete_pod(pod, ordinal, why, rests_on);
    }

    /// Asks for a pod to be deleted, once.
    pub fn delete_pod(&mut self, pod: &PodView, ordinal: Ordinal, why: DeleteReason, rests_on: RestsOn) {
        if !self.deleted.insert(pod.name.clone()) {
            return;
        }
        let mut guards = vec![self.set_unchanged(), pod.unchanged()];
        if rests_on == RestsOn::Peers {
            guards.push(self.peers_unchanged(|peer| peer != ordinal));
        }
        self.actions.push(Action { op: Op::DeletePod { pod: pod.name.clone(), ordinal, why }, guards });
    }

    /// The actions and waits. Deletions of one plan do not guard against each other: each counts the others in already.
    pub fn finish(self) -> (Vec<Action>, Vec<Wait>) {
        let Self { mut actions, waits, deleted, .. } = self;
        for guard in actions.iter_mut().flat_map(|action| &mut action.guards) {
            if let Guard::PodsUnchanged(pods) = guard {
                pods.retain(|seen| !deleted.contains(&seen.pod));
            }
        }
        (actions, waits)
    }

    /// Guards that those pods that `which` names and that are available are as they were seen. What the others
    /// do does not matter: they are counted as unavailable already, and can only become better.
    fn peers_unchanged(&self, which: impl Fn(Ordinal) -> bool) -> Guard {
        let counted = |(ordinal, pod): &(&Ordinal, &&PodView)| which(**ordinal) && !pod.is_unavailable(self.snapshot);
        let peers = self.members.replicas.iter().filter(counted).map(|(_, pod)| pod.seen());
        // Under OrderedReady a broken pod is scaled away only while no lower one is broken, wherever that is (DN-4).
        let condemned = self.members.condemned.iter().map(|(ordinal, pod)| (ordinal, pod)).filter(counted);
        let condemned = condemned.filter(|_| self.in_order()).map(|(_, pod)| pod.seen());
        Guard::PodsUnchanged(peers.chain(condemned).collect())
    }
}

/// Guards that the set is as it was seen.
pub(super) fn set_unchanged(snapshot: &Snapshot) -> Guard {
    Guard::SetUnchanged { uid: snapshot.set.uid.clone(), at: snapshot.set.at }
}

fn claim_unchanged(claim: &ClaimView) -> Guard {
    Guard::ClaimUnchanged { claim: claim.name.clone(), uid: claim.uid.clone(), at: claim.at }
}
