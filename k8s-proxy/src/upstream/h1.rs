//! HTTP/1.1 connections to the apiserver: the one used last is used first, so that the others can go.

use std::{sync::Mutex, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use runtime::tls::MaybeTls;
use tokio::time::Instant;
use tracing::debug;

use super::{AnswerBody, RequestBody, Upstream, UpstreamError, body::Held};
use crate::streams::lock;

/// Bounds what a stalled or busy answer holds; list speed is the same with more (measured). The head must fit in.
pub(super) const BUFFER: usize = 32 * 1024;
/// Idle connections that are kept.
const MAX_IDLE: usize = 32;
/// Below the apiserver's own idle timeout (Go's default of 90 s and more).
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);

type Sender = SendRequest<RequestBody>;

/// Idle connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Pool {
    fn take(&self) -> Option<Sender> {
        let mut idle = lock(&self.idle);
        while let Some((sender, _)) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    pub(super) fn sweep(&self, all: bool) {
        lock(&self.idle)
            .retain(|(sender, since)| !all && !sender.is_closed() && since.elapsed() < MAX_IDLE_TIME);
    }
}

/// A connection whose answer is not over yet.
pub(super) struct Returned {
    sender: Sender,
    upstream: Upstream,
}

impl Returned {
    /// The answer is over: the next call may have the connection.
    pub(super) fn give_back(self) {
        let inner = &self.upstream.inner;
        let mut idle = lock(&inner.h1.idle);
        if idle.len() < MAX_IDLE && !self.sender.is_closed() && !inner.supervisor.is_draining() {
            idle.push((self.sender, Instant::now()));
        }
    }
}

impl Upstream {
    pub(super) async fn handshake_h1(&self, io: MaybeTls) -> Result<Sender, UpstreamError> {
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(io))
            .await
            .map_err(UpstreamError::Http)?;
        self.drive("h1", async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the apiserver ended");
            }
        });
        Ok(sender)
    }

    /// On an idle connection, or a new one. An idle one may have died unseen: then the request comes back unsent
    /// and goes out on another.
    pub(super) async fn send_h1(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        while let Some(mut sender) = self.inner.h1.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.wrap(sender, response, false)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(UpstreamError::Http(error.into_error())),
                },
            }
        }
        let io = self.dial(false).await?;
        let sender = self.handshake_h1(io).await?;
        self.send_fresh(sender, request, false).await
    }

    pub(super) async fn send_fresh(
        &self,
        mut sender: Sender,
        request: Request<RequestBody>,
        endless: bool,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        let response = sender.send_request(request).await.map_err(UpstreamError::Http)?;
        Ok(self.wrap(sender, response, endless))
    }

    pub(super) fn wrap(
        &self,
        sender: Sender,
        response: Response<Incoming>,
        endless: bool,
    ) -> Response<AnswerBody> {
        let returned = Returned {
            sender,
            upstream: self.clone(),
        };
        response.map(|incoming| AnswerBody::new(incoming, Held::H1(returned), endless))
    }
}
