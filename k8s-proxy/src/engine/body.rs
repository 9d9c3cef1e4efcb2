//! The body of an answer on its way to the door.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{ticket::Ticket, watch::WatchBody};
use crate::{
    streams::{CancelReason, Hold},
    upstream::AnswerBody,
};

/// What a door may have taken from us without having sent it: its own buffer for one call (`max_send_buf_size` and
/// `max_buf_size` of the doors). hyper does not tell how full that is, so a stalled reader counts with all of it.
const SEND_BUFFER: usize = 64 * 1024;

/// Why an answer ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerEnd {
    /// It was ended from outside.
    #[error("{}", .0.sentence())]
    Cancelled(CancelReason),
    /// The apiserver's side failed.
    #[error("{0}")]
    Upstream(String),
}

/// Where the bytes come from.
#[derive(Debug)]
pub(crate) enum Inner {
    /// They are all here.
    Full(Bytes),
    /// Straight from the apiserver.
    Plain(Box<AnswerBody>),
    /// Whole watch events.
    Watch(Box<WatchBody>),
}

impl Inner {
    pub(crate) fn full(body: Vec<u8>) -> Self {
        Self::Full(Bytes::from(body))
    }
}

/// The body a door sends on. Dropping it cancels the call; its end writes the audit record.
pub struct EngineBody {
    inner: Inner,
    ticket: Ticket,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    over: bool,
    events: bool,
}

impl fmt::Debug for EngineBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBody")
            .field("inner", &self.inner)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl EngineBody {
    pub(super) fn new(inner: Inner, mut ticket: Ticket) -> Self {
        ticket.request = None;
        let events = matches!(inner, Inner::Watch(_));
        let cancelled = match &inner {
            Inner::Full(_) => None,
            Inner::Plain(_) | Inner::Watch(_) => {
                // A window that is closed keeps the door from even asking for the first byte.
                ticket.handed(0);
                ticket.cancel().map(|cancel| Box::pin(cancel.cancelled()))
            }
        };
        Self {
            inner,
            ticket,
            cancelled,
            over: false,
            events,
        }
    }

    /// What waits of this call, for a door that counts it by itself.
    pub(crate) fn hand_over_hold(&mut self) -> Option<Hold> {
        self.ticket.hand_over_hold()
    }

    /// Whether each piece is one whole watch event.
    pub fn is_events(&self) -> bool {
        self.events
    }

    /// Whether it may last for hours.
    pub fn is_endless(&self) -> bool {
        self.ticket.stream().is_some_and(|stream| stream.endless)
    }

    fn end(&mut self, word: &'static str) {
        self.over = true;
        self.ticket.end = word;
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = AnswerEnd;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerEnd>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        this.ticket.taken();
        if let Some(cancelled) = &mut this.cancelled
            && cancelled.as_mut().poll(cx).is_ready()
        {
            let reason = this
                .ticket
                .cancel()
                .and_then(|cancel| cancel.reason())
                .unwrap_or(CancelReason::Caller);
            this.end(reason.word());
            // The apiserver's side is closed now, not when the door gets round to dropping us.
            this.inner = Inner::Full(Bytes::new());
            return Poll::Ready(Some(Err(AnswerEnd::Cancelled(reason))));
        }
        let polled = match &mut this.inner {
            Inner::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Inner::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            // A caller that has used up its bytes waits here, and the apiserver with it.
            Inner::Plain(_) | Inner::Watch(_) if this.ticket.permit.poll_ready(cx).is_pending() => {
                Poll::Pending
            }
            Inner::Plain(body) => Pin::new(body.as_mut())
                .poll_frame(cx)
                .map_err(|error| runtime::supervise::chain(&error)),
            Inner::Watch(watch) => watch
                .poll_event(cx)
                .map(|event| event.map(|event| Ok(Frame::data(event)))),
        };
        let Poll::Ready(frame) = polled else {
            this.ticket.idle(match &this.inner {
                Inner::Watch(watch) => watch.partial(),
                Inner::Full(_) | Inner::Plain(_) => 0,
            });
            return Poll::Pending;
        };
        match frame {
            None => {
                let word = match &this.inner {
                    Inner::Watch(watch) => watch.end_word(),
                    Inner::Full(_) | Inner::Plain(_) => this.ticket.end_if_complete(),
                };
                this.end(word);
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                let len = frame.data_ref().map_or(0, Bytes::len);
                this.ticket.moved(len);
                let sent = usize::try_from(this.ticket.bytes).unwrap_or(usize::MAX);
                this.ticket.handed(len + SEND_BUFFER.min(sent));
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.end("upstream_lost");
                Poll::Ready(Some(Err(AnswerEnd::Upstream(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_empty(),
            Inner::Plain(body) => self.over || body.is_end_stream(),
            Inner::Watch(_) => self.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Plain(body) => body.size_hint(),
            Inner::Watch(_) => SizeHint::default(),
        }
    }
}

impl Drop for EngineBody {
    fn drop(&mut self) {
        // A body that reports its end in advance is not asked again.
        if !self.over && self.is_end_stream() {
            let word = self.ticket.end_if_complete();
            self.end(word);
        }
    }
}
