//! Logs and traces of a process.
//!
//! Logs go to standard error, as text or JSON lines. Spans go to an OTLP collector if `OTEL_EXPORTER_OTLP_ENDPOINT` is
//! set. A panic anywhere is logged and ends the process with code 101.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a process says about itself.
#[derive(Args, Clone, Debug, Default)]
pub struct TelemetryArgs {
    /// Form of log lines.
    #[arg(long, value_enum, default_value_t, env = "BERTH_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Which log lines: a level, or targets with levels, such as "info,controller=debug".
    #[arg(long, default_value = "info", env = "BERTH_LOG")]
    pub log: String,
}

/// Keeps telemetry going; flushes what is left when dropped.
#[must_use = "spans are lost when this is dropped early"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Starts logs and traces. Call once, within a runtime.
pub fn init(service: &'static str, args: &TelemetryArgs) -> anyhow::Result<Telemetry> {
    // The name server's library logs every question at info; who wants that says so.
    let filter = EnvFilter::try_new(format!("hickory_server=warn,{}", args.log)).map_err(|error| {
        anyhow::anyhow!("--log {:?}: {error}; write for example \"info,controller=debug\"", args.log)
    })?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = exporter(service)?;
    let spans = provider.as_ref().map(|provider| {
        // The exporter's own calls must not be exported.
        let own = filter_fn(|meta| {
            !["h2", "hyper", "tonic", "tower", "opentelemetry"].iter().any(|t| meta.target().starts_with(t))
        });
        tracing_opentelemetry::layer().with_tracer(provider.tracer(service)).with_filter(own)
    });
    let format =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match args.log_format {
        LogFormat::Text => format.boxed(),
        LogFormat::Json => format.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).try_init()?;
    exit_on_panic();
    Ok(Telemetry { provider })
}

fn exporter(service: &'static str) -> anyhow::Result<Option<SdkTracerProvider>> {
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
    let resource = Resource::builder().with_service_name(format!("berth-{service}")).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}

fn exit_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "panic; the process ends");
        print(panic);
        std::process::exit(101);
    }));
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::debug!(%error, "flushing spans");
        }
    }
}
