//! Runs the probes of a pod's containers and keeps what they say.
//!
//! What follows from a result is decided by `plan::node::probe`. A change of verdict wakes the pod's worker at once.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use pb::objects::{
    Container as ContainerSpec, HttpGetAction, IntOrString, Pod, PodStatus, Probe, int_or_string::Kind as Port,
};
use plan::node::{
    ContainerState, Runtime, Verdicts,
    probe::{Kind, State, Timing, Verdict},
};
use tokio::{net::TcpStream, sync::Notify};
use tokio_util::task::AbortOnDropHandle;

use crate::cri::Cri;

/// Output of a failed command that is kept for people.
const OUTPUT_KEPT: usize = 512;

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
    pub fn sync(&mut self, pod: &Pod, runtime: &Runtime, before: &PodStatus) {
        let mut wanted: BTreeMap<(String, Kind), Task> = BTreeMap::new();
        let sandbox = runtime.current();
        for spec in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let runs = runtime.runs(&spec.name);
            let (Some(run), Some(sandbox)) = (runs.first(), sandbox) else { continue };
            let ContainerState::Running { started_at } = run.state else { continue };
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
    let told = before.container_statuses.iter().find(|status| status.container_id == format!("containerd://{id}"));
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
                said.fatal = Some(format!("its {} probe failed: {problem}", kind.name()));
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
        let network = async {
            if let Some(get) = &self.probe.http_get {
                http_get(self.address(&get.host, get.port.as_ref())?, get).await
            } else if let Some(socket) = &self.probe.tcp_socket {
                let address = self.address(&socket.host, socket.port.as_ref())?;
                TcpStream::connect(address).await.map(drop).map_err(|error| format!("connect to {address}: {error}"))
            } else {
                Err("it has no exec, httpGet or tcpSocket".to_owned())
            }
        };
        tokio::time::timeout(limit, network).await.map_err(|_| late())?
    }

    fn address(&self, host: &str, port: Option<&IntOrString>) -> Result<SocketAddr, String> {
        let port = match port.and_then(|port| port.kind.as_ref()) {
            Some(Port::IntValue(number)) => *number,
            Some(Port::StringValue(name)) => match name.parse() {
                Ok(number) => number,
                Err(_) => {
                    let named = self.spec.ports.iter().find(|port| port.name == *name);
                    named.ok_or_else(|| format!("the container has no port named {name:?}"))?.container_port
                }
            },
            None => return Err("it has no port".to_owned()),
        };
        let port = u16::try_from(port).map_err(|_| format!("port {port} is not 1 to 65535"))?;
        let host = if host.is_empty() { &self.ip } else { host };
        let host = host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?;
        Ok(SocketAddr::new(host, port))
    }
}

/// Negative is now.
fn std_duration(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}

fn beginning(stdout: &[u8], stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).trim().to_owned();
    text.chars().take(OUTPUT_KEPT).collect()
}

async fn http_get(address: SocketAddr, get: &HttpGetAction) -> Result<(), String> {
    if !get.scheme.is_empty() && !get.scheme.eq_ignore_ascii_case("HTTP") {
        return Err(format!("scheme {:?} is not supported: use HTTP, or an exec probe", get.scheme));
    }
    let path = match get.path.as_str() {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect to {address}: {error}"))?;
    let failed = |error: &dyn std::fmt::Display| format!("GET http://{address}{path}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = http::Request::get(&path).header("user-agent", "berth-probe").header("accept", "*/*");
    if !get.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        request = request.header("host", address.to_string());
    }
    for header in &get.http_headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<&[u8]>::new()).map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    drop(connection);
    match response.status().as_u16() {
        200..400 => Ok(()),
        code => Err(format!("GET http://{address}{path} answered {code}")),
    }
}
