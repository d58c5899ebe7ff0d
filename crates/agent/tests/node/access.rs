//! Streams into running containers: each does what it should, and leaves nothing when it ends.

use std::{fs, io::Read, os::unix::fs::MetadataExt, time::Duration};

use k8s_cri::v1::{ReopenContainerLogRequest, runtime_service_client::RuntimeServiceClient};
use pb::{
    agent::v1::{
        CopyFromRequest, CopyToRequest, ExecStreamRequest, LogsRequest, PortForwardRequest, UsageRequest,
        agent_service_client::AgentServiceClient,
    },
    api::v1::{
        self as api, copy_to_request, exec_stream_request::Input, exec_stream_response::Output, port_forward_request,
    },
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    NGINX, Node,
    machine::{build_images, inside, wait},
    pod, shell, sleeper,
};

type Agent = AgentServiceClient<Channel>;

async fn agent() -> Agent {
    loop {
        if let Ok(agent) = AgentServiceClient::connect("http://127.0.0.1:7450").await {
            return agent;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A command, as its caller sees it.
struct Command {
    to: mpsc::Sender<ExecStreamRequest>,
    from: Streaming<pb::agent::v1::ExecStreamResponse>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Command {
    async fn start(
        agent: &mut Agent,
        pod: &str,
        script: &str,
        how: impl Fn(&mut api::ExecStart),
    ) -> Result<Self, Status> {
        let mut start = api::ExecStart {
            namespace: "default".into(),
            pod: pod.into(),
            command: ["sh", "-c", script].map(String::from).into(),
            ..Default::default()
        };
        how(&mut start);
        let (to, requests) = mpsc::channel(4);
        let request = api::ExecStreamRequest { input: Some(Input::Start(start)) };
        to.send(ExecStreamRequest { request: Some(request), pod_uid: format!("uid-{pod}") }).await.unwrap();
        let from = agent.exec_stream(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { to, from, stdout: Vec::new(), stderr: Vec::new() })
    }

    async fn tell(&self, input: Input) {
        let request = Some(api::ExecStreamRequest { input: Some(input) });
        self.to.send(ExecStreamRequest { request, ..Default::default() }).await.unwrap();
    }

    /// Takes one message; the exit code, once that came.
    async fn take(&mut self) -> Option<i32> {
        match self.from.message().await.unwrap().expect("no exit code").response.unwrap().output.unwrap() {
            Output::Stdout(bytes) => self.stdout.extend(bytes),
            Output::Stderr(bytes) => self.stderr.extend(bytes),
            Output::ExitCode(code) => return Some(code),
        }
        None
    }

    async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            assert_eq!(
                self.take().await,
                None,
                "it ended without {text:?}: {:?}",
                String::from_utf8_lossy(&self.stdout)
            );
        }
    }

    async fn end(mut self) -> (i32, String, String) {
        let code = loop {
            if let Some(code) = self.take().await {
                break code;
            }
        };
        assert!(self.from.message().await.unwrap().is_none(), "the exit code comes last");
        (code, String::from_utf8(self.stdout).unwrap(), String::from_utf8(self.stderr).unwrap())
    }
}

/// Whether a process with this argument lives.
fn lives(argument: &str) -> bool {
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let lines = fs::read_dir("/proc").unwrap().flatten().map(of);
    lines.into_iter().any(|line| line.split(|byte| *byte == 0).any(|part| part == argument.as_bytes()))
}

#[test]
fn commands_have_input_output_a_terminal_and_an_end() {
    build_images();
    inside("access::commands_have_input_output_a_terminal_and_an_end", |machine| async {
        let mut node = Node::start(machine).await;
        let mut main = sleeper();
        main["env"] = json!([{"name": "OF", "value": "the container"}]);
        main["securityContext"] = json!({"runAsUser": 70, "runAsGroup": 71});
        node.cluster.put_pod("node-1", pod("web-0", json!({"containers": [main]})));
        node.ready("uid-web-0").await;
        let mut agent = agent().await;
        let exec = node.machine.dir.join("data/exec");
        let left = || fs::read_dir(&exec).map_or(0, Iterator::count);

        let script = "echo out; echo err >&2; echo $OF $(id -u):$(id -g); cat; exit 7";
        let plain = Command::start(&mut agent, "web-0", script, |_| ()).await.unwrap();
        assert_eq!(plain.end().await, (7, "out\nthe container 70:71\n".into(), "err\n".into()));

        // More than any buffer, and all of it before the exit code.
        let big = Command::start(&mut agent, "web-0", "head -c 5000000 /dev/zero", |_| ()).await.unwrap();
        let (code, out, _) = big.end().await;
        assert_eq!((code, out.len()), (0, 5_000_000));

        let piped = Command::start(&mut agent, "web-0", "wc -c", |start| start.stdin = true).await.unwrap();
        for _ in 0..64 {
            piped.tell(Input::Stdin(vec![b'x'; 16384])).await;
        }
        piped.tell(Input::StdinClosed(true)).await;
        assert_eq!(piped.end().await, (0, format!("{}\n", 64 * 16384), String::new()));

        let size = |width, height| api::TerminalSize { width, height };
        let mut terminal = Command::start(&mut agent, "web-0", "stty size; read x; stty size; exit 3", |start| {
            (start.stdin, start.tty, start.size) = (true, true, Some(size(100, 30)));
        })
        .await
        .unwrap();
        terminal.until("30 100").await;
        terminal.tell(Input::Resize(size(120, 40))).await;
        terminal.tell(Input::Stdin(b"\n".into())).await;
        terminal.until("40 120").await;
        assert_eq!(terminal.end().await.0, 3);

        let nothing = Command::start(&mut agent, "web-0", "", |start| start.command = vec!["/no/such".into()]).await;
        let refused = nothing.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("/no/such"), "{refused}");
        wait("nothing is left", || left() == 0);

        // A caller that goes away ends the command, with what it started, also if that does not want to.
        let stubborn = "trap '' HUP; sleep 4241 & sleep 4242";
        let gone = Command::start(&mut agent, "web-0", stubborn, |_| ()).await.unwrap();
        wait("it runs", || lives("4241") && lives("4242"));
        drop(gone);
        wait("it is killed", || !lives("4241") && !lives("4242"));
        wait("nothing is left", || left() == 0);

        // So does an agent that goes away, at the latest when the next one comes.
        let _lost = Command::start(&mut agent, "web-0", "sleep 4243", |start| start.tty = true).await.unwrap();
        wait("it runs", || lives("4243"));
        assert_eq!(left(), 1);
        node.kill_agent().await;
        node.start_agent();
        wait("it is killed", || !lives("4243"));
        wait("nothing is left", || left() == 0);

        // And the end of the container.
        let mut agent = self::agent().await;
        let mut cut = Command::start(&mut agent, "web-0", "echo here; sleep 4244", |_| ()).await.unwrap();
        cut.until("here").await;
        node.cluster.delete_pod("uid-web-0");
        assert_eq!(cut.end().await.0, 128 + 9);
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

#[test]
fn ports_files_and_logs_of_containers_are_reached() {
    build_images();
    inside("access::ports_files_and_logs_of_containers_are_reached", |machine| async {
        let node = Node::start(machine).await;
        let talk = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exec sleep 1000";
        let mut talker = shell("talker", talk);
        talker["securityContext"] = json!({"runAsUser": 70, "runAsGroup": 71});
        talker["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
        let spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": "nginx", "image": NGINX, "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1}},
                talker,
            ],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        });
        node.cluster.put_pod("node-1", pod("web-0", spec));
        node.ready("uid-web-0").await;
        let mut agent = agent().await;
        logs_go_on_over_rotations(&node, &mut agent).await;
        connections(&mut agent).await;
        files(&node, &mut agent).await;
        let used = agent.usage(UsageRequest {}).await.unwrap().into_inner();
        let talker = used.containers.iter().find(|one| one.container == "talker").unwrap();
        assert_eq!((talker.pod.as_str(), talker.pod_uid.as_str()), ("web-0", "uid-web-0"));
        assert!(talker.usage.unwrap().memory_bytes > 0 && used.node.unwrap().memory_bytes > 0);
        node.stop("uid-web-0").await;
        node.assert_clean();
    });
}

