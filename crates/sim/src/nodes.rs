//! The nodes: which processes really run, whatever the store says, and what is told of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use controller::host::Host;
use pb::{ObjectExt, objects::*};
use store::{Key, MemStore, Op, Txn, objects};

use crate::{
    chance::Chance,
    ports::{SimHost, get, list},
};

/// Reports that may be on their way.
const ON_THE_WAY: usize = 6;
/// What the image of a template says that never becomes ready.
pub const BROKEN: &str = "broken";

/// A pod's processes on a node.
#[derive(Clone, Debug)]
struct Running {
    namespace: String,
    name: String,
    node: String,
    phase: &'static str,
    ready: bool,
    broken: bool,
}

/// What a node tells of a pod.
#[derive(Clone, Debug)]
struct Report {
    namespace: String,
    name: String,
    uid: String,
    phase: &'static str,
    ready: bool,
    stopped: bool,
}

/// All nodes.
pub struct Nodes {
    store: MemStore,
    host: SimHost,
    /// By uid of the pod.
    running: BTreeMap<String, Running>,
    reports: VecDeque<Report>,
    /// Nodes that nobody hears of and that hear of nobody. What runs there runs on.
    lost: BTreeSet<String>,
    /// Pods that a user forgot by force: their processes may run beside their successors' (NL-6).
    forced: BTreeSet<String>,
}

impl Nodes {
    /// Nodes that run nothing.
    pub fn new(store: &MemStore, host: &SimHost) -> Self {
        let (running, reports, lost, forced) = Default::default();
        Self { store: store.clone(), host: host.clone(), running, reports, lost, forced }
    }

    /// A node is cut off, or back.
    pub fn cut_off(&mut self, node: &str, lost: bool) {
        if lost {
            self.lost.insert(node.to_owned());
        } else {
            self.lost.remove(node);
        }
    }

    /// A user takes a pod out of the store, whether or not it runs.
    pub fn forget_by_force(&mut self, pod: &Pod) {
        self.forced.insert(pod.uid().to_owned());
    }

    /// Something that nodes do about one pod. Says what is wrong if a second process of an identity starts.
    pub fn tend(&mut self, chance: &mut Chance) -> Result<(), String> {
        let pods = list::<Pod>(&self.store);
        let left_over = self.left_over(&pods);
        let which = chance.below(pods.len() + left_over.len());
        if let Some(uid) = left_over.get(which) {
            self.running.remove(uid);
            return Ok(());
        }
        match pods.get(which - left_over.len()) {
            Some(pod) => self.tend_to(pod),
            None => Ok(()),
        }
    }

    /// Processes whose pod is gone, on nodes that hear of it.
    fn left_over(&self, pods: &[Pod]) -> Vec<String> {
        let running = self.running.iter().filter(|(_, process)| !self.lost.contains(&process.node));
        let gone = running.filter(|(uid, _)| pods.iter().all(|pod| pod.uid() != uid.as_str()));
        gone.map(|(uid, _)| uid.clone()).collect()
    }

    fn tend_to(&mut self, pod: &Pod) -> Result<(), String> {
        let node = pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default();
        if node.is_empty() || self.lost.contains(&node) {
            return Ok(());
        }
        let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Failed" | "Succeeded"));
        if pod.is_terminating() {
            self.running.remove(pod.uid());
            self.tell(pod, None, true);
            return Ok(());
        }
        if let Some(process) = self.running.get(pod.uid()) {
            let process = process.clone();
            self.tell(pod, Some(&process), false);
        } else if !ended && self.has_its_claims(pod) {
            let process = self.start(pod, node)?;
            self.tell(pod, Some(&process), false);
        }
        Ok(())
    }

    fn start(&mut self, pod: &Pod, node: String) -> Result<Running, String> {
        let same = |(uid, process): &(&String, &Running)| {
            process.namespace == pod.namespace() && process.name == pod.name() && !self.forced.contains(*uid)
        };
        if let Some((uid, process)) = self.running.iter().find(same) {
            return Err(format!("starts on {node} while uid {uid} runs on {}", process.node));
        }
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let broken = containers.into_iter().any(|container| container.image.contains(BROKEN));
        let process = Running {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            node,
            phase: "Running",
            ready: !broken,
            broken,
        };
        self.running.insert(pod.uid().to_owned(), process.clone());
        Ok(process)
    }

