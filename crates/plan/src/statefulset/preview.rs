//! What a change would do, pod by pod, if nothing went wrong.
//!
//! Runs the planner itself against a world in which every write succeeds, a deleted pod is gone at once and a pod that is
//! made is available at once, until there is nothing left to do. So it shows the order of the real planner, and never
//! how long it takes. Bounded: a plan of very many steps is shown up to a limit and said to go on.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use model::identity::{ClaimName, ModRevision, NodeName, Ordinal, PodName, RevisionName, Uid};

use super::{
    action::{DeleteReason, NewClaim, NewPod, NewSnapshot, Op, Plan, PodAt},
    draft::Draft,
    members, plan, revisions,
    snapshot::{
        ClaimView, Control, OperationPhase, OperationView, OwnerKind, Phase, PodView, RevisionView, Snapshot,
        SnapshotView, Strategy,
    },
    wait::WaitReason,
};

use crate::budget::{Counted, Health};

/// Steps that are shown at most.
const STEPS: usize = 1000;
/// Plans that are made at most for one step: adoption, claims, the status and the pod itself are plans of their own.
const PLANS_FOR_A_STEP: usize = 8;

/// What the planner would do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preview {
    /// What would become of pods, in order.
    pub steps: Vec<Foreseen>,
    /// Pods that would not come to where they are wanted, and why not.
    pub held_back: Vec<HeldBack>,
    /// More steps would follow: only the first are shown.
    pub goes_on: bool,
}

/// One step of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// The pod.
    pub pod: PodName,
    /// Its ordinal.
    pub ordinal: Ordinal,
    /// What happens to it.
    pub what: What,
    /// Why, as part of a sentence that begins with the pod: `it is at revision web-a, not web-b`.
    pub why: String,
}

/// What happens to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is made.
    Create,
    /// It is deleted and made anew.
    Replace {
        /// The revision that it has; None if it has no label that says so.
        from: Option<RevisionName>,
        /// The revision that it is made from.
        to: RevisionName,
    },
    /// It is deleted and does not come back.
    Delete,
}

impl What {
    /// The word for it: create, replace or delete.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace { .. } => "replace",
            Self::Delete => "delete",
        }
    }
}

/// Pods that stay behind for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The pods, the lowest ordinal first. Empty if it is the set as a whole.
    pub pods: Vec<PodName>,
    /// Why.
    pub why: String,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods: Vec<_> = self.pods.iter().map(PodName::as_str).collect();
        // A sentence about one pod names it.
        let named = matches!(pods[..], [pod] if self.why.starts_with(pod));
        if !pods.is_empty() && !named {
            write!(f, "{}: ", pods.join(", "))?;
        }
        f.write_str(&self.why)
    }
}

/// Foresees what becomes of the pods of a set if nothing else changes.
pub fn preview(snapshot: &Snapshot) -> Preview {
    let mut world = Ideal::new(snapshot);
    let rounds = PLANS_FOR_A_STEP * (STEPS + 1);
    for _ in 0..rounds {
        let next = plan(&world.snapshot);
        // All of them are done, also after the first that changes something.
        let mut acted = false;
        for action in &next.actions {
            acted |= world.apply(&action.op);
        }
        if world.gone || (!acted && !world.settle_down()) {
            let held_back = if world.gone { Vec::new() } else { held_back(&world.snapshot, &next) };
            return Preview { steps: world.steps, held_back, goes_on: false };
        }
        if world.steps.len() >= STEPS {
            break;
        }
    }
    world.steps.truncate(STEPS);
    Preview { steps: world.steps, held_back: Vec::new(), goes_on: true }
}

/// A world without failure.
struct Ideal {
    snapshot: Snapshot,
    steps: Vec<Foreseen>,
    /// Deletions of pods that may yet come back: the step, and the revision that the pod had.
    deleted: BTreeMap<Ordinal, (usize, Option<RevisionName>)>,
    /// How many objects were made: their uids.
    made: u64,
    /// The set itself is gone.
    gone: bool,
}