async fn read_logs(agent: &mut Agent, how: impl Fn(&mut api::LogsRequest)) -> Vec<String> {
    let mut request = api::LogsRequest {
        pod: "web-0".into(),
        namespace: "default".into(),
        container: "talker".into(),
        ..Default::default()
    };
    how(&mut request);
    let request = LogsRequest { request: Some(request), pod_uid: "uid-web-0".into() };
    let mut stream = agent.logs(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        all.extend(piece.response.unwrap().data);
        if all.ends_with(b"\n299\n") {
            break;
        }
    }
    String::from_utf8(all).unwrap().lines().map(str::to_owned).collect()
}

async fn logs_go_on_over_rotations(node: &Node, agent: &mut Agent) {
    let status = node.cluster.pod("uid-web-0").unwrap().pod.unwrap().status.unwrap();
    let talker = status.container_statuses.iter().find(|status| status.name == "talker").unwrap();
    let container_id = talker.container_id.trim_start_matches("containerd://").to_owned();
    let channel = runtime::channel::connect_streaming(&format!("unix://{}", node.machine.socket().display())).unwrap();
    let mut cri = RuntimeServiceClient::new(channel);
    let log = node.machine.dir.join("data/logs/default_web-0_uid-web-0/talker/0.log");
    let rotating = async {
        for time in ["20260101-000000", "20260101-000001", "20260101-000002"] {
            tokio::time::sleep(Duration::from_millis(400)).await;
            fs::rename(&log, log.with_extension(format!("log.{time}"))).unwrap();
            let request = ReopenContainerLogRequest { container_id: container_id.clone() };
            cri.reopen_container_log(request).await.unwrap();
        }
    };
    let mut other = agent.clone();
    let (followed, ()) = tokio::join!(read_logs(&mut other, |request| request.follow = true), rotating);
    let all: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(followed, all, "no line is lost, doubled or out of order");
    assert_eq!(read_logs(agent, |_| ()).await, all);
    assert_eq!(read_logs(agent, |request| request.tail_lines = Some(250)).await, all[50..]);
    assert_eq!(read_logs(agent, |request| request.limit_bytes = Some(4)).await, ["0", "1"]);
    assert!(read_logs(agent, |request| request.since_time = Some(jiff::Timestamp::now().into())).await.is_empty());
}

