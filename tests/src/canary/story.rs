//! What happens to the canaries: what people ask for and what machines do, drawn by lot.
//!
//! After every operation the set must become whole by itself, every writer must be acknowledged again, and everything that
//! was ever acknowledged must be there. A kill can come in the middle of any operation.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pb::{
    ObjectExt,
    objects::{Node, PersistentVolume, Pod},
};
use tokio::time::Instant;

use super::{
    ledger::Mark,
    set::{CanarySet, Storage, capacity},
    writer::Writer,
};
use crate::{LabGuard, census::census, client::Client, dice::Dice, inventory};

/// For a set of three to be whole again, whatever was killed.
const PATIENCE: Duration = Duration::from_secs(120);
/// A kill in the middle of an operation comes within this time.
const MIDDLE: Duration = Duration::from_millis(2500);
/// So many groups of snapshots are kept.
const GROUPS: usize = 2;
/// So many canaries.
const REPLICAS: usize = 3;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// SIGKILL to the container's process.
    KillPod(usize),
    /// The pod is deleted.
    DeletePod(usize),
    /// The pod is evicted.
    Evict(usize),
    /// SIGKILL to a process of the lab.
    Kill(String),
    /// Down to so many canaries, and up again.
    Scale(usize),
    /// Another image for all.
    Roll,
    /// The claim template grows.
    Expand,
    /// The ordinal goes to another node: its data, or, when all nodes reach it, its pod.
    Relocate(usize),
    /// Snapshots of all claims.
    Snapshot,
    /// The ordinal's data goes back to a snapshot.
    Restore(usize),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillPod(ordinal) => write!(f, "kill -9 of canary {ordinal}"),
            Self::DeletePod(ordinal) => write!(f, "delete pod {ordinal}"),
            Self::Evict(ordinal) => write!(f, "evict pod {ordinal}"),
            Self::Kill(process) => write!(f, "kill -9 of {process}"),
            Self::Scale(replicas) => write!(f, "down to {replicas} and up again"),
            Self::Roll => f.write_str("rolling update"),
            Self::Expand => f.write_str("expand"),
            Self::Relocate(ordinal) => write!(f, "ordinal {ordinal} to another node"),
            Self::Snapshot => f.write_str("snapshot"),
            Self::Restore(ordinal) => write!(f, "restore ordinal {ordinal}"),
        }
    }
}

/// A group of snapshots.
struct Group {
    name: String,
    marks: BTreeMap<usize, Mark>,
}

/// A set of canaries, its writers, and what has happened to them.
pub struct Story<'a> {
    lab: &'a LabGuard,
    client: Client,
    set: CanarySet,
    writers: Vec<Writer>,
    dice: Dice,
    groups: VecDeque<Group>,
    group_count: usize,
    /// Claim and volume of each ordinal: they stay, whatever happens.
    bindings: Vec<(String, String)>,
    history: Vec<String>,
    left_out: Vec<String>,
}

impl<'a> Story<'a> {
    /// Makes the set, and lets the writing begin.
    pub async fn begin(lab: &'a LabGuard, client: &Client, storage: Storage, dice: Dice) -> Result<Self> {
        let set = CanarySet::new(client, storage, REPLICAS);
        set.apply_all().await?;
        set.whole(Instant::now() + PATIENCE).await?;
        let writers = (0..REPLICAS).map(|ordinal| Writer::start(client, &set.pod(ordinal))).collect();
        let bindings = bindings(&set).await?;
        let mut story = Self {
            lab,
            client: client.clone(),
            set,
            writers,
            dice,
            groups: VecDeque::new(),
            group_count: 0,
            bindings,
            history: Vec::new(),
            left_out: left_out(),
        };
        story.settle().await.context("at first")?;
        Ok(story)
    }

