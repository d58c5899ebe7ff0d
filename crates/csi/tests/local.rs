//! The driver `local` over its socket, with real mounts. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use csi::local::{Disk, Driver, TOPOLOGY_KEY, serve};
use pb::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteVolumeRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Snapshot, Topology, TopologyRequirement, Volume, VolumeCapability, VolumeContentSource,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use runtime::{
    CancellationToken, Tasks,
    channel::{Channel, connect},
};
use tempfile::TempDir;
use tonic::{Code, Status};

struct Node {
    dir: TempDir,
    tasks: Tasks,
}

impl Node {
    /// A driver on a node, with its data, sockets and mounts in a directory of its own.
    async fn start() -> Self {
        let mut node = Self { dir: tempfile::tempdir().unwrap(), tasks: Tasks::new(&CancellationToken::new()) };
        node.restart().await;
        node
    }

    /// Ends the driver's process, as far as it has a state, and starts it again.
    async fn restart(&mut self) {
        std::mem::replace(&mut self.tasks, Tasks::new(&CancellationToken::new())).finish(Duration::from_secs(5)).await;
        let driver = Driver::on_node("n1".into(), Disk::open(&self.path("data")).unwrap());
        let (socket, token) = (self.path("csi.sock"), self.tasks.token().clone());
        self.tasks.spawn_graceful("driver", async move { serve(driver, &socket, token).await.unwrap() });
        let up = async {
            while tokio::net::UnixStream::connect(self.path("csi.sock")).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), up).await.expect("the driver serves");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn channel(&self) -> Channel {
        connect(&format!("unix://{}", self.path("csi.sock").display())).unwrap()
    }

    async fn create(&self, name: &str, node: &str) -> Result<Volume, Status> {
        self.create_from(name, node, &[], 0, None).await
    }

    async fn create_image(&self, name: &str, fs: &str, bytes: i64) -> Volume {
        self.create_from(name, "n1", &[("type", "image"), ("fsType", fs)], bytes, None).await.unwrap()
    }

    async fn create_from(
        &self,
        name: &str,
        node: &str,
        parameters: &[(&str, &str)],
        bytes: i64,
        source: Option<VolumeContentSource>,
    ) -> Result<Volume, Status> {
        let place = Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() };
        let request = CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![single_writer()],
            accessibility_requirements: Some(TopologyRequirement { requisite: vec![place], preferred: vec![] }),
            parameters: parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_content_source: source,
            ..CreateVolumeRequest::default()
        };
        let volume = ControllerClient::new(self.channel()).create_volume(request).await?.into_inner().volume.unwrap();
        assert_eq!(volume.accessible_topology[0].segments[TOPOLOGY_KEY], node);
        Ok(volume)
    }

    async fn grow(&self, id: &str, bytes: i64, at: &Path) -> Result<(), Status> {
        let capacity_range = Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 });
        let request = ControllerExpandVolumeRequest { volume_id: id.into(), capacity_range, ..Default::default() };
        let grown = ControllerClient::new(self.channel()).controller_expand_volume(request).await?.into_inner();
        assert_eq!(grown.capacity_bytes, bytes);
        let volume_path = at.to_str().unwrap().into();
        let request =
            NodeExpandVolumeRequest { volume_id: id.into(), volume_path, capacity_range, ..Default::default() };
        NodeClient::new(self.channel()).node_expand_volume(request).await.map(drop)
    }

    async fn snapshot(&self, name: &str, of: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest { name: name.into(), source_volume_id: of.into(), ..Default::default() };
        Ok(ControllerClient::new(self.channel()).create_snapshot(request).await?.into_inner().snapshot.unwrap())
    }

    /// Loop devices with files of this test behind them.
    fn loops(&self) -> usize {
        let devices = fs::read_dir("/sys/block").unwrap().filter_map(|entry| entry.ok());
        let backing = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        backing.filter(|file| Path::new(file.trim()).starts_with(self.dir.path())).count()
    }

    async fn stage(&self, volume: &Volume, staging: &Path) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.to_str().unwrap().into(),
            volume_capability: Some(single_writer()),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        NodeClient::new(self.channel()).node_stage_volume(request).await.map(drop)
    }

    async fn publish(&self, volume: &Volume, staging: &Path, target: &Path, readonly: bool) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.to_str().unwrap().into(),
            target_path: target.to_str().unwrap().into(),
            volume_capability: Some(single_writer()),
            readonly,
            volume_context: volume.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        NodeClient::new(self.channel()).node_publish_volume(request).await.map(drop)
    }

    async fn unpublish(&self, id: &str, target: &Path) -> Result<(), Status> {
        let target_path = target.to_str().unwrap().into();
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path };
        NodeClient::new(self.channel()).node_unpublish_volume(request).await.map(drop)
    }

    async fn unstage(&self, id: &str, staging: &Path) -> Result<(), Status> {
        let staging_target_path = staging.to_str().unwrap().into();
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path };
        NodeClient::new(self.channel()).node_unstage_volume(request).await.map(drop)
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.into(), ..DeleteVolumeRequest::default() };
        ControllerClient::new(self.channel()).delete_volume(request).await.map(drop)
    }
}

