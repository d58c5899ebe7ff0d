//! What pods live through: kills of agents and container runtimes disturb nothing, a stop goes in order, and a node that
//! starts again brings everything back.
//!
//! The set has all that makes a pod more than a process: an init container, a sidecar, hooks, and probes of every kind
//! that the image can answer. `SEED=` repeats a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::system::ProcessId;
use nix::sys::signal::Signal;
use pb::{
    ObjectExt,
    objects::{ContainerStatus, Pod, PodStatus},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    census::containers_of,
    client::{Client, is_ready},
    dice::{Dice, seed},
    process::berth_bin,
};

/// For six pods to become what they should be.
const PATIENCE: Duration = Duration::from_secs(120);
const REPLICAS: usize = 6;
const AGENT_KILLS: usize = 20;
const RUNTIME_KILLS: usize = 5;
/// The longest time between two kills, in milliseconds.
const PAUSE: u64 = 1500;

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_through_the_death_of_what_runs_them() -> Result<()> {
    let lab = LabGuard::up()?;
    let told = story(&lab).await;
    if told.is_err() {
        println!("{}", lab.complaints());
    }
    drop(lab);
    told?;
    tests::nothing_is_left()
}

async fn story(lab: &LabGuard) -> Result<()> {
    let user = User { client: Client::new(&lab.lab.server())?, server: lab.lab.server() };
    user.client.apply(&[set()]).await?;
    for name in names() {
        user.client.until::<Pod>(&name, PATIENCE, is_ready).await?;
    }
    kills_of_agents_and_runtimes_disturb_nothing(lab, &user).await.context("kill -9")?;
    a_pod_starts_and_stops_in_order(&user).await.context("order")?;
    a_node_that_starts_again_brings_its_pods_back(lab, &user).await.context("reboot")
}

fn names() -> impl Iterator<Item = String> {
    (0..REPLICAS).map(|ordinal| format!("life-{ordinal}"))
}

/// Each container writes what it lives through into the file that nginx serves.
fn set() -> Value {
    let say = |words: &str| format!("echo '{words}' >> /usr/share/nginx/html/story");
    let run = |name: &str, between: &str| {
        let ends = say(&format!("{name}: signal"));
        let starts = say(&format!("{name}: start"));
        let script =
            format!("trap \"{ends}; exit 0\" TERM QUIT; {starts}; {between} while :; do sleep 1 & wait $!; done");
        json!(["sh", "-c", script])
    };
    let exec = |words: &str| json!({"exec": {"command": ["sh", "-c", say(words)]}});
    let mounts = json!([{"name": "www", "mountPath": "/usr/share/nginx/html"}]);
    let image = "registry.k8s.io/nginx-slim:0.24";
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "life"},
        "spec": {
            "serviceName": "life",
            "replicas": REPLICAS,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "life"}},
            "template": {
                "metadata": {"labels": {"app": "life"}},
                "spec": {
                    "terminationGracePeriodSeconds": 20,
                    "initContainers": [
                        {"name": "first", "image": image, "command": ["sh", "-c", say("first")], "volumeMounts": mounts},
                        {
                            "name": "side", "image": image, "restartPolicy": "Always", "volumeMounts": mounts,
                            "command": run("side", ""),
                            "lifecycle": {"postStart": exec("side: postStart"), "preStop": exec("side: preStop")},
                            "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 2},
                        },
                    ],
                    "containers": [{
                        "name": "main", "image": image, "volumeMounts": mounts,
                        "command": run("main", "nginx;"),
                        "ports": [{"containerPort": 80, "name": "web"}],
                        "lifecycle": {"postStart": exec("main: postStart"), "preStop": exec("main: preStop")},
                        "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 60},
                        "readinessProbe": {"httpGet": {"port": "web", "path": "/story"}, "periodSeconds": 2},
                        "livenessProbe": {"httpGet": {"port": 80, "path": "/story"}, "periodSeconds": 5},
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "www"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
            }],
        },
    })
}

