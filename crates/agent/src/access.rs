//! What the API service asks of running containers: logs, commands, connections, files, and what they use.
//!
//! Each stream has a task that lives as long as its call: it ends when its caller goes away, and when the agent does.

mod copy;
mod exec;
mod fifos;
mod forward;
mod logs;
mod usage;

use std::{collections::BTreeSet, fs::File, os::fd::OwnedFd, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use pb::{
    agent::v1::{self as agent, PodRef, agent_service_server::AgentService},
    api::v1::{self as api, copy_to_request, exec_stream_request, port_forward_request},
};
use plan::node::{Container, ContainerState};
use runtime::tasks::Tasks;
use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    archive::{root, unpack::Owner},
    containerd::Containerd,
    spec::log_path,
    stream::waits,
    worker::Shared,
};

/// How long a command may take when the request does not say.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// No command may take longer.
const EXEC_LONGEST: Duration = Duration::from_secs(3600);

/// How long the first message of a stream may take, which says what is wanted.
const FIRST: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct Access {
    shared: Arc<Shared>,
    containerd: Containerd,
    commands: exec::Commands,
    tasks: Arc<Tasks>,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Access {
    /// Over the pods of this node. The streams live as long as the tasks' owner.
    pub fn new(shared: Arc<Shared>, containerd: Containerd, tasks: Arc<Tasks>) -> Self {
        let commands = exec::Commands::new(containerd.clone(), &shared.settings.data_dir);
        Self { shared, containerd, commands, tasks }
    }

    /// Ends what an agent before this one left behind.
    pub fn clean(&self) {
        let commands = self.commands.clone();
        self.tasks.spawn("exec-clean", async move {
            for wait in waits() {
                match commands.clean().await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "commands of an earlier agent are left; trying again"),
                }
                tokio::time::sleep(wait).await;
            }
        });
    }

    /// The newest run of a container, or the one before.
    async fn run(&self, pod: &PodRef, container: &str, previous: bool) -> Result<Container, Status> {
        let runtime = self.shared.cri.observe(&pod.uid).await?;
        let names: BTreeSet<&str> = runtime.containers.iter().map(|run| run.name.as_str()).collect();
        let name = match (container, names.len()) {
            (_, 0) => {
                let message =
                    format!("no container of pod {} has started yet: `berth describe pod {0}` says why", pod.name);
                return Err(Status::failed_precondition(message));
            }
            ("", 1) => names.into_iter().next().unwrap_or_default().to_owned(),
            ("", _) => {
                let list: Vec<_> = names.into_iter().collect();
                let message = format!("pod {} has several containers: choose one of {}", pod.name, list.join(", "));
                return Err(Status::invalid_argument(message));
            }
            (name, _) if names.contains(name) => name.to_owned(),
            (name, _) => {
                let list: Vec<_> = names.into_iter().collect();
                let message = format!("pod {} has no started container {name:?}: it has {}", pod.name, list.join(", "));
                return Err(Status::not_found(message));
            }
        };
        let runs = runtime.runs(&name);
        match runs.get(usize::from(previous)) {
            Some(run) => Ok((*run).clone()),
            None => Err(Status::not_found(format!("container {name} of pod {} has no run before this one", pod.name))),
        }
    }

    /// The run of a container that runs now.
    async fn running(&self, pod: &PodRef, container: &str) -> Result<Container, Status> {
        let run = self.run(pod, container, false).await?;
        if matches!(run.state, ContainerState::Running { .. }) {
            return Ok(run);
        }
        let message = format!(
            "container {} of pod {} does not run now: `berth describe pod {1}` says why, and `berth logs {1} -c {0}` what \
             it wrote last",
            run.name, pod.name
        );
        Err(Status::failed_precondition(message))
    }

    /// The network of a pod, as it is held by its sandbox.
    async fn network(&self, pod: &PodRef) -> Result<File, Status> {
        let down = || {
            Status::failed_precondition(format!(
                "pod {} has no network now: `berth describe pod {0}` says what it waits for",
                pod.name
            ))
        };
        let runtime = self.shared.cri.observe(&pod.uid).await?;
        let sandbox = runtime.sandboxes.iter().filter(|sandbox| sandbox.ready).max_by_key(|sandbox| sandbox.attempt);
        let sandbox = sandbox.ok_or_else(down)?;
        let holder = || self.shared.cri.sandbox_pid(&sandbox.id);
        let pid = holder().await?.ok_or_else(down)?;
        let network = File::open(format!("/proc/{pid}/ns/net")).map_err(|_| down())?;
        // Still the same: so the process was the sandbox's when its network was opened, not one that got its number.
        if holder().await? == Some(pid) { Ok(network) } else { Err(down()) }
    }

    /// The files of a running container, and who its processes are.
    async fn files(&self, pod: &PodRef, container: &str) -> Result<(OwnedFd, Owner), Status> {
        let run = self.running(pod, container).await?;
        let ended =
            || Status::failed_precondition(format!("container {} of pod {} has just ended", run.name, pod.name));
        let process = || self.shared.cri.container_pid(&run.id);
        let pid = process().await?.ok_or_else(ended)?;
        let root = root::of_process(pid).map_err(|_| ended())?;
        // Still the same: see `network`.
        if process().await? != Some(pid) {
            return Err(ended());
        }
        let described = self.containerd.process_of(&run.id).await?;
        let id = |name: &str| {
            let id = described.pointer(&format!("/user/{name}")).and_then(Value::as_u64);
            id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
        };
        Ok((root, Owner { uid: id("uid"), gid: id("gid") }))
    }
}

