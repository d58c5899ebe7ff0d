//! The agent on a machine of its own: real containerd, real mounts, real network; only the API service is a stand-in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends here")]

mod access;
mod driver;
#[path = "../fake/mod.rs"]
mod fake;
mod files;
mod life;
mod machine;
mod registry;
mod spec;
mod transfers;
mod volumes;

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

use agent::Config;
use clap::Parser;
use driver::{Driver, is_mounted};
use fake::Cluster;
use machine::{Machine, build_images, inside, wait};
use pb::{
    agent::v1::{
        Endpoint, EndpointPort, ExecRequest, LogsRequest, PodBundle, ServiceEndpoints,
        agent_service_client::AgentServiceClient,
    },
    api,
    objects::Pod,
};
use runtime::CancellationToken;
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const NGINX: &str = "registry.k8s.io/nginx-slim:0.24";
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A machine with an API service, a CSI driver and an agent.
struct Node {
    machine: Machine,
    cluster: Cluster,
    driver: Driver,
    driver_stop: CancellationToken,
    args: Vec<String>,
    agent: Option<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
}

impl Node {
    async fn start(machine: Machine) -> Self {
        Self::start_with(machine, &[]).await
    }

    /// With more arguments for its agents.
    async fn start_with(machine: Machine, args: &[&str]) -> Self {
        drop(
            tracing_subscriber::fmt().with_env_filter("info,h2=off,hickory_server=warn").with_test_writer().try_init(),
        );
        let cluster = Cluster::start("127.0.0.1").await;
        let (driver, driver_stop) = Driver::start(&machine.dir);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut node = Self { machine, cluster, driver, driver_stop, args, agent: None };
        node.start_agent();
        node
    }

    fn start_agent(&mut self) {
        let dir = &self.machine.dir;
        let own = [
            "agent",
            "--listen=127.0.0.1:7450",
            "--node-name=node-1",
            "--node-ip=10.99.0.1",
            &format!("--api={}", self.cluster.url),
            &format!("--data-dir={}", dir.join("data").display()),
            &format!("--cri=unix://{}", self.machine.socket().display()),
            &format!("--csi-dir={}", dir.join("csi").display()),
            &format!("--cgroup-parent={}", self.machine.cgroup_parent()),
            "--csi-timeout=2",
            "--log-max-size=64Ki",
            "--log-max-files=2",
        ];
        let config = Line::parse_from(own.into_iter().chain(self.args.iter().map(String::as_str)));
        let stop = CancellationToken::new();
        self.agent = Some((stop.clone(), tokio::spawn(agent::run(config.config, stop))));
    }

    /// As suddenly as a crash: nothing gets to end in order.
    async fn kill_agent(&mut self) {
        let (_stop, task) = self.agent.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }

    async fn ready(&self, uid: &str) {
        self.cluster.until(&format!("{uid} is ready"), LIMIT, |c| c.is_ready(uid)).await;
    }

    async fn stop(&self, uid: &str) {
        self.cluster.delete_pod(uid);
        self.cluster.until(&format!("{uid} is stopped"), LIMIT, |c| c.stopped(uid)).await;
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.machine.dir.join("data/pods").join(uid)
    }

    /// Nothing of any pod is left on the machine.
    fn assert_clean(&self) {
        {
            let state = self.driver.state.lock();
            let collisions = if state.silent_after_stage { &[][..] } else { &state.collisions };
            assert!(collisions.is_empty(), "two calls for one volume at once: {collisions:?}");
        }
        assert_eq!(self.machine.tasks(), Vec::<String>::new());
        let containers = self.machine.ctr(&["containers", "list", "-q"]);
        assert_eq!(containers.trim(), "");
        for dir in ["data/pods", "data/logs", "data/staging/test"] {
            let left: Vec<_> =
                fs::read_dir(self.machine.dir.join(dir)).map(|d| d.flatten().collect()).unwrap_or_default();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("/data/pods/"), "{mounts}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = hierarchy.path().join(self.machine.cgroup_parent().trim_start_matches('/'));
            let pods = fs::read_dir(&parent).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
            assert_eq!(pods.count(), 0, "{}", parent.display());
        }
    }
}

