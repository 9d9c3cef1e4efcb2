//! An agent-core that says what the test wants and keeps what it is told.

use std::{net::SocketAddr, pin::Pin, sync::Arc, thread::JoinHandle};

use proto::v1::{
    ProxyReport, ProxySpec, ReportAck, TunnelReport, TunnelSpec, WatchSpecRequest,
    siblings_server::{Siblings, SiblingsServer},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, Streaming};

/// The double; killed when dropped.
pub(crate) struct Core {
    address: SocketAddr,
    double: Double,
    server: Option<Server>,
}

/// A serving thread; dropping it ends the thread.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Double {
    token: String,
    spec: Arc<watch::Sender<Option<TunnelSpec>>>,
    report: Arc<watch::Sender<Option<TunnelReport>>>,
    streams: Arc<watch::Sender<u32>>,
}

impl Core {
    /// Listens; the desired state is not known yet.
    pub(crate) async fn start(token: &str) -> Self {
        let double = Double {
            token: token.to_owned(),
            spec: Arc::new(watch::Sender::new(None)),
            report: Arc::new(watch::Sender::new(None)),
            streams: Arc::new(watch::Sender::new(0)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Some(double.serve(listener));
        Self {
            address,
            double,
            server,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a spec as the next revision of the present epoch.
    pub(crate) fn send(&self, spec: TunnelSpec) {
        self.double.spec.send_modify(|last| {
            let before = last.take().unwrap_or_default();
            let epoch = if before.epoch.is_empty() {
                "first".to_owned()
            } else {
                before.epoch
            };
            let revision = before.revision;
            *last = Some(TunnelSpec {
                epoch,
                revision: revision + 1,
                ..spec
            });
        });
    }

    /// Changes the present spec.
    pub(crate) fn change(&self, change: impl FnOnce(&mut TunnelSpec)) {
        let mut spec = self.double.spec.borrow().clone().unwrap();
        change(&mut spec);
        self.send(spec);
    }

    /// Ends at once, with every stream.
    pub(crate) fn kill(&mut self) {
        self.server = None;
        self.double.report.send_replace(None);
    }

    /// Comes back as another run of agent-core with the same desired state.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.double.spec.send_modify(|spec| {
            if let Some(spec) = spec {
                spec.epoch = format!("after {}", spec.epoch);
                spec.revision = 1;
            }
        });
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.server = Some(self.double.serve(listener));
    }

    /// How many report streams were opened.
    pub(crate) fn report_streams(&self) -> u32 {
        *self.double.streams.borrow()
    }

    /// Waits for a report as wanted.
    pub(crate) async fn reported(&self, wanted: impl Fn(&TunnelReport) -> bool) -> TunnelReport {
        let mut reports = self.double.report.subscribe();
        let found = reports.wait_for(|report| report.as_ref().is_some_and(&wanted));
        tokio::time::timeout(super::PATIENCE, found)
            .await
            .expect("a report")
            .unwrap()
            .clone()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Double {
    /// Serves in a runtime of its own: when that ends, every connection ends with it, as with a process.
    fn serve(&self, listener: TcpListener) -> Server {
        let service = SiblingsServer::new(self.clone());
        let listener = listener.into_std().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
                let served = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(incoming);
                tokio::select! { served = served => served.unwrap(), _ = stopped => {} }
            });
        });
        Server {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let wanted = format!("Bearer {}", self.token);
        let shown = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if shown == Some(&wanted) {
            Ok(())
        } else {
            Err(Status::unauthenticated("not the edge token"))
        }
    }
}

type Stream1<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Siblings for Double {
    type WatchTunnelSpecStream = Stream1<TunnelSpec>;
    type WatchProxySpecStream = Stream1<ProxySpec>;
    type ReportTunnelStream = Stream1<ReportAck>;
    type ReportProxyStream = Stream1<ReportAck>;

    async fn watch_tunnel_spec(
        &self,
        request: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchTunnelSpecStream>, Status> {
        self.admit(&request)?;
        let specs = WatchStream::new(self.spec.subscribe()).filter_map(|spec| spec.map(Ok));
        Ok(Response::new(Box::pin(specs)))
    }

    async fn report_tunnel(
        &self,
        request: Request<Streaming<TunnelReport>>,
    ) -> Result<Response<Self::ReportTunnelStream>, Status> {
        self.admit(&request)?;
        self.streams.send_modify(|count| *count += 1);
        let kept = Arc::clone(&self.report);
        let acks = request.into_inner().map(move |report| {
            let report = report?;
            let sequence = report.sequence;
            kept.send_replace(Some(report));
            Ok(ReportAck { sequence })
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