async fn connections(agent: &mut Agent) {
    let forward = async |mut agent: Agent, port: i32| {
        let (to, requests) = mpsc::channel(4);
        let start = api::PortForwardStart { namespace: "default".into(), pod: "web-0".into(), port };
        let message = |input| api::PortForwardRequest { input: Some(input) };
        let first = Some(message(port_forward_request::Input::Start(start)));
        to.send(PortForwardRequest { request: first, pod_uid: "uid-web-0".into() }).await.unwrap();
        let mut from = agent.port_forward(ReceiverStream::new(requests)).await?.into_inner();
        assert!(from.message().await.unwrap().unwrap().response.unwrap().data.is_empty(), "first: it stands");
        let asking = Some(message(port_forward_request::Input::Data(b"GET / HTTP/1.0\r\n\r\n".into())));
        to.send(PortForwardRequest { request: asking, ..Default::default() }).await.unwrap();
        let mut page = Vec::new();
        while let Some(piece) = from.message().await? {
            page.extend(piece.response.unwrap().data);
        }
        Ok::<_, Status>(String::from_utf8(page).unwrap())
    };
    // Not on the node's own loopback address: nothing listens there.
    assert!(forward(agent.clone(), 80).await.unwrap().starts_with("HTTP/1.1 200"));
    let refused = forward(agent.clone(), 81).await.unwrap_err();
    assert!(refused.message().contains("port 81"), "{refused}");
}

