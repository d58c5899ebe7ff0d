//! Access to containers: handed through to the agent of the node that the pod is on.
//!
//! A stream costs this service one message in each direction, however fast one side is and however slow the other. It
//! ends in both directions when either side ends, and when this service is stopped.

mod relay;
mod top;

use std::{collections::BTreeMap, future::Future, time::Duration};

use futures::Stream;
use parking_lot::Mutex;
use pb::{
    ObjectExt,
    agent::v1::{self as agent, agent_service_client::AgentServiceClient},
    api::v1::{
        CopyFromRequest, CopyFromResponse, CopyToRequest, CopyToResponse, ExecRequest, ExecResponse, ExecStreamRequest,
        ExecStreamResponse, LogsRequest, LogsResponse, PortForwardRequest, PortForwardResponse, copy_to_request,
        exec_stream_request, port_forward_request,
    },
    objects::{Node, Pod},
};
use runtime::channel::{self, Channel};
use tokio::time::timeout;
use tonic::{Response, Status, Streaming};

use crate::{
    Shared,
    error::{Error, Result, Violation},
    write::DEFAULT_NAMESPACE,
};

/// Seconds that a command may take unless the request says otherwise, and at most.
const EXEC_SECONDS: (i32, i32) = (30, 3600);
/// What the way to the agent may add to the time of a command.
const ON_THE_WAY: Duration = Duration::from_secs(5);
/// How long an agent may take to start answering.
const ANSWER: Duration = Duration::from_secs(10);
/// The same where it starts a process first.
const START: Duration = Duration::from_secs(45);
/// Channels that are kept; more nodes than that share by forgetting.
const CHANNELS: usize = 1024;

/// What goes to the user as it is.
type Outcome<T> = std::result::Result<T, Status>;

/// Channels to agents, by address.
#[derive(Default)]
pub struct Agents {
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Agents {
    fn client(&self, address: &str) -> Result<AgentServiceClient<Channel>> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(AgentServiceClient::new(channel.clone()));
        }
        let channel = channel::connect_streaming(address)
            .map_err(|error| Error::Refused(format!("the node's agent cannot be reached: {error}")))?;
        if channels.len() >= CHANNELS {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(AgentServiceClient::new(channel))
    }
}

/// Annotation with the container that is meant when none is named; the name is the one that users of kubectl know.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The name of the container that is meant.
fn container(pod: &Pod, asked: &str) -> Result<String> {
    let usual = pod.metadata.as_ref().and_then(|meta| meta.annotations.get(DEFAULT_CONTAINER));
    let asked = if asked.is_empty() { usual.map_or("", String::as_str) } else { asked };
    let spec = pod.spec.clone().unwrap_or_default();
    let names: Vec<String> = spec.containers.iter().chain(&spec.init_containers).map(|c| c.name.clone()).collect();
    match (asked, spec.containers.as_slice()) {
        ("", [only]) => Ok(only.name.clone()),
        ("", _) => {
            let why = format!("Required value: the pod has several containers; one of {}", names.join(", "));
            Err(Error::field("container", why))
        }
        (asked, _) if names.iter().any(|name| name == asked) => Ok(asked.to_owned()),
        (asked, _) => {
            let why = format!("the containers of pod {} are {}", pod.name(), names.join(", "));
            Err(Error::Invalid(vec![Violation::value("container", asked, why)]))
        }
    }
}

