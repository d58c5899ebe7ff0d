//! Binds claims of classes that bind at once, and claims without a class, whether or not a pod uses them.

use std::time::Duration;

use pb::{
    Kind, Object, ObjectExt,
    objects::{Node, NodeSelector, PersistentVolumeClaim},
};
use plan::volume::{self, ClaimState, Problem};
use runtime::{Leadership, Queue};
use store::{Key, Txn, objects::put};

use crate::{
    VolumeManager,
    drivers::is_ready,
    worker::{Next, Trouble, Worker, follow, work},
};

/// Until a claim that cannot be bound as things are is looked at again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Binder { manager, leadership: leadership.clone() }, leadership).await;
}

struct Binder {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Binder {
    /// Namespace and name of a claim.
    type Key = (String, String);

    const NAME: &'static str = "bind";
    const WIDTH: usize = 4;

    async fn feed(&self, queue: &Queue<Self::Key>) {
        let inner = &self.manager.inner;
        let of_claim = |claim: &PersistentVolumeClaim| {
            let bound = claim.meta().annotations.contains_key("pv.kubernetes.io/bind-completed");
            (!bound).then(|| (claim.namespace().to_owned(), claim.name().to_owned()))
        };
        let everything = || inner.claims.all().iter().filter_map(|claim| of_claim(claim)).collect();
        follow(&inner.claims, queue, of_claim, everything).await;
    }

    async fn look_at(&self, (namespace, name): &Self::Key) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        self.manager.ready().await;
        let Some(claim) = inner.claims.get(&Key::object(Kind::PersistentVolumeClaim, namespace, name)) else {
            return Ok(Next::Done);
        };
        if claim.is_terminating() {
            return Ok(Next::Done);
        }
        let facts = inner.facts(&claim, true).await?;
        let choice = match facts.state(&claim) {
            ClaimState::Bound(_) => return Ok(Next::Done),
            ClaimState::Unbound(choice) => choice,
            ClaimState::Problem(_) => return Ok(Next::After(PATIENCE)),
        };
        let class = facts.class(choice.class_name);
        let waits = class.is_some_and(|class| class.volume_binding_mode.as_deref() != Some("Immediate"));
        if waits {
            return Ok(Next::Done);
        }
        let reachable = match inner.narrow(&claim, &choice) {
            Ok(reachable) => reachable,
            Err(Problem { message, .. }) => {
                tracing::warn!(claim = name, message, "a claim is not bound");
                return Ok(Next::After(PATIENCE));
            }
        };
        let node = match choice.class.filter(|_| choice.existing.is_empty()) {
            Some(class) => match self.node(&class.provisioner, reachable.as_ref(), claim.uid()) {
                Some(node) => node,
                None => return Ok(Next::After(PATIENCE)),
            },
            None => String::new(),
        };
        let pair = match inner.pair(&claim, &node, true).await {
            Ok(pair) => pair,
            Err(status) => {
                tracing::warn!(claim = name, error = status.message(), "a claim is not bound yet");
                return Ok(Next::After(Duration::from_secs(1)));
            }
        };
        let mut guards = pair.guards;
        guards.push(self.leadership.guard.clone());
        let ops = vec![put(&pair.claim), put(&pair.volume)];
        Ok(inner.store.txn(Txn { guards, ops }).await?.into())
    }
}

impl Binder {
    /// A node for whose place the volume is made; empty: the driver has no places. The claim's uid decides, so that every
    /// try asks for the same and volumes are spread.
    fn node(&self, driver: &str, reachable: Option<&NodeSelector>, uid: &str) -> Option<String> {
        let drivers = &self.manager.inner.drivers;
        if drivers.is_central(driver) && drivers.nodes_of(driver).is_empty() && reachable.is_none() {
            return Some(String::new());
        }
        let fits = |node: &Node| is_ready(node) && volume::reaches(reachable, node.name(), &node.meta().labels);
        let nodes = drivers.nodes_of(driver);
        let nodes: Vec<_> = nodes.iter().filter(|node| fits(node)).collect();
        let sum = uid.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        nodes.get(sum.checked_rem(nodes.len())?).map(|node| node.name().to_owned())
    }
}