impl Ideal {
    fn new(snapshot: &Snapshot) -> Self {
        let mut snapshot = snapshot.clone();
        // Time does not pass here, so no deadline is missed.
        snapshot.set.progress_deadline_seconds = None;
        Self { snapshot, steps: Vec::new(), deleted: BTreeMap::new(), made: 0, gone: false }
    }

    fn uid(&mut self) -> Uid {
        self.made += 1;
        format!("foreseen-{}", self.made).as_str().into()
    }

    fn pod_mut(&mut self, name: &PodName) -> Option<&mut PodView> {
        self.snapshot.pods.iter_mut().find(|pod| pod.name == *name)
    }

    fn revision_mut(&mut self, name: &RevisionName) -> Option<&mut RevisionView> {
        self.snapshot.revisions.iter_mut().find(|revision| revision.name == *name)
    }

    /// Does a write. Says whether that changed anything: a world that nothing changes any more has come to rest.
    fn apply(&mut self, op: &Op) -> bool {
        match op {
            Op::CreateService { .. } => self.snapshot.service_exists = true,
            Op::AdoptRevision { name } => {
                self.revision_mut(name).into_iter().for_each(|revision| revision.control = Control::Ours);
            }
            Op::RenumberRevision { name, number } => {
                self.revision_mut(name).into_iter().for_each(|revision| revision.number = *number);
            }
            Op::CreateRevision { name, number, template } => {
                let revision = RevisionView {
                    name: name.clone(),
                    uid: self.uid(),
                    at: ModRevision(0),
                    number: *number,
                    control: Control::Ours,
                    selected: true,
                    template: template.clone(),
                    equivalent: true,
                    created: self.snapshot.now,
                };
                self.snapshot.revisions.push(revision);
            }
            Op::DeleteRevision { name } => self.snapshot.revisions.retain(|revision| revision.name != *name),
            Op::AdoptPod { pod } => self.pod_mut(pod).into_iter().for_each(|pod| pod.control = Control::Ours),
            Op::ReleasePod { pod } => self.pod_mut(pod).into_iter().for_each(|pod| pod.control = Control::Nobody),
            Op::RepairPod { pod, ordinal, .. } => {
                let volumes = self.volumes(*ordinal);
                if let Some(pod) = self.pod_mut(pod) {
                    pod.name_label = Some(pod.name.clone());
                    pod.volumes.extend(volumes);
                }
            }
            Op::CreateClaim(new) => self.create_claim(new),
            Op::UpdateClaimOwners { claim, owners } => {
                self.snapshot.claims.get_mut(claim).into_iter().for_each(|claim| claim.owners.clone_from(owners));
            }
            Op::FitClaim { claim, template, ordinal, grow } => self.fit_claim(claim, template, *ordinal, *grow),
            Op::CreateSnapshot(new) => self.create_snapshot(new),
            Op::RestoreClaims { claims, .. } => {
                for (claim, snapshot) in claims {
                    self.snapshot.claims.get_mut(claim).into_iter().for_each(|claim| {
                        claim.operation = Some(OperationView {
                            kind: "Restore".to_owned(),
                            restores: Some(snapshot.clone()),
                            target: None,
                            phase: OperationPhase::Done,
                            message: String::new(),
                        });
                    });
                }
            }
            Op::RecreateVolumes { ordinal, pod, claims } => {
                claims.iter().for_each(|claim| drop(self.snapshot.claims.remove(claim)));
                if let Some(pod) = pod {
                    self.delete_pod(pod, *ordinal, &DeleteReason::VolumesLost);
                }
            }
            Op::CreatePod(new) => self.create_pod(new),
            Op::DeletePod { pod, ordinal, why } => self.delete_pod(pod, *ordinal, why),
            Op::UpdateStatus(status) => {
                let changed = self.snapshot.set.status != *status;
                self.snapshot.set.status = status.clone();
                return changed;
            }
            // There is no deadline here.
            Op::RevertTemplate { .. } => return false,
            Op::ReleaseSet => self.gone = true,
        }
        true
    }

