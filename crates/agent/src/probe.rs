//! Runs the probes of a pod's containers and keeps what they say.
//!
//! What follows from a result is decided by `plan::node::probe`. A change of verdict wakes the pod's worker at once.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use pb::objects::{
    Container as ContainerSpec, GrpcAction, IntOrString, Pod, PodStatus, Probe, int_or_string::Kind as Port,
};
use plan::node::{
    ContainerState, Effort, Fatal, Hook, Runtime, Verdicts,
    probe::{Kind, State, Timing, Verdict},
};
use tokio::{net::TcpStream, sync::Notify};
use tokio_util::task::AbortOnDropHandle;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    cri::Cri,
    hooks::beginning,
    http::{self, Target},
};

/// The probes of one pod. Dropping it ends them.
#[derive(Debug)]
pub struct Probers {
    cri: Cri,
    changed: Arc<Notify>,
    verdicts: Arc<Mutex<BTreeMap<String, Verdicts>>>,
    running: BTreeMap<(String, Kind), AbortOnDropHandle<()>>,
}

impl Probers {
    /// None yet; a change of a verdict notifies `changed`.
    pub fn new(cri: Cri, changed: Arc<Notify>) -> Self {
        Self { cri, changed, verdicts: Arc::default(), running: BTreeMap::new() }
    }

    /// What the probes say, by container.
    pub fn verdicts(&self) -> BTreeMap<String, Verdicts> {
        self.verdicts.lock().clone()
    }

    /// Ends all probes.
    pub fn stop(&mut self) {
        self.running.clear();
    }

    /// Starts and ends probes so that exactly those run that the containers need. What `before` says of a container that
    /// runs already is believed until its probes say otherwise: an agent that starts anew makes no pod unready.
    ///
    /// Probes begin when the postStart hook has ended.
    pub fn sync(&mut self, pod: &Pod, runtime: &Runtime, efforts: &BTreeMap<String, Effort>, before: &PodStatus) {
        let mut wanted: BTreeMap<(String, Kind), Task> = BTreeMap::new();
        let sandbox = runtime.current();
        for spec in pod.spec.iter().flat_map(|spec| spec.init_containers.iter().chain(&spec.containers)) {
            let runs = runtime.runs(&spec.name);
            let (Some(run), Some(sandbox)) = (runs.first(), sandbox) else { continue };
            let ContainerState::Running { started_at } = run.state else { continue };
            let hook = spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
            let done = |effort: &Effort| matches!(effort.post_start, Hook::Ended { .. });
            if hook && !efforts.get(&run.id).is_some_and(done) {
                continue;
            }
            let mut verdicts = self.verdicts.lock();
            let said = verdicts.entry(run.id.clone()).or_insert_with(|| told_before(&run.id, before));
            let starting = spec.startup_probe.is_some() && !said.started;
            let kinds = if starting { &[Kind::Startup][..] } else { &[Kind::Readiness, Kind::Liveness] };
            for kind in kinds {
                let Some(probe) = kind.of(spec) else { continue };
                let first = match kind {
                    Kind::Readiness if said.ready => Verdict::Success,
                    _ => Verdict::Unknown,
                };
                let task = Task {
                    container: run.id.clone(),
                    spec: spec.clone(),
                    probe: probe.clone(),
                    kind: *kind,
                    first,
                    started_at,
                    ip: sandbox.ip.clone().unwrap_or_default(),
                };
                wanted.insert((run.id.clone(), *kind), task);
            }
        }
        self.verdicts.lock().retain(|id, _| runtime.containers.iter().any(|run| run.id == *id));
        self.running.retain(|key, _| wanted.contains_key(key));
        for (key, task) in wanted {
            if !self.running.contains_key(&key) {
                let run = task.run(self.cri.clone(), self.verdicts.clone(), self.changed.clone());
                self.running.insert(key, AbortOnDropHandle::new(tokio::spawn(run)));
            }
        }
    }
}

fn told_before(id: &str, before: &PodStatus) -> Verdicts {
    let told = before
        .container_statuses
        .iter()
        .chain(&before.init_container_statuses)
        .find(|status| status.container_id == format!("containerd://{id}"));
    Verdicts {
        started: told.is_some_and(|status| status.started == Some(true)),
        ready: told.is_some_and(|status| status.ready),
        fatal: None,
    }
}

struct Task {
    container: String,
    spec: ContainerSpec,
    probe: Probe,
    kind: Kind,
    first: Verdict,
    started_at: Timestamp,
    ip: String,
}