async fn files(node: &Node, agent: &mut Agent) {
    let secret = node.machine.dir.join("secret");
    fs::write(&secret, "of the node").unwrap();
    let read = async |mut agent: Agent, path: &str| {
        let (namespace, pod, container) = ("default".into(), "web-0".into(), "talker".into());
        let request = Some(api::CopyFromRequest { namespace, pod, container, path: path.into() });
        let mut from = agent.copy_from(CopyFromRequest { request, pod_uid: "uid-web-0".into() }).await?.into_inner();
        let mut archive = Vec::new();
        while let Some(piece) = from.message().await? {
            archive.extend(piece.response.unwrap().data);
        }
        Ok::<_, Status>(archive)
    };
    let write = async |mut agent: Agent, path: &str, archive: Vec<u8>| {
        let (to, requests) = mpsc::channel(4);
        let (namespace, pod, container) = ("default".into(), "web-0".into(), "talker".into());
        let start = api::CopyToStart { namespace, pod, container, path: path.into() };
        for input in [copy_to_request::Input::Start(start), copy_to_request::Input::Data(archive)] {
            let request = Some(api::CopyToRequest { input: Some(input) });
            to.send(CopyToRequest { request, pod_uid: "uid-web-0".into() }).await.unwrap();
        }
        drop(to);
        agent.copy_to(ReceiverStream::new(requests)).await
    };
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o640);
    header.set_uid(0);
    builder.append_data(&mut header, "made/by/hand", &b"text"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let written = write(agent.clone(), "/scratch", archive.clone()).await.unwrap().into_inner().response.unwrap();
    assert_eq!((written.entries, written.bytes), (1, 4));
    let on_the_node = node.pod_dir("uid-web-0").join("volumes");
    let mut found = Vec::new();
    find(&on_the_node, "hand", &mut found);
    let meta = fs::metadata(&found[0]).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (70, 71, 0o640), "of the container's user");

    let back = read(agent.clone(), "/scratch/made").await.unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(back.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        names.push((entry.path().unwrap().display().to_string(), text));
    }
    let own = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    assert_eq!(names, [own("made", ""), own("made/by", ""), own("made/by/hand", "text")]);

    // Links that the container makes lead within the container, whatever they say.
    let script = format!(
        "ln -s {} /scratch/dir; ln -s {} /scratch/file; ln -s /proc/1/root /scratch/root; ln -s ../../../../../../etc /scratch/up",
        node.machine.dir.display(),
        secret.display()
    );
    let linking = Command::start(agent, "web-0", &script, |start| start.container = "talker".into()).await.unwrap();
    assert_eq!(linking.end().await.0, 0);
    for path in ["/scratch/dir/secret", "/scratch/file", &format!("/scratch/root{}", secret.display())] {
        let refused = read(agent.clone(), path).await.unwrap_err();
        assert!(!refused.message().contains("of the node"), "{path}: {refused}");
    }
    let tree = read(agent.clone(), "/scratch").await.unwrap();
    assert!(!tree.windows(11).any(|bytes| bytes == b"of the node"));
    let refused = write(agent.clone(), "/scratch/dir", archive.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(!node.machine.dir.join("made").exists());
    write(agent.clone(), "/scratch/up", archive).await.unwrap();
    assert!(!std::path::Path::new("/etc/made").exists(), "the container's /etc, not the node's");
    assert_eq!(read(agent.clone(), "/no/such").await.unwrap_err().code(), Code::NotFound);
}

fn find(folder: &std::path::Path, name: &str, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name() == name {
            found.push(entry.path());
        } else if entry.file_type().unwrap().is_dir() {
            find(&entry.path(), name, found);
        }
    }
}
