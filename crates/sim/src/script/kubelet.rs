//! The nodes of a script: they do at once what they are due, except where the script says otherwise.

use std::collections::{BTreeMap, BTreeSet};

use check::World;
use controller::host::Host;
use pb::{Object, ObjectExt, objects::*};
use store::{Key, Op, Txn, objects};

use super::image;
use crate::ports::SimHost;

/// All nodes.
#[derive(Clone, Default)]
pub(super) struct Kubelet {
    /// The process that runs for each pod name: its uid. At most one may run, wherever.
    running: BTreeMap<String, String>,
    /// Images whose containers never become ready.
    pub broken: BTreeSet<String>,
    /// Uids of pods that are not ready although their image works.
    pub unready: BTreeSet<String>,
    /// Names of pods that do not stop.
    pub stubborn: BTreeSet<String>,
}

impl Kubelet {
    /// What the nodes write next: one transaction for each pod that there is something to tell of.
    pub fn tend(&mut self, world: &World, host: &SimHost) -> Result<Vec<Txn>, String> {
        let mut told = Vec::new();
        for pod in world.pods.values() {
            if let Some(op) = self.tend_to(pod, host)? {
                told.push(Txn { guards: vec![objects::unchanged(pod.as_ref())], ops: vec![op] });
            }
        }
        Ok(told)
    }

    fn tend_to(&mut self, pod: &Pod, host: &SimHost) -> Result<Option<Op>, String> {
        let bound = pod.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty());
        if !bound {
            return Ok(None);
        }
        let name = pod.name();
        if pod.is_terminating() {
            if self.stubborn.contains(name) || !pod.meta().finalizers.is_empty() {
                return Ok(None);
            }
            self.running.remove(name);
            return Ok(Some(Op::Delete(Key::of(pod))));
        }
        if matches!(super::phase(pod), "Failed" | "Succeeded") {
            self.running.remove(name);
            return Ok(None);
        }
        let runs = self.running.entry(name.to_owned()).or_insert_with(|| pod.uid().to_owned());
        if runs != pod.uid() {
            return Err(format!("2.4/1 {name} starts while its uid {runs} still runs"));
        }
        let ready = !self.broken.contains(image(pod)) && !self.unready.contains(pod.uid());
        let mut changed = pod.clone();
        report(&mut changed, "Running", ready, Time::from(host.now()));
        Ok((changed != *pod).then(|| objects::put(&changed)))
    }
}

/// Writes what a node tells of a pod.
pub(super) fn report(pod: &mut Pod, phase: &str, ready: bool, now: Time) {
    let status = pod.status.get_or_insert_default();
    phase.clone_into(&mut status.phase);
    let word = if ready { "True" } else { "False" };
    match status.conditions.iter_mut().find(|condition| condition.r#type == "Ready") {
        Some(known) if known.status == word => {}
        Some(known) => {
            word.clone_into(&mut known.status);
            known.last_transition_time = Some(now);
        }
        None => status.conditions.push(Condition {
            r#type: "Ready".to_owned(),
            status: word.to_owned(),
            last_transition_time: Some(now),
            ..Condition::default()
        }),
    }
}
