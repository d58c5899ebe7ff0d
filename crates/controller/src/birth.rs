//! The way of one ordinal: volumes, a node, one transaction.
//!
//! The volume manager and the scheduler answer from memory. The pod is created bound to its node, together with its new
//! claims and their volumes. When no node fits, or a claim cannot get a volume, the pod is created all the same,
//! unbound and with the reason in its conditions; the scheduler binds it when capacity comes.

use pb::{
    Object, ObjectExt,
    objects::*,
    scheduler::v1::{PlaceRequest, place_response},
    volumes::v1::{PrepareRequest, PrepareResponse, ProvisionRequest, ProvisionResponse, prepared_claim},
};
use plan::{
    schedule::{ClaimName, claims_of},
    statefulset::{NewClaim, NewPod, stamp},
};
use store::Key;
use tracing::Instrument;

use crate::{
    apply::{Apply, Made},
    events::Note,
    metrics,
    object::{bind, unschedulable},
    write::{Draft, Fault, Wrote},
};

/// A claim of the ordinal.
struct Need {
    claim: PersistentVolumeClaim,
    /// Whether it is made now.
    new: bool,
    /// Whether it gets a volume when its pod has a node.
    unbound: bool,
    /// Whether it is in the transaction already, together with its volume.
    written: bool,
    /// Whether it was there and says something new.
    marked: bool,
    /// The CSI driver of its volume; empty while that is not known.
    driver: String,
}

impl Need {
    /// A claim that is made now.
    fn made(claim: PersistentVolumeClaim) -> Self {
        Self { claim, new: true, unbound: false, written: false, marked: false, driver: String::new() }
    }
}

/// What is known of an ordinal's claims.
struct Prepared {
    needs: Vec<Need>,
    reachable: Vec<NodeSelector>,
    /// Why the pod cannot have its volumes as things are.
    problem: Option<String>,
    /// What the answer rests on.
    guards: Vec<pb::meta::v1::Guard>,
}

/// A node, or why there is none, and what the answer rests on.
type Placed = (Result<String, String>, Vec<pb::meta::v1::Guard>);

