//! A CSI driver that is not Berth's, in another language and from the specification alone (`tests/foreign`), installed
//! as its users would: a process on each node, and a socket in the node's registry folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::layout::MARKER;
use pb::{
    Kind, Object, ObjectExt,
    objects::{Node, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    client::{Client, is_ready, set_manifest},
    process::berth_bin,
};
use tokio::time::Instant;

/// For a set to become what it should be.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what nothing announces.
const LOOK: Duration = Duration::from_millis(200);

const DRIVER: &str = "bricks.csi.example.com";
const CLASS: &str = "bricks";
/// The node whose driver has the controller service; the others have the node service alone.
const CONTROLLER: &str = "node-2";
/// Volumes that a node can have.
const PER_NODE: usize = 2;
/// Bytes that the file system has at least, of claims of 320 and 500 MiB.
const SMALL: u64 = 230 << 20;
const LARGE: u64 = 400 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_not_ours_serves_a_stateful_set() -> Result<()> {
    let lab = LabGuard::up()?;
    let client = Client::new(&lab.lab.server())?;
    let told = stories(&lab, &client).await;
    if told.is_err() {
        println!("{}", lab.complaints());
    }
    told?;
    drop(lab);
    tests::nothing_is_left()
}

async fn stories(lab: &LabGuard, client: &Client) -> Result<()> {
    let user = User { client: client.clone(), server: lab.lab.server() };
    let mut install = Install::new(lab)?;
    for node in ["node-1", "node-2", "node-3"] {
        install.start(lab, node)?;
        user.client.until::<Node>(node, PATIENCE, has_driver).await.with_context(|| install.logs())?;
    }
    println!("registered on three nodes");
    let told = life_of_a_set(lab, &user, &mut install).await;
    told.with_context(|| install.logs())
}

async fn life_of_a_set(lab: &LabGuard, user: &User, install: &mut Install) -> Result<()> {
    user.client.apply(&[class(), manifest(3, "320Mi")]).await?;
    user.ready(3).await.context("bring the set up")?;
    let exports = install.exports()?;
    for ordinal in 0..3 {
        let (claim, pod) = (user.claim(ordinal).await?, user.pod(ordinal).await?);
        let node = pod.spec.unwrap_or_default().node_name;
        let volume: PersistentVolume = user.get(&claim.spec.unwrap_or_default().volume_name).await?;
        let handle = volume.spec.and_then(|spec| spec.csi).context("a volume without driver")?.volume_handle;
        ensure!(exports.get(&handle) == Some(&format!("host/{node}")), "{handle} of {node} is exported as {exports:?}");
        user.shell(ordinal, &format!("echo 'of bricks-{ordinal}' > /usr/share/nginx/html/data && sync"))?;
    }
    ensure!(exports.len() == 3, "three volumes, but {exports:?}");
    println!("provisioned, attached each to the node of its pod, mounted, written");

    a_pod_comes_back_to_its_data_though_the_driver_was_killed(lab, user, install).await?;
    it_grows_under_running_containers(user).await?;
    a_node_gets_no_more_volumes_than_it_can_have(user).await?;
    what_is_scaled_away_or_deleted_is_gone_from_the_array(user, install).await
}

async fn a_pod_comes_back_to_its_data_though_the_driver_was_killed(
    lab: &LabGuard,
    user: &User,
    install: &mut Install,
) -> Result<()> {
    let before = user.pod(1).await?;
    user.client.delete(Kind::Pod, "bricks-1").await?;
    for node in ["node-1", "node-2", "node-3"] {
        install.kill(node)?;
    }
    for node in ["node-1", "node-2", "node-3"] {
        install.start(lab, node)?;
    }
    let back = |pod: &Pod| pod.uid() != before.uid() && is_ready(pod);
    user.client.until::<Pod>("bricks-1", PATIENCE, back).await?;
    ensure!(user.shell(1, "cat /usr/share/nginx/html/data")? == "of bricks-1", "other data");
    println!("kill -9 of all its processes: the pod comes back to its data");
    Ok(())
}

async fn it_grows_under_running_containers(user: &User) -> Result<()> {
    let uids = user.uids(3).await?;
    for ordinal in 0..3 {
        let size = user.file_system(ordinal)?;
        ensure!((SMALL..LARGE).contains(&size), "a file system of {size} bytes before");
    }
    user.client.apply(&[manifest(3, "500Mi")]).await?;
    for ordinal in 0..3 {
        let grown = |claim: &PersistentVolumeClaim| {
            let status = claim.status.as_ref();
            let size = status.and_then(|status| status.capacity.get("storage"));
            let waits = status.is_some_and(|status| status.conditions.iter().any(|one| one.status == "True"));
            size.is_some_and(|size| size.value == "500Mi" || size.value == (500 << 20).to_string()) && !waits
        };
        user.client.until(&claim_name(ordinal), PATIENCE, grown).await?;
        let size = user.file_system(ordinal)?;
        ensure!(size >= LARGE, "a file system of {size} bytes after");
    }
    ensure!(user.uids(3).await? == uids, "pods were replaced to grow");
    println!("expanded: larger file systems in the same containers");
    Ok(())
}

async fn a_node_gets_no_more_volumes_than_it_can_have(user: &User) -> Result<()> {
    let most = i32::try_from(3 * PER_NODE)?;
    user.client.scale("bricks", most + 1).await?;
    let waits = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| &status.conditions);
        conditions
            .into_iter()
            .any(|one| one.r#type == "PodScheduled" && one.message.contains("exceed max volume count"))
    };
    let pod = user.client.until::<Pod>(&format!("bricks-{most}"), PATIENCE, waits).await?;
    ensure!(pod.spec.is_some_and(|spec| spec.node_name.is_empty()), "it has a node all the same");
    println!("{most} volumes on three nodes, and the reason why not one more");
    Ok(())
}

