//! Claims that are smaller than their template, or dressed otherwise: grown and relabelled (VCT-1 to VCT-6).
//!
//! From the highest ordinal down to the partition, one ordinal at a time: the next claim is asked to grow when the one
//! before has grown, or needs its pod to start anew for the rest. An outdated pod is replaced only after its claims had
//! their turn, so that a program that needs more room finds it. Growing takes nothing away and asks no budget; it goes on
//! while pods are down, as a full disk may be why they are. A claim that cannot grow stops the walk, and not the update.
//!
//! Only claims that were made for the set are changed: what a person made stays as it is (PVC-4). A claim is never made
//! smaller. A claim that is held by an operation, or whose volume is lost, is passed over and looked at again later.

use std::collections::BTreeMap;

use model::{
    identity::{ClaimName, Ordinal},
    mutant::{Mutant, planted},
};

use super::{
    draft::Draft,
    snapshot::{ClaimTemplate, ClaimView, Resize, SetView, Strategy},
    stamp,
    status::ClaimsStatus,
    wait::{Growing, Wait, WaitReason},
};

/// How far the claims of a set have become what their templates say, and what to do next.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// What status.volumeClaims says.
    pub status: Vec<ClaimsStatus>,
    /// Claims to be changed now.
    pub fits: Vec<Fit>,
    /// What is waited for.
    waits: Vec<(Ordinal, WaitReason)>,
    /// Pods with a lower index wait for this claim before they are replaced.
    held_below: Option<(u32, ClaimName)>,
}

/// A claim to be made as its template says.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    pub claim: ClaimName,
    pub template: String,
    pub ordinal: Ordinal,
    /// Whether its size is to be raised too.
    pub grow: bool,
}

impl Growth {
    /// The claim that the pod at an index waits for before it is replaced.
    pub fn holds(&self, index: u32) -> Option<&ClaimName> {
        self.held_below.as_ref().filter(|(below, _)| index < *below).map(|(_, claim)| claim)
    }
}

/// How far one claim is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Fits,
    /// It is larger or smaller than it should be for reasons that are not the walk's.
    PassedOver,
    Short,
    Growing(Growing),
}

fn state(set: &SetView, template: &ClaimTemplate, ordinal: Ordinal, claim: &ClaimView) -> State {
    if claim.is_held() || claim.lost.is_some() || claim.terminating {
        return State::PassedOver;
    }
    if let (Some(wanted), Some(size)) = (set.size_of(template, ordinal), claim.size)
        && size < wanted
    {
        return State::Short;
    }
    if !claim.is_growing() {
        return State::Fits;
    }
    State::Growing(match &claim.resize {
        Resize::Unhindered => Growing::Underway,
        Resize::AtStart => Growing::AtStart,
        Resize::Infeasible(why) => Growing::Infeasible(why.clone()),
    })
}

/// Finds the claims that do not fit, and how far the walk is.
pub(super) fn find(draft: &Draft<'_>) -> Growth {
    let set = &draft.snapshot.set;
    let status = set.claim_templates.iter().map(|template| count(draft, template)).collect();
    let mut growth = Growth { status, ..Growth::default() };
    if set.paused || set.deleting {
        return growth;
    }
    let partition = match set.strategy {
        Strategy::Rolling { partition, .. } => partition.unwrap_or(0),
        Strategy::OnDelete | Strategy::Recreate => 0,
    };
    let busy = busy(draft);
    for index in (partition..set.ordinals.count).rev() {
        if !walk(draft, index, &busy, &mut growth) && !planted(Mutant::GrowAllAtOnce) {
            break;
        }
    }
    growth
}

/// The claims that grow now, wherever they are: a template may have grown again before the walk was through.
fn busy(draft: &Draft<'_>) -> BTreeMap<Ordinal, ClaimName> {
    let set = &draft.snapshot.set;
    let mut busy = BTreeMap::new();
    for ordinal in set.ordinals.iter() {
        for template in &set.claim_templates {
            let claim = draft.claim(&set.name.claim(&template.name, ordinal));
            let grows = |claim: &&ClaimView| {
                let alone = !claim.is_held() && claim.lost.is_none() && !claim.terminating;
                alone && claim.is_growing() && claim.resize == Resize::Unhindered && is_ours(set, template, claim)
            };
            if let Some(claim) = claim.filter(grows) {
                busy.insert(ordinal, claim.name.clone());
            }
        }
    }
    busy
}

