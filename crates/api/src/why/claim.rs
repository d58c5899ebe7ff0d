//! What keeps a claim from a pod: its volume is not there, not attached, lost, held by an operation, or not yet as large
//! as it shall be.
//!
//! Whether a claim can get a volume is asked of the planner that the volume manager runs, so the answer is its own.

use std::collections::BTreeSet;

use pb::{
    Object as _, ObjectExt,
    objects::{Condition, CsiDriver, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment},
};
use plan::volume::{
    Around, ClaimState, Known, Source, bound_to, expand, held, is_free, is_single_node, lost, prepare, source_of,
};

use super::{
    advice::{is_ready, way_out},
    explain::Answer,
};
use crate::volumes::claims_named;

/// The conditions that say how a volume grows.
const GROWTH: [&str; 3] = [expand::RESIZE_ERROR, expand::FILE_SYSTEM_PENDING, expand::RESIZING];

impl Answer<'_> {
    /// What is asked of a claim alone.
    pub(super) fn about_claim(&mut self, name: &str) -> String {
        let user = self.facts.pods.iter().find(|pod| claims_named(pod).any(|claim| claim == name)).copied();
        self.claim(name, user);
        self.events("PersistentVolumeClaim", name);
        match self.reasons.first() {
            Some(first) => first.message.clone(),
            None => format!("claim {name} has its volume; nothing is wrong with it that is known here"),
        }
    }

    /// What is wrong with a claim, and with its volume on the node of the pod that wants it.
    pub(super) fn claim(&mut self, name: &str, pod: Option<&Pod>) {
        let object = format!("persistentvolumeclaim/{name}");
        let Some(claim) = self.facts.claims.iter().find(|claim| claim.name() == name).copied() else {
            let advice = format!("create it, or look at the name: `berth get pvc`; a set makes its own ({name})");
            self.add(object, "ClaimMissing", format!("claim {name} does not exist"), None, advice);
            return;
        };
        let gone = condition(claim, lost::VOLUME_LOST);
        if let Some(gone) = gone {
            let advice = format!(
                "bring the node back; if it never returns, delete the claim and its pod (`berth delete pvc {name}`): they \
                 come anew, empty, and `berth volume restore {name} --from SNAPSHOT` brings older data back"
            );
            self.add(object.clone(), lost::VOLUME_LOST, gone.message.clone(), gone.last_transition_time, advice);
        }
        self.operation(claim, &object);
        let volume =
            bound_to(claim).and_then(|bound| self.facts.volumes.iter().find(|volume| volume.name() == bound).copied());
        self.binding(claim, volume, &object);
        self.growth(claim, &object);
        let node = pod.and_then(|pod| pod.spec.as_ref()).map(|spec| spec.node_name.as_str()).unwrap_or_default();
        if let (Some(volume), false) = (volume, node.is_empty()) {
            self.attachment(volume, node);
        }
    }

    fn operation(&mut self, claim: &PersistentVolumeClaim, object: &str) {
        let Some(operation) = claim.status.as_ref().and_then(|status| status.operation.as_ref()) else { return };
        let name = claim.name();
        let what = match operation.target_node.as_str() {
            "" => format!("the restore of {}", operation.snapshot),
            node => format!("the move to {node}"),
        };
        let why = if operation.message.is_empty() { String::new() } else { format!(": {}", operation.message) };
        if held(claim).is_some() {
            let message = format!("claim {name} is held by {what} ({}){why}", operation.phase);
            let advice = format!("it goes on by itself; `berth volume describe {name}` says how far it is");
            self.add(object.to_owned(), "ClaimHeld", message, operation.started_at, advice);
        } else if operation.phase == "Failed" {
            let message = format!("{what} of claim {name} failed{why}");
            let advice = "the data is as it was; ask again when the reason is gone".to_owned();
            self.add(object.to_owned(), "OperationFailed", message, operation.ended_at, advice);
        }
    }

    fn binding(&mut self, claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>, object: &str) {
        let name = claim.name();
        let drivers = self.drivers();
        let around = Around {
            classes: self.facts.classes.to_vec(),
            free: self.facts.volumes.iter().copied().filter(|volume| is_free(volume)).collect(),
            drivers: &drivers,
            source: self.source(claim),
            users: Vec::new(),
            at_once: true,
        };
        let known = volume.map_or(Known::Absent, Known::Is);
        let (reason, message) = match prepare(claim, known, &around) {
            ClaimState::Bound(_) => return,
            // It has been said better.
            ClaimState::Problem(problem) if matches!(problem.reason, "ClaimHeld") => return,
            ClaimState::Problem(problem) => (problem.reason, problem.message),
            ClaimState::Unbound(choice) => {
                let class = choice.class.map_or(choice.class_name, |class| class.name());
                let what = if class.is_empty() { "no class".to_owned() } else { format!("class {class}") };
                let message = format!("claim {name} ({what}) has no volume yet; it gets one with its pod's node");
                ("ClaimNotBound", message)
            }
        };
        let advice = format!("`berth describe pvc {name}` shows its events");
        self.add(object.to_owned(), reason, message, claim.meta().creation_timestamp, advice);
    }

    /// Drivers that volumes can be made with: those that nodes have, and those that somebody described.
    fn drivers(&self) -> BTreeSet<String> {
        let nodes = self.facts.nodes.iter().flat_map(|node| &node.status).flat_map(|status| &status.csi_drivers);
        let described = self.facts.drivers.iter().map(|driver| driver.name().to_owned());
        nodes.map(|driver| driver.name.clone()).chain(described).collect()
    }

    fn source(&self, claim: &PersistentVolumeClaim) -> Source<'_> {
        let Some(source) = source_of(claim) else { return Source::None };
        if source.kind == "VolumeSnapshot" {
            let found = self.facts.snapshots.iter().find(|snapshot| snapshot.name() == source.name);
            return Source::Snapshot(found.map_or(Known::Absent, |snapshot| Known::Is(*snapshot)));
        }
        let found = self.facts.claims.iter().find(|claim| claim.name() == source.name).copied();
        let bound = found.and_then(bound_to);
        let volume = bound.and_then(|bound| self.facts.volumes.iter().find(|volume| volume.name() == bound));
        Source::Claim(found.map_or(Known::Absent, Known::Is), volume.map_or(Known::Absent, |volume| Known::Is(*volume)))
    }

    fn growth(&mut self, claim: &PersistentVolumeClaim, object: &str) {
        let Some(growing) = GROWTH.into_iter().find_map(|kind| condition(claim, kind)) else { return };
        let name = claim.name();
        let (what, advice) = match growing.r#type.as_str() {
            expand::RESIZE_ERROR => {
                ("does not grow", format!("make room, or ask for less again: `berth volume expand {name} --size SIZE`"))
            }
            expand::FILE_SYSTEM_PENDING => {
                ("has grown, its file system has not yet", "restart its pod if it stays so".to_owned())
            }
            _ => ("grows", String::new()),
        };
        let why = if growing.message.is_empty() { String::new() } else { format!(": {}", growing.message) };
        let (reason, since) = (growing.r#type.clone(), growing.last_transition_time);
        self.add(object.to_owned(), &reason, format!("the volume of claim {name} {what}{why}"), since, advice);
    }

    /// Whether a volume is attached where it is wanted.
    fn attachment(&mut self, volume: &PersistentVolume, node: &str) {
        let name = volume.name();
        let object = format!("persistentvolume/{name}");
        let all: Vec<_> = self.facts.attachments.iter().filter(|one| of_volume(one) == name).copied().collect();
        let of_node = |one: &VolumeAttachment| one.spec.as_ref().is_some_and(|spec| spec.node_name == node);
        if let Some(here) = all.iter().find(|one| of_node(one)) {
            let status = here.status.clone().unwrap_or_default();
            let since = here.meta().creation_timestamp;
            let why =
                |error: Option<pb::objects::VolumeError>| error.map_or(String::new(), |e| format!(": {}", e.message));
            if here.is_terminating() {
                let message = format!("volume {name} is being detached from node {node}{}", why(status.detach_error));
                self.add(object, "Detaching", message, here.meta().deletion_timestamp, String::new());
            } else if !status.attached {
                let advice = "the volume manager tries again; its log says more".to_owned();
                let message = format!("volume {name} is not attached to node {node} yet{}", why(status.attach_error));
                self.add(object, "NotAttached", message, since, advice);
            }
            return;
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let driver = spec.csi.map(|csi| csi.driver).unwrap_or_default();
        if !attach_required(self.facts.drivers, &driver) {
            return;
        }
        match all.first().filter(|_| is_single_node(&spec.access_modes)) {
            Some(other) => {
                let at = other.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default();
                let message = format!(
                    "Multi-Attach error for volume {name:?}: it is attached to node {at}, and one node may have it at a \
                     time"
                );
                let advice = self.holder(name, &at);
                self.add(object, "MultiAttach", message, other.meta().creation_timestamp, advice);
            }
            None => {
                let message = format!("volume {name} is not attached to node {node} yet");
                let advice = "the volume manager attaches it; if it stays so, look whether that runs".to_owned();
                self.add(object, "NotAttached", message, None, advice);
            }
        }
    }

    /// What to do about the node that still has a volume.
    fn holder(&self, volume: &str, node: &str) -> String {
        let known = self.facts.nodes.iter().find(|known| known.name() == node);
        if known.is_some_and(|known| !is_ready(known)) {
            return way_out(node);
        }
        let claim = self.facts.claims.iter().find(|claim| bound_to(claim) == Some(volume));
        let uses = |pod: &&&Pod| {
            let there = pod.spec.as_ref().is_some_and(|spec| spec.node_name == node);
            there && claim.is_some_and(|claim| claims_named(pod).any(|name| name == claim.name()))
        };
        match self.facts.pods.iter().find(uses) {
            Some(pod) => format!("pod {} uses it there; it is free when that pod is gone", pod.name()),
            None => "it is detached there as soon as the node has let go of it".to_owned(),
        }
    }
}

fn condition<'a>(claim: &'a PersistentVolumeClaim, kind: &str) -> Option<&'a Condition> {
    let mut conditions = claim.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|condition| condition.r#type == kind && condition.status == "True")
}

fn of_volume(attachment: &VolumeAttachment) -> &str {
    let source = attachment.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| &source.persistent_volume_name)
}

/// Whether a driver wants its volumes attached: so unless it says otherwise.
fn attach_required(drivers: &[&CsiDriver], name: &str) -> bool {
    let known = drivers.iter().find(|driver| driver.name() == name);
    known.and_then(|driver| driver.spec.as_ref()?.attach_required).unwrap_or(true)
}
