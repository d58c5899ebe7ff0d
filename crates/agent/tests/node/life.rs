//! The life of pods on a real container runtime: last words, hooks, sidecars, deadlines, and logs within bounds.

use super::*;

fn status(node: &Node, uid: &str) -> pb::objects::PodStatus {
    node.cluster.pod(uid).and_then(|bundle| bundle.pod).and_then(|pod| pod.status).unwrap_or_default()
}

#[test]
fn pods_end_as_their_containers_and_their_time_say() {
    build_images();
    inside("life::pods_end_as_their_containers_and_their_time_say", |machine| async {
        let node = Node::start(machine).await;
        let never = |containers: serde_json::Value| json!({"restartPolicy": "Never", "containers": containers});
        let with = |mut container: serde_json::Value, key: &str, value: serde_json::Value| {
            container[key] = value;
            container
        };
        let says = shell("main", "echo -n bye > /dev/termination-log; exit 3");
        node.cluster.put_pod("node-1", pod("says", never(json!([says]))));
        let logs =
            with(shell("main", "echo on the log; exit 1"), "terminationMessagePolicy", "FallbackToLogsOnError".into());
        node.cluster.put_pod("node-1", pod("logs", never(json!([logs]))));
        let bad = json!({"postStart": {"exec": {"command": ["false"]}}});
        let hook = with(shell("main", "trap 'exit 7' QUIT; while true; do sleep 1 & wait; done"), "lifecycle", bad);
        node.cluster.put_pod("node-1", pod("hook", never(json!([hook]))));
        let mut late = never(json!([shell("main", "trap 'exit 0' QUIT; while true; do sleep 1 & wait; done")]));
        late["activeDeadlineSeconds"] = 3.into();
        node.cluster.put_pod("node-1", pod("late", late));
        let side = with(
            shell("side", "trap 'exit 9' QUIT; while true; do sleep 1 & wait; done"),
            "restartPolicy",
            "Always".into(),
        );
        let mut job = never(json!([shell("main", "sleep 2")]));
        job["initContainers"] = json!([side]);
        node.cluster.put_pod("node-1", pod("job", job));

        for (uid, phase) in [
            ("uid-says", "Failed"),
            ("uid-logs", "Failed"),
            ("uid-hook", "Failed"),
            ("uid-late", "Failed"),
            ("uid-job", "Succeeded"),
        ] {
            node.cluster.until(&format!("{uid} is {phase}"), LIMIT, |c| c.phase(uid) == phase).await;
        }
        let end = |uid: &str| status(&node, uid).container_statuses[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!((end("uid-says").message.as_str(), end("uid-says").exit_code), ("bye", 3));
        assert_eq!(end("uid-logs").message, "on the log\n");
        assert_eq!(end("uid-hook").exit_code, 7, "a hook that failed ends the container");
        assert_eq!(status(&node, "uid-late").reason, "DeadlineExceeded");
        let side = status(&node, "uid-job").init_container_statuses[0].state.clone().unwrap().terminated.unwrap();
        assert_eq!(side.exit_code, 9, "the sidecar was ended, and does not count");
        for uid in ["uid-says", "uid-logs", "uid-hook", "uid-late", "uid-job"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}

#[test]
fn a_log_is_set_aside_before_it_fills_the_disk() {
    build_images();
    inside("life::a_log_is_set_aside_before_it_fills_the_disk", |machine| async {
        let node = Node::start(machine).await;
        // About 50 KiB a second; the agent of these tests sets aside from 64 KiB on and keeps two files.
        let talks = shell("main", "yes $(seq 100) | while read line; do echo $line; sleep 0.005; done");
        node.cluster
            .put_pod("node-1", pod("talks", json!({"terminationGracePeriodSeconds": 1, "containers": [talks]})));
        node.ready("uid-talks").await;
        let folder = node.machine.dir.join("data/logs/default_talks_uid-talks/main");
        let files = || {
            let mut names: Vec<_> =
                fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
            names.sort();
            names
        };
        wait("it is set aside", || files().len() == 2);
        let first = files().remove(1);
        wait("the oldest file goes", || {
            let names = files();
            assert!(names.len() <= 3, "too many are kept: {names:?}");
            !names.contains(&first)
        });
        assert!(folder.join("0.log").exists(), "{:?}", files());
        node.stop("uid-talks").await;
        node.assert_clean();
    });
}