/// Looks at the claims of one ordinal. Says whether the next one may be looked at.
fn walk(draft: &Draft<'_>, index: u32, busy: &BTreeMap<Ordinal, ClaimName>, growth: &mut Growth) -> bool {
    let set = &draft.snapshot.set;
    let ordinal = draft.ordinal(index);
    let mut next = true;
    let other = busy.iter().find(|(of, _)| **of != ordinal).map(|(_, claim)| claim);
    let other = other.filter(|_| !planted(Mutant::GrowAllAtOnce));
    for (place, template) in set.claim_templates.iter().enumerate() {
        let name = set.name.claim(&template.name, ordinal);
        let Some(claim) = draft.claim(&name).filter(|claim| is_ours(set, template, claim)) else { continue };
        let state = state(set, template, ordinal, claim);
        if let (State::Short, Some(other)) = (&state, other) {
            growth.held_below = Some((index.saturating_add(1), other.clone()));
            let wait = WaitReason::ClaimGrowing { claim: other.clone(), state: Growing::Underway };
            growth.waits.push((ordinal, wait));
            return false;
        }
        let short = state == State::Short;
        if short || (claim.labels_differ && state != State::PassedOver) {
            let template = template.name.clone();
            growth.fits.push(Fit { claim: name.clone(), template, ordinal, grow: short });
        }
        let growing = match state {
            // Without a volume it is what it asks for.
            State::Short if claim.bound => Growing::Underway,
            State::Growing(growing) => growing,
            State::Short | State::Fits | State::PassedOver => continue,
        };
        if growing == Growing::Underway {
            growth.held_below = Some((index.saturating_add(1), name.clone()));
        }
        next &= growing == Growing::AtStart;
        let wait = WaitReason::ClaimGrowing { claim: name, state: growing.clone() };
        if let Some(status) = growth.status.get_mut(place) {
            if growing == Growing::Underway {
                status.expanding = Some(ordinal);
            } else if status.message.is_empty() {
                status.message =
                    Wait { ordinal: Some(ordinal), pod: set.name.pod(ordinal), reason: wait.clone() }.to_string();
            }
        }
        growth.waits.push((ordinal, wait));
    }
    next
}

/// Asks for what was found. A claim that the plan changes already has its turn in the next one.
pub(super) fn act(draft: &mut Draft<'_>) {
    let growth = std::mem::take(&mut draft.growth);
    for fit in growth.fits {
        if let Some(claim) = draft.claim(&fit.claim) {
            draft.fit_claim(claim, fit);
        }
    }
    for (ordinal, reason) in growth.waits {
        draft.wait(ordinal, reason);
    }
}

fn count(draft: &Draft<'_>, template: &ClaimTemplate) -> ClaimsStatus {
    let set = &draft.snapshot.set;
    let mut status = ClaimsStatus { name: template.name.clone(), ..ClaimsStatus::default() };
    for ordinal in set.ordinals.iter() {
        let claim = draft.claim(&set.name.claim(&template.name, ordinal));
        let made_for = stamp::made_for(set.name.as_str(), &template.name);
        let Some(claim) = claim.filter(|claim| claim.made_for.is_empty() || claim.made_for == made_for) else {
            continue;
        };
        status.replicas = status.replicas.saturating_add(1);
        let size = claim.capacity.filter(|_| claim.bound).or(claim.size);
        let fits = set.size_of(template, ordinal).is_none_or(|wanted| size.is_some_and(|size| size >= wanted));
        if fits && !claim.labels_differ {
            status.fitting = status.fitting.saturating_add(1);
        }
    }
    status
}

fn is_ours(set: &SetView, template: &ClaimTemplate, claim: &ClaimView) -> bool {
    claim.made_for == stamp::made_for(set.name.as_str(), &template.name)
}
