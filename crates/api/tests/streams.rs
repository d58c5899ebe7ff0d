//! Streams between users and the agents of their pods' nodes: both ways, without a growing buffer, and to the end.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::*;
use futures::{Stream, StreamExt as _, stream};
use pb::{
    ObjectExt,
    agent::v1::{
        self as agent,
        agent_service_server::{AgentService, AgentServiceServer},
    },
    api::v1::{exec_stream_request::Input, exec_stream_response::Output, *},
    objects::*,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// An agent that answers what it was asked, and echoes.
#[derive(Clone, Default)]
struct Agent {
    /// Commands that run.
    running: Arc<AtomicUsize>,
    /// Messages of output that were taken from it.
    taken: Arc<AtomicUsize>,
}

type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Counts down when the call is over, however it ends.
struct Runs(Arc<AtomicUsize>);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn output(output: Output) -> agent::ExecStreamResponse {
    agent::ExecStreamResponse { response: Some(ExecStreamResponse { output: Some(output) }) }
}

#[tonic::async_trait]
impl AgentService for Agent {
    type LogsStream = Pieces<agent::LogsResponse>;
    type ExecStreamStream = Pieces<agent::ExecStreamResponse>;
    type PortForwardStream = Pieces<agent::PortForwardResponse>;
    type CopyFromStream = Pieces<agent::CopyFromResponse>;

    async fn logs(&self, request: Request<agent::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let agent::LogsRequest { request, pod_uid } = request.into_inner();
        let request = request.unwrap();
        let lines = [format!("{}/{}", request.pod, request.container), pod_uid];
        let pieces = stream::iter(lines).map(|line| {
            let response = Some(LogsResponse { data: line.into_bytes() });
            Ok(agent::LogsResponse { response })
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn exec(&self, request: Request<agent::ExecRequest>) -> Result<Response<agent::ExecResponse>, Status> {
        let stdout = request.into_inner().request.unwrap().command.join(" ").into_bytes();
        Ok(Response::new(agent::ExecResponse { response: Some(ExecResponse { stdout, ..Default::default() }) }))
    }

    /// `flood` writes for ever; anything else echoes its input, and ends with it.
    async fn exec_stream(
        &self,
        request: Request<Streaming<agent::ExecStreamRequest>>,
    ) -> Result<Response<Self::ExecStreamStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        let Some(Input::Start(start)) = first.request.unwrap().input else { panic!("no start") };
        if start.command == ["refused"] {
            return Err(Status::failed_precondition("as the agent says"));
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let runs = Runs(self.running.clone());
        if start.command == ["flood"] {
            let taken = self.taken.clone();
            let flood = stream::repeat_with(move || {
                let _runs = &runs;
                taken.fetch_add(1, Ordering::SeqCst);
                Ok(output(Output::Stdout(vec![0; 16 * 1024])))
            });
            return Ok(Response::new(flood.boxed()));
        }
        let told = format!("{}/{} {}", start.pod, start.container, first.pod_uid).into_bytes();
        let echo = stream::unfold((requests, runs, false), |(mut requests, runs, over)| async move {
            if over {
                return None;
            }
            Some(match requests.message().await {
                Ok(Some(message)) => match message.request.unwrap().input.unwrap() {
                    Input::Stdin(bytes) => (Ok(output(Output::Stdout(bytes))), (requests, runs, false)),
                    Input::StdinClosed(_) => (Ok(output(Output::ExitCode(3))), (requests, runs, true)),
                    other => panic!("{other:?}"),
                },
                Ok(None) => (Ok(output(Output::ExitCode(4))), (requests, runs, true)),
                Err(status) => (Err(status), (requests, runs, true)),
            })
        });
        Ok(Response::new(stream::iter([Ok(output(Output::Stderr(told)))]).chain(echo).boxed()))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<agent::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let first = request.into_inner().message().await?.unwrap();
        let Some(port_forward_request::Input::Start(start)) = first.request.unwrap().input else { panic!("no start") };
        let pieces = [Vec::new(), start.port.to_string().into_bytes()].map(|data| {
            let response = Some(PortForwardResponse { data });
            Ok(agent::PortForwardResponse { response })
        });
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    async fn copy_from(
        &self,
        request: Request<agent::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        let data = request.into_inner().request.unwrap().path.into_bytes();
        let response = Some(CopyFromResponse { data });
        Ok(Response::new(stream::iter([Ok(agent::CopyFromResponse { response })]).boxed()))
    }

    async fn copy_to(
        &self,
        request: Request<Streaming<agent::CopyToRequest>>,
    ) -> Result<Response<agent::CopyToResponse>, Status> {
        let mut requests = request.into_inner();
        let mut bytes = 0;
        while let Some(message) = requests.message().await? {
            if let Some(copy_to_request::Input::Data(data)) = message.request.unwrap().input {
                bytes += i64::try_from(data.len()).unwrap();
            }
        }
        Ok(Response::new(agent::CopyToResponse { response: Some(CopyToResponse { entries: 1, bytes }) }))
    }

    async fn usage(&self, _: Request<agent::UsageRequest>) -> Result<Response<agent::UsageResponse>, Status> {
        let usage = Some(Usage { milli_cpu: 250, memory_bytes: 4096 });
        let container = |pod: &str| agent::ContainerUsage {
            namespace: "default".into(),
            pod: pod.into(),
            pod_uid: format!("uid-{pod}"),
            container: "nginx".into(),
            usage,
        };
        Ok(Response::new(agent::UsageResponse { node: usage, containers: vec![container("gone")] }))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.shutdown_background();
        }
    }
}

/// A cluster with a node whose agent answers, one whose agent is away, and pods on them and on none.
struct World {
    h: Harness,
    agent: Agent,
    /// What the agent runs on: all its connections break with it.
    machine: Option<tokio::runtime::Runtime>,
    web: Pod,
}

fn node(name: &str, port: i32) -> Node {
    Node {
        metadata: Some(ObjectMeta { name: name.into(), ..Default::default() }),
        status: Some(NodeStatus {
            addresses: vec![NodeAddress { r#type: "InternalIP".into(), address: "127.0.0.1".into() }],
            daemon_endpoints: Some(NodeDaemonEndpoints { agent_endpoint: Some(DaemonEndpoint { port }) }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl World {
    async fn new() -> Self {
        let (h, agent) = (Harness::over_memory().await, Agent::default());
        let machine = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime::Server::new("agent", "127.0.0.1:0".parse().unwrap())
            .service(AgentServiceServer::new(agent.clone()));
        let bound = machine.spawn(server.bind()).await.unwrap().unwrap();
        let port = bound.local_addr().unwrap().port().into();
        machine.spawn(bound.serve(runtime::CancellationToken::new()));
        for node in [node("n1", port), node("away", 1)] {
            h.nodes().register(agent::RegisterRequest { node: Some(node) }).await.unwrap();
        }
        let web = h.create(pod("web-0", "n1")).await.unwrap();
        for (name, node) in [("web-1", ""), ("web-2", "n9"), ("web-3", "away")] {
            h.create(pod(name, node)).await.unwrap();
        }
        Self { h, agent, machine: Some(machine), web }
    }

    async fn exec(
        &self,
        pod: &str,
        command: &str,
    ) -> Result<(mpsc::Sender<ExecStreamRequest>, Streaming<ExecStreamResponse>), Status> {
        let (to, requests) = mpsc::channel(1);
        let command = command.split_whitespace().map(str::to_owned).collect();
        let start = ExecStart { pod: pod.into(), command, stdin: true, ..Default::default() };
        to.send(ExecStreamRequest { input: Some(Input::Start(start)) }).await.unwrap();
        let answers = self.h.api().exec_stream(ReceiverStream::new(requests)).await?.into_inner();
        Ok((to, answers))
    }

    /// Ends the agent as suddenly as a crash.
    fn crash(&mut self) {
        self.machine.take().unwrap().shutdown_background();
    }

    fn running(&self) -> usize {
        self.agent.running.load(Ordering::SeqCst)
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not soon: {what}"));
}

async fn told(answers: &mut Streaming<ExecStreamResponse>) -> Output {
    next(answers).await.output.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_access_go_to_the_agent_of_the_pod() {
    let world = World::new().await;
    let (h, web) = (&world.h, &world.web);
    let logs =
        |pod: &str, container: &str| LogsRequest { pod: pod.into(), container: container.into(), ..Default::default() };
    let pieces = h.api().logs(logs("web-0", "")).await.unwrap().into_inner();
    let pieces: Vec<_> = pieces.map(|piece| String::from_utf8(piece.unwrap().data).unwrap()).collect().await;
    assert_eq!(pieces, ["web-0/nginx", web.uid()]);
    let exec = ExecRequest { pod: "web-0".into(), command: vec!["echo".into(), "hi".into()], ..Default::default() };
    assert_eq!(h.api().exec(exec).await.unwrap().into_inner().stdout, b"echo hi");

    let (to, mut answers) = world.exec("web-0", "cat").await.unwrap();
    assert_eq!(told(&mut answers).await, Output::Stderr(format!("web-0/nginx {}", web.uid()).into_bytes()));
    for bytes in [b"one".to_vec(), b"two".to_vec()] {
        to.send(ExecStreamRequest { input: Some(Input::Stdin(bytes.clone())) }).await.unwrap();
        assert_eq!(told(&mut answers).await, Output::Stdout(bytes));
    }
    to.send(ExecStreamRequest { input: Some(Input::StdinClosed(true)) }).await.unwrap();
    assert_eq!(told(&mut answers).await, Output::ExitCode(3));
    assert!(answers.message().await.unwrap().is_none());

    let start = PortForwardStart { pod: "web-0".into(), port: 80, ..Default::default() };
    let start = PortForwardRequest { input: Some(port_forward_request::Input::Start(start)) };
    let mut data = h.api().port_forward(stream::iter([start])).await.unwrap().into_inner();
    assert!(next(&mut data).await.data.is_empty());
    assert_eq!(next(&mut data).await.data, b"80");

    let from = CopyFromRequest { pod: "web-0".into(), path: "/etc".into(), ..Default::default() };
    assert_eq!(next(&mut h.api().copy_from(from).await.unwrap().into_inner()).await.data, b"/etc");
    let start =
        copy_to_request::Input::Start(CopyToStart { pod: "web-0".into(), path: "/".into(), ..Default::default() });
    let data = (0..100).map(|_| copy_to_request::Input::Data(vec![0; 64 * 1024]));
    let archive: Vec<_> = [start].into_iter().chain(data).map(|input| CopyToRequest { input: Some(input) }).collect();
    assert_eq!(h.api().copy_to(stream::iter(archive)).await.unwrap().into_inner().bytes, 100 * 64 * 1024);

    let top = h.api().top(TopRequest { nodes: true, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(top.rows.iter().map(|row| row.node.as_str()).collect::<Vec<_>>(), ["n1"]);
    assert!(top.missing.len() == 1 && top.missing[0].starts_with("away: "), "{:?}", top.missing);
    let pods = h.api().top(TopRequest::default()).await.unwrap().into_inner();
    assert!(pods.rows.is_empty(), "a pod that nobody knows is not shown: {:?}", pods.rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_said_in_words_that_help() {
    let world = World::new().await;
    for (pod, command, code, says) in [
        ("web-9", "id", Code::NotFound, "web-9"),
        ("web-1", "id", Code::FailedPrecondition, "berth why web-1"),
        ("web-2", "id", Code::FailedPrecondition, "node n9"),
        ("web-3", "id", Code::Unavailable, "berth get node away"),
        ("web-0", "", Code::InvalidArgument, "start.command"),
        ("web-0", "refused", Code::FailedPrecondition, "as the agent says"),
    ] {
        let status = world.exec(pod, command).await.map(drop).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(says), "{status}");
    }
    let logs = |container: &str| LogsRequest { pod: "web-0".into(), container: container.into(), ..Default::default() };
    let status = world.h.api().logs(logs("sidecar")).await.map(drop).unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("nginx"), "{status}");
    let both = LogsRequest { since_seconds: Some(1), since_time: Some(Time::default()), ..logs("") };
    assert_eq!(world.h.api().logs(both).await.map(drop).unwrap_err().code(), Code::InvalidArgument);
    let nothing = world.h.api().exec_stream(stream::iter([ExecStreamRequest::default()])).await.map(drop).unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument, "{nothing}");
    assert_eq!(world.running(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_either_side_and_with_this_service() {
    let mut world = World::new().await;
    let (to, mut answers) = world.exec("web-0", "cat").await.unwrap();
    told(&mut answers).await;
    assert_eq!(world.running(), 1);
    drop((to, answers));
    until("a user who goes away ends the command", || world.running() == 0).await;

    // A user who only says no more is still there for the answer.
    let (to, mut answers) = world.exec("web-0", "cat").await.unwrap();
    told(&mut answers).await;
    drop(to);
    assert_eq!(told(&mut answers).await, Output::ExitCode(4));

    // Nobody reads: what is taken from the agent stays within what connections buffer.
    let (to, answers) = world.exec("web-0", "flood").await.unwrap();
    let standing = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let taken = world.agent.taken.load(Ordering::SeqCst);
            if taken > 0 && taken == before {
                return taken;
            }
            before = taken;
        }
    };
    let taken = tokio::time::timeout(SOON, standing).await.expect("the flood does not stand still");
    assert!(taken * 16 * 1024 < 16 << 20, "{taken} pieces wait");
    drop((to, answers));
    until("nor does it go on for nobody", || world.running() == 0).await;

    let (_to, mut cut) = world.exec("web-0", "cat").await.unwrap();
    told(&mut cut).await;
    world.crash();
    let broken = tokio::time::timeout(SOON, cut.message()).await.unwrap().unwrap_err();
    assert!(broken.code() == Code::Unavailable && broken.message().contains("berth get node n1"), "{broken}");

    let world = World::new().await;
    let (_to, mut cut) = world.exec("web-0", "cat").await.unwrap();
    told(&mut cut).await;
    world.h.stop();
    let stopped = tokio::time::timeout(SOON, cut.message()).await.unwrap().unwrap_err();
    assert!(stopped.code() == Code::Unavailable && stopped.message().contains("being stopped"), "{stopped}");
    until("the command is ended too", || world.running() == 0).await;
}