    /// Lets so many operations happen, then compares what is on the disks with what is in the store.
    pub async fn run(&mut self, operations: usize) -> Result<()> {
        let mut done = 0;
        while done < operations {
            let operation = self.draw().await?;
            if self.left_out.iter().any(|word| operation.to_string().contains(word)) {
                continue;
            }
            let kill = self.draw_kill(&operation);
            let told = match &kill {
                Some((process, after)) => format!("{operation}, and kill -9 of {process} after {after:.1?}"),
                None => operation.to_string(),
            };
            self.history.push(told.clone());
            let start = Instant::now();
            let disturbed = kill.is_some();
            let lab = self.lab;
            let killed = async {
                if let Some((process, after)) = &kill {
                    tokio::time::sleep(*after).await;
                    lab.kill_and_wait(process).await.with_context(|| format!("kill {process}"))?;
                }
                Ok(())
            };
            let happened = async {
                self.happen(&operation, disturbed).await?;
                anyhow::Ok(())
            };
            tokio::try_join!(happened, killed).with_context(|| told.clone())?;
            self.settle().await.with_context(|| format!("after: {told}"))?;
            done += 1 + usize::from(disturbed);
            println!("{:4} {told}: whole after {:.1?}", done, start.elapsed());
        }
        Ok(())
    }

    /// Everything that was acknowledged so far and must be there.
    pub async fn acknowledged(&self) -> usize {
        let mut sum = 0;
        for writer in &self.writers {
            sum += writer.acknowledged().await;
        }
        sum
    }

    /// What happened.
    pub fn history(&self) -> &[String] {
        &self.history
    }

    /// The set.
    pub fn set(&self) -> &CanarySet {
        &self.set
    }

    /// Removes the set with all that it had, and looks that nothing stays on a disk.
    pub async fn end(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        drop(self.writers);
        for group in &self.groups {
            self.set.forget_snapshot(&group.name, deadline).await?;
        }
        self.set.remove(deadline).await?;
        inventory::settled(self.lab, &self.client, deadline).await
    }

    /// What may happen now.
    async fn draw(&mut self) -> Result<Operation> {
        let ordinal = usize::try_from(self.dice.roll(REPLICAS as u64))?;
        // A container that dies again waits longer and longer before it starts: only one that has not is killed.
        let pods = self.pods().await?;
        let restarts =
            |pod: &Pod| pod.status.iter().flat_map(|s| &s.container_statuses).map(|c| c.restart_count).sum::<i32>();
        let healthiest = (0..REPLICAS).min_by_key(|k| pods.get(*k).map_or(0, restarts)).unwrap_or(0);
        let rested = pods.get(healthiest).map_or(0, restarts) == 0;
        Ok(match self.dice.roll(20) {
            0..=2 if rested => Operation::KillPod(healthiest),
            0..=4 => Operation::DeletePod(ordinal),
            5 => Operation::Evict(ordinal),
            6..=9 => Operation::Kill(self.victim()),
            10 | 11 => Operation::Scale(usize::try_from(self.dice.roll(REPLICAS as u64))?),
            12 => Operation::Roll,
            13 | 14 => Operation::Expand,
            15 | 16 => Operation::Relocate(ordinal),
            17 => Operation::Snapshot,
            _ if self.groups.is_empty() => Operation::Snapshot,
            _ => Operation::Restore(ordinal),
        })
    }

    /// A kill in the middle of an operation that takes a while.
    fn draw_kill(&mut self, operation: &Operation) -> Option<(String, Duration)> {
        let kill = !matches!(operation, Operation::Kill(_)) && self.dice.roll(3) == 0;
        let moment = MIDDLE.mul_f64(self.dice.roll(1000) as f64 / 1000.0);
        kill.then(|| (self.victim(), moment))
    }

    fn victim(&mut self) -> String {
        let nodes = ["node-1", "node-2", "node-3"];
        let node = self.dice.pick(&nodes).copied().unwrap_or("node-1");
        match self.dice.roll(8) {
            0..=2 => format!("agent@{node}"),
            3 | 4 => "volumes".to_owned(),
            5 => format!("csi-{}@{node}", self.set.storage.driver),
            6 => format!("containerd@{node}"),
            _ => "controller".to_owned(),
        }
    }

    async fn pods(&self) -> Result<Vec<Pod>> {
        self.set.whole(Instant::now() + PATIENCE).await
    }

