//! The node side of volumes: drivers that come and go, volumes that are waited for, lost and asked about.

use std::{fs, path::Path, time::Duration};

use nix::mount::{MntFlags, umount2};
use pb::{
    agent::v1::{
        ClaimVolume, ExpandVolumeRequest, InspectVolumeRequest, InspectVolumeResponse, PodBundle,
        volume_agent_service_client::VolumeAgentServiceClient,
    },
    csi::v1::{CreateVolumeRequest, controller_client::ControllerClient, volume_capability::access_mode::Mode},
    objects::{PersistentVolume, VolumeAttachment},
};
use serde_json::json;
use tonic::{Code, Request, transport::Channel};

use crate::{
    LIMIT, NGINX, Node,
    driver::is_mounted,
    fake::Cluster,
    machine::{build_images, inside, wait},
    pod,
};

const AGENT: &str = "http://127.0.0.1:7450";

pub fn volume(handle: &str, mode: &str) -> PersistentVolume {
    let volume = json!({
        "metadata": {"name": format!("pv-{handle}")},
        "spec": {
            "csi": {"driver": "test", "volumeHandle": handle}, "accessModes": [mode],
            "capacity": {"storage": "1Mi"},
        },
    });
    serde_json::from_value(volume).unwrap()
}

/// A pod with one volume at `/data`, whose only container does `script`.
pub fn with_volume(name: &str, script: &str, volume: PersistentVolume) -> PodBundle {
    let main = json!({
        "name": "main", "image": NGINX, "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let mut bundle = pod(name, json!({"containers": [main], "volumes": volumes, "terminationGracePeriodSeconds": 1}));
    bundle.volumes = vec![ClaimVolume { claim_name: "data".into(), volume: Some(volume), ..Default::default() }];
    bundle
}

pub const SLEEP: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

fn attachment(attached: bool) -> VolumeAttachment {
    let status = json!({"attached": attached, "attachmentMetadata": {"device": "seven"}});
    serde_json::from_value(json!({"metadata": {"name": "csi-1"}, "status": status})).unwrap()
}

/// The word and the sentence for which the pod's container waits.
fn waiting(cluster: &Cluster, uid: &str) -> (String, String) {
    let status = cluster.pod(uid).and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
    let state = status.container_statuses.first().and_then(|status| status.state.clone());
    state.and_then(|state| state.waiting).map(|waiting| (waiting.reason, waiting.message)).unwrap_or_default()
}

fn restarts(cluster: &Cluster, uid: &str) -> i32 {
    let status = cluster.pod(uid).and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
    status.container_statuses.first().map_or(0, |status| status.restart_count)
}

pub async fn agent() -> VolumeAgentServiceClient<Channel> {
    VolumeAgentServiceClient::connect(AGENT).await.unwrap()
}

pub async fn inspect(handle: &str) -> InspectVolumeResponse {
    let request = InspectVolumeRequest { driver: "test".into(), volume_handle: handle.into(), stats: true };
    agent().await.inspect_volume(request).await.unwrap().into_inner()
}

#[test]
fn a_driver_registers_is_reached_through_the_agent_and_goes() {
    build_images();
    inside("volumes::a_driver_registers_is_reached_through_the_agent_and_goes", |machine| async {
        let mut node = Node::start(machine).await;
        let drivers = |c: &Cluster| c.node("node-1").and_then(|n| n.status).map(|s| s.csi_drivers).unwrap_or_default();
        node.cluster.until("the driver is told", LIMIT, |c| drivers(c).len() == 1).await;
        let told = node.cluster.node("node-1").unwrap();
        let driver = &drivers(&node.cluster)[0];
        assert_eq!((driver.name.as_str(), driver.node_id.as_str()), ("test", "id-of-node-1"));
        assert_eq!((driver.max_volumes, driver.controller), (17, true));
        assert_eq!(driver.topology_keys, ["test.example/zone"]);
        assert_eq!(told.metadata.unwrap().labels["test.example/zone"], "left");
        let bound = told.status.unwrap().allocatable["attachable-volumes-csi-test"].clone();
        assert_eq!(bound, "17".into());
        wait("the driver knows", || node.driver.state.lock().registered.iter().any(|told| told.plugin_registered));

        // The controller service, through the agent.
        let create = |driver: Option<&'static str>, name: &str| {
            let mut request = Request::new(CreateVolumeRequest { name: name.into(), ..Default::default() });
            request.set_timeout(Duration::from_secs(7));
            driver.map(|driver| request.metadata_mut().insert("berth-csi-driver", driver.parse().unwrap()));
            async move { ControllerClient::connect(AGENT).await.unwrap().create_volume(request).await }
        };
        let made = create(Some("test"), "one").await.unwrap().into_inner();
        assert_eq!(made.volume.unwrap().volume_id, "one");
        let deadline = node.driver.state.lock().deadlines.pop().expect("the caller's deadline goes through");
        assert!(deadline.starts_with('7') || deadline.starts_with('6'), "{deadline}");
        let full = create(Some("test"), "full").await.unwrap_err();
        assert_eq!((full.code(), full.message()), (Code::ResourceExhausted, "no room"));
        assert_eq!(create(None, "x").await.unwrap_err().code(), Code::InvalidArgument);
        let unknown = create(Some("other"), "x").await.unwrap_err();
        assert!(unknown.code() == Code::Unavailable && unknown.message().contains("not registered"), "{unknown:?}");

        // A second socket that claims the same name is refused, and gets it when the first is gone.
        node.driver.register("second", &node.driver_stop);
        let refused =
            || node.driver.state.lock().registered.iter().any(|told| told.error.contains("already registered"));
        wait("the second is refused", refused);
        let taken = || node.driver.state.lock().registered.iter().filter(|told| told.plugin_registered).count();
        let before = taken();
        fs::remove_file(node.driver.socket("test")).unwrap();
        wait("the second is taken", || taken() > before);
        node.cluster.until("the node has it", LIMIT, |c| drivers(c).len() == 1).await;

        // A driver that restarts stays; one that goes is gone, and pods are told why they wait.
        node.driver_stop.cancel();
        fs::remove_file(node.driver.socket("second")).unwrap();
        node.cluster.until("the driver is gone", LIMIT, |c| drivers(c).is_empty()).await;
        let allocatable = node.cluster.node("node-1").unwrap().status.unwrap().allocatable;
        assert!(!allocatable.keys().any(|name| name.starts_with("attachable-volumes")), "{allocatable:?}");
        fs::create_dir_all(node.driver.data("v")).unwrap();
        node.cluster.put_pod("node-1", with_volume("web-0", SLEEP, volume("v", "ReadWriteOnce")));
        node.cluster.until("it waits", LIMIT, |c| waiting(c, "uid-web-0").1.contains("not registered")).await;
        node.driver_stop = node.driver.serve();
        node.ready("uid-web-0").await;
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn a_volume_is_waited_for_and_asked_about() {
    build_images();
    inside("volumes::a_volume_is_waited_for_and_asked_about", |machine| async {
        let mut node = Node::start(machine).await;
        fs::create_dir_all(node.driver.data("v")).unwrap();
        let mut bundle = with_volume("web-0", SLEEP, volume("v", "ReadWriteOncePod"));
        bundle.volumes[0].attach_required = true;
        node.cluster.put_pod("node-1", bundle);
        for attached in [None, Some(attachment(false))] {
            let mut bundle = node.cluster.pod("uid-web-0").unwrap();
            bundle.volumes[0].attachment = attached;
            node.cluster.put_pod("node-1", bundle);
            node.cluster.until("it waits", LIMIT, |c| waiting(c, "uid-web-0").0 == "VolumeNotAttached").await;
        }
        assert_eq!(node.driver.count("NodeStageVolume"), 0);
        assert!(!inspect("v").await.in_use);
        let mut bundle = node.cluster.pod("uid-web-0").unwrap();
        bundle.volumes[0].attachment = Some(attachment(true));
        node.cluster.put_pod("node-1", bundle);
        node.ready("uid-web-0").await;
        {
            let state = node.driver.state.lock();
            assert_eq!(state.publish_context["device"], "seven");
            let mode = state.capability.as_ref().unwrap().access_mode.as_ref().unwrap().mode();
            assert_eq!(mode, Mode::SingleNodeWriter, "the driver does not know the newer modes");
            assert_eq!(state.expanded, Some(1 << 20));
        }
        let told = inspect("v").await;
        assert!(told.in_use);
        assert_eq!(told.pod_uids, ["uid-web-0"]);
        assert_eq!((told.total_bytes, told.used_bytes, told.available_bytes), (Some(100), Some(40), Some(60)));
        let grow = |handle: &str| ExpandVolumeRequest {
            volume: Some(volume(handle, "ReadWriteOncePod")),
            required_bytes: 5 << 20,
        };
        let grown = agent().await.expand_volume(grow("v")).await.unwrap().into_inner();
        assert!(grown.staged && grown.capacity_bytes == 5 << 20, "{grown:?}");
        assert!(!agent().await.expand_volume(grow("another")).await.unwrap().into_inner().staged);

        // Another pod does not get a volume that is for one.
        let mut second = with_volume("web-1", SLEEP, volume("v", "ReadWriteOncePod"));
        second.volumes[0].attachment = Some(attachment(true));
        node.cluster.put_pod("node-1", second);
        node.cluster.until("it waits", LIMIT, |c| waiting(c, "uid-web-1").1.contains("ReadWriteOncePod")).await;
        assert_eq!(inspect("v").await.pod_uids, ["uid-web-0"]);

        // What is known survives the agent.
        node.kill_agent().await;
        node.driver_stop.cancel();
        fs::remove_file(node.driver.socket("test")).unwrap();
        node.start_agent();
        let mut connected = VolumeAgentServiceClient::connect(AGENT).await;
        while connected.is_err() {
            connected = VolumeAgentServiceClient::connect(AGENT).await;
        }
        let told = inspect("v").await;
        assert!(told.in_use && told.total_bytes.is_none(), "without the driver too: {told:?}");
        node.driver_stop = node.driver.serve();
        node.stop("uid-web-0").await;
        node.ready("uid-web-1").await;
        node.stop("uid-web-1").await;
        assert!(!inspect("v").await.in_use);
        node.assert_clean();
    });
}

#[test]
fn a_lost_mount_is_found_before_a_container_starts() {
    build_images();
    inside("volumes::a_lost_mount_is_found_before_a_container_starts", |machine| async {
        let mut node = Node::start(machine).await;
        let data = node.driver.data("v");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("precious"), "x").unwrap();
        // Ends when it is told to, and fails if it ever sees an empty folder.
        let script = "test -e /data/precious || { touch /data/EMPTY; exit 1; }; \
                      while ! test -e /data/end; do sleep 0.1; done; rm /data/end";
        node.cluster.put_pod("node-1", with_volume("web-0", script, volume("v", "ReadWriteOnce")));
        node.ready("uid-web-0").await;
        let target = node.pod_dir("uid-web-0").join("volumes/data/mount");
        let gone = |path: &Path| umount2(path, MntFlags::MNT_DETACH).unwrap();

        // Somebody unmounts it.
        gone(&target);
        fs::write(data.join("end"), "").unwrap();
        let again = |times| move |c: &Cluster| restarts(c, "uid-web-0") == times && c.is_ready("uid-web-0");
        node.cluster.until("restarted", LIMIT, again(1)).await;
        assert!(is_mounted(&target) && target.join("precious").exists());

        // Something else in its place, while no agent looks.
        gone(&target);
        crate::machine::run("mount", &["-t", "tmpfs", "tmpfs", &target.display().to_string()]);
        node.kill_agent().await;
        node.start_agent();
        fs::write(data.join("end"), "").unwrap();
        node.cluster.until("restarted", LIMIT, again(2)).await;
        assert!(target.join("precious").exists());

        // The data itself is gone: nothing starts, and it is said.
        let away = node.machine.dir.join("away");
        fs::write(data.join("end"), "").unwrap();
        fs::rename(&data, &away).unwrap();
        gone(&target);
        node.cluster.until("it is told", LIMIT, |c| waiting(c, "uid-web-0").0 == "VolumeLost").await;
        assert!(fs::read_dir(&target).map_or(0, Iterator::count) == 0, "nothing was written beside the volume");
        fs::rename(&away, &data).unwrap();
        node.ready("uid-web-0").await;
        assert!(!data.join("EMPTY").exists());
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn a_stage_without_an_answer_counts_as_done_until_it_is_undone() {
    build_images();
    inside("volumes::a_stage_without_an_answer_counts_as_done_until_it_is_undone", |machine| async {
        let mut node = Node::start(machine).await;
        let data = node.driver.data("v");
        fs::create_dir_all(&data).unwrap();
        node.driver.state.lock().silent_after_stage = true;
        node.cluster.put_pod("node-1", with_volume("web-0", SLEEP, volume("v", "ReadWriteOnce")));
        let driver = node.driver.clone();
        wait("it is repeated", || driver.count("NodeStageVolume") >= 2);
        assert!(inspect("v").await.in_use);
        node.kill_agent().await;
        node.cluster.remove_pod("uid-web-0");
        node.start_agent();
        wait("it is undone", || driver.count("NodeUnstageVolume") >= 1);
        let folder = node.pod_dir("uid-web-0");
        wait("the pod's folder is gone", || !folder.exists());
        assert!(!inspect("v").await.in_use);
        node.assert_clean();
    });
}
