//! Where pods go in a lab with real nodes: apart from each other, away from a node that is drained, before others that
//! matter less.

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use pb::{
    Kind, ObjectExt,
    objects::{Node, Pod},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    client::{Client, is_ready},
    process::berth_bin,
};

/// For pods to come or to go.
const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "registry.k8s.io/nginx-slim:0.24";

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_where_they_may() -> Result<()> {
    let lab = LabGuard::up()?;
    let user = User { client: Client::new(&lab.lab.server())?, server: lab.lab.server() };
    let told = stories(&user).await;
    if told.is_err() {
        println!("{}", lab.complaints());
    }
    told?;
    drop(lab);
    tests::nothing_is_left()
}

async fn stories(user: &User) -> Result<()> {
    pods_stay_apart_and_say_why_they_wait(user).await.context("anti-affinity")?;
    a_node_is_drained_as_its_budget_allows(user).await.context("drain")?;
    the_more_important_pod_takes_the_place_of_the_lesser(user).await.context("preemption")?;
    a_taint_lets_pods_leave(user).await.context("NoExecute")
}

async fn pods_stay_apart_and_say_why_they_wait(user: &User) -> Result<()> {
    let mut set = set("apart", 4);
    // One after the other, so that the last one is the one that waits.
    set["spec"]["podManagementPolicy"] = "OrderedReady".into();
    set["spec"]["template"]["spec"]["affinity"] = json!({"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "apart"}},
            "topologyKey": "kubernetes.io/hostname",
        }],
    }});
    user.client.apply(&[set]).await?;
    let mut nodes = BTreeSet::new();
    for ordinal in 0..3 {
        nodes.insert(user.ready(&format!("apart-{ordinal}")).await?);
    }
    ensure!(nodes.len() == 3, "three pods that stay apart are on {nodes:?}");
    let waits = |pod: &Pod| unschedulable(pod).is_some();
    let pod = user.client.until::<Pod>("apart-3", PATIENCE, waits).await?;
    let why = unschedulable(&pod).unwrap_or_default();
    ensure!(why == "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.", "{why}");
    user.remove("apart", 4).await
}

async fn a_node_is_drained_as_its_budget_allows(user: &User) -> Result<()> {
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "moving"},
        "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "moving"}}},
    });
    user.client.apply(&[budget, set("moving", 3)]).await?;
    let mut on = Vec::new();
    for ordinal in 0..3 {
        on.push(user.ready(&format!("moving-{ordinal}")).await?);
    }
    let node = on[0].clone();
    // The budget allows nothing: the drain waits, and gives up when it is told to.
    let (held, said) = user.berth(&["drain", &node, "--timeout=2s"])?;
    ensure!(!held && said.contains("disruption budget"), "{said}");
    ensure!(said.contains("stays cordoned"), "{said}");
    let (_, nodes) = user.berth(&["get", "nodes"])?;
    let line = nodes.lines().find(|line| line.starts_with(&node)).unwrap_or_default();
    ensure!(line.contains("Ready,SchedulingDisabled"), "{nodes}");
    ensure!(user.node_of("moving-0").await? == node, "the pod went although its budget forbids it");

    let looser = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "moving"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "moving"}}},
    });
    user.client.apply(&[looser]).await?;
    let (done, said) = user.berth(&["drain", &node, "--timeout=60s"])?;
    ensure!(done && said.contains("pod default/moving-0 evicted") && said.contains("drained"), "{said}");
    for ordinal in 0..3 {
        let now = user.ready(&format!("moving-{ordinal}")).await?;
        ensure!(now != node, "moving-{ordinal} is on {node}, which is drained");
    }
    let (done, said) = user.berth(&["uncordon", &node])?;
    ensure!(done, "{said}");
    user.client.delete(Kind::PodDisruptionBudget, "moving").await?;
    user.remove("moving", 3).await
}