    async fn happen(&mut self, operation: &Operation, disturbed: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        match operation {
            Operation::KillPod(ordinal) => self.kill_pod(*ordinal),
            Operation::DeletePod(ordinal) => self.replace(*ordinal, false, deadline).await,
            Operation::Evict(ordinal) => self.replace(*ordinal, true, deadline).await,
            Operation::Kill(process) => self.lab.kill_and_wait(process).await,
            Operation::Scale(replicas) => {
                self.set.scale(*replicas).await?;
                self.set.gone_from(*replicas, deadline).await?;
                self.set.scale(REPLICAS).await
            }
            Operation::Roll => self.set.roll().await,
            Operation::Expand => self.expand(deadline).await,
            Operation::Relocate(ordinal) if self.set.storage.bound_to_node => {
                self.move_data(*ordinal, disturbed, deadline).await
            }
            Operation::Relocate(ordinal) => self.move_pod(*ordinal, deadline).await,
            Operation::Snapshot => self.snapshot(deadline).await,
            Operation::Restore(ordinal) => self.restore(*ordinal, disturbed, deadline).await,
        }
    }

    fn kill_pod(&self, ordinal: usize) -> Result<()> {
        let pod = self.set.pod(ordinal);
        let alive = census();
        let Some([process]) = alive.get(&pod).map(Vec::as_slice) else {
            bail!("{pod} is not alive exactly once: {alive:?}")
        };
        let status = Command::new("kill").args(["-KILL", &process.to_string()]).status()?;
        ensure!(status.success(), "kill {process}: {status}");
        Ok(())
    }

    async fn replace(&self, ordinal: usize, evict: bool, deadline: Instant) -> Result<()> {
        let name = self.set.pod(ordinal);
        let pod = self.client.get::<Pod>(&name).await?.with_context(|| format!("there is no {name}"))?;
        if evict {
            self.set.evict(&name).await?;
        } else {
            self.set.delete_pod(&name).await?;
        }
        self.set.replaced(&name, pod.uid(), deadline).await
    }

    async fn expand(&mut self, deadline: Instant) -> Result<()> {
        let size = self.set.grow(self.set.storage.growth).await?;
        for ordinal in (0..REPLICAS).rev() {
            let name = self.set.claim(ordinal);
            self.set.until(&name, deadline, |claim| Ok(claim.and_then(capacity) >= Some(size))).await?;
        }
        Ok(())
    }

