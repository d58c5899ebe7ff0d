//! Traces across services: W3C trace context in gRPC metadata, a span and a measurement for every call served.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    time::Instant,
};

use opentelemetry::propagation::{Extractor, Injector};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};
use tonic::{
    Request, Status,
    metadata::{MetadataKey, MetadataMap, MetadataValue},
};
use tracing::{Instrument, Span, instrument::Instrumented};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Adds the present span's context to a request that goes out.
pub(crate) fn inject(mut request: Request<()>) -> Result<Request<()>, Status> {
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Carrier(request.metadata_mut()));
    });
    Ok(request)
}

/// The annotation by which a trace goes on where no call does: whoever acts on an object follows its trace.
pub const ANNOTATION: &str = "berth.dev/traceparent";

/// The present span as a W3C `traceparent`; None if traces are not exported.
pub fn current() -> Option<String> {
    let mut out = BTreeMap::new();
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Pairs(&mut out))
    });
    out.remove(TRACEPARENT)
}

/// Makes a span part of the trace that an object's annotation names, if there is one.
pub fn follow(span: &Span, annotations: &BTreeMap<String, String>) {
    let Some(parent) = annotations.get(ANNOTATION) else { return };
    let mut pairs = BTreeMap::from([(TRACEPARENT.to_owned(), parent.clone())]);
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Pairs(&mut pairs)));
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(%error, "no parent for this span");
    }
}

const TRACEPARENT: &str = "traceparent";

struct Pairs<'a>(&'a mut BTreeMap<String, String>);

impl Injector for Pairs<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}

impl Extractor for Pairs<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

struct Carrier<'a>(&'a mut MetadataMap);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(&value)) {
            self.0.insert(key, value);
        }
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: String,
}

fn calls() -> &'static Family<CallLabels, Histogram> {
    static CALLS: OnceLock<Family<CallLabels, Histogram>> = OnceLock::new();
    CALLS.get_or_init(|| {
        let family = Family::<CallLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 4.0, 9))
        });
        crate::metrics::register(|registry| {
            registry.register("rpc_seconds", "Calls served, until the response's headers", family.clone());
        });
        family
    })
}

/// Gives every call a span whose parent is the caller's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TraceLayer;

impl<S> tower::Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// See [`TraceLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Traced<S> {
    inner: S,
}

impl<S, B, R> tower::Service<http::Request<B>> for Traced<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<Measured<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let span = tracing::info_span!("rpc", otel.name = %method, otel.kind = "server", rpc.method = %method);
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract(&Headers(request.headers()))
        });
        if let Err(error) = span.set_parent(parent) {
            tracing::trace!(%error, "no parent for this span");
        }
        let inner = span.in_scope(|| self.inner.call(request));
        Measured { inner: Box::pin(inner), method, start: Instant::now() }.instrument(span)
    }
}

/// Measures a call until its response's headers.
pub(crate) struct Measured<F> {
    inner: Pin<Box<F>>,
    method: String,
    start: Instant,
}

impl<F, R, E> Future for Measured<F>
where
    F: Future<Output = Result<http::Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let output = std::task::ready!(self.inner.as_mut().poll(cx));
        let code = match &output {
            Ok(response) => Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code()),
            Err(_) => tonic::Code::Internal,
        };
        // Only calls that exist here are counted: a caller must not be able to make label values.
        if code != tonic::Code::Unimplemented {
            let labels = CallLabels { method: self.method.clone(), code: format!("{code:?}") };
            calls().get_or_create(&labels).observe(self.start.elapsed().as_secs_f64());
        }
        Poll::Ready(output)
    }
}
