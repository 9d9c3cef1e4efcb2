//! The gRPC service `Proxy`: what people and agent-core may ask and do.

use std::pin::Pin;

use futures_util::Stream;
use http::{Method, uri::PathAndQuery};
use proto::v1::{
    CancelStreamRequest, CancelStreamResponse, ExplainAccessRequest, ExplainAccessResponse, GetProxyRequest,
    ListStreamsRequest, ListStreamsResponse, ProxyReport, StreamEvent, WatchStreamsRequest,
    proxy_server::Proxy, stream_event::Kind,
};
use runtime::supervise::Supervisor;
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tonic::{Request, Response, Status};

use crate::{
    engine::Engine,
    identity::{Caller, Mode, Who},
    path,
    report::Reporter,
    streams::CancelReason,
    target::Target,
};

/// Serves `Proxy`.
#[derive(Clone, Debug)]
pub struct ProxyService {
    engine: Engine,
    reporter: Reporter,
    supervisor: Supervisor,
}

impl ProxyService {
    /// Over the engine and its reports. Watchers of streams are let go at the drain of `supervisor`.
    pub fn new(engine: Engine, reporter: Reporter, supervisor: Supervisor) -> Self {
        Self {
            engine,
            reporter,
            supervisor,
        }
    }
}

#[tonic::async_trait]
impl Proxy for ProxyService {
    async fn get_proxy(&self, _request: Request<GetProxyRequest>) -> Result<Response<ProxyReport>, Status> {
        Ok(Response::new(self.reporter.report()))
    }

    async fn list_streams(
        &self,
        _request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        Ok(Response::new(ListStreamsResponse {
            streams: self.engine.streams().list(),
        }))
    }

    type WatchStreamsStream = Pin<Box<dyn Stream<Item = Result<StreamEvent, Status>> + Send>>;

    /// First every open call as `OPENED`, then each opening and closing.
    async fn watch_streams(
        &self,
        _request: Request<WatchStreamsRequest>,
    ) -> Result<Response<Self::WatchStreamsStream>, Status> {
        let changes = self.engine.streams().subscribe();
        let open = self.engine.streams().list();
        let last = open.last().map_or(0, |stream| stream.id);
        let open = open.into_iter().map(|stream| {
            Ok(StreamEvent {
                kind: Kind::Opened.into(),
                stream: Some(stream),
            })
        });
        let changes = BroadcastStream::new(changes).filter_map(move |change| match change {
            // It was listed already.
            Ok(event)
                if event.kind() == Kind::Opened && event.stream.as_ref().is_some_and(|s| s.id <= last) =>
            {
                None
            }
            Ok(event) => Some(Ok(event)),
            Err(_) => Some(Err(Status::data_loss("this watcher was too slow: watch again"))),
        });
        let supervisor = self.supervisor.clone();
        let over = Box::pin(async move { supervisor.draining().await });
        let events = futures_util::StreamExt::take_until(tokio_stream::iter(open).chain(changes), over);
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel_stream(
        &self,
        request: Request<CancelStreamRequest>,
    ) -> Result<Response<CancelStreamResponse>, Status> {
        let id = request.into_inner().id;
        if self.engine.streams().cancel(id, CancelReason::Operator) {
            Ok(Response::new(CancelStreamResponse {}))
        } else {
            Err(Status::not_found(format!("no call {id} is open")))
        }
    }

    async fn explain_access(
        &self,
        request: Request<ExplainAccessRequest>,
    ) -> Result<Response<ExplainAccessResponse>, Status> {
        let asked = request.into_inner();
        let method = if asked.method.is_empty() {
            "GET"
        } else {
            &asked.method
        };
        let method: Method = method
            .to_ascii_uppercase()
            .parse()
            .map_err(|_| Status::invalid_argument("the method is none"))?;
        let (path, query) = match asked.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (asked.path.as_str(), None),
        };
        let uri: PathAndQuery =
            path::join(path, query).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let target = Target::read(&method, &uri, asked.upgrade);
        let caller = if asked.user == "agent-core" {
            Caller::agent_core()
        } else {
            Caller::new(asked.user.as_str(), asked.groups.clone(), Mode::Agent)
        };
        // As a door in mode impersonate would ask: may the speaker speak for this person, and may the person do it?
        let impersonated = !asked.speaker.is_empty();
        let caller = if impersonated {
            Caller::new(asked.speaker, Vec::new(), Mode::Impersonate)
        } else {
            caller
        };
        let who = Who {
            user: asked.user,
            groups: asked.groups,
            impersonated,
        };
        let decision = self.engine.decide(&caller, &who, &target);
        Ok(Response::new(ExplainAccessResponse {
            allowed: decision.allowed,
            rule: decision.rule.to_string(),
            reason: decision.reason.into_owned(),
            verb: target.verb.to_owned(),
            resource: target.resource_path().into_owned(),
            namespace: target.namespace,
        }))
    }
}
