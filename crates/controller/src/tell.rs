//! What people are told about a set beside what was done to it: what could not be done, and what is left alone (EV).

use pb::{Object, objects::*};
use plan::statefulset::Op;

use crate::{events::Note, observed::Observed, write::Fault};

/// What to tell of an action that was not done. A conflict is no failure: somebody was faster, and the next plan knows.
/// So nothing is told of a pod or a claim that turns out to exist already.
pub fn failure(set: &StatefulSet, op: &Op, fault: &Fault) -> Option<Note> {
    if matches!(fault, Fault::Conflict) {
        return None;
    }
    let (reason, what) = match op {
        Op::CreatePod(new) => ("FailedCreate", format!("pod {} was not created", new.pod)),
        Op::CreateClaim(new) => ("FailedCreate", format!("claim {} was not created", new.name)),
        Op::CreateService { name } => ("FailedCreate", format!("the headless service {name} was not created")),
        Op::DeletePod { pod, why, .. } => ("FailedDelete", format!("pod {pod} was not asked to go ({why})")),
        Op::AdoptPod { pod } => ("FailedUpdate", format!("pod {pod} was not adopted")),
        Op::ReleasePod { pod } => ("FailedUpdate", format!("pod {pod} was not released")),
        Op::RepairPod { pod, .. } => ("FailedUpdate", format!("pod {pod} was not put right")),
        Op::UpdateClaimOwners { claim, .. } => {
            ("FailedUpdate", format!("the owners of claim {claim} were not put right"))
        }
        Op::FitClaim { claim, grow: true, .. } => ("FailedUpdate", format!("claim {claim} was not asked to grow")),
        Op::FitClaim { claim, .. } => ("FailedUpdate", format!("claim {claim} did not get its template's labels")),
        Op::CreateSnapshot(new) => ("FailedCreate", format!("snapshot {} was not asked for", new.name)),
        Op::RestoreClaims { ordinal, .. } => {
            ("FailedUpdate", format!("the data of ordinal {ordinal} was not asked to be taken back"))
        }
        Op::RecreateVolumes { ordinal, .. } => {
            ("FailedDelete", format!("the lost volumes of ordinal {ordinal} were not given up"))
        }
        Op::RevertTemplate { to, .. } => ("FailedUpdate", format!("the template was not set back to revision {to}")),
        Op::UpdateStatus(_)
        | Op::CreateRevision { .. }
        | Op::AdoptRevision { .. }
        | Op::RenumberRevision { .. }
        | Op::DeleteRevision { .. }
        | Op::ReleaseSet => return None,
    };
    Some(Note::warning(set, reason, format!("{what}: {fault}")))
}

/// What to tell of a claim that the retention policy leaves alone because another controller owns it.
pub fn dispute(observed: &Observed, claim: &str) -> Note {
    let owners = observed.claims.get(claim).map(|claim| claim.meta().owner_references.clone()).unwrap_or_default();
    let other = owners.into_iter().find(|owner| owner.controller == Some(true));
    let other = other.map(|owner| format!("{}/{}", owner.kind.to_ascii_lowercase(), owner.name)).unwrap_or_default();
    let what = format!(
        "claim {claim} is controlled by {other}: persistentVolumeClaimRetentionPolicy does not delete it; take its \
         ownerReference away if the set shall decide"
    );
    Note::warning(observed.set.as_ref(), "ConflictingController", what)
}

#[cfg(test)]
mod tests {
    use model::identity::Ordinal;
    use plan::statefulset::DeleteReason;

    use super::*;

    fn told(op: &Op, fault: &Fault) -> Option<(&'static str, String)> {
        failure(&StatefulSet::default(), op, fault).map(|note| (note.reason, note.message))
    }

    #[test]
    fn what_could_not_be_done_is_told_with_the_reason() {
        let fault = Fault::Nonsense("the store is full".into());
        let delete = Op::DeletePod { pod: "web-1".into(), ordinal: Ordinal(1), why: DeleteReason::SetDeleted };
        let (reason, message) = told(&delete, &fault).unwrap();
        assert_eq!(reason, "FailedDelete");
        assert!(message.starts_with("pod web-1 ") && message.contains("the store is full"), "{message}");
        let (reason, _) = told(&Op::AdoptPod { pod: "web-1".into() }, &fault).unwrap();
        assert_eq!(reason, "FailedUpdate");
        let (reason, _) = told(&Op::CreateService { name: "web".into() }, &fault).unwrap();
        assert_eq!(reason, "FailedCreate");
    }

    #[test]
    fn nothing_is_told_when_somebody_was_faster() {
        assert_eq!(told(&Op::CreateService { name: "web".into() }, &Fault::Conflict), None);
    }
}