impl Apply<'_> {
    /// Creates the pod of an ordinal with the claims that it lacks.
    pub(crate) async fn create_pod(&self, new: &NewPod, draft: Draft) -> Result<Made, Fault> {
        let span = tracing::info_span!("create", pod = %new.pod);
        self.place_and_create(new, draft).instrument(span).await
    }

    async fn place_and_create(&self, new: &NewPod, mut draft: Draft) -> Result<Made, Fault> {
        let set = self.observed.set.as_ref();
        let mut pod = self.new_pod(new)?;
        let mut needs = Vec::with_capacity(new.claims.len() + new.reused.len());
        for claim in &new.claims {
            needs.push(Need::made(self.claim_to_try(claim)?));
        }
        for name in &new.reused {
            needs.push(Need { new: false, ..Need::made(self.claim(name.as_str())?.clone()) });
        }
        for need in needs.iter_mut().filter(|_| new.marks) {
            let before = need.claim.clone();
            stamp::mark(&mut need.claim, &new.revision);
            need.marked = !need.new && need.claim != before;
        }
        let (mut prepared, anywhere) = if new.reused.is_empty() {
            // Claims that are made now are most likely not tied to a place: both are asked at the same time.
            let (prepared, placed) = futures::join!(self.prepare(needs), self.place(&pod, &[], &[]));
            (prepared?, Some(placed?))
        } else {
            (self.prepare(needs).await?, None)
        };
        draft.guard_pb(&prepared.guards);

        let now = Time::from(self.around.host.now());
        let (node, guards) = match (prepared.problem.take(), anywhere) {
            (Some(problem), _) => (Err(problem), Vec::new()),
            (None, Some((Ok(node), guards))) if prepared.reachable.is_empty() => (Ok(node), guards),
            (None, _) => self.place(&pod, &prepared.reachable, &prepared.needs).await?,
        };
        draft.guard_pb(&guards);
        let made = new.claims.iter().map(|claim| format!("created claim {} of {}", claim.name, new.pod));
        let mut notes: Vec<_> = made.map(|what| Note::normal(set, "SuccessfulCreate", what)).collect();
        match node {
            Ok(node) => {
                bind(&mut pod, &node, now);
                self.provision(&mut prepared.needs, &node, &mut draft).await?;
                notes.push(Note::normal(set, "SuccessfulCreate", format!("created pod {} on {node}", pod.name())));
            }
            Err(why) => {
                unschedulable(&mut pod, &why, now);
                let what = format!("created pod {} without a node: {why}", pod.name());
                notes.push(Note::normal(set, "SuccessfulCreate", what));
                notes.push(Note::warning(&pod, "FailedScheduling", why));
            }
        }
        for need in prepared.needs.iter().filter(|need| need.new && !need.written) {
            draft.create(&need.claim);
        }
        // That they are as they were seen is among the guards of the plan.
        for need in prepared.needs.iter().filter(|need| need.marked && !need.written) {
            draft.put(&need.claim);
        }
        draft.create(&pod);
        let wrote = self.commit_claims(draft, &prepared.needs).await?;
        metrics::get().pods_created.inc();
        Ok(Made { wrote, notes })
    }

    /// Creates a claim whose pod exists already. If the pod has a node the claim gets its volume there, or the pod
    /// would wait for it for ever.
    pub(crate) async fn create_claim(&self, new: &NewClaim, mut draft: Draft) -> Result<Made, Fault> {
        let set = self.observed.set.as_ref();
        let claim = self.claim_to_try(new)?;
        let pod = model::identity::SetName::from(set.name()).pod(new.ordinal);
        let node = self.observed.pods.get(pod.as_str()).and_then(|pod| pod.spec.as_ref()).map(|spec| &spec.node_name);
        let mut needs = vec![Need::made(claim)];
        if let Some(node) = node.filter(|node| !node.is_empty()) {
            let mut prepared = self.prepare(needs).await?;
            draft.guard_pb(&prepared.guards);
            if prepared.problem.is_none() {
                self.provision(&mut prepared.needs, node, &mut draft).await?;
            }
            needs = prepared.needs;
        }
        for need in needs.iter().filter(|need| !need.written) {
            draft.create(&need.claim);
        }
        let wrote = self.commit_claims(draft, &needs).await?;
        let what = format!("created claim {} of {pod}", new.name);
        Ok(Made { wrote, notes: vec![Note::normal(set, "SuccessfulCreate", what)] })
    }

    /// A new claim, under the uid of an earlier try if there was one: its volume may be there already.
    fn claim_to_try(&self, new: &NewClaim) -> Result<PersistentVolumeClaim, Fault> {
        let mut claim = self.new_claim(new)?;
        claim.meta_mut().uid = self.around.tried.uid(Key::of(&claim), claim.uid(), self.around.host.now());
        Ok(claim)
    }

    /// Commits a transaction that creates claims.
    async fn commit_claims(&self, draft: Draft, needs: &[Need]) -> Result<Wrote, Fault> {
        let new: Vec<_> = needs.iter().filter(|need| need.new).map(|need| Key::of(&need.claim)).collect();
        let taken = self.around.tried.take(&new);
        let wrote = self.commit(draft).await;
        if let Err(Fault::Conflict) = &wrote {
            self.around.tried.refused(taken, self.around.host.now());
        }
        wrote
    }

    /// Asks the volume manager what the claims have or need.
    async fn prepare(&self, mut needs: Vec<Need>) -> Result<Prepared, Fault> {
        let mut prepared = Prepared { needs: Vec::new(), reachable: Vec::new(), problem: None, guards: Vec::new() };
        if needs.is_empty() {
            return Ok(prepared);
        }
        let claims: Vec<_> = needs.iter().map(|need| need.claim.clone()).collect();
        let PrepareResponse { claims } = self.around.volumes.prepare(PrepareRequest { claims }).await?;
        if claims.len() != needs.len() {
            let (asked, told) = (needs.len(), claims.len());
            return Err(Fault::Nonsense(format!(
                "the volume manager was asked about {asked} claims and told of {told}"
            )));
        }
        for (need, answer) in needs.iter_mut().zip(claims) {
            prepared.guards.extend(answer.guards);
            match answer.state {
                Some(prepared_claim::State::Bound(bound)) => {
                    need.driver = bound.driver;
                    prepared.reachable.extend(bound.reachable);
                }
                Some(prepared_claim::State::Unbound(unbound)) => {
                    need.unbound = true;
                    need.driver = unbound.driver;
                    prepared.reachable.extend(unbound.reachable);
                }
                Some(prepared_claim::State::Problem(problem)) => {
                    let what = format!("claim {}: {}", answer.name, problem.message);
                    prepared.problem.get_or_insert(what);
                }
                None => return Err(Fault::Nonsense("the volume manager said nothing about a claim".to_owned())),
            }
        }
        prepared.needs = needs;
        Ok(prepared)
    }

    /// Asks the scheduler for a node.
    async fn place(&self, pod: &Pod, reachable: &[NodeSelector], needs: &[Need]) -> Result<Placed, Fault> {
        let driver =
            |name: ClaimName| needs.iter().find(|need| need.claim.name() == name.name).map(|n| n.driver.clone());
        let volume_drivers = claims_of(pod).into_iter().map(driver).map(Option::unwrap_or_default).collect();
        let request = PlaceRequest { pod: Some(pod.clone()), reachable: reachable.to_vec(), volume_drivers };
        match self.around.placer.place(request).await?.result {
            Some(place_response::Result::Placement(placement)) => Ok((Ok(placement.node_name), placement.guards)),
            Some(place_response::Result::Unschedulable(unschedulable)) => Ok((Err(unschedulable.message), Vec::new())),
            None => Err(Fault::Nonsense("the scheduler named neither a node nor a reason".to_owned())),
        }
    }

    /// Lets the volume manager make the volumes that are missing, and puts them into the transaction.
    async fn provision(&self, needs: &mut [Need], node: &str, draft: &mut Draft) -> Result<(), Fault> {
        let mut open: Vec<_> = needs.iter_mut().filter(|need| need.unbound).collect();
        if open.is_empty() {
            return Ok(());
        }
        let claims = open.iter().map(|need| need.claim.clone()).collect();
        let request = ProvisionRequest { claims, node_name: node.to_owned() };
        let ProvisionResponse { claims } = self.around.volumes.provision(request).await?;
        if claims.len() != open.len() {
            let (asked, told) = (open.len(), claims.len());
            return Err(Fault::Nonsense(format!("the volume manager was asked for {asked} volumes and made {told}")));
        }
        for (need, made) in open.iter_mut().zip(claims) {
            let (Some(claim), Some(volume)) = (made.claim, made.volume) else {
                return Err(Fault::Nonsense("the volume manager left out a claim or its volume".to_owned()));
            };
            if claim.uid() != need.claim.uid() {
                return Err(Fault::Nonsense(format!(
                    "the volume manager answered about another claim {}",
                    claim.name()
                )));
            }
            draft.guard_pb(&made.guards);
            if need.new {
                draft.create(&claim);
            } else {
                draft.guard([store::objects::unchanged(&need.claim)]);
                draft.put(&claim);
            }
            if volume.mod_revision() > 0 {
                // A person's volume, or what was written before the driver was asked.
                draft.guard([store::objects::unchanged(&volume)]);
                draft.put(&volume);
            } else {
                draft.create(&volume);
            }
            need.written = true;
        }
        Ok(())
    }
}