    fn create_claim(&mut self, new: &NewClaim) {
        let claim = ClaimView {
            name: new.name.clone(),
            uid: self.uid(),
            at: ModRevision(0),
            owners: new.owners.clone(),
            ..ClaimView::default()
        };
        self.snapshot.claims.insert(claim.name.clone(), claim);
    }

    fn fit_claim(&mut self, claim: &ClaimName, template: &str, ordinal: Ordinal, grow: bool) {
        let set = &self.snapshot.set;
        let template = set.claim_templates.iter().rfind(|one| one.name == template);
        let wanted = template.and_then(|template| set.size_of(template, ordinal));
        if let Some(claim) = self.snapshot.claims.get_mut(claim) {
            claim.labels_differ = false;
            if grow {
                (claim.size, claim.capacity) = (wanted, wanted);
            }
        }
    }

    fn create_snapshot(&mut self, new: &NewSnapshot) {
        let snapshot = SnapshotView {
            name: new.name.clone(),
            claim: new.claim.clone(),
            terminating: false,
            ready: true,
            error: String::new(),
            before: Some(new.before.clone()),
            rollout: Some(new.rollout),
        };
        self.snapshot.snapshots.insert(new.name.clone(), snapshot);
    }

    fn volumes(&self, ordinal: Ordinal) -> BTreeMap<String, ClaimName> {
        let set = &self.snapshot.set;
        set.claim_templates
            .iter()
            .map(|template| (template.name.clone(), set.name.claim(&template.name, ordinal)))
            .collect()
    }

    fn create_pod(&mut self, new: &NewPod) {
        new.claims.iter().for_each(|claim| self.create_claim(claim));
        if new.marks {
            let names = new.claims.iter().map(|claim| &claim.name).chain(&new.reused);
            for name in names {
                let claim = self.snapshot.claims.get_mut(name);
                claim.into_iter().for_each(|claim| claim.revision = Some(new.revision.clone()));
            }
        }
        let pod = PodView {
            name: new.pod.clone(),
            uid: self.uid(),
            at: ModRevision(0),
            control: Control::Ours,
            selected: true,
            terminating: false,
            revision: Some(new.revision.clone()),
            overrides: self.snapshot.set.overrides_of(&new.pod),
            name_label: Some(new.pod.clone()),
            volumes: self.volumes(new.ordinal),
            phase: Phase::Running,
            ready_since: Some(Timestamp::MIN),
            node: Some(NodeName::from("foreseen")),
            trouble: String::new(),
        };
        self.snapshot.pods.push(pod);
        self.count(&new.pod, Some(Health::Healthy));
        match self.deleted.remove(&new.ordinal).and_then(|(at, from)| Some((self.steps.get_mut(at)?, from))) {
            Some((step, from)) => step.what = What::Replace { from, to: new.revision.clone() },
            None => self.steps.push(Foreseen {
                pod: new.pod.clone(),
                ordinal: new.ordinal,
                what: What::Create,
                why: "its ordinal has no pod".to_owned(),
            }),
        }
    }

    fn delete_pod(&mut self, pod: &PodName, ordinal: Ordinal, why: &DeleteReason) {
        let Some(at) = self.snapshot.pods.iter().position(|there| there.name == *pod) else { return };
        let old = self.snapshot.pods.remove(at);
        self.collect(&old);
        let comes_back = !matches!(why, DeleteReason::ScaledAway | DeleteReason::SetDeleted);
        self.count(pod, comes_back.then_some(Health::Away));
        self.deleted.insert(ordinal, (self.steps.len(), old.revision));
        self.steps.push(Foreseen { pod: pod.clone(), ordinal, what: What::Delete, why: why.to_string() });
    }