async fn the_more_important_pod_takes_the_place_of_the_lesser(user: &User) -> Result<()> {
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "important"}, "value": 1000,
    });
    // Each takes more than half of a node.
    let half = json!({"requests": {"cpu": user.more_than_half().await?}});
    let large = |mut set: Value| {
        set["spec"]["template"]["spec"]["containers"][0]["resources"] = half.clone();
        set
    };
    user.client.apply(&[class, large(set("lesser", 3))]).await?;
    for ordinal in 0..3 {
        user.ready(&format!("lesser-{ordinal}")).await?;
    }
    let mut important = large(set("important", 1));
    important["spec"]["template"]["spec"]["priorityClassName"] = "important".into();
    user.client.apply(&[important]).await?;
    let node = user.ready("important-0").await?;
    // Which of the three went is the scheduler's choice; that one waits for room now, and says so.
    let pods = user.client.list::<Pod>("app=lesser").await?.0;
    ensure!(pods.iter().all(|pod| spec(pod).node_name != node), "two pods that need more than half share {node}");
    let (_, events) = user.berth(&["get", "events"])?;
    ensure!(events.contains("Preempted"), "nobody tells of it:\n{events}");
    user.remove("important", 1).await?;
    for ordinal in 0..3 {
        user.ready(&format!("lesser-{ordinal}")).await?;
    }
    user.remove("lesser", 3).await
}

async fn a_taint_lets_pods_leave(user: &User) -> Result<()> {
    let mut tough = set("tough", 3);
    tough["spec"]["template"]["spec"]["tolerations"] = json!([{"key": "flood", "operator": "Exists"}]);
    user.client.apply(&[set("soft", 3), tough]).await?;
    for name in ["soft", "tough"] {
        for ordinal in 0..3 {
            user.ready(&format!("{name}-{ordinal}")).await?;
        }
    }
    let node = user.node_of("soft-1").await?;
    let stays = user.client.list::<Pod>("app=tough").await?.0;
    let (done, said) = user.berth(&["taint", "node", &node, "flood=high:NoExecute"])?;
    ensure!(done, "{said}");
    user.client.until::<Pod>("soft-1", PATIENCE, |pod| is_ready(pod) && spec(pod).node_name != node).await?;
    for before in stays {
        let now = user.client.get::<Pod>(before.name()).await?.context("a pod that tolerates the taint is gone")?;
        ensure!(now.uid() == before.uid(), "{} tolerates the taint and went", before.name());
    }
    let (done, said) = user.berth(&["taint", "node", &node, "flood-"])?;
    ensure!(done, "{said}");
    user.remove("soft", 3).await?;
    user.remove("tough", 3).await
}

struct User {
    client: Client,
    server: String,
}

impl User {
    /// Runs the client program: whether it succeeded, and what it said.
    fn berth(&self, args: &[&str]) -> Result<(bool, String)> {
        let ran = Command::new(berth_bin()?).args(args).env("BERTH_SERVER", &self.server).output()?;
        let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok((ran.status.success(), said.concat()))
    }

    /// Waits until a pod is ready, and says where it is.
    async fn ready(&self, name: &str) -> Result<String> {
        let pod = self.client.until::<Pod>(name, PATIENCE, |pod| is_ready(pod) && !pod.is_terminating()).await?;
        Ok(spec(&pod).node_name)
    }

    async fn node_of(&self, name: &str) -> Result<String> {
        Ok(spec(&self.client.get::<Pod>(name).await?.with_context(|| format!("no pod {name}"))?).node_name)
    }

    /// A little more than half of the processors that a node has for pods.
    async fn more_than_half(&self) -> Result<String> {
        let node = self.client.get::<Node>("node-1").await?.context("node-1")?;
        let allocatable = node.status.unwrap_or_default().allocatable;
        let cpus: f64 = allocatable.get("cpu").context("a node without processors")?.value.parse()?;
        Ok(format!("{}m", (cpus * 600.0) as i64))
    }

    /// Deletes a set and waits until its pods are gone.
    async fn remove(&self, set: &str, replicas: i32) -> Result<()> {
        self.client.delete(Kind::StatefulSet, set).await?;
        for ordinal in 0..replicas {
            let name = format!("{set}-{ordinal}");
            let (done, said) = self.berth(&["wait", "--for=deleted", &format!("pod/{name}"), "--timeout=60s"])?;
            ensure!(done, "{name}: {said}");
        }
        Ok(())
    }
}

fn spec(pod: &Pod) -> pb::objects::PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// Why a pod has no node.
fn unschedulable(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let scheduled = conditions.iter().find(|condition| condition.r#type == "PodScheduled")?;
    (scheduled.reason == "Unschedulable").then(|| scheduled.message.clone())
}

/// A set without volumes, so that its pods may go anywhere.
fn set(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main", "image": IMAGE,
                        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
                    }],
                },
            },
        },
    })
}
