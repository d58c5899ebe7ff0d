//! One request of a user is one trace through every service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use pb::{ObjectExt, objects::Pod};
use runtime::{CancellationToken, Server};
use tests::{
    client::{is_ready, set_manifest},
    control::ControlPlane,
};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

/// Spans leave a process in batches, every 5 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// The spans of a trace: service and name.
type Spans = BTreeSet<(String, String)>;

/// An OTLP collector that remembers which services had a part in each trace, and what in it.
#[derive(Clone, Default)]
struct Collector {
    traces: Arc<Mutex<BTreeMap<Vec<u8>, Spans>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut traces = self.traces.lock().await;
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|attribute| attribute.value?.value) {
                Some(Value::StringValue(name)) => name,
                other => return Err(Status::invalid_argument(format!("no service.name but {other:?}"))),
            };
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                traces.entry(span.trace_id).or_default().insert((service.clone(), span.name));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_through_every_service() -> Result<()> {
    let collector = Collector::default();
    let server = Server::new("collector", "127.0.0.1:0".parse()?).service(TraceServiceServer::new(collector.clone()));
    let server = server.bind().await?;
    let endpoint = format!("http://{}", server.local_addr().context("no address")?);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(stop.clone()));

    let plane = ControlPlane::start_with(2, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await?;
    let (_, since) = plane.client.list::<Pod>("app=traced").await?;
    plane.client.apply(&[set_manifest("traced", 1)]).await?;
    plane
        .client
        .follow_pods("app=traced", &since, PATIENCE, |one| one.pod.name() == "traced-0" && is_ready(&one.pod))
        .await?;

    let everyone = ["berth-api", "berth-controller", "berth-scheduler", "berth-volumes"];
    let complete = async {
        loop {
            let whole = collector.traces.lock().await.values().any(|spans| {
                let services: BTreeSet<&str> = spans.iter().map(|(service, _)| service.as_str()).collect();
                let applied = spans.iter().any(|(service, name)| service == "berth-api" && name.ends_with("/Apply"));
                applied && everyone.iter().all(|one| services.contains(one))
            });
            if whole {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, complete).await.is_err() {
        bail!("no trace goes from Apply through {everyone:?}: {:#?}", collector.traces.lock().await);
    }
    drop(plane);
    stop.cancel();
    serving.await?
}
