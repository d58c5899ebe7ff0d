//! The claims of one ordinal: which are missing, which are in the way, who owns them (PVC-1 to PVC-8, RET-1 to RET-9).
//!
//! Deletes no claim. By the retention policy a claim gets the set or its pod as owner, and whoever collects
//! garbage deletes it when that owner is gone (I6). An owner reference of an earlier object of the same name is left
//! alone: it speaks for a deletion that is not ours to undo. A claim that was made for another set is neither used nor
//! touched (I5).

use model::{
    identity::{ClaimName, Ordinal, PodName, Uid},
    mutant::{Mutant, planted},
};

use super::{
    action::NewClaim,
    draft::Draft,
    snapshot::{ClaimOwner, ClaimView, OwnerKind, PodView, Retention, SetView},
    stamp,
    wait::WaitReason,
};

/// What stands in the way of a pod's claims, and what is missing.
pub(super) struct Inventory {
    /// Claims to be made.
    pub missing: Vec<NewClaim>,
    /// Claims that are there and usable.
    pub present: Vec<ClaimName>,
    /// Claims that cannot be used, and why.
    pub unusable: Vec<WaitReason>,
    /// Claims that nobody may use for a while, and why.
    pub held: Vec<WaitReason>,
}

/// Looks at the claims that a pod needs. `uid` is the pod's; None if it is still to be made.
pub(super) fn inventory(draft: &Draft<'_>, ordinal: Ordinal, uid: Option<&Uid>) -> Inventory {
    let set = &draft.snapshot.set;
    let owners = Owners::of(set, ordinal, uid);
    let mut inventory = Inventory { missing: Vec::new(), present: Vec::new(), unusable: Vec::new(), held: Vec::new() };
    for template in set.claim_templates.iter().map(|template| &template.name) {
        let name = set.name.claim(template, ordinal);
        match draft.claim(&name) {
            Some(claim) if is_foreign(set, template, claim) => {
                inventory.unusable.push(WaitReason::ClaimTaken { claim: name, by: claim.made_for.clone() });
            }
            Some(claim) if claim.terminating && !planted(Mutant::UseTerminatingClaim) => {
                inventory.unusable.push(WaitReason::ClaimTerminating { claim: name })
            }
            Some(claim) if claim.is_held() && !planted(Mutant::UseHeldClaim) => {
                let operation = claim.operation.as_ref().map(ToString::to_string).unwrap_or_default();
                inventory.held.push(WaitReason::ClaimHeld { claim: name, operation });
            }
            Some(_) => inventory.present.push(name),
            None if draft.owners_of(&name).is_some() => {}
            None => {
                let owners = owners.wanted(&[]).unwrap_or_default();
                inventory.missing.push(NewClaim { name, template: template.clone(), ordinal, owners });
            }
        }
    }
    inventory
}

/// Makes the claims that a pod lacks, without the pod. Says whether all of them can be used.
pub(super) fn complete(draft: &mut Draft<'_>, ordinal: Ordinal, uid: Option<&Uid>) -> bool {
    let inventory = inventory(draft, ordinal, uid);
    for claim in inventory.missing {
        draft.create_claim(claim);
    }
    let usable = inventory.unusable.is_empty();
    for reason in inventory.unusable {
        draft.wait(ordinal, reason);
    }
    usable
}

/// The claims of an ordinal that are there and hold no other set's data.
pub(super) fn own<'a>(draft: &Draft<'a>, ordinal: Ordinal) -> Vec<&'a ClaimView> {
    let set = &draft.snapshot.set;
    let own = |name: &String| {
        let claim = draft.claim(&set.name.claim(name, ordinal));
        claim.filter(|claim| !is_foreign(set, name, claim))
    };
    set.claim_templates.iter().filter_map(|template| own(&template.name)).collect()
}

/// Whether a claim of the ordinal's names holds another set's data.
pub(super) fn any_foreign(draft: &Draft<'_>, ordinal: Ordinal) -> bool {
    let set = &draft.snapshot.set;
    let foreign = |name: &String| {
        let claim = draft.claim(&set.name.claim(name, ordinal));
        claim.is_some_and(|claim| is_foreign(set, name, claim))
    };
    set.claim_templates.iter().any(|template| foreign(&template.name))
}

/// Whether a claim holds the data of another set, whose claims happen to get the same name. A claim that says nothing was
/// made by a person, and for this set.
fn is_foreign(set: &SetView, template: &str, claim: &ClaimView) -> bool {
    !claim.made_for.is_empty() && claim.made_for != stamp::made_for(set.name.as_str(), template)
}

/// A claim that belongs to an earlier pod of this name and is about to be collected (RET-4).
pub(super) fn stale(draft: &Draft<'_>, ordinal: Ordinal) -> Option<ClaimName> {
    let set = &draft.snapshot.set;
    if !set.retention.delete_when_scaled {
        return None;
    }
    let owners = Owners::of(set, ordinal, None);
    let claims = set.claim_templates.iter().map(|template| set.name.claim(&template.name, ordinal));
    claims
        .into_iter()
        .find(|claim| draft.owners_of(claim).is_some_and(|refs| refs.iter().any(|r| owners.is_old_pod(r))))
}