/// Where the agent of a node answers.
fn agent_address(node: &Node) -> Option<String> {
    let status = node.status.as_ref()?;
    let ip = status.addresses.iter().find(|address| address.r#type == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref()?.agent_endpoint.as_ref()?.port;
    let host = if ip.address.contains(':') { format!("[{}]", ip.address) } else { ip.address.clone() };
    Some(format!("http://{host}:{port}"))
}

impl Shared {
    /// The pod and a client of the agent of its node.
    async fn agent_of(&self, namespace: &str, name: &str) -> Result<(Pod, AgentServiceClient<Channel>)> {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        let pod: Pod = self.caches.get_typed(namespace, name).await?;
        let node_name = pod.spec.as_ref().map(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
        let node_name = node_name.ok_or_else(|| {
            Error::Refused(format!(
                "pod {namespace}/{name} is on no node yet; `berth why {name}` says what it waits for"
            ))
        })?;
        let node: Node = self.caches.get_typed("", &node_name).await.map_err(|error| match error {
            Error::NotFound { .. } => {
                Error::Refused(format!("node {node_name} of pod {namespace}/{name} is not known any more"))
            }
            error => error,
        })?;
        let address = agent_address(&node).ok_or_else(|| {
            Error::Refused(format!("node {node_name} has not said where its agent answers (InternalIP and port)"))
        })?;
        Ok((pod, self.agents.client(&address)?))
    }

    /// Streams the output of a container.
    pub async fn logs(&self, mut request: LogsRequest) -> Outcome<impl Stream<Item = Outcome<LogsResponse>> + use<>> {
        if request.since_seconds.is_some() && request.since_time.is_some() {
            return Err(
                Error::field("since_time", "Invalid value: since_seconds is given too: name one of them").into()
            );
        }
        for (field, number) in [("since_seconds", request.since_seconds), ("limit_bytes", request.limit_bytes)] {
            if let Some(number) = number.filter(|number| *number <= 0) {
                let why = Violation::value(field, number, "must be greater than 0");
                return Err(Error::Invalid(vec![why]).into());
            }
        }
        let (pod, mut agent) = self.agent_of(&request.namespace, &request.pod).await?;
        request.container = container(&pod, &request.container)?;
        request.namespace = pod.namespace().to_owned();
        let request = agent::LogsRequest { request: Some(request), pod_uid: pod.uid().to_owned() };
        let pieces = answered(&pod, ANSWER, agent.logs(request)).await?.into_inner();
        Ok(relay::back(pieces, node_of(&pod), self.stop.clone(), relay::over().0, |piece| {
            piece.response.unwrap_or_default()
        }))
    }

    /// Runs a command in a container, with input and output as they come.
    pub async fn exec_stream(
        &self,
        mut requests: Streaming<ExecStreamRequest>,
    ) -> Outcome<impl Stream<Item = Outcome<ExecStreamResponse>> + use<>> {
        let Some(exec_stream_request::Input::Start(mut start)) = relay::first(&mut requests).await?.input else {
            return Err(relay::no_start());
        };
        if start.command.is_empty() {
            return Err(Error::field("start.command", "Required value: program and arguments").into());
        }
        let (pod, mut agent) = self.agent_of(&start.namespace, &start.pod).await?;
        start.container = container(&pod, &start.container)?;
        start.namespace = pod.namespace().to_owned();
        let start = ExecStreamRequest { input: Some(exec_stream_request::Input::Start(start)) };
        let first = agent::ExecStreamRequest { request: Some(start), pod_uid: pod.uid().to_owned() };
        let (over, ending) = relay::over();
        let input = relay::onward(first, requests, ending, |request| agent::ExecStreamRequest {
            request: Some(request),
            ..Default::default()
        });
        let output = answered(&pod, START, agent.exec_stream(input)).await?.into_inner();
        Ok(relay::back(output, node_of(&pod), self.stop.clone(), over, |piece| piece.response.unwrap_or_default()))
    }

    /// Carries one connection to a port of a pod.
    pub async fn port_forward(
        &self,
        mut requests: Streaming<PortForwardRequest>,
    ) -> Outcome<impl Stream<Item = Outcome<PortForwardResponse>> + use<>> {
        let Some(port_forward_request::Input::Start(mut start)) = relay::first(&mut requests).await?.input else {
            return Err(relay::no_start());
        };
        if !(1..=65535).contains(&start.port) {
            let why = Violation::value("start.port", start.port, "must be between 1 and 65535, inclusive");
            return Err(Error::Invalid(vec![why]).into());
        }
        let (pod, mut agent) = self.agent_of(&start.namespace, &start.pod).await?;
        start.namespace = pod.namespace().to_owned();
        let start = PortForwardRequest { input: Some(port_forward_request::Input::Start(start)) };
        let first = agent::PortForwardRequest { request: Some(start), pod_uid: pod.uid().to_owned() };
        let (over, ending) = relay::over();
        let input = relay::onward(first, requests, ending, |request| agent::PortForwardRequest {
            request: Some(request),
            ..Default::default()
        });
        let output = answered(&pod, START, agent.port_forward(input)).await?.into_inner();
        Ok(relay::back(output, node_of(&pod), self.stop.clone(), over, |piece| piece.response.unwrap_or_default()))
    }

    /// Reads a file or a tree of a container.
    pub async fn copy_from(
        &self,
        mut request: CopyFromRequest,
    ) -> Outcome<impl Stream<Item = Outcome<CopyFromResponse>> + use<>> {
        let (pod, mut agent) = self.agent_of(&request.namespace, &request.pod).await?;
        request.container = container(&pod, &request.container)?;
        request.namespace = pod.namespace().to_owned();
        let request = agent::CopyFromRequest { request: Some(request), pod_uid: pod.uid().to_owned() };
        let pieces = answered(&pod, START, agent.copy_from(request)).await?.into_inner();
        Ok(relay::back(pieces, node_of(&pod), self.stop.clone(), relay::over().0, |piece| {
            piece.response.unwrap_or_default()
        }))
    }

    /// Writes a file or a tree into a container.
    pub async fn copy_to(&self, mut requests: Streaming<CopyToRequest>) -> Outcome<CopyToResponse> {
        let Some(copy_to_request::Input::Start(mut start)) = relay::first(&mut requests).await?.input else {
            return Err(relay::no_start());
        };
        let (pod, mut agent) = self.agent_of(&start.namespace, &start.pod).await?;
        start.container = container(&pod, &start.container)?;
        start.namespace = pod.namespace().to_owned();
        let start = CopyToRequest { input: Some(copy_to_request::Input::Start(start)) };
        let first = agent::CopyToRequest { request: Some(start), pod_uid: pod.uid().to_owned() };
        let (over, ending) = relay::over();
        let input = relay::onward(first, requests, ending, |request| agent::CopyToRequest {
            request: Some(request),
            ..Default::default()
        });
        // Takes as long as there is data; the agent gives up when none comes. Over when this ends, however it does.
        let _over = over;
        let written = self.stop.run_until_cancelled(agent.copy_to(input)).await.ok_or_else(relay::stopping)?;
        let written = written.map_err(|status| relay::broken(&node_of(&pod), status))?;
        Ok(written.into_inner().response.unwrap_or_default())
    }

    /// Runs a command in a container.
    pub async fn exec(&self, mut request: ExecRequest) -> Outcome<ExecResponse> {
        if request.command.is_empty() {
            return Err(Error::field("command", "Required value: program and arguments").into());
        }
        let (pod, mut agent) = self.agent_of(&request.namespace, &request.pod).await?;
        request.container = container(&pod, &request.container)?;
        request.namespace = pod.namespace().to_owned();
        let seconds = if request.timeout_seconds <= 0 { EXEC_SECONDS.0 } else { request.timeout_seconds };
        request.timeout_seconds = seconds.min(EXEC_SECONDS.1);
        let limit = Duration::from_secs(u64::from(request.timeout_seconds.unsigned_abs())) + ON_THE_WAY;
        let request = agent::ExecRequest { request: Some(request), pod_uid: pod.uid().to_owned() };
        let answer = answered(&pod, limit, agent.exec(request)).await?.into_inner();
        Ok(answer.response.unwrap_or_default())
    }
}

/// The node that a pod is on.
fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// What an agent answered; that it cannot be reached is said in words that help.
async fn answered<T>(
    pod: &Pod,
    limit: Duration,
    call: impl Future<Output = Outcome<Response<T>>>,
) -> Outcome<Response<T>> {
    let answer = timeout(limit, call).await;
    let status = match answer {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(status)) => status,
        Err(_) => return Err(silent(pod)),
    };
    if status.code() != tonic::Code::Unavailable {
        return Err(status);
    }
    let node = node_of(pod);
    Err(Status::unavailable(format!(
        "the agent of node {node}, where pod {} is, cannot be reached ({}); the pod itself may run on: see `berth get node \
         {node}`, and try again when the agent is back",
        pod.name(),
        status.message()
    )))
}

fn silent(pod: &Pod) -> Status {
    let node = node_of(pod);
    Status::deadline_exceeded(format!(
        "the agent of node {node} does not answer; `berth get node {node}` says whether the node is ready"
    ))
}

#[cfg(test)]
mod tests {
    use pb::objects::{Container, DaemonEndpoint, NodeAddress, NodeDaemonEndpoints, NodeStatus, PodSpec};

    use super::*;

    fn pod(names: &[&str]) -> Pod {
        let containers = names.iter().map(|name| Container { name: (*name).to_owned(), ..Default::default() });
        Pod { spec: Some(PodSpec { containers: containers.collect(), ..Default::default() }), ..Default::default() }
    }

    #[test]
    fn a_wrong_container_lists_those_that_are_there() {
        assert_eq!(container(&pod(&["nginx"]), "").unwrap(), "nginx");
        assert_eq!(container(&pod(&["a", "b"]), "b").unwrap(), "b");
        let error = container(&pod(&["a", "b"]), "c").unwrap_err().to_string();
        assert!(error.contains("a, b"), "{error}");
        assert!(container(&pod(&["a", "b"]), "").is_err());
        let mut annotated = pod(&["a", "b"]);
        annotated.metadata.get_or_insert_default().annotations.insert(DEFAULT_CONTAINER.to_owned(), "b".to_owned());
        assert_eq!(container(&annotated, "").unwrap(), "b");
    }

    #[test]
    fn an_agent_answers_at_the_internal_address() {
        let address = NodeAddress { r#type: "InternalIP".into(), address: "10.1.0.2".into() };
        let agent_endpoint = Some(DaemonEndpoint { port: 7450 });
        let status = NodeStatus {
            addresses: vec![address],
            daemon_endpoints: Some(NodeDaemonEndpoints { agent_endpoint }),
            ..Default::default()
        };
        let node = Node { status: Some(status), ..Default::default() };
        assert_eq!(agent_address(&node).as_deref(), Some("http://10.1.0.2:7450"));
        assert_eq!(agent_address(&Node::default()), None);
    }
}