fn pod(namespace: &str, name: &str, uid: String) -> PodRef {
    PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid }
}

async fn first<M>(requests: &mut Streaming<M>) -> Result<M, Status> {
    let first = timeout(FIRST, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded(format!("start: must come within {FIRST:?}")))??;
    first.ok_or_else(no_start)
}

fn no_start() -> Status {
    Status::invalid_argument("start: must be the first message")
}

#[tonic::async_trait]
impl AgentService for Access {
    type LogsStream = Answers<agent::LogsResponse>;
    type ExecStreamStream = Answers<agent::ExecStreamResponse>;
    type PortForwardStream = Answers<agent::PortForwardResponse>;
    type CopyFromStream = Answers<agent::CopyFromResponse>;

    async fn logs(&self, request: Request<agent::LogsRequest>) -> Answer<Self::LogsStream> {
        let agent::LogsRequest { request, pod_uid } = request.into_inner();
        let wanted = request.unwrap_or_default();
        let pod = pod(&wanted.namespace, &wanted.pod, pod_uid);
        let run = self.run(&pod, &wanted.container, wanted.previous).await?;
        let path = self.shared.settings.log_dir(&pod).join(log_path(&run.name, run.attempt));
        let (reading, pieces) = logs::Reading::new(self.shared.clone(), pod, run, path, wanted)?;
        self.tasks.spawn("logs", reading.stream());
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces))))
    }

    async fn exec(&self, request: Request<agent::ExecRequest>) -> Answer<agent::ExecResponse> {
        let agent::ExecRequest { request, pod_uid } = request.into_inner();
        let wanted = request.unwrap_or_default();
        let pod = pod(&wanted.namespace, &wanted.pod, pod_uid);
        if wanted.command.is_empty() {
            return Err(Status::invalid_argument("command: must name a program"));
        }
        let run = self.running(&pod, &wanted.container).await?;
        let limit = match u64::try_from(wanted.timeout_seconds) {
            Ok(0) | Err(_) => EXEC_LIMIT,
            Ok(seconds) => Duration::from_secs(seconds).min(EXEC_LONGEST),
        };
        let output = self.shared.cri.exec(&run.id, &wanted.command, limit).await?;
        let response = api::ExecResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code };
        Ok(Response::new(agent::ExecResponse { response: Some(response) }))
    }

    async fn exec_stream(
        &self,
        request: Request<Streaming<agent::ExecStreamRequest>>,
    ) -> Answer<Self::ExecStreamStream> {
        let mut requests = request.into_inner();
        let agent::ExecStreamRequest { request, pod_uid } = first(&mut requests).await?;
        let Some(exec_stream_request::Input::Start(wanted)) = request.and_then(|request| request.input) else {
            return Err(no_start());
        };
        if wanted.command.is_empty() {
            return Err(Status::invalid_argument("command: must name a program"));
        }
        let run = self.running(&pod(&wanted.namespace, &wanted.pod, pod_uid), &wanted.container).await?;
        let (out, answers) = exec::Command::answers();
        let (begun, beginning) = oneshot::channel();
        let (commands, stop) = (self.commands.clone(), self.tasks.token().clone());
        // Beside the call: one that is broken off while its command starts must not leave it behind.
        self.tasks.spawn_graceful("exec", async move {
            match commands.start(&run.id, &wanted).await {
                Ok(command) => {
                    // If nobody waits for the beginning, nobody reads either, and the command ends with that.
                    drop(begun.send(Ok(())));
                    command.carry(requests, out, stop).await;
                }
                Err(status) => drop(begun.send(Err(not_started(&wanted, &run, &status)))),
            }
        });
        beginning.await.map_err(|_| Status::unavailable("the agent ends"))??;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<agent::PortForwardRequest>>,
    ) -> Answer<Self::PortForwardStream> {
        let mut requests = request.into_inner();
        let agent::PortForwardRequest { request, pod_uid } = first(&mut requests).await?;
        let Some(port_forward_request::Input::Start(wanted)) = request.and_then(|request| request.input) else {
            return Err(no_start());
        };
        let port = u16::try_from(wanted.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| Status::invalid_argument("port: must be from 1 to 65535"))?;
        let network = self.network(&pod(&wanted.namespace, &wanted.pod, pod_uid)).await?;
        let refused = |error: std::io::Error| {
            Status::aborted(format!("nothing answers at port {port} of pod {}: {error}", wanted.pod))
        };
        let stream = forward::connect(network, port).await.map_err(refused)?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(refused)?;
        let (out, answers) = forward::answers();
        let stop = self.tasks.token().clone();
        self.tasks.spawn_graceful("port-forward", forward::carry(stream, requests, out, stop));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn copy_from(&self, request: Request<agent::CopyFromRequest>) -> Answer<Self::CopyFromStream> {
        let agent::CopyFromRequest { request, pod_uid } = request.into_inner();
        let wanted = request.unwrap_or_default();
        let path = root::absolute(&wanted.path).map_err(|error| copy::told(&error))?;
        let (root, _) = self.files(&pod(&wanted.namespace, &wanted.pod, pod_uid), &wanted.container).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(copy::read(root, path)))))
    }

    async fn copy_to(&self, request: Request<Streaming<agent::CopyToRequest>>) -> Answer<agent::CopyToResponse> {
        let mut requests = request.into_inner();
        let agent::CopyToRequest { request, pod_uid } = first(&mut requests).await?;
        let Some(copy_to_request::Input::Start(wanted)) = request.and_then(|request| request.input) else {
            return Err(no_start());
        };
        let path = root::absolute(&wanted.path).map_err(|error| copy::told(&error))?;
        let (root, owner) = self.files(&pod(&wanted.namespace, &wanted.pod, pod_uid), &wanted.container).await?;
        let folder = copy::folder(&root, &path)?;
        let written = copy::write(folder, owner, requests).await?;
        let response = api::CopyToResponse { entries: written.entries, bytes: written.bytes };
        Ok(Response::new(agent::CopyToResponse { response: Some(response) }))
    }

    async fn usage(&self, _: Request<agent::UsageRequest>) -> Answer<agent::UsageResponse> {
        Ok(Response::new(usage::usage(&self.shared.cri).await?))
    }
}

/// Why a command did not start, in words that name it.
fn not_started(wanted: &api::ExecStart, run: &Container, status: &Status) -> Status {
    let program = wanted.command.first().map_or("", String::as_str);
    let message = format!("{program:?} cannot be started in container {}: {}", run.name, status.message());
    match status.code() {
        code @ (tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::InvalidArgument) => {
            Status::new(code, message)
        }
        _ => Status::failed_precondition(message),
    }
}
