//! What the API service asks of running containers: logs and commands.

use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use pb::{
    agent::v1::{
        self as agent, ExecRequest, ExecResponse, LogsRequest, LogsResponse, PodRef, agent_service_server::AgentService,
    },
    api,
};
use plan::node::{Container, ContainerState};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    logs::{Decoder, tail_start},
    spec::log_path,
    worker::Shared,
};

/// Bytes of log read at a time.
const PIECE: usize = 32 * 1024;

/// Pieces that may wait for a slow reader.
const AHEAD: usize = 8;

/// How long a command may take when the request does not say.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// No command may take longer.
const EXEC_LONGEST: Duration = Duration::from_secs(3600);

/// How often a followed container is looked at when its log says nothing.
const STILL_RUNNING: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone)]
pub struct Access {
    shared: Arc<Shared>,
}

impl Access {
    /// Over the pods of this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The newest run of a container, or the one before.
    async fn run(&self, pod: &PodRef, container: &str, previous: bool) -> Result<Container, Status> {
        let runtime = self.shared.cri.observe(&pod.uid).await?;
        let names: std::collections::BTreeSet<&str> = runtime.containers.iter().map(|run| run.name.as_str()).collect();
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
}

#[tonic::async_trait]
impl AgentService for Access {
    type LogsStream = Pin<Box<dyn Stream<Item = Result<LogsResponse, Status>> + Send>>;
    type ExecStreamStream = Pin<Box<dyn Stream<Item = Result<agent::ExecStreamResponse, Status>> + Send>>;
    type PortForwardStream = Pin<Box<dyn Stream<Item = Result<agent::PortForwardResponse, Status>> + Send>>;
    type CopyFromStream = Pin<Box<dyn Stream<Item = Result<agent::CopyFromResponse, Status>> + Send>>;

    async fn exec_stream(
        &self,
        _request: Request<tonic::Streaming<agent::ExecStreamRequest>>,
    ) -> Result<Response<Self::ExecStreamStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn port_forward(
        &self,
        _request: Request<tonic::Streaming<agent::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn copy_from(
        &self,
        _request: Request<agent::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn copy_to(
        &self,
        _request: Request<tonic::Streaming<agent::CopyToRequest>>,
    ) -> Result<Response<agent::CopyToResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn usage(&self, _request: Request<agent::UsageRequest>) -> Result<Response<agent::UsageResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { request, pod_uid } = request.into_inner();
        let wanted = request.unwrap_or_default();
        let pod = PodRef { namespace: wanted.namespace.clone(), name: wanted.pod.clone(), uid: pod_uid };
        let run = self.run(&pod, &wanted.container, wanted.previous).await?;
        let path = self.shared.settings.log_dir(&pod).join(log_path(&run.name, run.attempt));
        let (sender, receiver) = mpsc::channel(AHEAD);
        let reading = Reading { shared: self.shared.clone(), pod, run, path, wanted, sender };
        tokio::spawn(async move {
            let sender = reading.sender.clone();
            if let Err(status) = reading.stream().await {
                // The reader may be gone; then nobody wants the error either.
                drop(sender.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let ExecRequest { request, pod_uid } = request.into_inner();
        let wanted = request.unwrap_or_default();
        let pod = PodRef { namespace: wanted.namespace, name: wanted.pod, uid: pod_uid };
        if wanted.command.is_empty() {
            return Err(Status::invalid_argument("command: must name a program"));
        }
        let run = self.run(&pod, &wanted.container, false).await?;
        if !matches!(run.state, ContainerState::Running { .. }) {
            let message = format!("container {} of pod {} does not run now", run.name, pod.name);
            return Err(Status::failed_precondition(message));
        }
        let limit = match u64::try_from(wanted.timeout_seconds) {
            Ok(0) | Err(_) => EXEC_LIMIT,
            Ok(seconds) => Duration::from_secs(seconds).min(EXEC_LONGEST),
        };
        let output = self.shared.cri.exec(&run.id, &wanted.command, limit).await?;
        let response =
            api::v1::ExecResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code };
        Ok(Response::new(ExecResponse { response: Some(response) }))
    }
}

/// One log being read.
struct Reading {
    shared: Arc<Shared>,
    pod: PodRef,
    run: Container,
    path: PathBuf,
    wanted: api::v1::LogsRequest,
    sender: mpsc::Sender<Result<LogsResponse, Status>>,
}

impl Reading {
    async fn stream(&self) -> Result<(), Status> {
        let failed = |error: std::io::Error| {
            Status::unavailable(format!("cannot read the log of container {}: {error}", self.run.name))
        };
        let mut file = File::open(&self.path).await.map_err(failed)?;
        if let Some(lines) = self.wanted.tail_lines.and_then(|lines| u64::try_from(lines).ok()) {
            let path = self.path.clone();
            let find = move || tail_start(&mut std::fs::File::open(path)?, lines);
            let start = tokio::task::spawn_blocking(find).await.map_err(|e| Status::internal(e.to_string()))?;
            file.seek(SeekFrom::Start(start.map_err(failed)?)).await.map_err(failed)?;
        }
        let mut decoder = Decoder::new(self.wanted.timestamps);
        let mut changes = self.wanted.follow.then(|| Changes::of(&self.path)).transpose().map_err(failed)?;
        loop {
            // Asked before reading: what was written until then is read below.
            let ended = changes.is_none() || self.has_ended().await;
            if !self.read_on(&mut file, &mut decoder).await.map_err(failed)? || ended {
                return Ok(());
            }
            if let Some(changes) = &mut changes {
                tokio::select! {
                    changed = changes.next() => changed.map_err(failed)?,
                    () = tokio::time::sleep(STILL_RUNNING) => {}
                    () = self.sender.closed() => return Ok(()),
                }
            }
        }
    }

    /// Sends what is there; false if nobody reads any more.
    async fn read_on(&self, file: &mut File, decoder: &mut Decoder) -> std::io::Result<bool> {
        let mut piece = vec![0; PIECE];
        loop {
            let length = file.read(&mut piece).await?;
            if length == 0 {
                return Ok(true);
            }
            let mut data = Vec::with_capacity(length);
            decoder.feed(&piece[..length], &mut data);
            if data.is_empty() {
                continue;
            }
            let response = LogsResponse { response: Some(api::v1::LogsResponse { data }) };
            if self.sender.send(Ok(response)).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Whether the run that is followed has ended; it counts as running while the runtime does not answer.
    async fn has_ended(&self) -> bool {
        match self.shared.cri.observe(&self.pod.uid).await {
            Ok(runtime) => !runtime.containers.iter().any(|run| run.id == self.run.id && run.may_run()),
            Err(_) => false,
        }
    }
}

/// Tells when a file grows.
struct Changes {
    events: EventStream<[u8; 1024]>,
}

impl Changes {
    fn of(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        inotify.watches().add(path, WatchMask::MODIFY | WatchMask::CLOSE_WRITE)?;
        Ok(Self { events: inotify.into_event_stream([0; 1024])? })
    }

    async fn next(&mut self) -> std::io::Result<()> {
        self.events.next().await.transpose().map(drop)
    }
}
