//! The set of canaries as its user has it: the manifest that grows and changes, and what is asked of the API.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use model::quantity::Quantity;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{
        EvictRequest, MoveVolumesRequest, PatchRequest, RestoreVolumesRequest, SnapshotVolumesRequest, VolumeOwner,
    },
    objects::{ClaimOperation, PersistentVolume, PersistentVolumeClaim, Pod, StatefulSet, VolumeSnapshot},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{IMAGE, OTHER_IMAGE, PORT};
use crate::client::{Client, NAMESPACE, is_ready};

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
const MEBI: i64 = 1 << 20;

/// The storage that a set is on.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// Name of the set, and of its class.
    pub name: &'static str,
    /// The CSI driver.
    pub driver: &'static str,
    /// The class' parameters.
    pub parameters: &'static [(&'static str, &'static str)],
    /// Size of a volume at first, in MiB.
    pub size: i64,
    /// How much it grows each time, in MiB.
    pub growth: i64,
    /// Whether a volume is bound to its node: then its data moves, and otherwise its pod.
    pub bound_to_node: bool,
}

/// A set of canaries.
pub struct CanarySet {
    /// The storage that it is on.
    pub storage: Storage,
    /// How many canaries there are when it is whole.
    pub replicas: usize,
    client: Client,
    manifest: Value,
    rolls: u64,
    size: i64,
}

