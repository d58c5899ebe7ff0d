//! A recorded state as a snapshot, and a plan in the words of the recording.

use jiff::{SignedDuration, Timestamp};
use model::{
    identity::{ModRevision, NodeName, Ordinal, PodName, RevisionName, SetName, Uid},
    ordinals::Ordinals,
    revision::TemplateBytes,
};
use plan::statefulset::{self as planner, Op};

use crate::vector::{Act, Claim, Gates, Owner, Pod, Revision, Set, Status};

/// The uid of the set in every recording.
pub const SET_UID: &str = "S";

/// A state of the cluster as far as one set goes.
pub struct World<'a> {
    pub now: Timestamp,
    pub gates: Gates,
    pub set: &'a Set,
    pub revisions: &'a [Revision],
    pub pods: Vec<Pod>,
    pub claims: &'a [Claim],
}

impl World<'_> {
    pub fn snapshot(&self) -> planner::Snapshot {
        let set = self.set_view();
        let claims = self.claims.iter().map(|claim| self.claim_view(claim));
        planner::Snapshot {
            now: self.now,
            pods: self.pods.iter().map(|pod| self.pod_view(pod)).collect(),
            claims: claims.map(|claim| (claim.name.clone(), claim)).collect(),
            revisions: self.revisions.iter().map(|revision| self.revision_view(revision)).collect(),
            service_exists: true,
            budgets: Vec::new(),
            snapshots: [].into(),
            set,
        }
    }

    fn set_name(&self) -> SetName {
        SetName::from(self.set.name.as_str())
    }

    fn set_view(&self) -> planner::SetView {
        let set = self.set;
        let retention =
            set.retention.as_ref().map_or_else(planner::Retention::default, |retention| planner::Retention {
                delete_with_set: retention.deleted == "Delete",
                delete_when_scaled: retention.scaled == "Delete",
            });
        planner::SetView {
            name: self.set_name(),
            uid: SET_UID.into(),
            at: ModRevision(1),
            generation: set.generation,
            deleting: set.deleting,
            ordinals: Ordinals { start: Ordinal(set.start.unwrap_or(0)), count: set.replicas, ..Ordinals::default() },
            policy: match set.policy.as_str() {
                "Parallel" => planner::Policy::Parallel,
                _ => planner::Policy::OrderedReady,
            },
            strategy: self.strategy(),
            min_ready_seconds: set.min_ready,
            retention,
            claim_templates: set.claims.iter().map(|name| name.as_str().into()).collect(),
            history_limit: u32::try_from(set.history_limit).ok(),
            template: template(set.template, 0),
            service_name: "web".to_owned(),
            status: self.status_view(&set.status),
            ..planner::SetView::default()
        }
    }

    /// With the gate off, maxUnavailable is ignored; with the gate on, it is 1 where it is not set.
    fn strategy(&self) -> planner::Strategy {
        let strategy = &self.set.strategy;
        if strategy.r#type == "OnDelete" {
            return planner::Strategy::OnDelete;
        }
        let bound = match &strategy.max_unavailable {
            Some(serde_json::Value::Number(count)) => {
                planner::MaxUnavailable::Count(count.as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(1))
            }
            Some(serde_json::Value::String(text)) => {
                let percent = text.strip_suffix('%').and_then(|percent| percent.parse().ok());
                percent.map_or(planner::MaxUnavailable::Count(1), planner::MaxUnavailable::Percent)
            }
            _ => planner::MaxUnavailable::Count(1),
        };
        planner::Strategy::Rolling {
            partition: strategy.rolling.then_some(strategy.partition.unwrap_or(0)),
            max_unavailable: self.gates.max_unavailable.then_some(bound),
        }
    }

    fn status_view(&self, status: &Status) -> planner::Status {
        planner::Status {
            observed_generation: status.observed,
            replicas: status.replicas,
            ready: status.ready,
            available: status.available,
            current: status.current,
            updated: status.updated,
            current_revision: status.current_rev.map(|rev| self.revision_name(rev)),
            update_revision: status.update_rev.map(|rev| self.revision_name(rev)),
            collisions: status.collisions,
            ..planner::Status::default()
        }
    }

    /// The name that stands for the id of a revision.
    fn revision_name(&self, id: i64) -> RevisionName {
        match self.revisions.iter().find(|revision| revision.id == id) {
            Some(revision) if revision.collides => {
                let collisions = self.set.status.collisions.unwrap_or(0);
                template(self.set.template, 0).revision_name(&self.set_name(), collisions)
            }
            _ => format!("web-r{id}").into(),
        }
    }

    /// The id that a name stands for; a name that no listed revision has is a new revision's.
    fn revision_id(&self, name: &RevisionName) -> i64 {
        let listed = self.revisions.iter().find(|revision| self.revision_name(revision.id) == *name);
        listed.map_or_else(|| self.new_revision_id(), |revision| revision.id)
    }

    pub fn new_revision_id(&self) -> i64 {
        self.revisions.iter().map(|revision| revision.id).max().unwrap_or(0) + 1
    }

    fn template_of(&self, id: i64) -> i64 {
        self.revisions.iter().find(|revision| revision.id == id).map_or(self.set.template, |revision| revision.template)
    }

    fn revision_view(&self, revision: &Revision) -> planner::RevisionView {
        planner::RevisionView {
            name: self.revision_name(revision.id),
            uid: format!("r{}", revision.id).into(),
            at: ModRevision(1),
            number: revision.revision,
            control: control(revision.owner.as_deref()),
            selected: !revision.no_select,
            template: template(revision.template, revision.variant),
            equivalent: revision.template == self.set.template,
            created: Timestamp::UNIX_EPOCH,
        }
    }

    fn pod_name(&self, pod: &Pod) -> PodName {
        pod.name.as_deref().map_or_else(|| self.set_name().pod(Ordinal(pod.o)), PodName::from)
    }

    fn pod_view(&self, pod: &Pod) -> planner::PodView {
        let name = self.pod_name(pod);
        let name_label = match pod.identity.as_deref() {
            Some("no_pod_name") => None,
            Some("wrong_pod_name") => Some("somebody-else".into()),
            _ => Some(name.clone()),
        };
        let claim = |template: &String| (template.clone(), self.set_name().claim(template, Ordinal(pod.o)));
        planner::PodView {
            uid: pod.uid.as_str().into(),
            at: ModRevision(1),
            control: control(pod.owner.as_deref()),
            selected: !pod.no_select,
            terminating: pod.terminating,
            overrides: String::new(),
            revision: pod.rev.map(|rev| self.revision_name(rev)),
            name_label,
            volumes: pod.volumes.iter().map(claim).collect(),
            phase: match pod.phase.as_str() {
                "Pending" => planner::Phase::Pending,
                "Running" => planner::Phase::Running,
                "Succeeded" => planner::Phase::Succeeded,
                "Failed" => planner::Phase::Failed,
                _ => planner::Phase::Unknown,
            },
            ready_since: pod.ready_age.map(|age| self.now - SignedDuration::from_secs(age)),
            node: pod.scheduled.then(|| NodeName::from("n")),
            trouble: String::new(),
            name,
        }
    }

    fn claim_view(&self, claim: &Claim) -> planner::ClaimView {
        let owner = |owner: &Owner| planner::ClaimOwner {
            kind: match owner.k.as_str() {
                "set" => planner::OwnerKind::Set,
                "pod" => planner::OwnerKind::Pod,
                _ => planner::OwnerKind::Other { api_version: "example/v1".to_owned(), kind: "Other".to_owned() },
            },
            name: match owner.k.as_str() {
                "set" => self.set.name.clone(),
                "pod" => self.set_name().pod(Ordinal(claim.o)).to_string(),
                _ => "other".to_owned(),
            },
            uid: owner.u.as_str().into(),
            controller: owner.c,
        };
        planner::ClaimView {
            name: self.set_name().claim(&claim.t, Ordinal(claim.o)),
            uid: Uid::from(format!("{}-{}", claim.t, claim.o)),
            at: ModRevision(1),
            terminating: claim.terminating,
            owners: claim.owners.iter().map(owner).collect(),
            ..planner::ClaimView::default()
        }
    }

    /// Whether a status is worth no write over the stored one (STAT-11).
    pub fn is_stored(&self, status: &Status) -> bool {
        let stored = &self.set.status;
        let counted = |status: &Status| Status { observed: 0, collisions: None, ..status.clone() };
        status.observed <= stored.observed && counted(status) == counted(stored)
    }

    /// A planned status as it would be recorded.
    pub fn status(&self, status: &planner::Status) -> Status {
        Status {
            observed: status.observed_generation,
            replicas: status.replicas,
            ready: status.ready,
            available: status.available,
            current: status.current,
            updated: status.updated,
            current_rev: status.current_revision.as_ref().map(|name| self.revision_id(name)),
            update_rev: status.update_revision.as_ref().map(|name| self.revision_id(name)),
            collisions: status.collisions,
        }
    }

    /// Planned actions as they would be recorded: one for each object, a claim's owners apart from its creation.
    pub fn acts(&self, plan: &planner::Plan) -> Vec<Act> {
        let mut acts: Vec<Act> = plan.actions.iter().flat_map(|action| self.acts_of(&action.op)).collect();
        // The recording has all that is done for one pod in this order; neighbours of one ordinal are one pod's.
        let mut start = 0;
        while start < acts.len() {
            let rank =
                |act: &Act| (self.rank(act), act.t.as_ref().map(|t| self.set.claims.iter().position(|c| c == t)));
            let ordinal = acts[start].o.filter(|_| self.rank(&acts[start]).is_some());
            let same = |act: &&Act| ordinal.is_some() && act.o == ordinal && self.rank(act).is_some();
            let len = acts[start..].iter().take_while(same).count().max(1);
            acts[start..start + len].sort_by_key(rank);
            start += len;
        }
        acts
    }

    fn rank(&self, act: &Act) -> Option<usize> {
        ["create_claim", "create_pod", "update_claim", "update_pod"].iter().position(|op| *op == act.op)
    }

    fn acts_of(&self, op: &Op) -> Vec<Act> {
        let act = |op: &str| Act { op: op.to_owned(), ..Act::default() };
        let pod_act = |op: &str, pod: &PodName| match self.set_name().ordinal_of(pod) {
            Some(ordinal) => Act { o: Some(ordinal.0), ..act(op) },
            None => {
                let odd = self.pods.iter().find(|known| self.pod_name(known) == *pod);
                Act { o: odd.map(|pod| pod.o), name: Some(pod.to_string()), ..act(op) }
            }
        };
        let claim_acts = |new: &planner::NewClaim| {
            let at = |op: &str| Act { o: Some(new.ordinal.0), t: Some(new.template.clone()), ..act(op) };
            let owners = Act { owners: Some(owners(&new.owners)), ..at("update_claim") };
            [at("create_claim")].into_iter().chain((!new.owners.is_empty()).then_some(owners)).collect::<Vec<_>>()
        };
        match op {
            Op::CreateService { .. } => vec![act("create_service")],
            Op::AdoptRevision { name } => vec![Act { rev: Some(self.revision_id(name)), ..act("adopt_rev") }],
            Op::AdoptPod { pod } => vec![pod_act("adopt_pod", pod)],
            Op::ReleasePod { pod } => vec![pod_act("release_pod", pod)],
            Op::RenumberRevision { name, number } => {
                vec![Act { rev: Some(self.revision_id(name)), revision: Some(*number), ..act("update_rev") }]
            }
            Op::CreateRevision { name, number, .. } => vec![Act {
                rev: Some(self.revision_id(name)),
                template: Some(self.set.template),
                revision: Some(*number),
                ..act("create_rev")
            }],
            Op::CreateClaim(new) => claim_acts(new),
            Op::CreatePod(new) => {
                let rev = self.revision_id(&new.revision);
                let pod =
                    Act { rev: Some(rev), template: Some(self.template_of(rev)), ..pod_act("create_pod", &new.pod) };
                new.claims.iter().flat_map(claim_acts).chain([pod]).collect()
            }
            Op::UpdateClaimOwners { claim, owners: wanted } => {
                let known =
                    self.claims.iter().find(|known| self.set_name().claim(&known.t, Ordinal(known.o)) == *claim);
                let (o, t) = known.map(|known| (known.o, known.t.clone())).unzip();
                vec![Act { o, t, owners: Some(owners(wanted)), ..act("update_claim") }]
            }
            Op::FitClaim { .. } => vec![act("fit_claim")],
            Op::CreateSnapshot(_) => vec![act("create_snapshot")],
            Op::RestoreClaims { .. } => vec![act("restore_claims")],
            Op::RecreateVolumes { .. } => vec![act("recreate_volumes")],
            Op::RepairPod { pod, identity, storage, .. } => {
                vec![Act { fix_identity: *identity, fix_storage: *storage, ..pod_act("update_pod", pod) }]
            }
            Op::DeletePod { pod, .. } => vec![pod_act("delete_pod", pod)],
            // Conditions, progress and whatever else the recorded status does not have do not count here.
            Op::UpdateStatus(status) if !self.is_stored(&self.status(status)) => vec![act("update_status")],
            Op::UpdateStatus(_) => Vec::new(),
            Op::RevertTemplate { .. } => vec![act("revert_template")],
            Op::ReleaseSet => vec![act("release_set")],
            Op::DeleteRevision { name } => vec![Act { rev: Some(self.revision_id(name)), ..act("delete_rev") }],
        }
    }
}

fn owners(owners: &[planner::ClaimOwner]) -> Vec<Owner> {
    let owner = |owner: &planner::ClaimOwner| Owner {
        k: match owner.kind {
            planner::OwnerKind::Set => "set",
            planner::OwnerKind::Pod => "pod",
            planner::OwnerKind::Other { .. } => "other",
        }
        .to_owned(),
        u: owner.uid.to_string(),
        c: owner.controller,
    };
    owners.iter().map(owner).collect()
}

fn control(owner: Option<&str>) -> planner::Control {
    match owner {
        None => planner::Control::Ours,
        Some("none") => planner::Control::Nobody,
        Some(_) => planner::Control::Other,
    }
}

fn template(number: i64, variant: i64) -> TemplateBytes {
    TemplateBytes::new(format!(r#"{{"template":{number},"variant":{variant}}}"#))
}
