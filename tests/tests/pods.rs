//! What a pod says of itself, its files and its rights, seen from inside the container, in a lab with real containers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pb::{
    Kind,
    api::v1::ExecRequest,
    objects::{ContainerStatus, Pod},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    client::{Client, NAMESPACE, is_ready},
};
use tokio::time::Instant;

/// For a pod to be ready, and for a change to reach its files.
const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "registry.k8s.io/nginx-slim:0.24";

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_what_their_specs_say() -> Result<()> {
    let lab = LabGuard::up()?;
    let client = Client::new(&lab.lab.server())?;
    let told = story(&client).await;
    if told.is_err() {
        println!("{}", lab.complaints());
    }
    told?;
    drop(lab);
    tests::nothing_is_left()
}

async fn story(client: &Client) -> Result<()> {
    client.apply(&[config("one"), secret(), claim(), pod()]).await.context("apply")?;
    client.until::<Pod>("whole", PATIENCE, is_ready).await?;
    what_it_is_told(client).await.context("environment")?;
    who_it_is(client).await.context("rights")?;
    what_it_sees(client).await.context("files")?;
    files_follow_their_objects(client).await.context("live updates")?;

    let pod = client.get::<Pod>("whole").await?.context("the pod")?;
    let status = pod.status.unwrap_or_default();
    ensure!(status.qos_class == "Burstable", "{}", status.qos_class);
    let restarted = |one: &&ContainerStatus| one.restart_count > 0;
    ensure!(!status.container_statuses.iter().any(|one| restarted(&one)), "{:?}", status.container_statuses);
    ensure!(!status.init_container_statuses.iter().any(|one| restarted(&one)), "{:?}", status.init_container_statuses);
    client.delete(Kind::Pod, "whole").await?;
    client.delete(Kind::PersistentVolumeClaim, "data").await?;
    gone(client).await
}

async fn what_it_is_told(client: &Client) -> Result<()> {
    for (variable, value) in [
        ("CONF_mode", "one"),
        ("WORD", "xyz"),
        ("NAME", "whole"),
        ("APP", "whole"),
        ("GREETING", "hello whole, xyz, $(NOBODY)"),
        ("MEMORY", "64"),
        ("CPU", "1"),
    ] {
        says(client, &format!("echo \"${variable}\""), value).await?;
    }
    says(client, "hostname", "inside").await?;
    says(client, "grep -c 'example.test' /etc/hosts", "1").await?;
    says(client, "grep -c '^search.*extra.test' /etc/resolv.conf", "1").await?;
    says(client, "grep -c 'ndots:2' /etc/resolv.conf", "1").await
}

async fn who_it_is(client: &Client) -> Result<()> {
    says(client, "id -u", "1000").await?;
    says(client, "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '", "1000 2000 3000").await?;
    says(client, "touch /new 2>&1 | grep -c 'Read-only file system'", "1").await?;
    says(client, "sed -n 's/^NoNewPrivs:\\t//p' /proc/self/status", "1").await?;
    says(client, "sed -n 's/^CapBnd:\\t//p' /proc/self/status", "0000000000000400").await?;
    says(client, "sed -n 's/^Seccomp:\\t//p' /proc/self/status", "2").await
}

async fn what_it_sees(client: &Client) -> Result<()> {
    // The claim belongs to the pod's group, and so does what is made in it.
    says(client, "stat -c '%g' /data && touch /data/mine && stat -c '%u:%g' /data/mine", "2000\n1000:2000").await?;
    // A part of it, made by the init container.
    says(client, "cat /part/left", "by init").await?;
    says(client, "cat /data/parts/whole/left", "by init").await?;
    says(client, "touch /scratch/x && stat -c '%g' /scratch/x", "2000").await?;
    says(client, "stat -f -c '%T' /memory", "tmpfs").await?;
    says(client, "cat /conf/mode; cat /all/mode; cat /all/deep/word; cat /all/name", "oneonexyzwhole").await?;
    says(client, "stat -L -c '%a' /all/deep/word", "440").await?;
    says(client, "cat /fields/labels", "app=\"whole\"").await?;
    says(client, "cat /only", "one").await?;
    says(client, "echo x 2>/dev/null > /conf/mode || echo refused", "refused").await
}

