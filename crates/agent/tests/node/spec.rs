//! What a pod's spec says is what its processes find.

use std::sync::atomic::Ordering;

use base64::{Engine, engine::general_purpose::STANDARD};
use pb::{
    agent::v1::{ExecRequest, agent_service_client::AgentServiceClient},
    api,
    objects::PodStatus,
};
use serde_json::json;
use tonic::transport::Channel;

use super::{
    Cluster, LIMIT, NGINX, Node, build_images, exec, inside,
    machine::{images, run},
    pod,
    registry::{Registry, USER},
    sleeper,
};

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

#[test]
fn images_are_pulled_with_the_pods_own_secrets() {
    build_images();
    inside("spec::images_are_pulled_with_the_pods_own_secrets", |machine| async {
        let registry = Registry::serve("127.0.0.1:5000", &images().join("nginx.tar")).await;
        // Takes connections and never answers.
        let _silent = std::net::TcpListener::bind("127.0.0.1:5001").unwrap();
        let node = Node::start(machine).await;
        let with = |image: &str, policy: &str| {
            let mut container = sleeper();
            container["image"] = json!(image);
            container["imagePullPolicy"] = json!(policy);
            json!({"containers": [container], "imagePullSecrets": [{"name": "pull"}]})
        };
        let private = "127.0.0.1:5000/team/app:1";
        node.cluster.put_pod("node-1", pod("silent", with("127.0.0.1:5001/app:1", "IfNotPresent")));
        node.cluster.put_pod("node-1", pod("never", with(private, "Never")));
        node.cluster.put_pod("node-1", pod("anonymous", with(private, "IfNotPresent")));
        let told = |c: &Cluster| {
            let (reason, message) = waits(c, "uid-anonymous");
            reason == "ImagePullBackOff" && message.contains(private) && message.contains("401 Unauthorized")
        };
        node.cluster.until("no password", LIMIT, told).await;
        node.cluster.until("never", LIMIT, |c| waits(c, "uid-never").0 == "ErrImageNeverPull").await;
        let (reason, message) = waits(&node.cluster, "uid-silent");
        assert_eq!((reason.as_str(), message.contains("pulling image")), ("ContainerCreating", true), "{message}");
        node.stop("uid-anonymous").await;

        let auths = json!({"auths": {"http://127.0.0.1:5000": {"username": USER.0, "password": USER.1}}});
        let secret = json!({
            "metadata": {"name": "pull", "namespace": "default"},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": STANDARD.encode(auths.to_string())},
        });
        let member = |name: &str, policy: &str| {
            let mut bundle = pod(name, with(private, policy));
            bundle.secrets = vec![serde_json::from_value(secret.clone()).unwrap()];
            bundle
        };
        node.cluster.put_pod("node-1", member("member", "IfNotPresent"));
        node.ready("uid-member").await;
        let asked = registry.asked.load(Ordering::Relaxed);
        node.cluster.put_pod("node-1", member("other", "IfNotPresent"));
        node.ready("uid-other").await;
        assert_eq!(registry.asked.load(Ordering::Relaxed), asked, "the image is there");
        node.cluster.put_pod("node-1", member("always", "Always"));
        node.ready("uid-always").await;
        assert!(registry.asked.load(Ordering::Relaxed) > asked, "the registry is asked for every start");

        // What is pulled for a pod does not keep it.
        let began = std::time::Instant::now();
        node.stop("uid-silent").await;
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        for uid in ["uid-never", "uid-member", "uid-other", "uid-always"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}

#[test]
fn a_pod_finds_its_names_its_variables_and_its_bounds() {
    build_images();
    inside("spec::a_pod_finds_its_names_its_variables_and_its_bounds", |machine| async {
        let node = Node::start(machine).await;
        let mut main = sleeper();
        main["envFrom"] = json!([{"prefix": "CONF_", "configMapRef": {"name": "conf"}}]);
        main["env"] = json!([
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "ALL", "value": "$(CONF_mode) with $(MEMORY)"},
        ]);
        main["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
        let mut side = sleeper();
        side["name"] = json!("side");
        side["restartPolicy"] = json!("Always");
        side["resources"] = json!({"limits": {"memory": "32Mi", "cpu": "250m"}});
        let spec = json!({
            "hostname": "web-0", "subdomain": "nginx", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["db", "db.old"]}],
            "dnsConfig": {"searches": ["corp.example"], "options": [{"name": "ndots", "value": "2"}]},
            "initContainers": [side], "containers": [main],
        });
        let mut bundle = pod("web-0", spec);
        let map = json!({"metadata": {"name": "conf", "namespace": "default"}, "data": {"mode": "fast"}});
        bundle.config_maps = vec![serde_json::from_value(map).unwrap()];
        node.cluster.put_pod("node-1", bundle);
        node.ready("uid-web-0").await;

        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        let mut say = async |script: &str| look(&mut agent, "web-0", "main", script).await.trim().to_owned();
        assert_eq!(say("echo $ALL").await, "fast with 64");
        assert_eq!(say("hostname").await, "web-0.nginx.default.svc.cluster.local");
        assert_eq!(say("grep db /etc/hosts").await, "10.1.2.3\tdb\tdb.old");
        let resolver = say("cat /etc/resolv.conf").await;
        assert!(resolver.contains("cluster.local corp.example") && resolver.contains("ndots:2"), "{resolver}");

        let cgroup = format!("{}/poduid-web-0", node.machine.cgroup_parent());
        let read = |controller: &str, v1: &str, v2: &str| {
            let v1 = std::fs::read_to_string(format!("/sys/fs/cgroup/{controller}{cgroup}/{v1}"));
            let text = v1.or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/{v2}"))).unwrap();
            text.split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (96 << 20).to_string(), "the sum");
        assert_eq!(read("cpu", "cpu.cfs_quota_us", "cpu.max"), "75000");
        assert_eq!(status(&node.cluster, "uid-web-0").qos_class, "Guaranteed");
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn a_node_that_runs_short_says_so_until_it_does_not() {
    build_images();
    inside("spec::a_node_that_runs_short_says_so_until_it_does_not", |machine| async {
        let data = machine.dir.join("data");
        run("mount", &["-t", "tmpfs", "-o", "size=64m", "none", &data.display().to_string()]);
        let args = ["--pressure=memory.available<0,nodefs.available<50%", "--pressure-rest=1"];
        let node = Node::start_with(machine, &args).await;
        let pressed = |c: &Cluster, kind: &str| {
            let conditions = c.node("node-1").and_then(|node| node.status).unwrap_or_default().conditions;
            conditions.into_iter().find(|one| one.r#type == kind).map(|one| one.status).unwrap_or_default()
        };
        let all = |c: &Cluster| ["MemoryPressure", "DiskPressure", "PIDPressure"].map(|kind| pressed(c, kind));
        node.cluster.until("it has enough", LIMIT, |c| all(c) == ["False", "False", "False"]).await;
        let capacity = node.cluster.node("node-1").unwrap().status.unwrap().capacity;
        assert_eq!(capacity["ephemeral-storage"].value, "64Mi");
        std::fs::write(data.join("large"), vec![0; 40 << 20]).unwrap();
        node.cluster.until("its disk is full", LIMIT, |c| all(c) == ["False", "True", "False"]).await;
        std::fs::remove_file(data.join("large")).unwrap();
        node.cluster.until("its disk has room", LIMIT, |c| all(c) == ["False", "False", "False"]).await;
    });
}

#[test]
fn a_port_of_the_node_leads_to_the_pod() {
    build_images();
    inside("spec::a_port_of_the_node_leads_to_the_pod", |machine| async {
        let node = Node::start(machine).await;
        let container = json!({
            "name": "nginx", "image": NGINX, "ports": [{"containerPort": 80, "hostPort": 8080}],
            "readinessProbe": {"httpGet": {"port": 80}},
        });
        node.cluster.put_pod("node-1", pod("web", json!({"containers": [container]})));
        node.ready("uid-web").await;
        let answers = |address: &str| {
            let limit = std::time::Duration::from_secs(2);
            std::net::TcpStream::connect_timeout(&address.parse().unwrap(), limit).is_ok()
        };
        for address in ["10.99.0.1:8080", "127.0.0.1:8080"] {
            assert!(answers(address), "{address}");
        }
        node.stop("uid-web").await;
        assert!(!answers("10.99.0.1:8080"), "it leads nowhere any more");
        node.assert_clean();
    });
}
