//! The answer of a call that goes on: pieces in order, one end, CANCEL (or a reset) when the caller has enough.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::{LinkBody, LinkError, Shared, table::Waiting};
use crate::control_plane::frames::{Call, Frame};

/// An answer that comes piece by piece; dropping it cancels the call.
pub struct ResponseStream {
    source: Source,
    status: u16,
    headers: Vec<(String, String)>,
    stream_id: String,
    /// What the first frame brought beside its status.
    first: Option<Bytes>,
    end: Option<Result<(), LinkError>>,
}

/// Where the pieces come from.
enum Source {
    Frames { waiting: Waiting, shared: Arc<Shared> },
    Http2(LinkBody),
}

/// How a cancelled stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Pieces that were on the way when CANCEL was sent.
    pub late_chunks: usize,
    /// `error` of the last frame.
    pub error: String,
}

impl ResponseStream {
    pub(super) fn new(waiting: Waiting, first: Frame, shared: Arc<Shared>) -> Self {
        // A whole answer in its first frame is an ordinary one: its status says how it went, its body is complete.
        let whole = first.done || !(first.stream || first.chunk);
        let end = whole.then_some(Ok(()));
        let body = (!first.body.is_empty()).then_some(first.body);
        let (status, headers, stream_id) = (first.status, first.headers, first.stream_id);
        Self {
            source: Source::Frames { waiting, shared },
            status,
            headers,
            stream_id,
            first: body,
            end,
        }
    }

    pub(super) fn http2(response: http::Response<LinkBody>) -> Self {
        let (parts, body) = response.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        Self {
            source: Source::Http2(body),
            status: parts.status.as_u16(),
            headers,
            stream_id: String::new(),
            first: None,
            end: None,
        }
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Headers in the order of their names.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The stream's id as the proxy named it.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    /// The id of the request; empty over HTTP/2.
    pub fn id(&self) -> &str {
        match &self.source {
            Source::Frames { waiting, .. } => &waiting.id,
            Source::Http2(_) => "",
        }
    }

    /// The next piece; `None` after a good end.
    pub async fn next(&mut self) -> Option<Result<Bytes, LinkError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            match self.end.clone() {
                Some(Ok(())) => return None,
                Some(Err(error)) => {
                    // The error is told once; afterwards the stream is at its end.
                    self.end = Some(Ok(()));
                    return Some(Err(error));
                }
                None => {}
            }
            match &mut self.source {
                Source::Http2(body) => match body.frame().await {
                    None => self.end = Some(Ok(())),
                    Some(Err(error)) => {
                        let reason = runtime::supervise::chain(&error);
                        self.end = Some(Err(LinkError::Peer(reason)));
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) if !piece.is_empty() => return Some(Ok(piece)),
                        Ok(_) | Err(_) => {}
                    },
                },
                Source::Frames { waiting, .. } => match waiting.next().await {
                    Ok(answer) => {
                        if answer.done {
                            self.end = Some(ending(&answer.error));
                        }
                        // Beside an error the body is a Status object about it, no piece of what was streamed.
                        let piece = !answer.done || answer.error.is_empty();
                        if piece && !answer.body.is_empty() {
                            return Some(Ok(answer.body));
                        }
                    }
                    Err(error) => self.end = Some(Err(error)),
                },
            }
        }
    }

    /// Everything up to the end.
    ///
    /// # Errors
    /// When the end is not a good one.
    pub async fn collect(mut self) -> Result<Bytes, LinkError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.into())
    }

    /// Sends CANCEL and waits for the proxy's last frame.
    ///
    /// # Errors
    /// When the link ends first, or the stream had overflowed.
    pub async fn cancel(mut self) -> Result<End, LinkError> {
        let mut late_chunks = 0;
        let ended = self.end.take().is_some();
        let Source::Frames { waiting, shared } = &mut self.source else {
            // Dropping it resets the stream, and nothing more of it arrives.
            return Ok(End {
                late_chunks,
                error: String::new(),
            });
        };
        if let Some(stream_id) = shared.table.stream_id(&waiting.id) {
            let cancel = Message::text(Call::cancel(&waiting.id, &stream_id));
            shared.out.send(cancel).await.map_err(|_| shared.lost())?;
        }
        if ended {
            return Ok(End {
                late_chunks,
                error: String::new(),
            });
        }
        loop {
            let answer = waiting.next().await?;
            if answer.done {
                return Ok(End {
                    late_chunks,
                    error: answer.error,
                });
            }
            late_chunks += 1;
        }
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if let Source::Frames { waiting, shared } = &self.source
            && let Some(ids) = shared.table.abandon(&waiting.id)
        {
            shared.cancel_later(ids);
        }
    }
}

impl std::fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (id, status) = (self.id(), self.status);
        f.debug_struct("ResponseStream")
            .field("id", &id)
            .field("status", &status)
            .finish_non_exhaustive()
    }
}

fn ending(error: &str) -> Result<(), LinkError> {
    if error.is_empty() {
        Ok(())
    } else {
        Err(LinkError::Peer(error.to_owned()))
    }
}
