//! A receiver of spans: the collector's side of OTLP over gRPC.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use runtime::secret::hex;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Spans beyond this are forgotten, oldest first.
const KEPT: usize = 10_000;

/// One span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of the process that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Lower-case hexadecimal.
    pub trace_id: String,
    /// Lower-case hexadecimal.
    pub span_id: String,
    /// Lower-case hexadecimal; empty for a root.
    pub parent_id: String,
    /// Attributes with string values.
    pub attributes: Vec<(String, String)>,
}

/// A running receiver.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _task: JoinSet<()>,
}

impl Receiver {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        Self::start_on(IpAddr::from([127, 0, 0, 1])).await
    }

    /// Listens on a free port of one of this machine's addresses.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_on(ip: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let spans = Arc::default();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(Collector {
                spans: Arc::clone(&spans),
            }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut task = JoinSet::new();
        task.spawn(async move {
            server.await.ok();
        });
        Ok(Self {
            address,
            spans,
            _task: task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of one trace, in the order in which they arrived.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans
            .iter()
            .filter(|span| span.trace_id == trace_id)
            .cloned()
            .collect()
    }

    /// Every span that is kept.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
        let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some((pair.key.clone(), text.clone())),
            Value::IntValue(number) => Some((pair.key.clone(), number.to_string())),
            _ => None,
        };
        let mut kept = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        for group in request.into_inner().resource_spans {
            let resource = group.resource.unwrap_or_default();
            let service = resource
                .attributes
                .iter()
                .filter_map(text)
                .find(|(key, _)| key == "service.name");
            let service = service.map(|(_, name)| name).unwrap_or_default();
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                kept.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_id: hex(&span.parent_span_id),
                    attributes: span.attributes.iter().filter_map(text).collect(),
                });
            }
        }
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: None,
        }))
    }
}
