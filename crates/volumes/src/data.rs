//! What the workers that look after claims' data share: who uses a claim, calls to agents, and writes.

use std::{future::Future, sync::Arc, time::Duration};

use pb::{
    Kind, ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim, Pod, StorageClass},
};
use plan::volume::{
    self,
    attach::{self, volume_of},
    lost::Nodes,
};
use runtime::{Leadership, feed::list_all};
use store::{
    Key, Prefix, Revision, Txn, TxnOutcome,
    objects::{put, unchanged},
};
use tonic::{Code, Request, Response, Status};

use crate::{Inner, drivers::CallError, lookup::Lookup, worker::Trouble};

/// How long a cache may lag before a look is given up.
const LAG: Duration = Duration::from_secs(5);

/// The key of a volume.
pub(crate) fn volume_key(name: &str) -> Key {
    Key::object(Kind::PersistentVolume, "", name)
}

/// The key of a claim.
pub(crate) fn claim_key(namespace: &str, name: &str) -> Key {
    Key::object(Kind::PersistentVolumeClaim, namespace, name)
}

/// The claim that a volume names.
pub(crate) fn owner_key(volume: &PersistentVolume) -> Option<Key> {
    let owner = volume.spec.as_ref()?.claim_ref.as_ref()?;
    (!owner.name.is_empty()).then(|| claim_key(&owner.namespace, &owner.name))
}

/// The claims that a pod names.
pub(crate) fn claims_of(pod: &Pod) -> Vec<Key> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    claims.map(|claim| claim_key(pod.namespace(), &claim.claim_name)).collect()
}

/// The node of a pod; empty if it has none.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}

impl Inner {
    /// The pods that name a claim.
    pub(crate) fn pods_of(&self, claim: &Key) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list(&Prefix::namespace(Kind::Pod, claim.namespace()));
        pods.retain(|pod| claims_of(pod).contains(claim));
        pods
    }

    /// All nodes by name.
    pub(crate) fn all_nodes(&self) -> Nodes {
        self.nodes.all().into_iter().map(|node| (node.name().to_owned(), node)).collect()
    }

    /// The volume that a claim names.
    pub(crate) async fn volume_of(&self, claim: &PersistentVolumeClaim) -> store::Result<Lookup<PersistentVolume>> {
        match volume::bound_to(claim) {
            Some(name) => self.look_up(&self.volumes, &volume_key(name)).await,
            None => Ok(Lookup::Absent),
        }
    }

    /// The class of this name.
    pub(crate) async fn class(&self, name: &str) -> store::Result<Lookup<StorageClass>> {
        if name.is_empty() {
            return Ok(Lookup::Absent);
        }
        self.look_up(&self.classes, &Key::object(Kind::StorageClass, "", name)).await
    }

    /// Writes a claim that was read; nothing if it is as it was.
    pub(crate) async fn write_claim(
        &self,
        leadership: &Leadership,
        before: &PersistentVolumeClaim,
        after: &PersistentVolumeClaim,
    ) -> store::Result<TxnOutcome> {
        if before == after {
            return Ok(TxnOutcome::Committed(before.mod_revision()));
        }
        let guards = vec![leadership.guard.clone(), unchanged(before)];
        self.store.txn(Txn { guards, ops: vec![put(after)] }).await
    }

    /// A node that a volume is attached to.
    pub(crate) fn attached_to(&self, volume: &str) -> Option<String> {
        let all = self.attachments.all();
        all.iter().find(|one| volume_of(one) == volume).map(|one| attach::node_of(one).to_owned())
    }

    /// Waits until the caches of what may use a claim show every pod and attachment that the store has now. The store is
    /// asked, since a cache may be told of no change to its own kind for a long time.
    pub(crate) async fn seen(&self, namespace: &str) -> Result<(), Trouble> {
        let pods = self.last_write(&Prefix::namespace(Kind::Pod, namespace)).await?;
        let attachments = self.last_write(&Prefix::kind(Kind::VolumeAttachment)).await?;
        let all = async { tokio::join!(self.pods.reached(pods), self.attachments.reached(attachments)) };
        let seen = tokio::time::timeout(LAG, all).await.map(|_| ());
        Ok(seen.map_err(|_| CallError::Uncertain {
            message: "what was written last of pods and attachments has not been seen yet".to_owned(),
        })?)
    }

    /// The revision of the latest write of what there is under a prefix; 0 if there is nothing.
    async fn last_write(&self, prefix: &Prefix) -> store::Result<Revision> {
        let (items, _) = list_all(&*self.store, prefix).await?;
        Ok(items.iter().map(|item| item.mod_revision).max().unwrap_or(0))
    }
}

/// Calls an agent. An answer that does not come in time may come to pass all the same.
pub(crate) async fn ask<Q, A, F>(
    node: &str,
    what: &str,
    deadline: Duration,
    message: Q,
    call: impl FnOnce(Request<Q>) -> F,
) -> Result<A, CallError>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    let answer = tokio::time::timeout(deadline, call(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))));
    answer.map(Response::into_inner).map_err(|status| refusal(node, what, &status))
}

/// What an agent's status says of a call.
pub(crate) fn refusal(node: &str, what: &str, status: &Status) -> CallError {
    let message = format!("the agent of node {node:?} did not {what}: {}", status.message());
    match status.code() {
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated) => CallError::Refused { code, message },
        code => CallError::Uncertain { message: format!("{message} ({code:?})") },
    }
}