async fn files_follow_their_objects(client: &Client) -> Result<()> {
    client.apply(&[config("two")]).await?;
    let begun = Instant::now();
    until_says(client, "cat /conf/mode; cat /all/mode", "twotwo").await?;
    println!("a ConfigMap reached the files of a pod after {:.1} s", begun.elapsed().as_secs_f32());
    // As in Kubernetes: a file mounted by itself and variables stay as they were.
    says(client, "cat /only; echo $CONF_mode", "oneone").await?;
    let mut relabelled = pod();
    relabelled["metadata"]["labels"]["tier"] = "front".into();
    client.apply(&[relabelled]).await?;
    until_says(client, "cat /fields/labels", "app=\"whole\"\ntier=\"front\"").await
}

async fn run(client: &Client, script: &str) -> Result<String> {
    let request = ExecRequest {
        namespace: NAMESPACE.to_owned(),
        pod: "whole".to_owned(),
        container: "main".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout_seconds: 20,
    };
    let ran = client.exec(request, Duration::from_secs(20)).await?;
    Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

async fn says(client: &Client, script: &str, wanted: &str) -> Result<()> {
    let said = run(client, script).await?;
    ensure!(said == wanted, "{script}\n  said   {said:?}\n  wanted {wanted:?}");
    Ok(())
}

async fn until_says(client: &Client, script: &str, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = run(client, script).await?;
        if said == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{script} goes on saying {said:?}, not {wanted:?}");
        // Nobody but the container can say what it sees.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn gone(client: &Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while client.get::<Pod>("whole").await?.is_some() {
        ensure!(Instant::now() < deadline, "the pod does not go");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn config(mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"mode": mode}})
}

fn secret() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pass"}, "stringData": {"word": "xyz"}})
}

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    })
}

fn pod() -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "whole", "labels": {"app": "whole"}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "hostname": "inside",
            "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["example.test"]}],
            "dnsConfig": {"searches": ["extra.test"], "options": [{"name": "ndots", "value": "2"}]},
            "securityContext": {
                "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000, "supplementalGroups": [3000],
                "runAsNonRoot": true,
            },
            "initContainers": [{
                "name": "first", "image": IMAGE,
                "command": ["sh", "-c", "printf 'by init' > /part/left"],
                "env": [{"name": "NAME", "valueFrom": field("metadata.name")}],
                "volumeMounts": [{"name": "data", "mountPath": "/part", "subPathExpr": "parts/$(NAME)"}],
            }],
            "containers": [{
                "name": "main", "image": IMAGE,
                "command": ["sh", "-c", "exec tail -f /dev/null"],
                "envFrom": [{"prefix": "CONF_", "configMapRef": {"name": "conf"}}],
                "env": [
                    {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "pass", "key": "word"}}},
                    {"name": "NAME", "valueFrom": field("metadata.name")},
                    {"name": "APP", "valueFrom": field("metadata.labels['app']")},
                    {"name": "GREETING", "value": "hello $(NAME), $(WORD), $(NOBODY)"},
                    {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                ],
                "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "64Mi"}},
                "securityContext": {
                    "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"},
                    {"name": "data", "mountPath": "/part", "subPath": "parts/whole"},
                    {"name": "scratch", "mountPath": "/scratch"},
                    {"name": "memory", "mountPath": "/memory"},
                    {"name": "conf", "mountPath": "/conf"},
                    {"name": "conf", "mountPath": "/only", "subPath": "mode"},
                    {"name": "all", "mountPath": "/all"},
                    {"name": "fields", "mountPath": "/fields"},
                ],
            }],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "scratch", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "conf", "configMap": {"name": "conf"}},
                {"name": "fields", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "all", "projected": {"defaultMode": 0o440, "sources": [
                    {"configMap": {"name": "conf"}},
                    {"secret": {"name": "pass", "items": [{"key": "word", "path": "deep/word"}]}},
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                ]}},
            ],
        },
    })
}
