//! containerd's own services below CRI: processes within running containers.
//!
//! CRI can run a command only with an answer at its end, or through an HTTP server of the runtime. The task service gives
//! the processes themselves ([0016](../../../docs/decisions/0016-commands-run-through-the-task-api.md)). CRI's containers
//! are in the namespace `k8s.io`. Every call has a deadline; only the wait for a process' end has none.

use std::{future::Future, time::Duration};

use pb::containerd::{
    containers::v1::{GetContainerRequest, containers_client::ContainersClient},
    tasks::v1::{
        Any, CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
        WaitRequest, tasks_client::TasksClient,
    },
};
use runtime::channel::{BadAddress, Channel};
use serde_json::{Value, json};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

/// Where CRI keeps its containers.
const NAMESPACE: &str = "k8s.io";

/// The type of a process' description, as containerd calls it.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// For calls that only look, and for signals.
const LOOK: Duration = Duration::from_secs(10);

/// For calls that start or remove a process.
const CHANGE: Duration = Duration::from_secs(30);

/// A client of containerd. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Containerd {
    tasks: TasksClient<Channel>,
    containers: ContainersClient<Channel>,
}

/// A process beside the first one of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The container's id.
    pub container: String,
    /// The process' own id within it.
    pub id: String,
}

/// Where a process' input and output are: paths of FIFOs. What is empty, it does not have.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// It reads here.
    pub stdin: String,
    /// It writes here.
    pub stdout: String,
    /// It writes errors here; nowhere with a terminal.
    pub stderr: String,
}

/// A terminal's columns and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

impl Containerd {
    /// Connects when first used.
    pub fn connect(url: &str) -> Result<Self, BadAddress> {
        let channel = runtime::channel::connect_streaming(url)?;
        Ok(Self { tasks: TasksClient::new(channel.clone()), containers: ContainersClient::new(channel) })
    }

    /// How the first process of a container was described: its environment, user and rights.
    pub async fn process_of(&self, container: &str) -> Result<Value, Status> {
        let request = within_namespace(GetContainerRequest { id: container.to_owned() });
        let found = within(LOOK, self.containers.clone().get(request)).await?.container.unwrap_or_default();
        let spec: Value = serde_json::from_slice(&found.spec.unwrap_or_default().value).map_err(|error| {
            Status::internal(format!("containerd describes container {container} wrongly: {error}"))
        })?;
        match spec.get("process") {
            Some(process) => Ok(process.clone()),
            None => Err(Status::internal(format!("containerd describes container {container} without a process"))),
        }
    }

    /// Makes a process in a container, which is started next.
    pub async fn make(&self, process: &Process, ends: Ends, terminal: bool, spec: &Value) -> Result<(), Status> {
        let request = ExecProcessRequest {
            container_id: process.container.clone(),
            exec_id: process.id.clone(),
            stdin: ends.stdin,
            stdout: ends.stdout,
            stderr: ends.stderr,
            terminal,
            spec: Some(Any { type_url: PROCESS.to_owned(), value: spec.to_string().into_bytes() }),
        };
        within(CHANGE, self.tasks.clone().exec(within_namespace(request))).await.map(drop)
    }

    /// Starts it; answers with its id on the host.
    pub async fn start(&self, process: &Process) -> Result<u32, Status> {
        let request = StartRequest { container_id: process.container.clone(), exec_id: process.id.clone() };
        Ok(within(CHANGE, self.tasks.clone().start(within_namespace(request))).await?.pid)
    }

    /// Waits for its end, however long that takes; answers with its exit code.
    pub async fn wait(&self, process: &Process) -> Result<u32, Status> {
        let request = WaitRequest { container_id: process.container.clone(), exec_id: process.id.clone() };
        Ok(self.tasks.clone().wait(within_namespace(request)).await?.into_inner().exit_status)
    }

    /// Sends it a signal. That it has ended is fine.
    pub async fn kill(&self, process: &Process, signal: nix::sys::signal::Signal) -> Result<(), Status> {
        let request = KillRequest {
            container_id: process.container.clone(),
            exec_id: process.id.clone(),
            signal: signal as u32,
            all: false,
        };
        gone_is_fine(within(LOOK, self.tasks.clone().kill(within_namespace(request))).await.map(drop))
    }

    /// Tells the size of its terminal.
    pub async fn resize(&self, process: &Process, size: Size) -> Result<(), Status> {
        let request = ResizePtyRequest {
            container_id: process.container.clone(),
            exec_id: process.id.clone(),
            width: size.width.into(),
            height: size.height.into(),
        };
        within(LOOK, self.tasks.clone().resize_pty(within_namespace(request))).await.map(drop)
    }

    /// Lets it find the end of its input, once all that was written is read.
    pub async fn close_stdin(&self, process: &Process) -> Result<(), Status> {
        let request =
            CloseIoRequest { container_id: process.container.clone(), exec_id: process.id.clone(), stdin: true };
        gone_is_fine(within(LOOK, self.tasks.clone().close_io(within_namespace(request))).await.map(drop))
    }

    /// Removes what is left of it after its end.
    pub async fn delete(&self, process: &Process) -> Result<(), Status> {
        let request = DeleteProcessRequest { container_id: process.container.clone(), exec_id: process.id.clone() };
        gone_is_fine(within(CHANGE, self.tasks.clone().delete_process(within_namespace(request))).await.map(drop))
    }
}

/// The description of a process that runs a command as the container's first process would: same user, rights and
/// environment.
pub fn describe(first: &Value, command: &[String], terminal: bool, size: Option<Size>) -> Value {
    let mut process = first.clone();
    process["args"] = json!(command);
    process["terminal"] = json!(terminal);
    if let Some(fields) = process.as_object_mut() {
        // Of the first process' own terminal, if it has one.
        fields.remove("consoleSize");
        fields.remove("commandLine");
    }
    if let (true, Some(Size { width, height })) = (terminal, size) {
        process["consoleSize"] = json!({"width": width, "height": height});
    }
    let terminals = process["env"]
        .as_array()
        .is_some_and(|env| env.iter().filter_map(Value::as_str).any(|variable| variable.starts_with("TERM=")));
    if terminal
        && !terminals
        && let Some(env) = process["env"].as_array_mut()
    {
        env.push(json!("TERM=xterm"));
    }
    process
}

fn within_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("containerd did not answer within {limit:?}"))),
    }
}

fn gone_is_fine(answer: Result<(), Status>) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_rights_of_its_container_and_a_terminal_of_its_own() {
        let first = json!({
            "args": ["nginx"], "cwd": "/srv", "env": ["A=1"], "user": {"uid": 70, "gid": 71}, "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_CHOWN"]}, "consoleSize": {"width": 1, "height": 1},
        });
        let plain = describe(&first, &["id".to_owned()], false, None);
        let expected = json!({
            "args": ["id"], "terminal": false, "cwd": "/srv", "env": ["A=1"], "user": {"uid": 70, "gid": 71},
            "noNewPrivileges": true, "capabilities": {"bounding": ["CAP_CHOWN"]},
        });
        assert_eq!(plain, expected);
        let size = Size { width: 100, height: 30 };
        let terminal = describe(&first, &["sh".to_owned()], true, Some(size));
        assert_eq!(terminal["consoleSize"], json!({"width": 100, "height": 30}));
        assert_eq!(terminal["env"], json!(["A=1", "TERM=xterm"]));
    }
}
