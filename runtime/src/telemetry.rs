//! Logs as text or JSON with a filter that can be changed while the process runs, and traces over OTLP.

use std::{fmt, io, str::FromStr};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("is neither text nor json".to_owned()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What to log and where to send traces.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// `service.name` of the traces.
    pub service: &'static str,
    /// A tracing filter, for example `info` or `info,hyper=debug`.
    pub filter: String,
    /// How log lines look.
    pub format: LogFormat,
    /// Where to send spans (OTLP over gRPC, `http://host:4317`); none keeps no spans.
    pub otlp_endpoint: Option<String>,
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log filter {filter:?} is not valid: {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser said.
        reason: String,
    },
    /// The exporter cannot be built.
    #[error("traces cannot be sent to {endpoint}: {reason}")]
    Otlp {
        /// What was given.
        endpoint: String,
        /// What the exporter said.
        reason: String,
    },
    /// Somebody else was first.
    #[error("telemetry was started twice")]
    Twice,
}

/// Running telemetry; keep it until the process ends.
#[derive(Debug)]
pub struct Telemetry {
    filter: LogFilter,
    provider: Option<SdkTracerProvider>,
}

/// Changes the log filter of the running process.
#[derive(Clone, Debug)]
pub struct LogFilter {
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

impl LogFilter {
    /// Installs `filter` and returns the one before it.
    ///
    /// # Errors
    /// Why the filter is refused; the one in force stays.
    pub fn set(&self, filter: &str) -> Result<String, String> {
        let parsed = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        let handle = self
            .handle
            .as_ref()
            .ok_or("this process keeps no log of its own")?;
        let mut previous = String::new();
        handle
            .modify(|current| {
                previous = current.to_string();
                *current = parsed;
            })
            .map_err(|error| error.to_string())?;
        Ok(previous)
    }
}

/// Starts logs, and traces if an endpoint is set. Call it once, inside the async runtime.
///
/// # Errors
/// See [`TelemetryError`].
pub fn init(config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| TelemetryError::Filter {
        filter: config.filter.clone(),
        reason: error.to_string(),
    })?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match config.format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(io::stderr)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    let provider = config
        .otlp_endpoint
        .as_deref()
        .map(|to| exporter(config.service, to))
        .transpose()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(config.service)));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(traces)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    Ok(Telemetry {
        filter: LogFilter { handle: Some(handle) },
        provider,
    })
}

fn exporter(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| TelemetryError::Otlp {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        })?;
    let resource = Resource::builder().with_service_name(service).build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

impl Telemetry {
    /// Telemetry that touches nothing global, for processes run inside a test.
    pub fn disabled() -> Self {
        Self {
            filter: LogFilter { handle: None },
            provider: None,
        }
    }

    /// A handle that changes the log filter.
    pub fn log_filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Sends the spans that are still here.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        // The exporter waits for a connection that this very runtime drives, so the wait must not block it.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "some spans were not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_words() {
        assert_eq!("JSON".parse(), Ok(LogFormat::Json));
        assert!("xml".parse::<LogFormat>().unwrap_err().contains("neither"));
    }

    #[tokio::test]
    async fn a_bad_filter_is_refused_before_anything_starts() {
        let config = TelemetryConfig {
            service: "test",
            filter: "info,=x=".to_owned(),
            format: LogFormat::Text,
            otlp_endpoint: None,
        };
        assert!(matches!(init(&config), Err(TelemetryError::Filter { .. })));
        assert!(Telemetry::disabled().log_filter().set("debug").is_err());
    }
}
