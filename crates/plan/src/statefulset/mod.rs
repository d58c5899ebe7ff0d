//! What to do next about one StatefulSet.
//!
//! [`plan`] is one step of the way from what is to what is wanted. Its parts are the steps that a user would name, in
//! this order: which pods are the set's (`members`), which revisions it comes from and goes to (`revisions`), all old
//! pods away first if the set asks for it (`recreate`), pods in range (`replicas`, `claims`; broken ones that are
//! outdated, `heal`), pods out of range (`condemn`), outdated pods (`update`), the report (`status`). Under OrderedReady
//! each step waits until the one before has nothing left to do, so scaling goes before updating.
//!
//! The decisions are those of Kubernetes' own controller; `tests/oracle` holds recordings of it, and
//! `docs/deviations.md` says where Berth decides otherwise. Rule ids such as UP-4 are explained in
//! `docs/statefulset.md`.
//!
//! Never does this module look at a clock, remember anything, or delete a claim.

mod action;
mod claims;
mod condemn;
mod draft;
mod explain;
mod heal;
mod members;
mod pod;
mod preview;
mod recreate;
mod replicas;
mod revisions;
mod snapshot;
pub mod stamp;
mod status;
mod update;
mod view;
mod wait;

pub use action::{Action, DeleteReason, Guard, NewClaim, NewPod, Op, Plan, PodAt};
pub use preview::{Foreseen, HeldBack, Preview, What, preview};
pub use snapshot::{
    ClaimOwner, ClaimView, Control, MaxUnavailable, Override, OwnerKind, Phase, PodView, Policy, Retention,
    RevisionView, SetView, Snapshot, Strategy,
};
pub use status::{BlockedOn, Condition, Status};
pub use view::{Objects, template_bytes};
pub use wait::{Wait, WaitReason};

use draft::{Draft, set_unchanged};

/// Decides what to do about one set now.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let (revisions, revision_actions) = revisions::find(snapshot);
    let (members, member_actions) = members::find(snapshot);
    let pods = members.all();

    let actions = service(snapshot).into_iter().chain(in_order(revision_actions, member_actions)).collect();
    let mut draft = Draft::new(snapshot, members, revisions, actions);
    let mut status = Status::count(&draft, &pods);

    if snapshot.set.deleting {
        draft.waits.push(Wait {
            ordinal: None,
            pod: snapshot.set.name.pod(snapshot.set.ordinals.start),
            reason: WaitReason::SetDeleting,
        });
    } else {
        if recreate::process(&mut draft) && replicas::process(&mut draft) && condemn::process(&mut draft) {
            update::process(&mut draft);
        }
        explain::explain(&mut draft);
    }

    // Never below zero, although pods of revisions in between are taken off too.
    status.current = (status.current - draft.replaced()).max(0);
    status.complete(&snapshot.set);
    if status.differs_from(&snapshot.set.status) {
        let guards = vec![draft.set_unchanged()];
        draft.actions.push(Action { op: Op::UpdateStatus(status.clone()), guards });
    }
    revisions::truncate(&mut draft, &pods);

    let requeue_after = status::requeue_after(snapshot, &pods, &status);
    let (actions, waits) = draft.finish();
    Plan { actions, waits, status, requeue_after }
}

/// The headless Service is made for the user when `serviceName` names none.
fn service(snapshot: &Snapshot) -> Option<Action> {
    let name = &snapshot.set.service_name;
    let wanted = !name.is_empty() && !snapshot.service_exists && !snapshot.set.deleting;
    wanted.then(|| Action {
        op: Op::CreateService { name: name.clone() },
        guards: vec![set_unchanged(snapshot), Guard::ServiceAbsent(name.clone())],
    })
}

/// Adoption goes before the making of revisions: first it is settled what is the set's.
fn in_order(revisions: Vec<Action>, members: Vec<Action>) -> impl Iterator<Item = Action> {
    let (adopted, made): (Vec<_>, Vec<_>) =
        revisions.into_iter().partition(|action| matches!(action.op, Op::AdoptRevision { .. }));
    adopted.into_iter().chain(members).chain(made)
}
