//! An agent-core that hands out the specs a test gives it and keeps the reports it gets.

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use proto::v1::{
    ProxyReport, ProxySpec, ReportAck, TunnelReport, TunnelSpec, WatchSpecRequest,
    siblings_server::{Siblings, SiblingsServer},
};
use runtime::{
    build::build_info,
    local::{self, Access, Role},
    secret::TokenFile,
    supervise::Supervisor,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming, service::Routes};

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
struct Service {
    spec: watch::Receiver<Option<ProxySpec>>,
    reports: Arc<Mutex<Vec<ProxyReport>>>,
    supervisor: Supervisor,
}

impl Service {
    /// Ends with the double: its connections would outlive its listener.
    fn gone(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let supervisor = self.supervisor.clone();
        Box::pin(async move { supervisor.draining().await })
    }
}

#[tonic::async_trait]
impl Siblings for Service {
    type WatchTunnelSpecStream = Boxed<TunnelSpec>;
    type WatchProxySpecStream = Boxed<ProxySpec>;
    type ReportTunnelStream = Boxed<ReportAck>;
    type ReportProxyStream = Boxed<ReportAck>;

    async fn watch_tunnel_spec(
        &self,
        _request: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchTunnelSpecStream>, Status> {
        Err(Status::unimplemented("only the proxy is served here"))
    }

    async fn watch_proxy_spec(
        &self,
        _request: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchProxySpecStream>, Status> {
        Ok(Response::new(Box::pin(
            WatchStream::new(self.spec.clone())
                .filter_map(async |spec: Option<ProxySpec>| spec.map(Ok))
                .take_until(self.gone()),
        )))
    }

    async fn report_tunnel(
        &self,
        _request: Request<Streaming<TunnelReport>>,
    ) -> Result<Response<Self::ReportTunnelStream>, Status> {
        Err(Status::unimplemented("only the proxy is served here"))
    }

    async fn report_proxy(
        &self,
        request: Request<Streaming<ProxyReport>>,
    ) -> Result<Response<Self::ReportProxyStream>, Status> {
        let reports = Arc::clone(&self.reports);
        let acks = request.into_inner().map(move |report| {
            let report = report?;
            let sequence = report.sequence;
            reports.lock().unwrap().push(report);
            Ok(ReportAck { sequence })
        });
        Ok(Response::new(Box::pin(acks.take_until(self.gone()))))
    }
}

/// The double.
pub(crate) struct Core {
    pub(crate) address: SocketAddr,
    pub(crate) spec: watch::Sender<Option<ProxySpec>>,
    reports: Arc<Mutex<Vec<ProxyReport>>>,
    supervisor: Supervisor,
}

impl Core {
    /// Serves with the token in `<edge>/token`, silent until a spec is given.
    pub(crate) async fn start(edge: &Path) -> Self {
        Self::start_at(edge, "127.0.0.1:0").await
    }

    pub(crate) async fn start_at(edge: &Path, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = TokenFile::new(edge.join("token"));
        token.create_once(0o640).unwrap();
        let supervisor = Supervisor::new(Duration::from_millis(1));
        let (spec, reports) = (watch::Sender::new(None), Arc::new(Mutex::default()));
        let service = Service {
            spec: spec.subscribe(),
            reports: Arc::clone(&reports),
            supervisor: supervisor.clone(),
        };
        let access = Access::new().allow(
            Role::Proxy,
            token,
            &[
                "/pipeops.agent.v1.Siblings/WatchProxySpec",
                "/pipeops.agent.v1.Siblings/ReportProxy",
            ],
        );
        let routes = Routes::new(SiblingsServer::new(service));
        let build = build_info("agent-core");
        let served = local::serve(
            listener,
            build,
            access,
            proto::FILE_DESCRIPTOR_SET,
            routes,
            supervisor.clone(),
        );
        tokio::spawn(served);
        Self {
            address,
            spec,
            reports,
            supervisor,
        }
    }

    pub(crate) fn give(&self, spec: ProxySpec) {
        self.spec.send_replace(Some(spec));
    }

    pub(crate) fn last_report(&self) -> Option<ProxyReport> {
        self.reports.lock().unwrap().last().cloned()
    }

    /// Goes away at once.
    pub(crate) async fn stop(self) {
        self.supervisor.drain("test");
        self.supervisor.finish().await;
    }
}
