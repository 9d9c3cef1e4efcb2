//! The serving side: gate, health, reflection, drain.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{body::Body, service::Routes, transport::Server};
use tower::{Layer, Service};
use tracing::{Instrument as _, info_span, instrument::Instrumented};

use super::Access;
use crate::{build::BuildInfo, supervise::Supervisor, trace};

/// Serves `routes` with health and reflection until the drain, then lets open calls finish until the cut.
///
/// # Errors
/// When the listener breaks or the descriptors are not readable.
pub async fn serve(
    listener: TcpListener,
    build: BuildInfo,
    access: Access,
    descriptors: &'static [u8],
    routes: Routes,
    supervisor: Supervisor,
) -> Result<(), std::io::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(std::io::Error::other)?;
    let gate = Gate {
        access: Arc::new(access),
        build,
    };
    let draining = supervisor.clone();
    let server = Server::builder()
        .tcp_nodelay(true)
        .layer(gate)
        .add_routes(routes.add_service(health).add_service(reflection))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            draining.draining().await;
        });
    tokio::select! {
        result = server => result.map_err(std::io::Error::other),
        () = supervisor.cut() => Ok(()),
    }
}

#[derive(Clone)]
struct Gate {
    access: Arc<Access>,
    build: BuildInfo,
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            inner,
            gate: self.clone(),
        }
    }
}

#[derive(Clone)]
struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Instrumented<S::Future>, Ready<Result<Self::Response, Self::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let method = request.uri().path();
        match self.gate.access.admit(method, request.headers(), self.gate.build) {
            Ok(role) => {
                let span = info_span!(
                    "grpc",
                    otel.name = method.trim_start_matches('/'),
                    otel.kind = "server",
                    rpc.system.name = "grpc",
                    rpc.method = method.trim_start_matches('/'),
                );
                trace::set_parent(&span, request.headers());
                if let Some(role) = role {
                    request.extensions_mut().insert(role);
                }
                Either::Left(self.inner.call(request).instrument(span))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
