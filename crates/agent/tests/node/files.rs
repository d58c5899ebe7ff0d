//! What pods find in their volumes: files that follow their objects, the pod's group, parts of volumes, paths of the node.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use pb::{
    agent::v1::{PodBundle, agent_service_client::AgentServiceClient},
    objects::{ConfigMap, Secret},
};
use serde_json::json;

use super::{
    Cluster, LIMIT, Node, build_images, exec, inside,
    machine::wait,
    pod, sleeper,
    volumes::{SLEEP, volume, with_volume},
};

fn config_map(name: &str, data: serde_json::Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap()
}

fn restarts(cluster: &Cluster, uid: &str) -> i32 {
    let status = cluster.pod(uid).and_then(|bundle| bundle.pod).and_then(|pod| pod.status).unwrap_or_default();
    status.container_statuses.iter().map(|container| container.restart_count).sum()
}

/// Changes what the pod is told, and keeps its status.
fn change(node: &Node, uid: &str, change: impl Fn(&mut PodBundle)) {
    let mut bundle = node.cluster.pod(uid).unwrap();
    change(&mut bundle);
    node.cluster.put_pod("node-1", bundle);
}

fn says(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|found| found == text)
}

#[test]
fn files_follow_their_objects_without_a_restart() {
    build_images();
    inside("files::files_follow_their_objects_without_a_restart", |machine| async {
        let mut node = Node::start(machine).await;
        let mut main = sleeper();
        main["volumeMounts"] = json!([
            {"name": "conf", "mountPath": "/conf"},
            {"name": "all", "mountPath": "/all"},
            {"name": "conf", "mountPath": "/one", "subPath": "a"},
        ]);
        let labels = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
        let memory = json!({"path": "memory", "resourceFieldRef":
            {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}});
        main["resources"] = json!({"limits": {"memory": "64Mi"}});
        let sources = json!([
            {"secret": {"name": "pass"}},
            {"configMap": {"name": "later", "optional": true}},
            {"downwardAPI": {"items": [labels, memory]}},
        ]);
        let volumes = json!([
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "all", "projected": {"defaultMode": 0o400, "sources": sources}},
        ]);
        let mut bundle = pod("web-0", json!({"containers": [main], "volumes": volumes}));
        bundle.config_maps = vec![config_map("conf", json!({"a": "1", "b": "1"}))];
        let secret = json!({"metadata": {"name": "pass"}, "data": {"word": "eHl6"}});
        bundle.secrets = vec![serde_json::from_value::<Secret>(secret).unwrap()];
        node.cluster.put_pod("node-1", bundle);
        node.ready("uid-web-0").await;
        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        let (_, all, _) = exec(&mut agent, "web-0", "cat /conf/a /one; ls /all; cat /all/word /all/memory").await;
        assert_eq!(all, "11labels\nmemory\nword\nxyz64");

        let tasks = node.machine.tasks();
        let volumes = node.pod_dir("uid-web-0").join("volumes");
        change(&node, "uid-web-0", |bundle| {
            bundle.config_maps =
                vec![config_map("conf", json!({"a": "2", "c": "2"})), config_map("later", json!({"x": "y"}))];
            let meta = bundle.pod.as_mut().unwrap().metadata.as_mut().unwrap();
            meta.labels = [("app".to_owned(), "web".to_owned())].into();
        });
        wait("the files follow", || {
            says(&volumes.join("conf/mount/a"), "2") && says(&volumes.join("all/mount/labels"), "app=\"web\"")
        });
        let (_, all, _) = exec(&mut agent, "web-0", "cat /conf/a /conf/c /all/x /all/word; ls /conf; cat /one").await;
        assert_eq!(all, "22yxyza\nc\n1", "and a part stays what it was");
        assert_ne!(exec(&mut agent, "web-0", "echo x > /conf/a").await.0, 0, "nobody else writes");

        // An agent that was not there when it happened catches up.
        node.kill_agent().await;
        change(&node, "uid-web-0", |bundle| bundle.config_maps = vec![config_map("conf", json!({"a": "3"}))]);
        node.start_agent();
        wait("the files follow again", || says(&volumes.join("conf/mount/a"), "3"));
        assert_eq!((node.machine.tasks(), restarts(&node.cluster, "uid-web-0")), (tasks, 0));

        // The next run of the container sees the part as it is now.
        wait("the agent serves", || std::net::TcpStream::connect("127.0.0.1:7450").is_ok());
        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        exec(&mut agent, "web-0", "kill -TERM 1").await;
        let again = |c: &Cluster| restarts(c, "uid-web-0") == 1 && c.is_ready("uid-web-0");
        node.cluster.until("the container runs again", LIMIT, again).await;
        assert_eq!(exec(&mut agent, "web-0", "cat /one").await.1, "3");
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn volumes_belong_to_the_pods_group_and_parts_stay_within_them() {
    build_images();
    inside("files::volumes_belong_to_the_pods_group_and_parts_stay_within_them", |machine| async {
        let node = Node::start(machine).await;
        let (data, outside) = (node.driver.data("v"), node.machine.dir.join("outside"));
        fs::create_dir_all(data.join("deep")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(data.join("deep/old"), "x").unwrap();
        fs::set_permissions(data.join("deep/old"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        fs::set_permissions(outside.join("precious"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, data.join("escape")).unwrap();

        let mut bundle = with_volume("web-0", SLEEP, volume("v", "ReadWriteOnce"));
        bundle.volumes[0].fs_group_policy = "File".into();
        let secret = json!({"metadata": {"name": "pass"}, "data": {"word": "eHl6"}});
        bundle.secrets = vec![serde_json::from_value::<Secret>(secret).unwrap()];
        let host = node.machine.dir.join("host/made");
        let spec = bundle.pod.as_mut().unwrap().spec.as_mut().unwrap();
        let security = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 3456});
        spec.security_context = Some(serde_json::from_value(security).unwrap());
        for more in [
            json!({"name": "scratch", "emptyDir": {}}),
            json!({"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
            json!({"name": "pass", "secret": {"secretName": "pass", "defaultMode": 0o400}}),
            json!({"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}}),
        ] {
            spec.volumes.push(serde_json::from_value(more).unwrap());
        }
        let main = &mut spec.containers[0];
        main.env = vec![serde_json::from_value(json!({"name": "WHO", "value": "me"})).unwrap()];
        for more in [
            json!({"name": "scratch", "mountPath": "/scratch"}),
            json!({"name": "memory", "mountPath": "/memory"}),
            json!({"name": "pass", "mountPath": "/pass"}),
            json!({"name": "host", "mountPath": "/host", "readOnly": true}),
            json!({"name": "data", "mountPath": "/mine", "subPathExpr": "parts/$(WHO)"}),
            json!({"name": "data", "mountPath": "/old", "subPath": "deep/old", "readOnly": true}),
        ] {
            main.volume_mounts.push(serde_json::from_value(more).unwrap());
        }
        let mut escaping = bundle.clone();
        node.cluster.put_pod("node-1", bundle);
        node.ready("uid-web-0").await;

        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        let script = "cat /pass/word && echo n > /data/new && echo n >> /data/deep/old && echo n > /scratch/n && \
                      echo n > /memory/n && echo n > /mine/n && cat /old && ls /host";
        let (code, out, err) = exec(&mut agent, "web-0", script).await;
        assert_eq!((code, out.as_str()), (0, "xyzxn\n"), "{err}");
        assert_ne!(exec(&mut agent, "web-0", "echo x > /old").await.0, 0);
        assert_ne!(exec(&mut agent, "web-0", "dd if=/dev/zero of=/memory/big bs=1M count=2").await.0, 0);
        let seen = |path: &Path| fs::metadata(path).map(|found| (found.gid(), found.mode() & 0o7777)).unwrap();
        assert_eq!(seen(&data.join("new")).0, 3456, "made by the pod, handed on by the folder");
        assert_eq!(seen(&data.join("deep/old")), (3456, 0o660));
        assert_eq!(seen(&data.join("parts/me")), (3456, 0o2775), "as the root of the volume");
        assert_eq!(seen(&outside.join("precious")), (0, 0o600), "no link is followed");
        assert!(host.is_dir());

        let meta = escaping.pod.as_mut().unwrap().metadata.as_mut().unwrap();
        (meta.name, meta.uid) = ("web-1".into(), "uid-web-1".into());
        let spec = escaping.pod.as_mut().unwrap().spec.as_mut().unwrap();
        spec.containers[0].volume_mounts[0].sub_path = "escape/new".into();
        node.stop("uid-web-0").await;
        node.cluster.put_pod("node-1", escaping);
        let refused = |c: &Cluster| {
            let status = c.pod("uid-web-1").and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
            let waits = status.container_statuses.iter().filter_map(|c| c.state.clone()?.waiting);
            waits.into_iter().any(|waits| waits.message.contains("a link in it leads out of the volume"))
        };
        node.cluster.until("the way out is refused", LIMIT, refused).await;
        assert!(!outside.join("new").exists());
        node.stop("uid-web-1").await;
        node.assert_clean();
        assert!(data.join("parts/me/n").exists(), "the data stays");
        fs::remove_dir_all(&outside).unwrap();
    });
}
