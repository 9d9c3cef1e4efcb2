//! `Core`: what people and tools ask of agent-core.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use proto::v1::{
    Agent, GetAgentRequest, HeartbeatRequest, HeartbeatResult, ReregisterRequest, ReregisterResponse,
    WatchAgentRequest, core_server::Core,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{hub::Hub, link::Command};

/// Changes of one moment are told together.
const GATHER: Duration = Duration::from_millis(100);
/// Longer than any call to the control plane takes.
const ANSWER: Duration = Duration::from_secs(60);

/// Hands wishes of people to the link.
#[derive(Clone, Debug)]
pub(crate) struct Commands(pub(crate) mpsc::Sender<Command>);

impl Commands {
    /// Sends one heartbeat and waits for what comes of it.
    pub(crate) async fn beat(&self) -> Result<HeartbeatResult, String> {
        self.ask(Command::Beat).await
    }

    /// Registers again and waits for the cluster's UUID.
    pub(crate) async fn register(&self) -> Result<String, String> {
        self.ask(Command::Register).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        self.0
            .try_send(command(reply))
            .map_err(|_| "too many wishes at once, or agent-core stops".to_owned())?;
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err("agent-core stops".to_owned()),
            Err(_) => Err("no answer from the control plane yet".to_owned()),
        }
    }
}

/// The service.
#[derive(Debug)]
pub(crate) struct CoreService {
    pub(crate) hub: Hub,
    pub(crate) commands: Commands,
    pub(crate) leaving: CancellationToken,
}

#[tonic::async_trait]
impl Core for CoreService {
    type WatchAgentStream = Pin<Box<dyn Stream<Item = Result<Agent, Status>> + Send>>;

    async fn get_agent(&self, _request: Request<GetAgentRequest>) -> Result<Response<Agent>, Status> {
        Ok(Response::new(self.hub.agent()))
    }

    async fn watch_agent(
        &self,
        _request: Request<WatchAgentRequest>,
    ) -> Result<Response<Self::WatchAgentStream>, Status> {
        let mut changes = self.hub.changes();
        changes.mark_changed();
        let state = (self.hub.clone(), changes, self.leaving.clone(), true);
        let agents = stream::unfold(state, |(hub, mut changes, leaving, first)| async move {
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = leaving.cancelled() => return None,
            }
            if !first {
                tokio::time::sleep(GATHER).await;
                changes.mark_unchanged();
            }
            let agent = hub.agent();
            Some((Ok(agent), (hub, changes, leaving, false)))
        });
        Ok(Response::new(Box::pin(agents)))
    }

    async fn heartbeat(
        &self,
        _request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResult>, Status> {
        self.commands
            .beat()
            .await
            .map(Response::new)
            .map_err(Status::unavailable)
    }

    async fn reregister(
        &self,
        _request: Request<ReregisterRequest>,
    ) -> Result<Response<ReregisterResponse>, Status> {
        let cluster_uuid = self
            .commands
            .register()
            .await
            .map_err(Status::failed_precondition)?;
        Ok(Response::new(ReregisterResponse { cluster_uuid }))
    }
}