async fn what_is_scaled_away_or_deleted_is_gone_from_the_array(user: &User, install: &Install) -> Result<()> {
    user.client.scale("bricks", 2).await?;
    eventually("the volumes of two ordinals are left", async || Ok(install.bricks()?.len() == 2)).await?;
    for ordinal in 0..2 {
        ensure!(user.shell(ordinal, "cat /usr/share/nginx/html/data")? == format!("of bricks-{ordinal}"), "other data");
    }
    user.client.delete(Kind::StatefulSet, "bricks").await?;
    eventually("nothing is left", async || {
        let attachments: Vec<VolumeAttachment> = user.all().await?;
        let volumes: Vec<PersistentVolume> = user.all().await?;
        let claims: Vec<PersistentVolumeClaim> = user.all().await?;
        Ok(attachments.is_empty() && volumes.is_empty() && claims.is_empty() && install.bricks()?.is_empty())
    })
    .await?;
    let loops = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output()?;
    let loops = String::from_utf8(loops.stdout)?;
    ensure!(!loops.contains(&install.array.display().to_string()), "devices are left: {loops}");
    println!("scaled down and deleted: nothing is left in the array, attached or in the store");
    Ok(())
}

/// Looks until it is so.
async fn eventually(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await? {
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn has_driver(node: &Node) -> bool {
    node.status.iter().flat_map(|status| &status.csi_drivers).any(|driver| driver.name == DRIVER)
}

fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS},
        "provisioner": DRIVER,
        "parameters": {"wall": "south", "csi.storage.k8s.io/fstype": "xfs"},
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

fn manifest(replicas: i32, size: &str) -> Value {
    let mut set = set_manifest("bricks", replicas);
    set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] = CLASS.into();
    set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = size.into();
    set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    set
}

fn claim_name(ordinal: i32) -> String {
    format!("www-bricks-{ordinal}")
}

/// The driver on the nodes.
struct Install {
    folder: tempfile::TempDir,
    /// Where its volumes are.
    array: PathBuf,
    running: BTreeMap<String, Child>,
}

