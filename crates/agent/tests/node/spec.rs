//! What a pod's spec says is what its processes find.

use pb::{
    agent::v1::{ExecRequest, agent_service_client::AgentServiceClient},
    api,
    objects::PodStatus,
};
use serde_json::json;
use tonic::transport::Channel;

use super::{Cluster, LIMIT, Node, build_images, exec, inside, pod, sleeper};

/// The lines of a process' status that tell who it is and what it may do.
const STATUS: &str = "grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status";

fn status(cluster: &Cluster, uid: &str) -> PodStatus {
    cluster.pod(uid).and_then(|bundle| bundle.pod).and_then(|pod| pod.status).unwrap_or_default()
}

/// Reason and message of what the first container waits for.
fn waits(cluster: &Cluster, uid: &str) -> (String, String) {
    let state = status(cluster, uid).container_statuses.first().and_then(|status| status.state.clone());
    state.and_then(|state| state.waiting).map(|waiting| (waiting.reason, waiting.message)).unwrap_or_default()
}

/// What a script says in one of several containers.
async fn look(agent: &mut AgentServiceClient<Channel>, pod: &str, container: &str, script: &str) -> String {
    let request = api::v1::ExecRequest {
        namespace: "default".into(),
        pod: pod.into(),
        container: container.into(),
        command: ["sh", "-c", script].map(String::from).into(),
        ..Default::default()
    };
    let request = ExecRequest { request: Some(request), pod_uid: format!("uid-{pod}") };
    String::from_utf8(agent.exec(request).await.unwrap().into_inner().response.unwrap().stdout).unwrap()
}

/// The value of a line of a process' status.
fn line<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).split_whitespace().collect()
}

#[test]
fn a_container_is_confined_as_its_security_context_says() {
    build_images();
    inside("spec::a_container_is_confined_as_its_security_context_says", |machine| async {
        let node = Node::start(machine).await;
        let mut strict = sleeper();
        strict["securityContext"] = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        });
        let spec = json!({
            "securityContext": {
                "runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "supplementalGroups": [4567],
                "sysctls": [{"name": "net.core.somaxconn", "value": "333"}],
            },
            "containers": [strict],
        });
        node.cluster.put_pod("node-1", pod("strict", spec));
        let mut free = sleeper();
        free["securityContext"] = json!({"privileged": true});
        let mut neighbour = sleeper();
        neighbour["name"] = json!("neighbour");
        let spec = json!({"shareProcessNamespace": true, "containers": [free, neighbour]});
        node.cluster.put_pod("node-1", pod("free", spec));
        let mut root = sleeper();
        root["securityContext"] = json!({"runAsNonRoot": true});
        node.cluster.put_pod("node-1", pod("root", json!({"containers": [root]})));

        node.ready("uid-strict").await;
        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        let (_, found, _) = exec(&mut agent, "strict", STATUS).await;
        assert_eq!((line(&found, "Uid")[1], line(&found, "Gid")[1]), ("1234", "2345"));
        let groups = line(&found, "Groups");
        assert!(groups.contains(&"3456") && groups.contains(&"4567"), "{groups:?}");
        assert_eq!((line(&found, "NoNewPrivs")[0], line(&found, "Seccomp")[0]), ("1", "2"));
        assert_eq!(line(&found, "CapBnd")[0], "0000000000000400", "NET_BIND_SERVICE alone");
        assert_ne!(exec(&mut agent, "strict", "echo x > /tmp/x").await.0, 0, "the root is read-only");
        assert_eq!(exec(&mut agent, "strict", "cat /proc/sys/net/core/somaxconn").await.1.trim(), "333");

        node.ready("uid-free").await;
        let found = look(&mut agent, "free", "main", STATUS).await;
        assert_eq!((line(&found, "Uid")[1], line(&found, "Seccomp")[0]), ("0", "0"));
        let shells = look(&mut agent, "free", "neighbour", "cat /proc/[0-9]*/cmdline").await;
        assert_eq!(shells.matches("trap 'exit 0'").count(), 2, "both containers' processes: {shells}");

        let refused = |c: &Cluster| {
            let (reason, message) = waits(c, "uid-root");
            reason == "CreateContainerConfigError" && message.contains("image will run as root")
        };
        node.cluster.until("a container that would be root is refused", LIMIT, refused).await;
        for uid in ["uid-strict", "uid-free", "uid-root"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}