    /// A pod starts only with all of its volumes.
    fn has_its_claims(&self, pod: &Pod) -> bool {
        let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
        let mut claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        claims.all(|source| {
            let claim = get::<PersistentVolumeClaim>(&self.store, pod.namespace(), &source.claim_name);
            claim.is_some_and(|claim| plan::volume::bound_to(&claim).is_some())
        })
    }

    fn tell(&mut self, pod: &Pod, process: Option<&Running>, stopped: bool) {
        if self.reports.len() >= ON_THE_WAY {
            // Lost. The node tells again when it tends to the pod again.
            return;
        }
        self.reports.push_back(Report {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            phase: process.map_or("Failed", |process| process.phase),
            ready: process.is_some_and(|process| process.ready),
            stopped,
        });
    }

    /// Something happens to a process: it ends, or becomes ready or not.
    pub fn disturb(&mut self, chance: &mut Chance) {
        let uids: Vec<_> = self.running.keys().cloned().collect();
        let Some(process) = chance.pick(&uids).and_then(|uid| self.running.get_mut(uid)) else { return };
        if process.phase != "Running" {
            return;
        }
        match chance.below(4) {
            0 => (process.phase, process.ready) = ("Failed", false),
            1 => (process.phase, process.ready) = ("Succeeded", false),
            _ => process.ready = !process.ready && !process.broken,
        }
    }

    /// Every process that runs is as well as it can be.
    pub fn heal(&mut self) {
        for process in self.running.values_mut().filter(|process| process.phase == "Running") {
            process.ready = !process.broken;
        }
    }

    /// A report gets lost.
    pub fn lose(&mut self) {
        self.reports.pop_back();
    }

    /// A report arrives a second time, later.
    pub fn repeat(&mut self) {
        if let Some(report) = self.reports.front().cloned().filter(|_| self.reports.len() < ON_THE_WAY) {
            self.reports.push_back(report);
        }
    }

    /// A report arrives, as the API service takes it: by uid, over whatever is stored now.
    pub fn deliver(&mut self) {
        let Some(report) = self.reports.pop_front() else { return };
        let Some(mut pod) = get::<Pod>(&self.store, &report.namespace, &report.name) else { return };
        if pod.uid() != report.uid {
            return;
        }
        let guards = vec![objects::unchanged(&pod)];
        let op = if report.stopped && pod.is_terminating() {
            Op::Delete(Key::of(&pod))
        } else if report.stopped {
            return;
        } else {
            let before = pod.clone();
            write(&mut pod, &report, Time::from(self.host.now()));
            if pod == before {
                return;
            }
            objects::put(&pod)
        };
        let committed = self.store.commit(&Txn { guards, ops: vec![op] });
        debug_assert!(committed.is_ok());
    }

    /// Every node tends to every pod, and all reports arrive.
    pub fn settle(&mut self) -> Result<(), String> {
        self.deliver_all();
        let pods = list::<Pod>(&self.store);
        for uid in self.left_over(&pods) {
            self.running.remove(&uid);
        }
        for pod in pods {
            self.tend_to(&pod)?;
            self.deliver_all();
        }
        Ok(())
    }

    fn deliver_all(&mut self) {
        while !self.reports.is_empty() {
            self.deliver();
        }
    }
}

fn write(pod: &mut Pod, report: &Report, now: Time) {
    let status = pod.status.get_or_insert_default();
    if matches!(status.phase.as_str(), "Failed" | "Succeeded") {
        return;
    }
    status.phase = report.phase.to_owned();
    let word = if report.ready { "True" } else { "False" };
    let known = status.conditions.iter_mut().find(|condition| condition.r#type == "Ready");
    match known {
        Some(known) if known.status == word => {}
        Some(known) => {
            known.status = word.to_owned();
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