impl Install {
    /// Installs its packages and makes its code from the contracts, in a folder of its own.
    fn new(lab: &LabGuard) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (own, contracts) = (sources(), sources().join("../../proto"));
        let (venv, generated) = (folder.path().join("venv"), folder.path().join("generated"));
        fs::create_dir(&generated)?;
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(own.join("requirements.txt")))?;
        let mut protoc = Command::new(venv.join("bin/python"));
        protoc.args(["-m", "grpc_tools.protoc"]);
        for contract in ["csi/v1", "pluginregistration"] {
            protoc.arg("-I").arg(contracts.join(contract));
        }
        protoc.arg("--python_out").arg(&generated).arg("--grpc_python_out").arg(&generated);
        run(protoc.args(["csi.proto", "registration.proto"]))?;
        // In the lab's folder, so that taking the lab down finds what is left of it.
        let array = lab.lab.layout().dir.join("bricks");
        Ok(Self { folder, array, running: BTreeMap::new() })
    }

    /// Starts it on a node.
    fn start(&mut self, lab: &LabGuard, name: &str) -> Result<()> {
        let (layout, node) = (lab.lab.layout(), lab.lab.node(name)?);
        let log = fs::File::options().create(true).append(true).open(self.log(name))?;
        let mut command = lab.lab.command_on(node, self.folder.path().join("venv/bin/python"));
        command
            .arg(sources().join("bricks"))
            .arg("--endpoint")
            .arg(format!("unix://{}", layout.csi_socket(node, DRIVER).display()))
            .arg("--registry")
            .arg(layout.registry(node))
            .args(["--node", name, "--max-volumes", &PER_NODE.to_string(), "--array"])
            .arg(&self.array)
            .args((name == CONTROLLER).then_some("--controller"))
            .env("PYTHONPATH", self.folder.path().join("generated"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(MARKER, layout.name.as_str())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("start the driver")?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// SIGKILL.
    fn kill(&mut self, name: &str) -> Result<()> {
        let mut child = self.running.remove(name).context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// What its processes said, for a test that failed.
    fn logs(&self) -> String {
        let logs = self.running.keys().map(|name| {
            let text = fs::read_to_string(self.log(name)).unwrap_or_default();
            format!("--- the driver on {name}\n{text}")
        });
        logs.collect()
    }

    /// The files of its volumes.
    fn bricks(&self) -> Result<BTreeSet<PathBuf>> {
        files(&self.array.join("bricks"))
    }

    /// Volumes with the node that each is exported to, as the driver wrote it down.
    fn exports(&self) -> Result<BTreeMap<String, String>> {
        let mut exports = BTreeMap::new();
        for record in files(&self.array.join("records"))? {
            let record: Value = serde_json::from_slice(&fs::read(&record)?)?;
            let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
            exports.insert(text("id"), text("node"));
        }
        Ok(exports)
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            // What has ended already is as dead as we want it.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign")
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A user of the cluster.
struct User {
    client: Client,
    server: String,
}

impl User {
    async fn get<T: Object>(&self, name: &str) -> Result<T> {
        self.client.get(name).await?.with_context(|| format!("{} {name} is not there", T::KIND))
    }

    async fn all<T: Object>(&self) -> Result<Vec<T>> {
        Ok(self.client.list("").await?.0)
    }

    async fn pod(&self, ordinal: i32) -> Result<Pod> {
        self.get(&format!("bricks-{ordinal}")).await
    }

    async fn claim(&self, ordinal: i32) -> Result<PersistentVolumeClaim> {
        self.get(&claim_name(ordinal)).await
    }

    async fn uids(&self, replicas: i32) -> Result<Vec<String>> {
        let mut uids = Vec::new();
        for ordinal in 0..replicas {
            uids.push(self.pod(ordinal).await?.uid().to_owned());
        }
        Ok(uids)
    }

    async fn ready(&self, replicas: i32) -> Result<()> {
        for ordinal in 0..replicas {
            self.client.until::<Pod>(&format!("bricks-{ordinal}"), PATIENCE, is_ready).await?;
        }
        Ok(())
    }

    /// What a command in a pod's container prints.
    fn shell(&self, ordinal: i32, script: &str) -> Result<String> {
        let pod = format!("bricks-{ordinal}");
        run(Command::new(berth_bin()?).args(["--server", &self.server, "exec", &pod, "--", "sh", "-c", script]))
    }

    /// Bytes that the volume's file system has, as the container sees it.
    fn file_system(&self, ordinal: i32) -> Result<u64> {
        let text = self.shell(ordinal, "df -k /usr/share/nginx/html | tail -n 1 | awk '{print $2}'")?;
        Ok(text.parse::<u64>().with_context(|| format!("df said {text:?}"))? << 10)
    }
}