async fn kills_of_agents_and_runtimes_disturb_nothing(lab: &LabGuard, user: &User) -> Result<()> {
    let seed = seed();
    println!("kills: SEED={seed}");
    let mut dice = Dice::new(seed);
    let (statuses, processes) = (user.settled_statuses().await?, containers_of("life-"));
    ensure!(processes.values().map(BTreeSet::len).sum::<usize>() == 2 * REPLICAS, "two containers each: {processes:?}");
    let mut victims = vec!["agent"; AGENT_KILLS];
    victims.extend(["containerd"; RUNTIME_KILLS]);
    while !victims.is_empty() {
        let role = victims.swap_remove(usize::try_from(dice.roll(victims.len() as u64))?);
        let victim = format!("{role}@node-{}", 1 + dice.roll(3));
        tokio::time::sleep(Duration::from_millis(dice.roll(PAUSE))).await;
        lab.kill_and_wait(&victim).await?;
    }
    for name in names() {
        let before = statuses.get(&name).context("unheard of")?;
        let same = |pod: &Pod| pod.status.as_ref() == Some(before);
        user.client.until::<Pod>(&name, PATIENCE, same).await.with_context(|| format!("it was {before:#?}"))?;
        let story = user.berth(&["exec", &name, "-c", "main", "--", "cat", "/usr/share/nginx/html/story"])?;
        ensure!(story.lines().count() == 5, "{name} was started once, its hooks ran once: {story}");
        let logs = user.berth(&["logs", &name, "-c", "main"])?;
        ensure!(logs.contains("GET /story"), "{name}: no probe in its logs: {logs}");
    }
    ensure!(containers_of("life-") == processes, "other processes: {processes:?} became {:?}", containers_of("life-"));
    println!(
        "{AGENT_KILLS} kills of agents, {RUNTIME_KILLS} of containerd: the same {} containers run on, no status changed",
        2 * REPLICAS
    );
    Ok(())
}

async fn a_pod_starts_and_stops_in_order(user: &User) -> Result<()> {
    let pod = user.client.get::<Pod>("life-5").await?.context("life-5")?;
    user.berth(&["delete", "pod", "life-5"])?;
    let again = |now: &Pod| now.uid() != pod.uid() && is_ready(now);
    user.client.until::<Pod>("life-5", PATIENCE, again).await?;
    let story = user.berth(&["exec", "life-5", "-c", "main", "--", "cat", "/usr/share/nginx/html/story"])?;
    let told: Vec<&str> = story.lines().collect();
    println!("the life of a pod: {}", told.join(", "));
    ensure!(told.len() == 14, "{told:?}");
    let at = |from: usize, words: &str| {
        let found = told.iter().skip(from).position(|line| *line == words);
        found.map(|at| at + from).with_context(|| format!("no {words:?} after line {from} of {told:?}"))
    };
    let first_end = at(0, "main: preStop")?.min(at(0, "side: preStop")?);
    let second = at(1, "first")?;
    for (begin, end) in [(0, first_end), (second, told.len())] {
        let (hook, main) = (at(begin, "side: postStart")?, at(begin, "main: start")?);
        ensure!(at(begin, "first")? == begin && hook < main && main < end, "the sidecar had started first: {told:?}");
    }
    let (main, side) = (at(0, "main: signal")?, at(0, "side: signal")?);
    ensure!(at(0, "main: preStop")? < main && at(0, "side: preStop")? < side, "hooks come before signals: {told:?}");
    ensure!(main < side && side < second, "the sidecar ends last: {told:?}");
    Ok(())
}

