//! The answer of a call that goes on: pieces in order, one end, CANCEL when the caller has enough.

use std::sync::Arc;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use super::{LinkError, Shared, table::Waiting};
use crate::control_plane::frames::{Call, Frame};

/// An answer that comes piece by piece; dropping it cancels the call.
pub struct ResponseStream {
    waiting: Waiting,
    shared: Arc<Shared>,
    status: u16,
    headers: Vec<(String, String)>,
    stream_id: String,
    /// What the first frame brought beside its status.
    first: Option<Bytes>,
    end: Option<Result<(), LinkError>>,
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
            waiting,
            shared,
            status,
            headers,
            stream_id,
            first: body,
            end,
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

    /// The id of the request.
    pub fn id(&self) -> &str {
        &self.waiting.id
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
            match self.waiting.next().await {
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
        if let Some(stream_id) = self.shared.table.stream_id(&self.waiting.id) {
            let cancel = Message::text(Call::cancel(&self.waiting.id, &stream_id));
            self.shared
                .out
                .send(cancel)
                .await
                .map_err(|_| self.shared.lost())?;
        }
        let mut late_chunks = 0;
        if self.end.take().is_some() {
            return Ok(End {
                late_chunks,
                error: String::new(),
            });
        }
        loop {
            let answer = self.waiting.next().await?;
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
        if let Some(ids) = self.shared.table.abandon(&self.waiting.id) {
            self.shared.cancel_later(ids);
        }
    }
}

impl std::fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (id, status) = (&self.waiting.id, self.status);
        f.debug_struct("ResponseStream")
            .field("id", id)
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
