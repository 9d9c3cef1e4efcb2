//! The service `Tunnel`: sight and control for agent-core and for people.

use std::{pin::Pin, time::SystemTime};

use prost_types::Timestamp;
use proto::v1::{
    CloseConnectionRequest, CloseConnectionResponse, Connection, GetTunnelRequest, ListConnectionsRequest,
    ListConnectionsResponse, ReconnectRequest, ReconnectResponse, TunnelReport, WatchTunnelRequest,
    tunnel_server::Tunnel,
};
use runtime::supervise::Supervisor;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{connections::Connections, link::LinkHandle, report::Reporter, status::millis, timing::Timing};

/// A watcher that does not read gets the newest report when it reads again, not all it missed.
const WATCH_QUEUE: usize = 1;

/// Serves `Tunnel`.
#[derive(Clone, Debug)]
pub struct Control {
    /// Makes the reports.
    pub reporter: Reporter,
    /// The open connections.
    pub connections: Connections,
    /// Reconnects.
    pub link: LinkHandle,
    /// Owner of all tasks.
    pub supervisor: Supervisor,
    /// Durations.
    pub timing: Timing,
}

#[tonic::async_trait]
impl Tunnel for Control {
    type WatchTunnelStream = Pin<Box<dyn Stream<Item = Result<TunnelReport, Status>> + Send>>;

    async fn get_tunnel(&self, _: Request<GetTunnelRequest>) -> Result<Response<TunnelReport>, Status> {
        Ok(Response::new(self.reporter.report()))
    }

    async fn watch_tunnel(
        &self,
        _: Request<WatchTunnelRequest>,
    ) -> Result<Response<Self::WatchTunnelStream>, Status> {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let (reporter, timing, supervisor) = (self.reporter.clone(), self.timing, self.supervisor.clone());
        self.supervisor.spawn("watch tunnel", async move {
            let mut changes = reporter.changes();
            while sender.send(Ok(reporter.report())).await.is_ok() {
                tokio::select! {
                    () = changes.next(timing.coalesce) => {}
                    () = sender.closed() => return,
                    // An open stream would hold up the drain of everything else.
                    () = supervisor.draining() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_connections(
        &self,
        _: Request<ListConnectionsRequest>,
    ) -> Result<Response<ListConnectionsResponse>, Status> {
        let row = |open: &crate::connections::Connection| {
            let (bytes_in, bytes_out) = open.bytes();
            Connection {
                id: open.id,
                forward: open.forward.clone(),
                target: open.target.to_string(),
                opened: Some(Timestamp::from(open.opened)),
                // Counted back from now: a clock that was set since then cannot put it into the future.
                last_byte: Some(Timestamp::from(SystemTime::now() - open.idle())),
                bytes_in,
                bytes_out,
                age_ms: millis(open.age()),
                idle_ms: millis(open.idle()),
                session: open.lane,
            }
        };
        let connections = self.connections.list().iter().map(|open| row(open)).collect();
        Ok(Response::new(ListConnectionsResponse { connections }))
    }

    async fn close_connection(
        &self,
        request: Request<CloseConnectionRequest>,
    ) -> Result<Response<CloseConnectionResponse>, Status> {
        let id = request.into_inner().id;
        if self.connections.close(id) {
            Ok(Response::new(CloseConnectionResponse {}))
        } else {
            Err(Status::not_found(format!("connection {id} is not open")))
        }
    }

    async fn reconnect(
        &self,
        request: Request<ReconnectRequest>,
    ) -> Result<Response<ReconnectResponse>, Status> {
        if self.supervisor.is_draining() {
            return Err(Status::unavailable("tunnel-sidecar is shutting down"));
        }
        self.link.reconnect(request.into_inner().reason).await;
        Ok(Response::new(ReconnectResponse {}))
    }
}