async fn a_node_that_starts_again_brings_its_pods_back(lab: &LabGuard, user: &User) -> Result<()> {
    let node = lab.lab.node("node-2")?;
    let before = user.settled_statuses().await?;
    let mut there = BTreeSet::new();
    for name in names() {
        let pod = user.client.get::<Pod>(&name).await?.context("it is gone")?;
        if pod.spec.is_some_and(|spec| spec.node_name == "node-2") {
            there.insert(name);
        }
    }
    ensure!(!there.is_empty(), "no pod is on node-2");

    // Nothing may be started again before everything is dead, as when the power fails.
    let supervisor = lab.lab.supervisor()?.context("the lab has no supervisor")?;
    supervisor.signal(Signal::SIGSTOP)?;
    let killed = power_off(lab, node);
    supervisor.signal(Signal::SIGCONT)?;
    println!("node-2 loses {} processes and {} pods", killed?, there.len());

    let back = |before: &PodStatus, pod: &Pod| {
        let counts =
            restarts(pod.status.as_ref()) == restarts(Some(before)).iter().map(|count| count + 1).collect::<Vec<_>>();
        is_ready(pod) && counts
    };
    for name in &there {
        let was = before.get(name).context("unheard of")?;
        let pod = user.client.until::<Pod>(name, PATIENCE, |pod| back(was, pod)).await?;
        for container in long_lived(pod.status.as_ref()) {
            let end = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            ensure!(end.is_some_and(|end| end.exit_code != 0), "{name}: how it ended is not told: {container:?}");
        }
    }
    for name in names().filter(|name| !there.contains(name)) {
        let pod = user.client.get::<Pod>(&name).await?.context("it is gone")?;
        ensure!(pod.status.as_ref() == before.get(&name), "{name} is on another node and was disturbed");
    }
    println!("all of them are ready again, each container restarted once");
    Ok(())
}

/// Kills everything of a node: its agent and drivers, containerd, the shims, the containers.
fn power_off(lab: &LabGuard, node: lab::layout::NodeIndex) -> Result<usize> {
    let layout = lab.lab.layout();
    let (cgroup, socket) = (format!("{}/", layout.cgroup_parent(node)), layout.containerd_socket(node));
    let socket = socket.display().to_string();
    let mut killed = 0;
    for role in ["agent", "containerd", "csi-local", "csi-shared"] {
        lab.lab.kill(&format!("{role}@{}", node.name()))?;
        killed += 1;
    }
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let shim = read("comm").starts_with("containerd-shim") && read("cmdline").contains(&socket);
        if (shim || read("cgroup").contains(&cgroup))
            && let Some(process) = ProcessId::of(pid)
        {
            process.signal(Signal::SIGKILL)?;
            killed += 1;
        }
    }
    Ok(killed)
}

/// The containers that run as long as the pod.
fn long_lived(status: Option<&PodStatus>) -> impl Iterator<Item = &ContainerStatus> {
    let all =
        status.into_iter().flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses));
    all.filter(|container| container.name != "first")
}

fn restarts(status: Option<&PodStatus>) -> Vec<i32> {
    long_lived(status).map(|container| container.restart_count).collect()
}

struct User {
    client: Client,
    server: String,
}

impl User {
    /// The statuses of all pods; an error if one is not ready.
    async fn settled_statuses(&self) -> Result<BTreeMap<String, PodStatus>> {
        let mut statuses = BTreeMap::new();
        for name in names() {
            let whole = |pod: &Pod| {
                is_ready(pod)
                    && long_lived(pod.status.as_ref()).count() == 2
                    && long_lived(pod.status.as_ref()).all(|c| c.ready)
            };
            let pod = self.client.until::<Pod>(&name, PATIENCE, whole).await?;
            statuses.insert(name, pod.status.context("a ready pod without status")?);
        }
        Ok(statuses)
    }

    /// What `berth ARGS` prints.
    fn berth(&self, args: &[&str]) -> Result<String> {
        let ran = Command::new(berth_bin()?).args(args).env("BERTH_SERVER", &self.server).output()?;
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(ran.status.success(), "berth {args:?}: {}\n{printed}", String::from_utf8_lossy(&ran.stderr));
        Ok(printed)
    }
}
