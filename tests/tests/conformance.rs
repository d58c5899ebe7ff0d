//! What Kubernetes' conformance tests ask of StatefulSets, asked over gRPC of real services over a real etcd.
//!
//! Nodes are hollow: they make every pod ready at once. A pod is held unready by writing its status: its node does not
//! speak of it again. What needs a container (data that outlives its pod, host ports, names in DNS) is shown in the lab.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{
        DeleteCollectionRequest, EventType, GetScaleRequest, ListRequest, PatchRequest, PatchType, UndoRolloutRequest,
        UpdateRequest, UpdateScaleRequest, WatchRequest,
    },
    objects::*,
};
use serde_json::{Value, json};
use tests::{
    client::{Heard, NAMESPACE, is_ready, set_manifest},
    control::ControlPlane,
};
use tonic::Code;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a pod says of its revision.
const REVISION: &str = "controller-revision-hash";

/// A control plane with a user who knows StatefulSets.
struct World {
    plane: ControlPlane,
}

impl World {
    async fn start() -> Result<Self> {
        Ok(Self { plane: ControlPlane::start(3).await? })
    }

    async fn apply(&self, manifest: &Value) -> Result<StatefulSet> {
        let answer = self.plane.client.apply(std::slice::from_ref(manifest)).await?;
        let object = answer.results.into_iter().next().and_then(|result| result.object).context("no object")?;
        StatefulSet::from_any(object).map_err(|_| anyhow::anyhow!("not a set"))
    }

    async fn until(&self, name: &str, done: impl Fn(&StatefulSet, &StatefulSetStatus) -> bool) -> Result<StatefulSet> {
        let seen = |set: &StatefulSet| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == set.meta().generation && done(set, &status)
        };
        self.plane.client.until(name, PATIENCE, seen).await
    }

    /// Waits until all is as the set wants it: so many pods, ready, at one revision. Gives that revision.
    async fn settled(&self, name: &str, replicas: i32) -> Result<String> {
        let set = self
            .until(name, |_, status| {
                let counts = [status.replicas, status.ready_replicas, status.updated_replicas];
                counts == [replicas; 3] && status.current_revision == status.update_revision
            })
            .await?;
        Ok(set.status.unwrap_or_default().update_revision)
    }

    /// Waits until the controller has seen what is wanted and says that it cannot go on at this ordinal.
    async fn held_up_at(&self, name: &str, ordinal: i32) -> Result<StatefulSet> {
        self.until(name, |_, status| status.blocked_on.as_ref().and_then(|blocked| blocked.ordinal) == Some(ordinal))
            .await
    }

    async fn pods(&self, name: &str) -> Result<BTreeMap<String, Pod>> {
        let (pods, _) = self.plane.client.list::<Pod>(&format!("app={name}")).await?;
        Ok(pods.into_iter().map(|pod| (pod.name().to_owned(), pod)).collect())
    }

    /// Which revision each pod has, in order of the ordinals.
    async fn revisions(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.pods(name).await?.values().map(revision).collect())
    }

    /// The revision of the store from which on a story is told.
    async fn now(&self) -> Result<String> {
        Ok(self.plane.client.list::<Pod>("").await?.1)
    }

    /// What happened to the pods of a set up to and including one event.
    async fn story(&self, name: &str, since: &str, last: (EventType, &str)) -> Result<Vec<(EventType, String)>> {
        let over = |heard: &Heard| heard.event == last.0 && heard.pod.name() == last.1;
        let heard = self.plane.client.follow_pods(&format!("app={name}"), since, PATIENCE, over).await?;
        let told = heard.into_iter().filter(|one| one.event != EventType::Modified);
        Ok(told.map(|one| (one.event, one.pod.name().to_owned())).collect())
    }

    /// Writes a pod's status as its node would.
    async fn change_status(&self, name: &str, change: impl Fn(&mut PodStatus)) -> Result<()> {
        for _ in 0..20 {
            let mut pod: Pod = self.plane.client.get(name).await?.with_context(|| format!("there is no {name}"))?;
            change(pod.status.get_or_insert_default());
            match self.update_status(pod).await {
                Err(status) if status.code() == Code::Aborted => {}
                done => return Ok(done.map(drop)?),
            }
        }
        bail!("{name} is changed by others all the time")
    }

    async fn update_status<T: Object>(&self, object: T) -> Result<T, tonic::Status> {
        let request = UpdateRequest {
            object: Some(object.into_any()),
            subresource: "status".to_owned(),
            ..UpdateRequest::default()
        };
        let answer = self.plane.client.api().update(request).await?.into_inner();
        let object = answer.object.and_then(|object| T::from_any(object).ok());
        object.ok_or_else(|| tonic::Status::internal("no object"))
    }

    /// Waits until a pod is ready, and then holds it unready, or lets it be ready again.
    async fn make_ready(&self, name: &str, ready: bool) -> Result<()> {
        self.plane.client.until(name, PATIENCE, |pod: &Pod| is_ready(pod) != ready && !pod.is_terminating()).await?;
        let said = if ready { "True" } else { "False" };
        self.change_status(name, |status| {
            for condition in status.conditions.iter_mut().filter(|condition| condition.r#type == "Ready") {
                said.clone_into(&mut condition.status);
            }
        })
        .await
    }

    /// Deletes a pod and waits until another one of its name is ready.
    async fn replace(&self, name: &str) -> Result<Pod> {
        let old: Pod = self.plane.client.get(name).await?.with_context(|| format!("there is no {name}"))?;
        self.plane.client.delete(Kind::Pod, name).await?;
        self.plane.client.until(name, PATIENCE, |pod: &Pod| pod.uid() != old.uid() && is_ready(pod)).await
    }

    /// Says that a machine is off, or no longer.
    async fn taint(&self, name: &str, off: bool) -> Result<()> {
        let mut node: Node = self.plane.client.get(name).await?.with_context(|| format!("there is no node {name}"))?;
        let taint = Taint {
            key: "node.kubernetes.io/out-of-service".to_owned(),
            effect: "NoExecute".to_owned(),
            ..Taint::default()
        };
        node.spec.get_or_insert_default().taints = off.then_some(taint).into_iter().collect();
        let request = UpdateRequest { object: Some(node.into_any()), ..UpdateRequest::default() };
        self.plane.client.api().update(request).await?;
        Ok(())
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        let request = PatchRequest {
            kind: "StatefulSet".to_owned(),
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            r#type: PatchType::Merge.into(),
            patch: patch.to_string().into_bytes(),
            ..PatchRequest::default()
        };
        self.plane.client.api().patch(request).await?;
        Ok(())
    }
}