    /// Lets disruption budgets that count the set's pods count this one so; None if it is no more.
    fn count(&mut self, pod: &PodName, health: Option<Health>) {
        let set = &self.snapshot.set.name;
        for budget in &mut self.snapshot.budgets {
            let known = budget.pods.iter().position(|counted| counted.pod.pod == *pod);
            match (known, health) {
                (Some(at), None) => drop(budget.pods.remove(at)),
                (Some(at), Some(health)) => {
                    budget.pods.get_mut(at).into_iter().for_each(|counted| counted.health = health);
                }
                (None, Some(health)) if budget.pods.iter().any(|other| set.ordinal_of(&other.pod.pod).is_some()) => {
                    let seen = PodAt { pod: pod.clone(), uid: Uid::default(), at: ModRevision(0) };
                    budget.pods.push(Counted { pod: seen, health });
                }
                (None, _) => {}
            }
        }
    }

    /// Claims follow the pod that owns them.
    fn collect(&mut self, gone: &PodView) {
        let owns = |claim: &ClaimView| claim.owners.iter().any(|o| o.kind == OwnerKind::Pod && o.uid == gone.uid);
        self.snapshot.claims.retain(|_, claim| !owns(claim));
    }

    /// Lets what was under way when the preview began come to its end. Says whether there was anything.
    fn settle_down(&mut self) -> bool {
        let (gone, left) = std::mem::take(&mut self.snapshot.pods).into_iter().partition(|pod| pod.terminating);
        self.snapshot.pods = left;
        let gone: Vec<PodView> = gone;
        for pod in &gone {
            self.collect(pod);
            self.count(&pod.name, Some(Health::Away));
        }
        let claims = self.snapshot.claims.len();
        self.snapshot.claims.retain(|_, claim| !claim.terminating);
        let mut changed = !gone.is_empty() || self.snapshot.claims.len() < claims;
        let mut well = Vec::new();
        for pod in &mut self.snapshot.pods {
            if pod.phase.is_terminal() || (pod.phase == Phase::Running && pod.ready_since == Some(Timestamp::MIN)) {
                continue;
            }
            (pod.phase, pod.ready_since) = (Phase::Running, Some(Timestamp::MIN));
            pod.node.get_or_insert_with(|| NodeName::from("foreseen"));
            changed = true;
            well.push(pod.name.clone());
        }
        well.iter().for_each(|pod| self.count(pod, Some(Health::Healthy)));
        changed
    }
}

/// What is not where it is wanted when nothing moves any more.
fn held_back(snapshot: &Snapshot, last: &Plan) -> Vec<HeldBack> {
    let set = &snapshot.set;
    let (revisions, _) = revisions::find(snapshot);
    let (members, _) = members::find(snapshot);
    let draft = Draft::new(snapshot, members, revisions, Vec::new());
    let partition = match set.strategy {
        Strategy::Rolling { partition, .. } => partition.unwrap_or(0),
        Strategy::OnDelete | Strategy::Recreate => 0,
    };
    let mut kept = HeldBack { pods: Vec::new(), why: format!("kept as they are by partition {partition}") };
    let mut by_wait: BTreeMap<String, Vec<PodName>> = BTreeMap::new();
    for (ordinal, pod) in &draft.members.replicas {
        let kept_back = set.ordinals.index_of(*ordinal).is_some_and(|index| index < partition);
        if kept_back && draft.is_outdated(pod) {
            kept.pods.push(pod.name.clone());
        }
    }
    for wait in &last.waits {
        let pods = by_wait.entry(why_held(&wait.reason).map_or_else(|| wait.to_string(), str::to_owned)).or_default();
        if wait.ordinal.is_some() && !pods.contains(&wait.pod) && !kept.pods.contains(&wait.pod) {
            pods.push(wait.pod.clone());
        }
    }
    let by_wait = by_wait.into_iter().map(|(why, pods)| HeldBack { pods, why });
    let kept = Some(kept).filter(|kept| !kept.pods.is_empty());
    kept.into_iter().chain(by_wait).collect()
}

/// What holds up many pods alike, without naming one.
fn why_held(reason: &WaitReason) -> Option<&'static str> {
    match reason {
        WaitReason::UpdateOnDelete => Some("replaced when you delete them (OnDelete)"),
        WaitReason::Paused => Some("replaced when you resume the set (paused)"),
        _ => None,
    }
}
