//! `Siblings`: desired state down, observed state up.
//!
//! A specification stream stays silent until there is a decision, then sends it and each later one. Of report
//! streams the newest of a role wins; the older one ends `ABORTED`.

use std::{fmt, pin::Pin};

use futures_util::{Stream, stream};
use proto::v1::{
    ProxyReport, ProxySpec, ReportAck, TunnelReport, TunnelSpec, WatchSpecRequest, siblings_server::Siblings,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::{
    hub::{Hub, Sibling},
    reports::Report,
    spec::{Publisher, Spec},
};

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(crate) struct SiblingsService {
    pub(crate) hub: Hub,
    pub(crate) tunnel: Publisher<TunnelSpec>,
    pub(crate) proxy: Publisher<ProxySpec>,
    /// Ends every stream.
    pub(crate) leaving: CancellationToken,
}

impl fmt::Debug for SiblingsService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiblingsService").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Siblings for SiblingsService {
    type WatchTunnelSpecStream = Sent<TunnelSpec>;
    type WatchProxySpecStream = Sent<ProxySpec>;
    type ReportTunnelStream = Sent<ReportAck>;
    type ReportProxyStream = Sent<ReportAck>;

    async fn watch_tunnel_spec(
        &self,
        request: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchTunnelSpecStream>, Status> {
        info!(
            instance = request.into_inner().instance_id,
            "tunnel-sidecar asks for its specification"
        );
        Ok(Response::new(specs(
            self.tunnel.subscribe(),
            self.leaving.clone(),
        )))
    }

    async fn watch_proxy_spec(
        &self,
        request: Request<WatchSpecRequest>,
    ) -> Result<Response<Self::WatchProxySpecStream>, Status> {
        info!(
            instance = request.into_inner().instance_id,
            "k8s-proxy asks for its specification"
        );
        Ok(Response::new(specs(self.proxy.subscribe(), self.leaving.clone())))
    }

    async fn report_tunnel(
        &self,
        request: Request<Streaming<TunnelReport>>,
    ) -> Result<Response<Self::ReportTunnelStream>, Status> {
        let incoming = Incoming::new(self, Sibling::Tunnel, request.into_inner(), Hub::take_tunnel);
        Ok(Response::new(incoming.acks()))
    }

    async fn report_proxy(
        &self,
        request: Request<Streaming<ProxyReport>>,
    ) -> Result<Response<Self::ReportProxyStream>, Status> {
        let incoming = Incoming::new(self, Sibling::Proxy, request.into_inner(), Hub::take_proxy);
        Ok(Response::new(incoming.acks()))
    }
}

fn specs<S: Spec>(mut current: watch::Receiver<Option<S>>, leaving: CancellationToken) -> Sent<S> {
    current.mark_changed();
    Box::pin(stream::unfold(
        (current, leaving),
        |(mut current, leaving)| async move {
            loop {
                tokio::select! {
                    changed = current.changed() => changed.ok()?,
                    () = leaving.cancelled() => return None,
                }
                let spec = current.borrow_and_update().clone();
                if let Some(spec) = spec {
                    return Some((Ok(spec), (current, leaving)));
                }
            }
        },
    ))
}

/// One report stream; its end, however it comes, makes the sibling unknown.
struct Incoming<R> {
    hub: Hub,
    sibling: Sibling,
    stream: u64,
    newest: watch::Receiver<u64>,
    reports: Streaming<R>,
    take: fn(&Hub, u64, R) -> bool,
    leaving: CancellationToken,
    ended: bool,
}

impl<R> Drop for Incoming<R> {
    fn drop(&mut self) {
        self.hub.close_stream(self.sibling, self.stream);
        info!(sibling = ?self.sibling, "the report stream has ended");
    }
}

impl<R: Report + Send + 'static> Incoming<R> {
    fn new(
        service: &SiblingsService,
        sibling: Sibling,
        reports: Streaming<R>,
        take: fn(&Hub, u64, R) -> bool,
    ) -> Self {
        let (stream, newest) = service.hub.open_stream(sibling);
        info!(?sibling, "reports");
        let (hub, leaving) = (service.hub.clone(), service.leaving.clone());
        Self {
            hub,
            sibling,
            stream,
            newest,
            reports,
            take,
            leaving,
            ended: false,
        }
    }

    fn acks(self) -> Sent<ReportAck> {
        Box::pin(stream::unfold(self, |mut this| async move {
            let ack = this.next().await?;
            Some((ack, this))
        }))
    }

    async fn next(&mut self) -> Option<Result<ReportAck, Status>> {
        if self.ended {
            return None;
        }
        let stream = self.stream;
        let report = tokio::select! {
            biased;
            _ = self.newest.wait_for(|newest| *newest != stream) => None,
            () = self.leaving.cancelled() => return None,
            report = self.reports.message() => match report {
                Ok(Some(report)) => Some(report),
                Ok(None) => return None,
                Err(error) => {
                    debug!(%error, "a report stream broke");
                    return None;
                }
            },
        };
        let sequence = report.as_ref().map(Report::sequence);
        let taken = report.is_some_and(|report| (self.take)(&self.hub, stream, report));
        match sequence {
            Some(sequence) if taken => Some(Ok(ReportAck { sequence })),
            Some(_) | None => {
                self.ended = true;
                Some(Err(Status::aborted("a newer report stream of this role is open")))
            }
        }
    }
}