fn revision(pod: &Pod) -> String {
    pod.meta().labels.get(REVISION).cloned().unwrap_or_default()
}

fn image(mut manifest: Value, tag: &str) -> Value {
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("registry.k8s.io/nginx-slim:{tag}"));
    manifest
}

fn partition(mut manifest: Value, partition: i32) -> Value {
    manifest["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
    manifest
}

/// Each pod gone and made anew, in this order.
fn replaced(names: &[&str]) -> Vec<(EventType, String)> {
    let each = |name: &&str| [(EventType::Deleted, (*name).to_owned()), (EventType::Added, (*name).to_owned())];
    names.iter().flat_map(each).collect()
}

fn all(event: EventType, names: &[&str]) -> Vec<(EventType, String)> {
    names.iter().map(|name| (event, (*name).to_owned())).collect()
}

/// [C] should perform rolling updates and roll backs of template modifications
#[tokio::test(flavor = "multi_thread")]
async fn rolling_updates_and_roll_backs_go_from_the_top_and_a_roll_back_reuses_the_revision() -> Result<()> {
    let world = World::start().await?;
    let old = set_manifest("roll", 3);
    world.apply(&old).await?;
    let first = world.settled("roll", 3).await?;
    assert_eq!(world.revisions("roll").await?, vec![first.clone(); 3]);

    // The first pod of the new revision is not ready: the others stay as they are.
    let new = image(old.clone(), "0.26");
    let since = world.now().await?;
    world.apply(&partition(new.clone(), 2)).await?;
    let highest = |pod: &Pod| revision(pod) != first && is_ready(pod);
    world.plane.client.until("roll-2", PATIENCE, highest).await?;
    world.make_ready("roll-2", false).await?;
    world.apply(&partition(new.clone(), 0)).await?;
    let held = world.held_up_at("roll", 2).await?.status.unwrap_or_default();
    assert_ne!(held.update_revision, first);
    assert_eq!(held.current_revision, first);
    assert_eq!(world.revisions("roll").await?, [first.as_str(), &first, &held.update_revision]);
    world.make_ready("roll-2", true).await?;
    let second = world.settled("roll", 3).await?;
    assert_eq!(second, held.update_revision);
    let story = world.story("roll", &since, (EventType::Added, "roll-0")).await?;
    assert_eq!(story, replaced(&["roll-2", "roll-1", "roll-0"]));

    let since = world.now().await?;
    world.apply(&partition(old, 0)).await?;
    assert_eq!(world.settled("roll", 3).await?, first, "the revision of the same template is the same");
    let story = world.story("roll", &since, (EventType::Added, "roll-0")).await?;
    assert_eq!(story, replaced(&["roll-2", "roll-1", "roll-0"]));
    assert_eq!(world.revisions("roll").await?, vec![first; 3]);
    Ok(())
}

/// [C] should perform canary updates and phased rolling updates of template modifications
#[tokio::test(flavor = "multi_thread")]
async fn canaries_and_phases_follow_the_partition_and_deleted_pods_return_at_their_revision() -> Result<()> {
    let world = World::start().await?;
    let old = set_manifest("phase", 3);
    world.apply(&partition(old.clone(), 3)).await?;
    let first = world.settled("phase", 3).await?;
    let new = image(old, "0.26");

    world.apply(&partition(new.clone(), 3)).await?;
    let set = world.until("phase", |_, status| status.update_revision != first).await?;
    let second = set.status.unwrap_or_default().update_revision;
    assert_eq!(revision(&world.replace("phase-2").await?), first, "below the partition");
    assert_eq!(world.revisions("phase").await?, vec![first.clone(); 3]);

    let updated = |count: i32| {
        move |_: &StatefulSet, status: &StatefulSetStatus| {
            status.updated_replicas == count && status.ready_replicas == 3
        }
    };
    world.apply(&partition(new.clone(), 2)).await?;
    world.until("phase", updated(1)).await?;
    assert_eq!(world.revisions("phase").await?, [first.as_str(), &first, &second], "the canary");
    assert_eq!(revision(&world.replace("phase-2").await?), second, "above the partition");
    assert_eq!(revision(&world.replace("phase-0").await?), first, "below the partition");

    world.apply(&partition(new.clone(), 1)).await?;
    let set = world.until("phase", updated(2)).await?;
    assert_eq!(world.revisions("phase").await?, [first.as_str(), &second, &second]);
    assert_eq!(set.status.unwrap_or_default().current_revision, first, "not all are there yet");
    world.apply(&partition(new, 0)).await?;
    assert_eq!(world.settled("phase", 3).await?, second);
    Ok(())
}

/// [C] Scaling should happen in predictable order and halt if any stateful pod is unhealthy
#[tokio::test(flavor = "multi_thread")]
async fn scaling_goes_in_order_and_halts_while_a_pod_is_unhealthy() -> Result<()> {
    let world = World::start().await?;
    world.apply(&set_manifest("scale", 1)).await?;
    world.settled("scale", 1).await?;
    let since = world.now().await?;
    world.make_ready("scale-0", false).await?;
    world.plane.client.scale("scale", 3).await?;
    world.held_up_at("scale", 0).await?;
    assert_eq!(world.pods("scale").await?.len(), 1);
    world.make_ready("scale-0", true).await?;
    world.settled("scale", 3).await?;
    let story = world.story("scale", &since, (EventType::Added, "scale-2")).await?;
    assert_eq!(story, all(EventType::Added, &["scale-1", "scale-2"]));

    let since = world.now().await?;
    for name in ["scale-0", "scale-1", "scale-2"] {
        world.make_ready(name, false).await?;
    }
    world.until("scale", |_, status| status.ready_replicas == 0).await?;
    world.plane.client.scale("scale", 0).await?;
    world.until("scale", |set, status| replicas(set) == 0 && status.blocked_on.is_some()).await?;
    assert_eq!(world.pods("scale").await?.len(), 3, "none goes while those below it are unhealthy");
    for name in ["scale-2", "scale-1"] {
        world.make_ready(name, true).await?;
    }
    // The last one holds up nobody but itself: it may go as it is (DN-4).
    world.settled("scale", 0).await?;
    let story = world.story("scale", &since, (EventType::Deleted, "scale-0")).await?;
    assert_eq!(story, all(EventType::Deleted, &["scale-2", "scale-1", "scale-0"]));
    Ok(())
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// [C] Burst scaling should run to completion even with unhealthy pods
#[tokio::test(flavor = "multi_thread")]
async fn burst_scaling_runs_to_completion_even_with_unhealthy_pods() -> Result<()> {
    let world = World::start().await?;
    let mut manifest = set_manifest("burst", 1);
    manifest["spec"]["podManagementPolicy"] = json!("Parallel");
    world.apply(&manifest).await?;
    world.settled("burst", 1).await?;
    world.make_ready("burst-0", false).await?;
    world.plane.client.scale("burst", 3).await?;
    world.until("burst", |_, status| status.replicas == 3 && status.ready_replicas == 2).await?;
    for name in ["burst-1", "burst-2"] {
        world.make_ready(name, false).await?;
    }
    world.until("burst", |_, status| status.replicas == 3 && status.ready_replicas == 0).await?;
    world.plane.client.scale("burst", 0).await?;
    world.settled("burst", 0).await?;
    assert!(world.pods("burst").await?.is_empty());
    Ok(())
}

/// [C] Should recreate evicted statefulset
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_its_node_gave_up_is_made_anew() -> Result<()> {
    let world = World::start().await?;
    world.apply(&set_manifest("evicted", 2)).await?;
    world.settled("evicted", 2).await?;
    let old = world.pods("evicted").await?.remove("evicted-0").context("no evicted-0")?;
    let since = world.now().await?;
    world
        .change_status("evicted-0", |status| {
            status.phase = "Failed".to_owned();
            status.reason = "Evicted".to_owned();
            status.conditions.retain(|condition| condition.r#type != "Ready");
        })
        .await?;
    let new =
        world.plane.client.until("evicted-0", PATIENCE, |pod: &Pod| pod.uid() != old.uid() && is_ready(pod)).await?;
    assert_eq!(revision(&new), revision(&old));
    let story = world.story("evicted", &since, (EventType::Added, "evicted-0")).await?;
    assert_eq!(story, replaced(&["evicted-0"]), "its deletion is seen, and no other pod is touched");
    Ok(())
}

/// [C] should have a working scale subresource
#[tokio::test(flavor = "multi_thread")]
async fn the_scale_of_a_set_is_read_and_written() -> Result<()> {
    let world = World::start().await?;
    world.apply(&set_manifest("sized", 1)).await?;
    world.settled("sized", 1).await?;
    let scale = || async {
        let request = GetScaleRequest { namespace: NAMESPACE.to_owned(), name: "sized".to_owned() };
        let answer = world.plane.client.api().get_scale(request).await?.into_inner();
        answer.scale.context("no scale")
    };
    let one = scale().await?;
    assert_eq!((one.spec_replicas, one.status_replicas, one.selector.as_str()), (1, 1, "app=sized"));

    let wanted = |replicas, version: &str| UpdateScaleRequest {
        namespace: NAMESPACE.to_owned(),
        name: "sized".to_owned(),
        replicas,
        resource_version: version.to_owned(),
    };
    let read = one.metadata.unwrap_or_default().resource_version;
    world.plane.client.api().update_scale(wanted(2, &read)).await?;
    world.settled("sized", 2).await?;
    let late = world.plane.client.api().update_scale(wanted(3, &read)).await;
    assert_eq!(late.err().map(|status| status.code()), Some(Code::Aborted), "it was read before the last write");
    world.patch("sized", json!({"spec": {"replicas": 4}})).await?;
    world.settled("sized", 4).await?;
    let four = scale().await?;
    assert_eq!((four.spec_replicas, four.status_replicas), (4, 4));
    Ok(())
}

/// [C] should list, patch and delete a collection of StatefulSets
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_sets_is_listed_patched_and_deleted() -> Result<()> {
    let world = World::start().await?;
    for name in ["one", "two", "three", "other"] {
        let mut manifest = set_manifest(name, 1);
        manifest["metadata"]["labels"] = json!({"e2e": if name == "other" { "no" } else { "yes" }});
        world.apply(&manifest).await?;
        world.settled(name, 1).await?;
    }
    let everywhere =
        ListRequest { kind: "StatefulSet".to_owned(), label_selector: "e2e=yes".to_owned(), ..ListRequest::default() };
    let listed = world.plane.client.api().list(everywhere).await?.into_inner();
    assert_eq!(listed.items.len(), 3);

    let container = json!({"name": "nginx", "image": "registry.k8s.io/pause:3.10"});
    let patch = json!({
        "metadata": {"labels": {"patched": "yes"}},
        "spec": {"replicas": 2, "template": {"spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}},
    });
    world.patch("two", patch).await?;
    world.settled("two", 2).await?;
    let set: StatefulSet = world.plane.client.get("two").await?.context("no set two")?;
    assert_eq!(set.meta().labels.get("patched").map(String::as_str), Some("yes"));
    assert_eq!(set.meta().generation, 2);
    let pods = world.pods("two").await?;
    let images = pods.values().flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers)).map(|c| &c.image);
    assert_eq!(images.collect::<Vec<_>>(), ["registry.k8s.io/pause:3.10"; 2]);

    // Two pages, the second of the same list as the first.
    let mut request = DeleteCollectionRequest {
        kind: "StatefulSet".to_owned(),
        namespace: NAMESPACE.to_owned(),
        label_selector: "e2e=yes".to_owned(),
        limit: 2,
        dry_run: true,
        ..DeleteCollectionRequest::default()
    };
    let api = || world.plane.client.api();
    assert_eq!(api().delete_collection(request.clone()).await?.into_inner().count, 2);
    assert_eq!(world.plane.client.list::<StatefulSet>("e2e=yes").await?.0.len(), 3, "a dry run deletes nothing");
    request.dry_run = false;
    let page = api().delete_collection(request.clone()).await?.into_inner();
    request.r#continue.clone_from(&page.r#continue);
    let rest = api().delete_collection(request).await?.into_inner();
    let mut names: Vec<_> = page.items.iter().chain(&rest.items).map(|item| item.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!((names, rest.r#continue.as_str()), (vec!["one", "three", "two"], ""));
    assert!(world.plane.client.list::<StatefulSet>("e2e=yes").await?.0.is_empty());
    let others = world.plane.client.list::<StatefulSet>("e2e").await?.0;
    assert_eq!(others.iter().map(ObjectExt::name).collect::<Vec<_>>(), ["other"]);
    let gone = async {
        while !world.pods("two").await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, gone).await.context("the pods of a deleted set are still there")?
}

/// [C] should validate Statefulset Status endpoints
#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_read_and_written_and_the_controller_keeps_what_is_not_its_own() -> Result<()> {
    let world = World::start().await?;
    world.apply(&set_manifest("told", 1)).await?;
    world.settled("told", 1).await?;
    let (sets, since) = world.plane.client.list::<StatefulSet>("").await?;
    let mut set = sets.into_iter().next().context("no set")?;
    let request = WatchRequest {
        kind: "StatefulSet".to_owned(),
        namespace: NAMESPACE.to_owned(),
        resource_version: since,
        ..WatchRequest::default()
    };
    let mut watch = world.plane.client.api().watch(request).await?.into_inner();

    let own = Condition {
        r#type: "StatusUpdate".to_owned(),
        status: "True".to_owned(),
        reason: "E2E".to_owned(),
        message: "Set from e2e test".to_owned(),
        ..Condition::default()
    };
    set.status.get_or_insert_default().conditions.push(own.clone());
    // What else differs is not taken from a write of the status.
    set.spec.get_or_insert_default().replicas = Some(7);
    set.metadata.get_or_insert_default().labels.insert("stray".to_owned(), "yes".to_owned());
    let written = world.update_status(set.clone()).await?;
    assert_eq!((replicas(&written), written.meta().generation), (1, set.meta().generation));
    assert!(written.meta().labels.is_empty());
    let seen = tokio::time::timeout(PATIENCE, watch.message()).await??.and_then(|event| event.object);
    let seen = seen.and_then(|object| StatefulSet::from_any(object).ok()).context("the watch told nothing")?;
    assert!(seen.status.unwrap_or_default().conditions.contains(&own));

    let mut wrong = written;
    let status = wrong.status.get_or_insert_default();
    (status.ready_replicas, status.observed_generation) = (2, -1);
    let refused = world.update_status(wrong).await.err().context("a status that cannot be was taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument);
    for field in ["status.readyReplicas", "status.observedGeneration"] {
        assert!(refused.message().contains(field), "{refused}");
    }

    world.plane.client.scale("told", 2).await?;
    world.settled("told", 2).await?;
    let set: StatefulSet = world.plane.client.get("told").await?.context("no set")?;
    let conditions = set.status.unwrap_or_default().conditions;
    assert!(conditions.contains(&own), "{conditions:?}");
    assert!(conditions.iter().any(|condition| condition.r#type == "Available" && condition.status == "True"));
    Ok(())
}

/// A machine that is lost and said to be off gives its pods free at once; none comes to it before that is taken back.
#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_machine_that_is_off_come_again_elsewhere() -> Result<()> {
    let mut world = World { plane: ControlPlane::start(2).await? };
    world.taint("hollow-0", true).await?;
    world.apply(&set_manifest("away", 2)).await?;
    world.settled("away", 2).await?;
    let nodes = |pods: &BTreeMap<String, Pod>| -> Vec<String> {
        pods.values().filter_map(|pod| pod.spec.as_ref()).map(|spec| spec.node_name.clone()).collect()
    };
    let before = world.pods("away").await?;
    assert_eq!(nodes(&before), ["hollow-1"; 2]);

    // Both machines go. Their pods are not touched until somebody says that they are off.
    world.plane.process("agent")?.stop();
    let ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
    };
    world.plane.client.until("hollow-1", PATIENCE, |node: &Node| !ready(node)).await?;
    assert_eq!(world.pods("away").await?, before);
    world.taint("hollow-1", true).await?;
    let free = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_empty());
    world.plane.client.until("away-0", PATIENCE, free).await?;

    // The agents are back; only one of the machines is said to be well.
    world.plane.process("agent")?.kill_and_restart()?;
    for name in ["hollow-0", "hollow-1"] {
        world
            .plane
            .client
            .until(name, PATIENCE, |node: &Node| {
                ready(node) && node.spec.as_ref().is_some_and(|spec| !spec.taints.is_empty())
            })
            .await?;
    }
    assert!(world.plane.client.get::<Pod>("away-0").await?.is_some_and(|pod| free(&pod)));
    world.taint("hollow-1", false).await?;
    for (name, old) in &before {
        let anew = |pod: &Pod| pod.uid() != old.uid() && is_ready(pod);
        world.plane.client.until(name, PATIENCE, anew).await?;
    }
    world.settled("away", 2).await?;
    assert_eq!(nodes(&world.pods("away").await?), ["hollow-1"; 2]);
    Ok(())
}

/// [C] should manage the lifecycle of a ControllerRevision
#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_listed_read_gone_back_to_and_deleted() -> Result<()> {
    let world = World::start().await?;
    let manifest = set_manifest("past", 1);
    let mut names = Vec::new();
    for tag in ["0.24", "0.26", "0.27"] {
        world.apply(&image(manifest.clone(), tag)).await?;
        world.until("past", |_, status| !names.contains(&status.update_revision)).await?;
        names.push(world.settled("past", 1).await?);
    }
    let listed = || async {
        let (mut all, _) = world.plane.client.list::<ControllerRevision>("app=past").await?;
        all.sort_by_key(|revision| revision.revision);
        anyhow::Ok(all.into_iter().map(|one| (one.name().to_owned(), one.revision)).collect::<Vec<_>>())
    };
    let [first, second, third] = &names[..] else { bail!("three revisions: {names:?}") };
    assert_eq!(listed().await?, [(first.clone(), 1), (second.clone(), 2), (third.clone(), 3)]);
    let read: ControllerRevision = world.plane.client.get(first).await?.context("no first revision")?;
    let owner = read.meta().owner_references.first().map(|owner| (owner.kind.as_str(), owner.name.as_str()));
    assert_eq!(owner, Some(("StatefulSet", "past")));
    let containers = read.data.and_then(|template| template.spec).unwrap_or_default().containers;
    assert_eq!(containers[0].image, "registry.k8s.io/nginx-slim:0.24");

    let undo = UndoRolloutRequest {
        namespace: NAMESPACE.to_owned(),
        name: "past".to_owned(),
        to_revision: 1,
        ..UndoRolloutRequest::default()
    };
    world.plane.client.api().undo_rollout(undo).await?;
    world.until("past", |_, status| status.update_revision == *first).await?;
    assert_eq!(world.settled("past", 1).await?, *first);
    assert_eq!(listed().await?, [(second.clone(), 2), (third.clone(), 3), (first.clone(), 4)]);
    let pod: Pod = world.plane.client.get("past-0").await?.context("no past-0")?;
    assert_eq!(revision(&pod), *first);

    // One that nothing is made from may go, and stays away.
    world.plane.client.delete(Kind::ControllerRevision, second).await?;
    world.replace("past-0").await?;
    assert_eq!(listed().await?, [(third.clone(), 3), (first.clone(), 4)]);
    Ok(())
}