    /// Another node than the pod is on.
    async fn other_node(&mut self, pod: &Pod) -> Result<String> {
        let (nodes, _) = self.client.list::<Node>("").await?;
        let here = pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str());
        let others: Vec<&str> = nodes.iter().map(ObjectExt::name).filter(|name| *name != here).collect();
        Ok(self.dice.pick(&others).copied().context("there is no other node")?.to_owned())
    }

    async fn move_data(&mut self, ordinal: usize, disturbed: bool, deadline: Instant) -> Result<()> {
        let name = self.set.pod(ordinal);
        let pod = self.client.get::<Pod>(&name).await?.with_context(|| format!("there is no {name}"))?;
        let target = self.other_node(&pod).await?;
        let id = self.set.move_to(&name, &target).await?;
        let ended = self.set.operation_ended(&self.set.claim(ordinal), &id, deadline).await?;
        if ended.phase == "Failed" {
            // What was killed in the middle may end the attempt; then nothing has changed.
            ensure!(disturbed, "the move failed though nothing was killed: {}", ended.message);
            println!("     the move to {target} failed, and is as if it had not been: {}", ended.message);
            return Ok(());
        }
        self.set.replaced(&name, pod.uid(), deadline).await?;
        let pods = self.set.whole(deadline).await?;
        let node = pods.get(ordinal).and_then(|pod| pod.spec.as_ref()).map_or("", |spec| spec.node_name.as_str());
        ensure!(node == target, "{name} runs on {node} and not on {target}");
        Ok(())
    }

    async fn move_pod(&mut self, ordinal: usize, deadline: Instant) -> Result<()> {
        let name = self.set.pod(ordinal);
        let pod = self.client.get::<Pod>(&name).await?.with_context(|| format!("there is no {name}"))?;
        let here = pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str()).to_owned();
        self.set.cordon(&here, true).await?;
        let moved = async {
            self.replace(ordinal, false, deadline).await?;
            self.set.whole(deadline).await
        };
        let moved = moved.await;
        self.set.cordon(&here, false).await?;
        let pods = moved?;
        let node = pods.get(ordinal).and_then(|pod| pod.spec.as_ref()).map_or("", |spec| spec.node_name.as_str());
        ensure!(!node.is_empty() && node != here, "{name} runs on {node} again, though no pod may be placed there");
        Ok(())
    }

    async fn snapshot(&mut self, deadline: Instant) -> Result<()> {
        while self.groups.len() >= GROUPS {
            if let Some(group) = self.groups.pop_front() {
                self.set.forget_snapshot(&group.name, deadline).await.context("delete an older snapshot")?;
            }
        }
        self.group_count += 1;
        let name = format!("{}-g{}", self.set.name(), self.group_count);
        let mut marks = BTreeMap::new();
        for (ordinal, writer) in self.writers.iter().enumerate() {
            marks.insert(ordinal, writer.mark().await);
        }
        self.set.snapshot(&name).await?;
        self.set.snapshot_ready(&name, deadline).await?;
        for (ordinal, writer) in self.writers.iter().enumerate() {
            if let Some(mark) = marks.get_mut(&ordinal) {
                writer.seal(mark).await;
            }
        }
        self.groups.push_back(Group { name, marks });
        Ok(())
    }

    async fn restore(&mut self, ordinal: usize, disturbed: bool, deadline: Instant) -> Result<()> {
        let at = usize::try_from(self.dice.roll(self.groups.len() as u64))?;
        let group = self.groups.get(at).context("there is no snapshot")?;
        let mark = group.marks.get(&ordinal).context("the snapshot lacks an ordinal")?;
        let writer = self.writers.get(ordinal).context("there is no writer")?;
        let (claim, name) = (self.set.claim(ordinal), self.set.pod(ordinal));
        let pod = self.client.get::<Pod>(&name).await?.with_context(|| format!("there is no {name}"))?;
        let (_, volume) = self.bindings.get(ordinal).context("there is no volume")?;

        writer.pause().await;
        let before = writer.ledger().await;
        writer.check().await.context("before the restore")?;
        let id = self.set.restore(&name, &group.name).await?;
        let ended = self.set.operation_ended(&claim, &id, deadline).await?;
        if ended.phase == "Failed" {
            ensure!(disturbed, "the restore failed though nothing was killed: {}", ended.message);
            println!("     the restore failed, and is as if it had not been: {}", ended.message);
            writer.resume();
            return Ok(());
        }
        self.set.replaced(&name, pod.uid(), deadline).await?;
        self.set.whole(deadline).await?;
        writer.restored(mark).await.context("after the restore")?;
        writer.resume();

        // Nothing is lost: what was there before is in a volume that nobody removes by himself.
        let kept = format!("{volume}-before-{id}");
        let kept = self.client.get::<PersistentVolume>(&kept).await?.with_context(|| format!("there is no {kept}"))?;
        let log = inventory::read_log(self.lab, &kept).await?;
        before.check(&log).map_err(|wrong| anyhow::anyhow!("the data before the restore: {}", wrong.join("; ")))?;
        Ok(())
    }

    /// Waits until all is well again, and looks at everything.
    async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        self.set.whole(deadline).await?;
        for writer in &self.writers {
            writer.writes_again(deadline).await?;
        }
        for writer in &self.writers {
            writer.check().await?;
        }
        let now = bindings(&self.set).await?;
        ensure!(now == self.bindings, "claims or volumes were replaced: {:?} became {now:?}", self.bindings);
        Ok(())
    }
}

/// Words that no operation may have: to look for the smallest story that still fails.
fn left_out() -> Vec<String> {
    let words = std::env::var("CANARY_WITHOUT").unwrap_or_default();
    words.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The uid of each ordinal's claim and the name of its volume.
async fn bindings(set: &CanarySet) -> Result<Vec<(String, String)>> {
    let of = |claim: pb::objects::PersistentVolumeClaim| {
        let volume = claim.spec.as_ref().map(|spec| spec.volume_name.clone()).unwrap_or_default();
        (claim.uid().to_owned(), volume)
    };
    Ok(set.claims().await?.into_iter().map(of).collect())
}