fn single_writer() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (fs::metadata(a).unwrap(), fs::metadata(b).unwrap());
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Mount points below a directory, the latest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

impl Drop for Node {
    /// A failed test leaves no mount behind, and no data is deleted through one.
    fn drop(&mut self) {
        for point in mounts_below(self.dir.path()) {
            nix::mount::umount(&point).unwrap();
        }
    }
}

#[tokio::test]
async fn a_volume_lives_through_its_pods_and_the_drivers_restarts() {
    let mut node = Node::start().await;
    let (staging, first, second) = (node.path("staging"), node.path("pod-a"), node.path("pod-b"));
    let volume = node.create("pvc-1", "n1").await.unwrap();
    for _ in 0..2 {
        node.stage(&volume, &staging).await.unwrap();
        node.publish(&volume, &staging, &first, false).await.unwrap();
    }
    assert_eq!(mounts_below(node.dir.path()).len(), 2, "a repeated call mounts nothing again");
    fs::write(first.join("record"), "acknowledged").unwrap();

    node.restart().await;
    node.stage(&volume, &staging).await.unwrap();
    node.publish(&volume, &staging, &second, true).await.unwrap();
    assert_eq!(fs::read_to_string(second.join("record")).unwrap(), "acknowledged");
    let refused = fs::write(second.join("record"), "changed").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let other_way = node.publish(&volume, &staging, &second, false).await.unwrap_err();
    assert_eq!(other_way.code(), Code::AlreadyExists, "{other_way}");
    assert_eq!(node.delete("pvc-1").await.unwrap_err().code(), Code::FailedPrecondition, "still mounted");

    for _ in 0..2 {
        node.unpublish("pvc-1", &first).await.unwrap();
        node.unpublish("pvc-1", &second).await.unwrap();
        node.unstage("pvc-1", &staging).await.unwrap();
    }
    assert!(mounts_below(node.dir.path()).is_empty());
    assert!(!first.exists() && !second.exists() && !staging.exists());
    assert!(node.path("data/volumes/pvc-1/data/record").exists(), "the data stays until the volume is deleted");

    node.delete("pvc-1").await.unwrap();
    node.delete("pvc-1").await.unwrap();
    assert_eq!(fs::read_dir(node.path("data/volumes")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(node.path("data/trash")).unwrap().count(), 0);
}

#[tokio::test]
async fn lost_data_is_an_error_and_never_an_empty_directory() {
    let node = Node::start().await;
    let volume = node.create("pvc-1", "n1").await.unwrap();
    let staging = node.path("staging");
    node.stage(&volume, &staging).await.unwrap();
    node.unstage("pvc-1", &staging).await.unwrap();
    for gone in ["data/volumes/pvc-1/data", "data/volumes/pvc-1", "data"] {
        fs::remove_dir_all(node.path(gone)).unwrap();
        if gone == "data" {
            drop(Disk::open(&node.path("data")).unwrap());
        }
        let error = node.stage(&volume, &staging).await.unwrap_err();
        assert_eq!(error.code(), Code::DataLoss, "{gone}: {error}");
        assert!(error.message().contains("delete the claim"), "{error}");
        assert!(!staging.exists());
    }
    // A volume that has been made anew under the name is not the one with the data.
    node.create("pvc-1", "n1").await.unwrap();
    assert_eq!(node.stage(&volume, &staging).await.unwrap_err().code(), Code::DataLoss);
}

#[tokio::test]
async fn an_image_lives_through_restarts_and_has_one_loop_device() {
    for fs_type in ["ext4", "xfs"] {
        let mut node = Node::start().await;
        let (staging, pod) = (node.path("staging"), node.path("pod"));
        let volume = node.create_image("pvc-1", fs_type, 300 << 20).await;
        assert_eq!(node.loops(), 0, "making a volume takes no device");
        for _ in 0..2 {
            node.stage(&volume, &staging).await.unwrap();
            node.publish(&volume, &staging, &pod, false).await.unwrap();
            node.restart().await;
        }
        assert_eq!((node.loops(), mounts_below(node.dir.path()).len()), (1, 2));
        fs::write(pod.join("record"), "acknowledged").unwrap();
        let error = node.delete("pvc-1").await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        // The mount is lost, and the device with it.
        node.unpublish("pvc-1", &pod).await.unwrap();
        nix::mount::umount(&staging).unwrap();
        assert_eq!(node.publish(&volume, &staging, &pod, false).await.unwrap_err().code(), Code::FailedPrecondition);
        node.stage(&volume, &staging).await.unwrap();
        assert_eq!(fs::read_to_string(staging.join("record")).unwrap(), "acknowledged");
        node.unstage("pvc-1", &staging).await.unwrap();
        // Whoever lists devices has them open for a moment.
        let freed = async {
            while node.loops() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the device goes with its mount");
        node.delete("pvc-1").await.unwrap();
        assert_eq!(fs::read_dir(node.path("data/trash")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(node.path("data/locks")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn the_size_of_an_image_is_enforced_and_grows_while_it_is_mounted() {
    let node = Node::start().await;
    let (staging, pod) = (node.path("staging"), node.path("pod"));
    let volume = node.create_image("pvc-1", "xfs", 300 << 20).await;
    node.stage(&volume, &staging).await.unwrap();
    node.publish(&volume, &staging, &pod, false).await.unwrap();
    let fill = |name: &str, bytes: usize| fs::write(pod.join(name), vec![1; bytes]);
    let full = fill("a", 320 << 20).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    fs::remove_file(pod.join("a")).unwrap();
    node.grow("pvc-1", 450 << 20, &pod).await.unwrap();
    node.grow("pvc-1", 450 << 20, &pod).await.unwrap();
    fill("b", 330 << 20).unwrap();
    node.unpublish("pvc-1", &pod).await.unwrap();
    node.unstage("pvc-1", &staging).await.unwrap();
}

#[tokio::test]
async fn an_ext4_image_grows_when_it_is_staged_if_the_kernel_does_not_let_it_before() {
    let node = Node::start().await;
    let staging = node.path("staging");
    let volume = node.create_image("pvc-1", "ext4", 64 << 20).await;
    node.stage(&volume, &staging).await.unwrap();
    if let Err(error) = node.grow("pvc-1", 128 << 20, &staging).await {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("when the pod is started again"), "{error}");
    }
    node.unstage("pvc-1", &staging).await.unwrap();
    node.stage(&volume, &staging).await.unwrap();
    fs::write(staging.join("a"), vec![1; 90 << 20]).unwrap();
    node.unstage("pvc-1", &staging).await.unwrap();
}

#[tokio::test]
async fn snapshots_and_clones_hold_what_was_there_and_nothing_later() {
    for (parameters, bytes) in [(vec![], 0), (vec![("type", "image"), ("fsType", "xfs")], 300 << 20)] {
        let node = Node::start().await;
        let (staging, copy) = (node.path("staging"), node.path("copy"));
        let volume = node.create_from("pvc-1", "n1", &parameters, bytes, None).await.unwrap();
        node.stage(&volume, &staging).await.unwrap();
        fs::write(staging.join("a"), "before").unwrap();
        fs::hard_link(staging.join("a"), staging.join("b")).unwrap();
        std::os::unix::fs::symlink("/etc", staging.join("link")).unwrap();
        std::os::unix::fs::chown(staging.join("a"), Some(1000), Some(1000)).unwrap();
        let snapshot = node.snapshot("snap-1", "pvc-1").await.unwrap();
        assert!(snapshot.ready_to_use);
        assert_eq!(node.snapshot("snap-1", "pvc-1").await.unwrap(), snapshot);
        fs::write(staging.join("a"), "after").unwrap();

        let of_snapshot = Type::Snapshot(SnapshotSource { snapshot_id: "snap-1".into() });
        let of_volume = Type::Volume(VolumeSource { volume_id: "pvc-1".into() });
        for (name, source, text) in [("pvc-2", of_snapshot, "before"), ("pvc-3", of_volume, "after")] {
            let source = Some(VolumeContentSource { r#type: Some(source) });
            let made = node.create_from(name, "n1", &parameters, bytes + (200 << 20), source).await.unwrap();
            node.stage(&made, &copy).await.unwrap();
            assert_eq!(fs::read_to_string(copy.join("a")).unwrap(), text);
            assert!(same(&copy.join("a"), &copy.join("b")), "a hard link stays one");
            assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/etc"));
            assert_eq!(fs::metadata(copy.join("a")).unwrap().uid(), 1000);
            assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, fs::metadata(&staging).unwrap().mode() & 0o777);
            if bytes > 0 {
                let size = nix::sys::statvfs::statvfs(&copy).unwrap();
                assert!(size.blocks() * size.fragment_size() > 400 << 20, "the file system has grown with the volume");
            }
            node.unstage(name, &copy).await.unwrap();
            node.delete(name).await.unwrap();
        }
        fs::write(staging.join("c"), "still writable").unwrap();
        node.unstage("pvc-1", &staging).await.unwrap();
        node.delete("pvc-1").await.unwrap();
    }
}

#[tokio::test]
async fn data_that_a_person_put_there_is_a_volume() {
    let node = Node::start().await;
    fs::create_dir_all(node.path("data/volumes/old-database/data")).unwrap();
    fs::write(node.path("data/volumes/old-database/data/record"), "kept").unwrap();
    let volume = Volume { volume_id: "old-database".into(), ..Volume::default() };
    let staging = node.path("staging");
    node.stage(&volume, &staging).await.unwrap();
    assert_eq!(fs::read_to_string(staging.join("record")).unwrap(), "kept");
    node.unstage("old-database", &staging).await.unwrap();
    let image = node.create_image("pvc-1", "ext4", 64 << 20).await;
    fs::remove_file(node.path("data/volumes/pvc-1/volume.json")).unwrap();
    assert_eq!(node.stage(&image, &staging).await.unwrap_err().code(), Code::DataLoss, "it was made for a claim");
    node.stage(&Volume { volume_context: Default::default(), ..image }, &staging).await.unwrap();
    node.unstage("pvc-1", &staging).await.unwrap();
}

#[tokio::test]
async fn nothing_is_published_without_its_staging_mount() {
    let node = Node::start().await;
    let volume = node.create("pvc-1", "n1").await.unwrap();
    let (staging, target) = (node.path("staging"), node.path("pod"));
    let error = node.publish(&volume, &staging, &target, false).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    node.stage(&volume, &staging).await.unwrap();
    nix::mount::umount(&staging).unwrap();
    let error = node.publish(&volume, &staging, &target, false).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "the staging mount was lost");
    assert!(!target.exists());
}

#[tokio::test]
async fn files_in_the_way_are_neither_hidden_nor_deleted() {
    let node = Node::start().await;
    let volume = node.create("pvc-1", "n1").await.unwrap();
    let (staging, target) = (node.path("staging"), node.path("pod"));
    node.stage(&volume, &staging).await.unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("file"), "written while the mount was lost").unwrap();
    let error = node.publish(&volume, &staging, &target, false).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    node.unpublish("pvc-1", &target).await.unwrap_err();
    assert!(target.join("file").exists());
    node.unstage("pvc-1", &staging).await.unwrap();
}

#[tokio::test]
async fn a_volume_of_another_node_and_an_id_that_is_a_path_are_refused() {
    let node = Node::start().await;
    assert_eq!(node.create("pvc-1", "n2").await.unwrap_err().code(), Code::ResourceExhausted);
    let mut elsewhere = node.create("pvc-1", "n1").await.unwrap();
    elsewhere.volume_context.insert("local.berth.dev/node".into(), "n2".into());
    let error = node.stage(&elsewhere, &node.path("staging")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    for bad in ["../escape", "a/b", ".."] {
        assert_eq!(node.create(bad, "n1").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(node.delete(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // A symbolic link in place of the volume's directory, and in place of the target.
    let volume = node.create("pvc-2", "n1").await.unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::rename(node.path("data/volumes/pvc-2/data"), node.path("data/aside")).unwrap();
    std::os::unix::fs::symlink(outside.path(), node.path("data/volumes/pvc-2/data")).unwrap();
    node.stage(&volume, &node.path("staging")).await.unwrap_err();
    fs::remove_file(node.path("data/volumes/pvc-2/data")).unwrap();
    fs::rename(node.path("data/aside"), node.path("data/volumes/pvc-2/data")).unwrap();
    std::os::unix::fs::symlink(outside.path(), node.path("link")).unwrap();
    node.stage(&volume, &node.path("link")).await.unwrap_err();
    assert!(mounts_below(outside.path()).is_empty());
    node.stage(&volume, &node.path("staging")).await.unwrap();
    assert!(same(&node.path("staging"), &node.path("data/volumes/pvc-2/data")));
    node.unstage("pvc-2", &node.path("staging")).await.unwrap();
}
