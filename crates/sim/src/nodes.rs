//! The nodes: which processes really run, whatever the store says, and what is told of them.

use std::collections::{BTreeMap, VecDeque};

use controller::host::Host;
use pb::{ObjectExt, objects::*};
use store::{Key, MemStore, Op, Txn, objects};

use crate::{
    chance::Chance,
    ports::{SimHost, get, list},
};

/// Reports that may be on their way.
const ON_THE_WAY: usize = 4;

/// A pod's processes on a node.
#[derive(Clone, Debug)]
struct Running {
    uid: String,
    node: String,
    phase: &'static str,
    ready: bool,
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
    /// By namespace and name of the pod: at most one may run, wherever.
    running: BTreeMap<(String, String), Running>,
    reports: VecDeque<Report>,
}

impl Nodes {
    /// Nodes that run nothing.
    pub fn new(store: &MemStore, host: &SimHost) -> Self {
        Self { store: store.clone(), host: host.clone(), running: BTreeMap::new(), reports: VecDeque::new() }
    }

    /// One thing that a node does about one pod. Says what is wrong if a second process of an identity starts.
    pub fn tend(&mut self, chance: &mut Chance) -> Result<(), String> {
        let pods = list::<Pod>(&self.store);
        let Some(pod) = chance.pick(&pods) else { return Ok(()) };
        self.tend_to(pod)
    }

    fn tend_to(&mut self, pod: &Pod) -> Result<(), String> {
        let node = pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default();
        if node.is_empty() {
            return Ok(());
        }
        let key = (pod.namespace().to_owned(), pod.name().to_owned());
        let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Failed" | "Succeeded"));
        if pod.is_terminating() {
            self.running.retain(|running, process| *running != key || process.uid != pod.uid());
            self.tell(pod, None, true);
            return Ok(());
        }
        match self.running.get(&key) {
            Some(process) if process.uid != pod.uid() => {
                return Err(format!(
                    "{} starts on {node} while uid {} runs on {}",
                    pod.name(),
                    process.uid,
                    process.node
                ));
            }
            Some(process) => {
                let process = process.clone();
                self.tell(pod, Some(&process), false);
            }
            None if ended => {}
            None => {
                let process = Running { uid: pod.uid().to_owned(), node, phase: "Running", ready: true };
                self.tell(pod, Some(&process), false);
                self.running.insert(key, process);
            }
        }
        Ok(())
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
        let names: Vec<_> = self.running.keys().cloned().collect();
        let Some(process) = chance.pick(&names).and_then(|name| self.running.get_mut(name)) else { return };
        if process.phase != "Running" {
            return;
        }
        match chance.below(4) {
            0 => (process.phase, process.ready) = ("Failed", false),
            1 => (process.phase, process.ready) = ("Succeeded", false),
            _ => process.ready = !process.ready,
        }
    }

    /// Every process that runs is well again.
    pub fn heal(&mut self) {
        for process in self.running.values_mut().filter(|process| process.phase == "Running") {
            process.ready = true;
        }
    }

    /// A report gets lost.
    pub fn lose(&mut self) {
        self.reports.pop_back();
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
        for pod in list::<Pod>(&self.store) {
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