/// A pod from a manifest's spec.
fn pod(name: &str, spec: serde_json::Value) -> PodBundle {
    let manifest = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": spec,
    });
    PodBundle { pod: Some(serde_json::from_value::<Pod>(manifest).unwrap()), ..Default::default() }
}

/// A shell that does `script`, and ends when it is asked to.
fn shell(name: &str, script: &str) -> serde_json::Value {
    json!({"name": name, "image": NGINX, "command": ["sh", "-c", script]})
}

fn sleeper() -> serde_json::Value {
    shell("main", "trap 'exit 0' TERM QUIT; sleep 1000 & wait")
}

#[test]
fn web_runs_with_its_volume_and_goes_without_a_trace() {
    build_images();
    inside("web_runs_with_its_volume_and_goes_without_a_trace", |machine| async {
        let node = Node::start(machine).await;
        let mut web = pod(
            "web-0",
            json!({
                "hostname": "web-0", "subdomain": "nginx",
                "terminationGracePeriodSeconds": 10,
                "containers": [{
                    "name": "nginx", "image": NGINX,
                    "ports": [{"containerPort": 80, "name": "web"}],
                    "volumeMounts": [{"name": "www", "mountPath": "/usr/share/nginx/html"}],
                    "readinessProbe": {"httpGet": {"port": "web"}},
                    "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                }],
                "volumes": [{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-0"}}],
            }),
        );
        let volume =
            json!({"spec": {"csi": {"driver": "test", "volumeHandle": "vol/1"}, "accessModes": ["ReadWriteOnce"]}});
        web.volumes = vec![pb::agent::v1::ClaimVolume {
            claim_name: "www-web-0".into(),
            volume: Some(serde_json::from_value(volume).unwrap()),
            ..Default::default()
        }];
        // Not bound yet: it must not start with an empty folder.
        let mut unbound = web.clone();
        unbound.volumes[0].volume = None;
        let data = node.driver.data("vol/1");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("index.html"), "from the volume").unwrap();
        node.cluster.put_pod("node-1", unbound);
        node.cluster
            .until("the wait for the volume is told", LIMIT, |c| {
                let status = c.pod("uid-web-0").and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
                status.container_statuses.iter().any(|c| {
                    let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref());
                    waiting.is_some_and(|w| w.reason == "FailedMount" && w.message.contains("not bound"))
                })
            })
            .await;
        node.cluster.put_pod("node-1", web);
        node.ready("uid-web-0").await;

        let status = node.cluster.pod("uid-web-0").unwrap().pod.unwrap().status.unwrap();
        assert_eq!(status.phase, "Running");
        assert!(status.pod_ip.starts_with("10.79.0."), "{}", status.pod_ip);
        let mut page = String::new();
        let mut connection = std::net::TcpStream::connect((status.pod_ip.as_str(), 80)).unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        connection.read_to_string(&mut page).unwrap();
        assert!(page.ends_with("\r\n\r\nfrom the volume"), "{page}");
        let id = status.container_statuses[0].container_id.trim_start_matches("containerd://").to_owned();
        let exec = |command: &[&str]| {
            node.machine.ctr(&[&["tasks", "exec", "--exec-id", "look", id.as_str()], command].concat())
        };
        assert_eq!(exec(&["hostname"]).trim(), "web-0");
        assert!(exec(&["cat", "/etc/hosts"]).contains("web-0.nginx.default.svc.cluster.local"));
        let resolv = exec(&["cat", "/etc/resolv.conf"]);
        assert!(resolv.contains("nameserver 169.254.20.10") && resolv.contains("ndots:5"), "{resolv}");
        let pod_cgroup = format!("{}/poduid-web-0", node.machine.cgroup_parent());
        let limit = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().find_map(|hierarchy| {
            let path = format!("{hierarchy}{pod_cgroup}/{id}");
            fs::read_to_string(format!("{path}/memory.limit_in_bytes"))
                .or_else(|_| fs::read_to_string(format!("{path}/memory.max")))
                .ok()
        });
        assert_eq!(limit.unwrap().trim(), (64 << 20).to_string());

        node.stop("uid-web-0").await;
        assert!(data.join("index.html").exists(), "the data stays");
        node.assert_clean();
    });
}

#[test]
fn a_restarted_agent_and_containerd_disturb_nothing() {
    build_images();
    inside("a_restarted_agent_and_containerd_disturb_nothing", |machine| async {
        let mut node = Node::start(machine).await;
        let spec = json!({"containers": [{
            "name": "nginx", "image": NGINX,
            "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1},
        }]});
        for name in ["a-0", "b-0"] {
            node.cluster.put_pod("node-1", pod(name, spec.clone()));
        }
        node.ready("uid-a-0").await;
        node.ready("uid-b-0").await;
        let before = node.machine.tasks();
        assert_eq!(before.len(), 4);
        let reports = node.cluster.reports();

        for _ in 0..3 {
            node.kill_agent().await;
            node.start_agent();
            // A heartbeat of the new agent: it is up, and has had the time to do harm.
            let beats = node.cluster.heartbeats();
            node.cluster.until("the agent is back", LIMIT, |c| c.heartbeats() > beats + 2).await;
        }
        assert_eq!(node.machine.tasks(), before);
        assert_eq!(node.cluster.reports(), reports, "nothing changed, so nothing is told");

        node.machine.restart_containerd();
        let machine = &node.machine;
        wait("containerd is back", || {
            let socket = machine.socket();
            let answer = std::process::Command::new("ctr").arg("--address").arg(socket).arg("version").output();
            answer.is_ok_and(|o| o.status.success())
        });
        node.cluster.until("heartbeats", LIMIT, |c| c.heartbeats() > 20).await;
        assert_eq!(node.machine.tasks(), before);

        // What was deleted while the agent was away is stopped, and only that.
        node.kill_agent().await;
        node.cluster.remove_pod("uid-a-0");
        node.start_agent();
        wait("a-0 is gone", || node.machine.tasks().len() == 2);
        assert!(node.cluster.is_ready("uid-b-0"));
        wait("its folder too", || !node.pod_dir("uid-a-0").exists());
        node.stop("uid-b-0").await;
        node.assert_clean();
    });
}

#[test]
fn containers_restart_and_end_as_their_policy_says() {
    build_images();
    inside("containers_restart_and_end_as_their_policy_says", |machine| async {
        let node = Node::start(machine).await;
        node.cluster.put_pod("node-1", pod("always", json!({"containers": [shell("main", "exit 3")]})));
        let once = json!({"restartPolicy": "Never", "containers": [shell("main", "exit 0")]});
        node.cluster.put_pod("node-1", pod("once", once));
        let failing = json!({
            "restartPolicy": "Never",
            "initContainers": [shell("first", "exit 1")],
            "containers": [shell("main", "exit 0")],
        });
        node.cluster.put_pod("node-1", pod("failing", failing));
        node.cluster.put_pod(
            "node-1",
            pod(
                "no-image",
                json!({"containers": [{"name": "main", "image": "nowhere/none:1", "imagePullPolicy": "Never"}]}),
            ),
        );
        let status = |c: &Cluster, uid: &str| c.pod(uid).and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
        let waits = |c: &Cluster, uid: &str| {
            let state = status(c, uid).container_statuses.first().and_then(|s| s.state.clone());
            state.and_then(|s| s.waiting).map(|w| w.reason).unwrap_or_default()
        };
        node.cluster.until("back-off", LIMIT, |c| waits(c, "uid-always") == "CrashLoopBackOff").await;
        let told = status(&node.cluster, "uid-always");
        assert_eq!(told.container_statuses[0].restart_count, 1);
        let last = told.container_statuses[0].last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.reason.as_str()), (3, "Error"));
        node.cluster.until("succeeds", LIMIT, |c| c.phase("uid-once") == "Succeeded").await;
        node.cluster.until("fails", LIMIT, |c| c.phase("uid-failing") == "Failed").await;
        node.cluster.until("no image", LIMIT, |c| waits(c, "uid-no-image") == "ErrImageNeverPull").await;
        for uid in ["uid-always", "uid-once", "uid-failing", "uid-no-image"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}

#[test]
fn stopping_takes_the_grace_that_it_is_given() {
    build_images();
    inside("stopping_takes_the_grace_that_it_is_given", |machine| async {
        let node = Node::start(machine).await;
        let stubborn = shell("main", "trap '' TERM QUIT; while true; do sleep 1; done");
        node.cluster.put_pod("node-1", pod("kind", json!({"containers": [sleeper()]})));
        let spec = json!({"terminationGracePeriodSeconds": 2, "containers": [stubborn.clone()]});
        node.cluster.put_pod("node-1", pod("stubborn", spec));
        let spec = json!({"terminationGracePeriodSeconds": 600, "containers": [stubborn]});
        node.cluster.put_pod("node-1", pod("very-stubborn", spec));
        for uid in ["uid-kind", "uid-stubborn", "uid-very-stubborn"] {
            node.ready(uid).await;
        }
        let began = std::time::Instant::now();
        node.stop("uid-kind").await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

        let began = std::time::Instant::now();
        node.stop("uid-stubborn").await;
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());

        // A second thought: less grace cuts a stop in progress short.
        node.cluster.delete_pod("uid-very-stubborn");
        let mut again = node.cluster.pod("uid-very-stubborn").unwrap();
        again.pod.as_mut().unwrap().metadata.as_mut().unwrap().deletion_grace_period_seconds = Some(1);
        node.cluster.put_pod("node-1", again);
        node.cluster.until("it is stopped", LIMIT, |c| c.stopped("uid-very-stubborn")).await;
        node.assert_clean();
    });
}

#[test]
fn a_volume_that_is_not_mounted_keeps_the_pod_from_starting() {
    build_images();
    inside("a_volume_that_is_not_mounted_keeps_the_pod_from_starting", |machine| async {
        let node = Node::start(machine).await;
        fs::create_dir_all(node.driver.data("v")).unwrap();
        node.driver.state.lock().lies = true;
        let mut bundle = pod(
            "web-0",
            json!({
                "containers": [{"name": "nginx", "image": NGINX, "volumeMounts": [{"name": "www", "mountPath": "/data"}]}],
                "volumes": [{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-0"}}],
            }),
        );
        let volume = json!({"spec": {"csi": {"driver": "test", "volumeHandle": "v"}}});
        bundle.volumes = vec![pb::agent::v1::ClaimVolume {
            claim_name: "www-web-0".into(),
            volume: Some(serde_json::from_value(volume).unwrap()),
            ..Default::default()
        }];
        node.cluster.put_pod("node-1", bundle);
        node.cluster
            .until("the lie is told", LIMIT, |c| {
                let status = c.pod("uid-web-0").and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
                status.message.contains("nothing is mounted at")
            })
            .await;
        assert!(node.machine.tasks().len() <= 1, "no more than the sandbox");
        node.driver.state.lock().lies = false;
        node.ready("uid-web-0").await;
        assert!(is_mounted(&node.pod_dir("uid-web-0").join("volumes/www/mount")));
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn pods_find_each_other_by_name_and_users_see_into_them() {
    build_images();
    inside("pods_find_each_other_by_name_and_users_see_into_them", |machine| async {
        let node = Node::start(machine).await;
        // All on one stream: between two of them the runtime keeps no order.
        let talker =
            shell("main", "echo first; for i in 2 3 4; do sleep 0.2; echo line $i; done; echo -n last; exit 0");
        let spec = json!({"restartPolicy": "Never", "containers": [talker]});
        node.cluster.put_pod("node-1", pod("talker", spec));
        node.cluster.put_pod(
            "node-1",
            pod("web-0", json!({"hostname": "web-0", "subdomain": "nginx", "containers": [sleeper()]})),
        );
        node.ready("uid-web-0").await;
        let ip = node.cluster.pod("uid-web-0").unwrap().pod.unwrap().status.unwrap().pod_ip;

        // Names.
        let endpoint =
            Endpoint { ip: ip.clone(), hostname: "web-0".into(), pod_name: "web-0".into(), ..Endpoint::default() };
        let service = ServiceEndpoints {
            namespace: "default".into(),
            name: "nginx".into(),
            endpoints: vec![endpoint],
            ports: vec![EndpointPort { name: "web".into(), protocol: "TCP".into(), port: 80 }],
            ..ServiceEndpoints::default()
        };
        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        let lookup = "nslookup web-0.nginx.default.svc.cluster.local";
        let (code, _, _) = exec(&mut agent, "web-0", lookup).await;
        assert_ne!(code, 0, "not known yet");
        node.cluster.put_endpoints(service);
        // At once: nobody keeps the negative answer.
        let (code, stdout, stderr) = exec(&mut agent, "web-0", lookup).await;
        assert!(code == 0 && stdout.contains(&ip), "{code} {stdout} {stderr}");
        for (question, says) in [
            ("ping -c 1 -w 2 nginx", "1 packets received"),
            ("nslookup -type=srv _web._tcp.nginx.default.svc.cluster.local", "web-0.nginx.default.svc.cluster.local"),
            (&format!("nslookup {ip}"), "web-0.nginx.default.svc.cluster.local"),
            ("ping -c 1 -w 2 web-0.nginx", "1 packets received"),
        ] {
            let (code, stdout, stderr) = exec(&mut agent, "web-0", question).await;
            assert!(code == 0 && stdout.contains(says), "{question}: {code} {stdout} {stderr}");
        }
        let (code, _, stderr) = exec(&mut agent, "web-0", "echo oops >&2; exit 7").await;
        assert_eq!((code, stderr.as_str()), (7, "oops\n"));

        // Logs, followed to the end of the container.
        let all = logs(&mut agent, "talker", |request| request.follow = true).await;
        assert_eq!(all, "first\nline 2\nline 3\nline 4\nlast");
        assert_eq!(logs(&mut agent, "talker", |request| request.tail_lines = Some(2)).await, "line 4\nlast");
        let stamped = logs(&mut agent, "talker", |request| request.timestamps = true).await;
        assert!(stamped.lines().next().unwrap().ends_with("Z first"), "{stamped}");

        // Routes to the other nodes' pods.
        let other = json!({
            "metadata": {"name": "node-2"}, "spec": {"podCIDR": "10.79.9.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.2"}]},
        });
        node.cluster.put_node(serde_json::from_value(other).unwrap());
        wait("the route", || machine::run("ip", &["route"]).contains("10.79.9.0/24 via 10.99.0.2"));
        for uid in ["uid-web-0", "uid-talker"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}

#[test]
fn probes_decide_who_is_ready_and_who_is_restarted() {
    build_images();
    inside("probes_decide_who_is_ready_and_who_is_restarted", |machine| async {
        let node = Node::start(machine).await;
        let mut main = shell("main", "trap 'exit 0' TERM QUIT; touch /ready; sleep 1000 & wait");
        main["startupProbe"] = json!({"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1});
        main["readinessProbe"] =
            json!({"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
        main["livenessProbe"] =
            json!({"exec": {"command": ["test", "!", "-e", "/broken"]}, "periodSeconds": 1, "failureThreshold": 1});
        node.cluster.put_pod("node-1", pod("probed", json!({"containers": [main]})));
        // A period of 10 s, and a server that needs a second to come up.
        let late = shell("main", "sleep 1; exec nginx -g 'daemon off;'");
        let mut quick = late.clone();
        quick["readinessProbe"] = json!({"tcpSocket": {"port": 80}, "periodSeconds": 10});
        node.cluster.put_pod("node-1", pod("quick", json!({"containers": [quick]})));
        let mut hopeless = sleeper();
        hopeless["startupProbe"] = json!({"tcpSocket": {"port": 81}, "periodSeconds": 1, "failureThreshold": 2});
        node.cluster.put_pod("node-1", pod("hopeless", json!({"containers": [hopeless]})));

        node.ready("uid-quick").await;
        let status = node.cluster.pod("uid-quick").unwrap().pod.unwrap().status.unwrap();
        let at = |time: &Option<pb::objects::Time>| time.unwrap().timestamp();
        let started = at(&status.container_statuses[0].state.as_ref().unwrap().running.as_ref().unwrap().started_at);
        let ready = at(&status.conditions.iter().find(|c| c.r#type == "Ready").unwrap().last_transition_time);
        let took = ready.duration_since(started);
        assert!(took.as_millis() < 4000, "ready a period late: {took:?}");

        node.ready("uid-probed").await;
        let mut agent = AgentServiceClient::connect("http://127.0.0.1:7450").await.unwrap();
        exec(&mut agent, "probed", "rm /ready").await;
        node.cluster.until("not ready", LIMIT, |c| !c.is_ready("uid-probed")).await;
        exec(&mut agent, "probed", "touch /ready").await;
        node.ready("uid-probed").await;
        exec(&mut agent, "probed", "touch /broken").await;
        let restarts = |c: &Cluster, uid: &str| {
            let status = c.pod(uid).and_then(|b| b.pod).and_then(|p| p.status).unwrap_or_default();
            status.container_statuses.first().map_or(0, |s| s.restart_count)
        };
        node.cluster.until("restarted", LIMIT, |c| restarts(c, "uid-probed") == 1).await;
        node.ready("uid-probed").await;
        node.cluster.until("restarted", LIMIT, |c| restarts(c, "uid-hopeless") >= 1).await;
        assert_eq!(restarts(&node.cluster, "uid-quick"), 0);
        for uid in ["uid-probed", "uid-quick", "uid-hopeless"] {
            node.stop(uid).await;
        }
        node.assert_clean();
    });
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    build_images();
    inside("an_agent_that_is_killed_again_and_again_loses_and_doubles_nothing", |machine| async {
        let mut node = Node::start(machine).await;
        let spec = json!({
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "nginx", "image": NGINX, "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory"}}],
        });
        for round in 0..6u64 {
            let names: Vec<_> = (0..2).map(|k| format!("p{round}-{k}")).collect();
            for name in &names {
                node.cluster.put_pod("node-1", pod(name, spec.clone()));
            }
            // At another moment of the start each time, then of the stop.
            tokio::time::sleep(Duration::from_millis(60 + 170 * round)).await;
            node.kill_agent().await;
            node.start_agent();
            for name in &names {
                node.ready(&format!("uid-{name}")).await;
            }
            assert_eq!(node.machine.tasks().len(), 2 * names.len(), "one sandbox and one container each");
            for name in &names {
                node.cluster.delete_pod(&format!("uid-{name}"));
            }
            tokio::time::sleep(Duration::from_millis(10 + 40 * round)).await;
            node.kill_agent().await;
            node.start_agent();
            for name in &names {
                let uid = format!("uid-{name}");
                node.cluster.until(&format!("{uid} is stopped"), LIMIT, |c| c.stopped(&uid)).await;
            }
            node.assert_clean();
        }
    });
}

async fn exec(agent: &mut AgentServiceClient<Channel>, pod: &str, script: &str) -> (i32, String, String) {
    let request = api::v1::ExecRequest {
        namespace: "default".into(),
        pod: pod.into(),
        command: ["sh", "-c", script].map(String::from).into(),
        ..Default::default()
    };
    let request = ExecRequest { request: Some(request), pod_uid: format!("uid-{pod}") };
    let output = agent.exec(request).await.unwrap().into_inner().response.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.exit_code, text(output.stdout), text(output.stderr))
}

async fn logs(agent: &mut AgentServiceClient<Channel>, pod: &str, how: impl Fn(&mut api::v1::LogsRequest)) -> String {
    let mut request = api::v1::LogsRequest { namespace: "default".into(), pod: pod.into(), ..Default::default() };
    how(&mut request);
    let request = LogsRequest { request: Some(request), pod_uid: format!("uid-{pod}") };
    let mut stream = agent.logs(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        all.extend(piece.response.unwrap().data);
    }
    String::from_utf8(all).unwrap()
}