impl CanarySet {
    /// A set that is not applied yet.
    pub fn new(client: &Client, storage: Storage, replicas: usize) -> Self {
        let name = storage.name;
        let manifest = json!({
            "apiVersion": "berth/v1", "kind": "StatefulSet",
            "metadata": {"name": name},
            "spec": {
                "serviceName": name,
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "terminationGracePeriodSeconds": 5,
                        "containers": [{
                            "name": "canary",
                            "image": IMAGE,
                            "ports": [{"containerPort": PORT, "name": "canary"}],
                            "readinessProbe": {"tcpSocket": {"port": "canary"}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                        }],
                    },
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "storageClassName": name,
                        "resources": {"requests": {"storage": format!("{}Mi", storage.size)}},
                    },
                }],
            },
        });
        Self { storage, replicas, client: client.clone(), manifest, rolls: 0, size: storage.size }
    }

    /// Its name, and that of its class.
    pub fn name(&self) -> &'static str {
        self.storage.name
    }

    /// The pod of an ordinal.
    pub fn pod(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.name())
    }

    /// The claim of an ordinal.
    pub fn claim(&self, ordinal: usize) -> String {
        format!("data-{}", self.pod(ordinal))
    }

    /// Applies the class and the set.
    pub async fn apply_all(&self) -> Result<()> {
        let parameters: BTreeMap<_, _> = self.storage.parameters.iter().copied().collect();
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": self.name()},
            "provisioner": self.storage.driver,
            "parameters": parameters,
            "allowVolumeExpansion": true,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        self.client.apply(&[class]).await?;
        self.apply().await
    }

    /// Applies the set as it is wanted now.
    pub async fn apply(&self) -> Result<()> {
        self.client.apply(std::slice::from_ref(&self.manifest)).await?;
        Ok(())
    }

    /// Changes the number of canaries until further notice.
    pub async fn scale(&mut self, replicas: usize) -> Result<()> {
        self.manifest["spec"]["replicas"] = json!(replicas);
        self.apply().await
    }

    /// Rolls all pods to the other image.
    pub async fn roll(&mut self) -> Result<()> {
        self.rolls += 1;
        let image = if self.rolls.is_multiple_of(2) { IMAGE } else { OTHER_IMAGE };
        self.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        self.apply().await
    }

    /// Lets the claim template grow, and gives the bytes that each claim shall have.
    pub async fn grow(&mut self, by: i64) -> Result<i64> {
        self.size += by;
        self.manifest["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] =
            json!(format!("{}Mi", self.size));
        self.apply().await?;
        Ok(self.size * MEBI)
    }

    /// Waits until the set is what it should be and says so itself; gives its pods by ordinal.
    pub async fn whole(&self, deadline: Instant) -> Result<Vec<Pod>> {
        let replicas = i32::try_from(self.replicas)?;
        let mut last = String::new();
        while Instant::now() < deadline {
            let Some(set) = self.client.get::<StatefulSet>(self.name()).await? else {
                bail!("there is no set {}", self.name())
            };
            let status = set.status.clone().unwrap_or_default();
            let complete = status.observed_generation == set.meta().generation
                && [status.replicas, status.updated_replicas, status.available_replicas] == [replicas; 3]
                && status.current_revision == status.update_revision;
            if complete {
                let (pods, _) = self.client.list::<Pod>(&format!("app={}", self.name())).await?;
                let ordinal = |pod: &Pod| (0..self.replicas).find(|k| self.pod(*k) == pod.name());
                let mut pods: Vec<(Option<usize>, Pod)> = pods.into_iter().map(|pod| (ordinal(&pod), pod)).collect();
                pods.sort_by_key(|(ordinal, _)| *ordinal);
                let right = pods.len() == self.replicas
                    && pods.iter().all(|(ordinal, pod)| ordinal.is_some() && is_ready(pod) && !pod.is_terminating());
                if right {
                    return Ok(pods.into_iter().map(|(_, pod)| pod).collect());
                }
            }
            last = format!("{status:#?}");
            sleep(LOOK).await;
        }
        bail!("the set {} does not become whole: {last}", self.name())
    }

    /// Waits until only the first canaries are left.
    pub async fn gone_from(&self, replicas: usize, deadline: Instant) -> Result<()> {
        for ordinal in (replicas..self.replicas).rev() {
            self.until::<Pod>(&self.pod(ordinal), deadline, |pod| Ok(pod.is_none())).await?;
        }
        Ok(())
    }

    /// Deletes the set and all that it had, and waits until it is gone.
    pub async fn remove(&self, deadline: Instant) -> Result<()> {
        self.client.delete(Kind::StatefulSet, self.name()).await?;
        self.gone_from(0, deadline).await?;
        let claims = self.claims().await?;
        for claim in &claims {
            self.client.delete(Kind::PersistentVolumeClaim, claim.name()).await?;
        }
        for claim in &claims {
            self.until::<PersistentVolumeClaim>(claim.name(), deadline, |claim| Ok(claim.is_none())).await?;
        }
        // What a restore kept stays until somebody says that it may go.
        let (volumes, _) = self.client.list::<PersistentVolume>("").await?;
        for volume in volumes.iter().filter(|volume| volume.name().contains("-before-")) {
            self.let_go(volume.name()).await?;
            self.until::<PersistentVolume>(volume.name(), deadline, |volume| Ok(volume.is_none())).await?;
        }
        Ok(())
    }

    /// Says that a kept volume may be deleted.
    async fn let_go(&self, volume: &str) -> Result<()> {
        let patch = json!({
            "metadata": {"annotations": {"volume.berth.dev/keep": null}},
            "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        });
        self.patch(Kind::PersistentVolume, volume, &patch).await
    }

    async fn patch(&self, kind: Kind, name: &str, patch: &Value) -> Result<()> {
        let request = PatchRequest {
            kind: kind.name().to_owned(),
            name: name.to_owned(),
            patch: patch.to_string().into_bytes(),
            ..PatchRequest::default()
        };
        self.client.api().patch(request).await?;
        Ok(())
    }

    /// Waits until an object is as `done` wants it.
    pub async fn until<T: pb::Object>(
        &self,
        name: &str,
        deadline: Instant,
        done: impl Fn(Option<&T>) -> Result<bool>,
    ) -> Result<Option<T>> {
        let mut last = None;
        while Instant::now() < deadline {
            last = self.client.get::<T>(name).await?;
            if done(last.as_ref())? {
                return Ok(last);
            }
            sleep(LOOK).await;
        }
        let last = last.map(|object| serde_json::to_string(&object).unwrap_or_default());
        bail!("{} {name} is not so in time; it is {}", T::KIND, last.unwrap_or_else(|| "not there".to_owned()))
    }

    /// Waits until a pod of this name is another one than `uid`.
    pub async fn replaced(&self, pod: &str, uid: &str, deadline: Instant) -> Result<()> {
        self.until::<Pod>(pod, deadline, |now| Ok(now.is_some_and(|now| now.uid() != uid))).await.map(drop)
    }

    /// Deletes a pod.
    pub async fn delete_pod(&self, pod: &str) -> Result<()> {
        self.client.delete(Kind::Pod, pod).await
    }

    /// Evicts a pod.
    pub async fn evict(&self, pod: &str) -> Result<()> {
        let request = EvictRequest { namespace: NAMESPACE.to_owned(), pod: pod.to_owned(), ..EvictRequest::default() };
        self.client.api().evict(request).await?;
        Ok(())
    }

    /// The claims by ordinal.
    pub async fn claims(&self) -> Result<Vec<PersistentVolumeClaim>> {
        let mut claims = Vec::new();
        for ordinal in 0..self.replicas {
            let name = self.claim(ordinal);
            claims.push(self.client.get(&name).await?.with_context(|| format!("there is no claim {name}"))?);
        }
        Ok(claims)
    }

    /// Asks for snapshots of all claims.
    pub async fn snapshot(&self, group: &str) -> Result<()> {
        let of = VolumeOwner {
            namespace: NAMESPACE.to_owned(),
            stateful_set: self.name().to_owned(),
            ..VolumeOwner::default()
        };
        let request = SnapshotVolumesRequest { of: Some(of), group: group.to_owned() };
        self.client.api().snapshot_volumes(request).await?;
        Ok(())
    }

    /// Waits until all snapshots of a group are ready.
    pub async fn snapshot_ready(&self, group: &str, deadline: Instant) -> Result<()> {
        for ordinal in 0..self.replicas {
            let name = format!("{group}-{}", self.claim(ordinal));
            self.until::<VolumeSnapshot>(&name, deadline, |snapshot| {
                Ok(snapshot.and_then(|snapshot| snapshot.status.as_ref()).is_some_and(|status| status.ready_to_use))
            })
            .await?;
        }
        Ok(())
    }

    /// Deletes the snapshots of a group, and waits until they are gone.
    pub async fn forget_snapshot(&self, group: &str, deadline: Instant) -> Result<()> {
        let names: Vec<String> = (0..self.replicas).map(|k| format!("{group}-{}", self.claim(k))).collect();
        for name in &names {
            self.client.delete(Kind::VolumeSnapshot, name).await?;
        }
        for name in &names {
            self.until::<VolumeSnapshot>(name, deadline, |snapshot| Ok(snapshot.is_none())).await?;
        }
        Ok(())
    }

    /// Asks for the data of a pod as it is in a snapshot; gives the operation's id.
    pub async fn restore(&self, pod: &str, group: &str) -> Result<String> {
        let request = RestoreVolumesRequest { into: Some(of_pod(pod)), from: group.to_owned(), stop: true };
        operation(self.client.api().restore_volumes(request).await?.into_inner().claims)
    }

    /// Asks for the data of a pod to go to another node; gives the operation's id.
    pub async fn move_to(&self, pod: &str, node: &str) -> Result<String> {
        let request = MoveVolumesRequest { of: Some(of_pod(pod)), target_node: node.to_owned(), stop: true };
        operation(self.client.api().move_volumes(request).await?.into_inner().claims)
    }

    /// Waits until an operation on a claim has ended, and says how.
    pub async fn operation_ended(&self, claim: &str, id: &str, deadline: Instant) -> Result<ClaimOperation> {
        let found = self
            .until::<PersistentVolumeClaim>(claim, deadline, |claim| {
                let operation = operation_of(claim).with_context(|| "the operation is forgotten")?;
                ensure!(operation.id == id, "another operation took the place of {id}: {operation:?}");
                Ok(matches!(operation.phase.as_str(), "Done" | "Failed"))
            })
            .await?;
        operation_of(found.as_ref()).cloned().context("the operation is gone")
    }

    /// Says whether pods may be placed on a node.
    pub async fn cordon(&self, node: &str, unschedulable: bool) -> Result<()> {
        self.patch(Kind::Node, node, &json!({"spec": {"unschedulable": unschedulable}})).await
    }
}

fn of_pod(pod: &str) -> VolumeOwner {
    VolumeOwner { namespace: NAMESPACE.to_owned(), pod: pod.to_owned(), ..VolumeOwner::default() }
}

fn operation_of(claim: Option<&PersistentVolumeClaim>) -> Option<&ClaimOperation> {
    claim?.status.as_ref()?.operation.as_ref()
}

fn operation(claims: Vec<PersistentVolumeClaim>) -> Result<String> {
    let [claim] = claims.as_slice() else { bail!("{} claims for a pod that has one", claims.len()) };
    Ok(operation_of(Some(claim)).context("the answer shows no operation")?.id.clone())
}

/// The bytes that a claim has.
pub fn capacity(claim: &PersistentVolumeClaim) -> Option<i64> {
    let storage = claim.status.as_ref()?.capacity.get("storage")?;
    Some(storage.value.parse::<Quantity>().ok()?.as_units())
}