impl Task {
    async fn run(self, cri: Cri, verdicts: Arc<Mutex<BTreeMap<String, Verdicts>>>, changed: Arc<Notify>) {
        let timing = Timing::of(self.kind, &self.probe);
        let mut state = State::new(timing, self.first);
        let mut next = state.first(self.started_at, Timestamp::now());
        loop {
            tokio::time::sleep(std_duration(next.duration_since(Timestamp::now()))).await;
            let result = self.attempt(&cri, std_duration(timing.timeout)).await;
            let before = state.verdict();
            next = state.record(Timestamp::now(), result.is_ok());
            if state.verdict() == before {
                continue;
            }
            if let Err(problem) = &result {
                tracing::info!(container = self.spec.name, probe = self.kind.name(), problem, "probe failed");
            }
            if let Some(said) = verdicts.lock().get_mut(&self.container) {
                self.apply(state.verdict(), result.err(), said);
            }
            changed.notify_one();
            if self.kind != Kind::Readiness && state.verdict() == Verdict::Failure {
                return;
            }
        }
    }

    fn apply(&self, verdict: Verdict, problem: Option<String>, said: &mut Verdicts) {
        match (self.kind, verdict) {
            (Kind::Startup, Verdict::Success) => said.started = true,
            (Kind::Readiness, verdict) => said.ready = verdict == Verdict::Success,
            (kind, Verdict::Failure) => {
                let problem = problem.unwrap_or_default();
                said.fatal = Some(Fatal { probe: kind, message: problem });
            }
            _ => {}
        }
    }

    /// One try.
    async fn attempt(&self, cri: &Cri, limit: Duration) -> Result<(), String> {
        let late = || format!("no result within {limit:?}");
        if let Some(exec) = &self.probe.exec {
            let answer = tokio::time::timeout(limit, cri.exec(&self.container, &exec.command, limit)).await;
            let output = answer.map_err(|_| late())?.map_err(|status| status.message().to_owned())?;
            return match output.exit_code {
                0 => Ok(()),
                code => Err(format!("exit code {code}: {}", beginning(&output.stdout, &output.stderr))),
            };
        }
        let target = Target { spec: &self.spec, ip: &self.ip };
        let network = async {
            if let Some(get) = &self.probe.http_get {
                match http::get(target, get).await? {
                    (200..400, _) => Ok(()),
                    (code, url) => Err(format!("GET {url} answered {code}")),
                }
            } else if let Some(socket) = &self.probe.tcp_socket {
                let address = target.address(&socket.host, socket.port.as_ref())?;
                TcpStream::connect(address).await.map(drop).map_err(|error| format!("connect to {address}: {error}"))
            } else if let Some(grpc) = &self.probe.grpc {
                health(target.address("", Some(&number(grpc.port)))?, grpc).await
            } else {
                Err("it has no exec, httpGet, tcpSocket or grpc".to_owned())
            }
        };
        tokio::time::timeout(limit, network).await.map_err(|_| late())?
    }
}

fn number(port: i32) -> IntOrString {
    IntOrString { kind: Some(Port::IntValue(port)) }
}

/// Asks the gRPC health service.
async fn health(address: SocketAddr, grpc: &GrpcAction) -> Result<(), String> {
    let service = grpc.service.clone().unwrap_or_default();
    let url = format!("http://{address}");
    let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| format!("connect to {url}: {error}"))?;
    let request = HealthCheckRequest { service: service.clone() };
    let answer = HealthClient::new(channel).check(request).await;
    let answer = answer.map_err(|status| format!("health of {service:?} at {url}: {}", status.message()))?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("health of {service:?} at {url} is {}", other.as_str_name())),
    }
}

/// Negative is now.
fn std_duration(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tonic_health::ServingStatus as Serving;

    use super::*;

    #[tokio::test]
    async fn a_grpc_probe_asks_for_one_service_or_the_whole_server() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("up", Serving::Serving).await;
        reporter.set_service_status("down", Serving::NotServing).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
        let ask = |service: Option<&str>| GrpcAction { port: 0, service: service.map(str::to_owned) };
        assert_eq!(health(address, &ask(None)).await, Ok(()));
        assert_eq!(health(address, &ask(Some("up"))).await, Ok(()));
        assert!(health(address, &ask(Some("down"))).await.unwrap_err().contains("NOT_SERVING"));
        assert!(health(address, &ask(Some("unknown"))).await.is_err());
    }
}
