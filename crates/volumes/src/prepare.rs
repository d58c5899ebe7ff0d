//! Prepare: what claims have or will get, from memory alone.

use pb::{
    Kind, ObjectExt,
    objects::{NodeSelector, PersistentVolumeClaim},
    volumes::v1::{BoundClaim, ClaimProblem, PreparedClaim, UnboundClaim, prepared_claim::State},
};
use plan::volume::{self, Choice, ClaimState, Problem, Room};
use store::{
    Guard, Key,
    objects::{guard_to_pb, unchanged},
};
use tonic::Status;

use crate::{Inner, memory::Try};

impl Inner {
    pub(crate) async fn prepare(&self, claim: &PersistentVolumeClaim) -> Result<PreparedClaim, Status> {
        let facts = self.facts(claim, false).await.map_err(unavailable)?;
        let mut guards: Vec<Guard> = Vec::new();
        if claim.mod_revision() > 0 {
            guards.push(unchanged(claim));
        }
        let state = match facts.state(claim) {
            ClaimState::Bound(volume) => {
                guards.push(unchanged(volume));
                let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
                State::Bound(BoundClaim {
                    volume_name: volume.name().to_owned(),
                    reachable: volume::reachable(volume).cloned(),
                    driver: csi.map(|csi| csi.driver.clone()).unwrap_or_default(),
                })
            }
            ClaimState::Unbound(choice) => match self.narrow(claim, &choice) {
                Ok(reachable) => {
                    guards.extend(facts.class(choice.class_name).map(|class| unchanged(&**class)));
                    guards.extend(facts.snapshot().map(|snapshot| unchanged(&**snapshot)));
                    State::Unbound(UnboundClaim {
                        storage_class: choice.class_name.to_owned(),
                        reachable,
                        driver: choice.class.map(|class| class.provisioner.clone()).unwrap_or_default(),
                    })
                }
                Err(problem) => in_words(problem),
            },
            ClaimState::Problem(problem) => {
                self.is_certain(&problem)?;
                in_words(problem)
            }
        };
        let guards = guards.iter().map(guard_to_pb).collect();
        Ok(PreparedClaim { name: claim.name().to_owned(), state: Some(state), guards })
    }

    /// Where the claim can get a volume, by what was learnt since: room, and what became of the last try.
    pub(crate) fn narrow(
        &self,
        claim: &PersistentVolumeClaim,
        choice: &Choice<'_>,
    ) -> Result<Option<NodeSelector>, Problem> {
        let Some(class) = choice.class.filter(|_| choice.existing.is_empty()) else {
            return Ok(choice.reachable.clone());
        };
        let mut reachable = choice.reachable.clone();
        let name = volume::volume_name(claim);
        if let Some(before) = self.volumes.get(&Key::object(Kind::PersistentVolume, "", &name)) {
            if volume::phase(&before) != "Pending" {
                return Err(Problem {
                    reason: "VolumeEnding",
                    message: format!(
                        "persistentvolume {name:?} was made for persistentvolumeclaim {:?} before and is on its way out; \
                         another is made when it is gone",
                        claim.name()
                    ),
                });
            }
            reachable = volume::both(volume::reachable(&before).cloned(), reachable);
        }
        match self.memory.of(claim.uid()) {
            Some(Try::Refused(message)) => return Err(Problem { reason: "ProvisioningFailed", message }),
            Some(Try::Made(place)) => reachable = volume::both(place, reachable),
            None => {}
        }
        let needed = volume::requested_bytes(claim).unwrap_or(0);
        match self.capacity.room(class, needed) {
            Room::Everywhere => Ok(reachable),
            Room::Only(place) => Ok(volume::both(reachable, Some(place))),
            Room::Nowhere(most) => Err(Problem {
                reason: "NoCapacity",
                message: format!(
                    "no place has room for the {needed} bytes of persistentvolumeclaim {:?} of class {:?}; the most that \
                     is free anywhere is {most}",
                    claim.name(),
                    class.name()
                ),
            }),
        }
    }
}

fn in_words(problem: Problem) -> State {
    State::Problem(ClaimProblem { reason: problem.reason.to_owned(), message: problem.message })
}

pub(crate) fn unavailable(error: store::Error) -> Status {
    Status::unavailable(error.to_string())
}
