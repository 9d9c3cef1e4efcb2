//! An agent-core that knows one spec: just enough for a tunnel-sidecar to run as installed.

use std::{net::SocketAddr, pin::Pin};

use anyhow::Result;
use proto::v1::{
    ProxyReport, ProxySpec, ReportAck, TunnelReport, TunnelSpec, WatchSpecRequest,
    siblings_server::{Siblings, SiblingsServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// The double; it ends when dropped.
pub(super) struct Core {
    pub(super) address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Double(TunnelSpec);

impl Core {
    pub(super) async fn start(spec: TunnelSpec) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            let serving = tonic::transport::Server::builder()
                .add_service(SiblingsServer::new(Double(spec)))
                .serve_with_incoming(TcpListenerStream::new(listener));
            if let Err(error) = serving.await {
                eprintln!("the double of agent-core ended: {error}");
            }
        });
        Ok(Self { address, serving })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Siblings for Double {
    type WatchTunnelSpecStream = Answers<TunnelSpec>;
    type WatchProxySpecStream = Answers<ProxySpec>;
    type ReportTunnelStream = Answers<ReportAck>;
    type ReportProxyStream = Answers<ReportAck>;

    async fn watch_tunnel_spec(
        &self,
        _: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchTunnelSpecStream>, Status> {
        let spec = tokio_stream::once(Ok(self.0.clone())).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(spec)))
    }

    async fn report_tunnel(
        &self,
        request: Request<Streaming<TunnelReport>>,
    ) -> Result<Response<Self::ReportTunnelStream>, Status> {
        let acks = request.into_inner().map(|report| {
            report.map(|report| ReportAck {
                sequence: report.sequence,
            })
        });
        Ok(Response::new(Box::pin(acks)))
    }

    async fn watch_proxy_spec(
        &self,
        _: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchProxySpecStream>, Status> {
        Err(Status::permission_denied("not for the tunnel"))
    }

    async fn report_proxy(
        &self,
        _: Request<Streaming<ProxyReport>>,
    ) -> Result<Response<Self::ReportProxyStream>, Status> {
        Err(Status::permission_denied("not for the tunnel"))
    }
}
