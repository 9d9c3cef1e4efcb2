//! A call that becomes a two-way connection, on an HTTP/1.1 connection of its own: the apiserver offers no extended
//! CONNECT, and a connection that was switched can carry nothing else.

use http::{HeaderValue, Request, Response, StatusCode, header, response::Parts};
use hyper::{client::conn::http1::Builder, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::{AnswerBody, RequestBody, Upstream, UpstreamError, h1};

/// What the apiserver said to an upgrade.
#[derive(Debug)]
pub enum Switched {
    /// It switched; these are its headers and the connection.
    Switched(Parts, Upgraded),
    /// It gave an ordinary answer.
    Answer(Response<AnswerBody>),
}

impl Upstream {
    /// Sends a request that asks for an upgrade.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn upgrade(&self, mut request: Request<RequestBody>) -> Result<Switched, UpstreamError> {
        let authority: HeaderValue = self.inner.authority.clone();
        request.headers_mut().insert(header::HOST, authority);
        let io = self.dial(false).await?;
        let (mut sender, connection) = Builder::new()
            .max_buf_size(h1::BUFFER)
            .handshake(TokioIo::new(io))
            .await
            .map_err(UpstreamError::Http)?;
        self.drive("h1", async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to the apiserver ended");
            }
        });
        let response = sender.send_request(request).await.map_err(UpstreamError::Http)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Switched::Answer(self.wrap(sender, response, false)));
        }
        let (parts, body) = response.into_parts();
        let upgraded = hyper::upgrade::on(Response::from_parts(parts.clone(), body))
            .await
            .map_err(UpstreamError::Http)?;
        Ok(Switched::Switched(parts, upgraded))
    }
}
