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
    CreateVolumeRequest, DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Topology, TopologyRequirement, Volume, VolumeCapability,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
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
        let place = Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() };
        let request = CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![single_writer()],
            accessibility_requirements: Some(TopologyRequirement { requisite: vec![place], preferred: vec![] }),
            ..CreateVolumeRequest::default()
        };
        let volume = ControllerClient::new(self.channel()).create_volume(request).await?.into_inner().volume.unwrap();
        assert_eq!(volume.accessible_topology[0].segments[TOPOLOGY_KEY], node);
        Ok(volume)
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
    assert!(node.path("data/volumes/pvc-1/record").exists(), "the data stays until the volume is deleted");

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
    fs::remove_dir_all(node.path("data/volumes/pvc-1")).unwrap();
    let error = node.stage(&volume, &staging).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    assert!(error.message().contains("delete the claim"), "{error}");
    assert!(!staging.exists());
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
    let elsewhere = node.create("pvc-1", "n2").await.unwrap();
    let error = node.stage(&elsewhere, &node.path("staging")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(!node.path("data/volumes/pvc-1").exists());
    for bad in ["../escape", "a/b", ".."] {
        assert_eq!(node.create(bad, "n1").await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(node.delete(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // A symbolic link in place of the volume's directory, and in place of the target.
    let volume = node.create("pvc-2", "n1").await.unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), node.path("data/volumes/pvc-2")).unwrap();
    node.stage(&volume, &node.path("staging")).await.unwrap_err();
    fs::remove_file(node.path("data/volumes/pvc-2")).unwrap();
    std::os::unix::fs::symlink(outside.path(), node.path("link")).unwrap();
    node.stage(&volume, &node.path("link")).await.unwrap_err();
    assert!(mounts_below(outside.path()).is_empty());
    node.stage(&volume, &node.path("staging")).await.unwrap();
    assert!(same(&node.path("staging"), &node.path("data/volumes/pvc-2")));
    node.unstage("pvc-2", &node.path("staging")).await.unwrap();
}
