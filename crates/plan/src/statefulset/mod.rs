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
//! Beside this walk claims grow after their templates (`grow`), volumes that are lost for good are given up where the set
//! says so (`lost`), and data is kept between two revisions (`save`).
//!
//! Never does this module look at a clock or remember anything. Claims it deletes in one place alone (`lost`), and only
//! where the user asked for it.

mod action;
mod budgets;
mod claims;
mod condemn;
pub mod conditions;
mod draft;
mod explain;
mod grow;
mod heal;
mod lost;
mod members;
mod pod;
mod preview;
mod progress;
mod recreate;
mod replicas;
mod revisions;
mod save;
mod snapshot;
pub mod stamp;
mod status;
mod teardown;
mod update;
mod view;
mod wait;

pub use action::{Action, DeleteReason, Guard, NewClaim, NewPod, NewSnapshot, Op, Plan, PodAt};
pub use preview::{Foreseen, HeldBack, Preview, What, preview};
pub use snapshot::{
    ClaimOwner, ClaimTemplate, ClaimView, Control, Lost, MaxUnavailable, OperationPhase, OperationView, Override,
    OwnerKind, Phase, PodView, Policy, Resize, Retention, RevisionView, SetView, Snapshot, SnapshotView, Strategy,
    VolumePolicy,
};
pub use status::{BlockedOn, ClaimsStatus, Condition, Status};
pub use view::{Objects, template_bytes};
pub use wait::{Growing, Then, Wait, WaitReason};

use draft::{Draft, set_unchanged};

/// Decides what to do about one set now.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let (revisions, revision_actions) = revisions::find(snapshot);
    let (members, member_actions) = members::find(snapshot);
    let pods = members.all();

    let actions = service(snapshot).into_iter().chain(in_order(revision_actions, member_actions)).collect();
    let mut draft = Draft::new(snapshot, members, revisions, actions);
    draft.growth = grow::find(&draft);
    let mut status = Status::count(&draft, &pods);

    if snapshot.set.deleting {
        teardown::process(&mut draft);
    } else {
        if recreate::process(&mut draft) && replicas::process(&mut draft) && condemn::process(&mut draft) {
            update::process(&mut draft);
        }
        grow::act(&mut draft);
        explain::explain(&mut draft);
    }

    // Never below zero, although pods of revisions in between are taken off too.
    status.current = (status.current - draft.replaced()).max(0);
    status.complete(&snapshot.set);
    let progress = progress::judge(&draft, &mut status);
    conditions::write(&draft, progress, &mut status);
    if let Some(revert) = progress::revert(&draft, &status, progress) {
        // The set is another one then, so nothing else that was decided about it holds.
        draft.actions = vec![revert];
    } else if !lets_the_set_go(&draft) && status.differs_from(&snapshot.set.status) {
        let guards = vec![draft.set_unchanged()];
        draft.actions.push(Action { op: Op::UpdateStatus(status.clone()), guards });
    }
    revisions::truncate(&mut draft, &pods);

    let timers = [status::requeue_after(snapshot, &pods, &status), progress.look_again_after(), draft.look_again];
    let requeue_after = timers.into_iter().flatten().min();
    let disputed = claims::disputed(&draft);
    let (actions, waits) = draft.finish();
    Plan { actions, waits, disputed, status, requeue_after }
}

/// Whether the set is gone after the plan: nothing is told of it any more.
fn lets_the_set_go(draft: &Draft<'_>) -> bool {
    draft.actions.iter().any(|action| action.op == Op::ReleaseSet)
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