/// Puts the owners of a pod's claims right (RET-5). A missing claim does not matter.
pub(super) fn fix_owners(draft: &mut Draft<'_>, ordinal: Ordinal, uid: Option<&Uid>) {
    let set = &draft.snapshot.set;
    let owners = Owners::of(set, ordinal, uid);
    for template in set.claim_templates.iter().map(|template| &template.name) {
        let name = set.name.claim(template, ordinal);
        let Some(claim) = draft.claim(&name).filter(|claim| !is_foreign(set, template, claim)) else { continue };
        if let Some(wanted) = draft.owners_of(&name).and_then(|refs| owners.wanted(refs)) {
            draft.update_claim_owners(claim, wanted);
        }
    }
}

/// Claims of the set's pods that another controller owns although the retention policy wants them gone with the pod or
/// the set: the policy leaves them alone (EV).
pub(super) fn disputed(draft: &Draft<'_>) -> Vec<ClaimName> {
    let set = &draft.snapshot.set;
    if set.retention.keeps_all() {
        return Vec::new();
    }
    let claims_of = |(ordinal, pod): (Ordinal, &PodView)| {
        let owners = Owners::of(set, ordinal, Some(&pod.uid));
        let claims = set.claim_templates.iter().filter_map(|template| {
            let name = set.name.claim(&template.name, ordinal);
            draft.claim(&name).filter(|claim| !is_foreign(set, &template.name, claim)).map(|claim| (name, claim))
        });
        claims.filter(|(_, claim)| owners.others_control(&claim.owners)).map(|(name, _)| name).collect::<Vec<_>>()
    };
    draft.members.iter().flat_map(claims_of).collect()
}

/// The two objects that can own a claim of one ordinal by the retention policy.
struct Owners<'a> {
    set: &'a SetView,
    pod: PodName,
    /// None: the pod does not exist yet, so every reference to a pod of its name is to an earlier one.
    pod_uid: Option<&'a Uid>,
    in_range: bool,
}

impl<'a> Owners<'a> {
    fn of(set: &'a SetView, ordinal: Ordinal, pod_uid: Option<&'a Uid>) -> Self {
        Self { set, pod: set.name.pod(ordinal), pod_uid, in_range: set.ordinals.contains(ordinal) }
    }

    /// The owners that a claim with these owners should have; None if it has them.
    fn wanted(&self, refs: &[ClaimOwner]) -> Option<Vec<ClaimOwner>> {
        if refs.iter().any(|r| self.is_old_set(r) || self.is_old_pod(r)) {
            return None;
        }
        let mut wanted: Vec<_> = refs.iter().filter(|r| !self.names_set(r) && !self.names_pod(r)).cloned().collect();
        let foreign_controller = !self.set.retention.keeps_all() && wanted.iter().any(|r| r.controller);
        if !foreign_controller {
            wanted.extend(self.by_policy());
        }
        let as_a_set = |refs: &[ClaimOwner]| {
            let mut keys: Vec<_> = refs.iter().map(|r| (r.uid.clone(), r.controller)).collect();
            keys.sort();
            keys
        };
        (as_a_set(&wanted) != as_a_set(refs)).then_some(wanted)
    }

    /// The owner that the retention policy gives a claim: the table of section 1.2.
    fn by_policy(&self) -> Option<ClaimOwner> {
        let Retention { delete_with_set, delete_when_scaled } = self.set.retention;
        if delete_when_scaled && (!self.in_range || planted(Mutant::OwnersInRange)) {
            let uid = self.pod_uid?.clone();
            Some(ClaimOwner { kind: OwnerKind::Pod, name: self.pod.to_string(), uid, controller: true })
        } else if delete_with_set {
            let uid = self.set.uid.clone();
            Some(ClaimOwner { kind: OwnerKind::Set, name: self.set.name.to_string(), uid, controller: true })
        } else {
            None
        }
    }

    /// Whether another object than the set and the pod is the controller.
    fn others_control(&self, refs: &[ClaimOwner]) -> bool {
        refs.iter().any(|r| r.controller && !self.names_set(r) && !self.names_pod(r))
    }

    fn names_set(&self, r: &ClaimOwner) -> bool {
        r.kind == OwnerKind::Set && r.name == self.set.name.as_str()
    }

    fn names_pod(&self, r: &ClaimOwner) -> bool {
        r.kind == OwnerKind::Pod && r.name == self.pod.as_str()
    }

    fn is_old_set(&self, r: &ClaimOwner) -> bool {
        self.names_set(r) && r.uid != self.set.uid
    }

    fn is_old_pod(&self, r: &ClaimOwner) -> bool {
        self.names_pod(r) && Some(&r.uid) != self.pod_uid
    }
}
