//! Bodies towards the apiserver and back.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::{h1, h2};

/// Whatever a caller's connection can fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An ordinary answer that brings nothing for so long is taken for lost. Watches have no such limit.
const SILENCE: Duration = Duration::from_secs(60);

/// The body of a request.
pub enum RequestBody {
    /// All of it is here, so that it can be sent a second time.
    Full(Bytes),
    /// It comes from the caller as we send.
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

impl RequestBody {
    /// The same body again, if it is all here.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Stream(_) => None,
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke.
    #[error("the connection to the apiserver broke in the middle of its answer")]
    Http(#[source] hyper::Error),
    /// Nothing came for too long.
    #[error("the apiserver sent nothing for {SILENCE:?} in the middle of its answer")]
    Silence,
}

/// What a body gives back when it ends or is dropped.
pub(super) enum Held {
    H1(h1::Returned),
    H2(h2::Lease),
}

/// The body of an answer, with the connection it comes from. Dropping it before its end cancels the call.
pub struct AnswerBody {
    incoming: Incoming,
    held: Option<Held>,
    /// Runs while an ordinary answer is silent.
    silence: Option<Pin<Box<Sleep>>>,
    endless: bool,
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerBody")
            .field("endless", &self.endless)
            .finish_non_exhaustive()
    }
}

impl AnswerBody {
    pub(super) fn new(incoming: Incoming, held: Held, endless: bool) -> Self {
        let mut body = Self {
            incoming,
            held: Some(held),
            silence: None,
            endless,
        };
        body.give_back_at_end();
        body
    }

    fn give_back_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            match self.held.take() {
                Some(Held::H1(returned)) => returned.give_back(),
                Some(Held::H2(lease)) => drop(lease),
                None => {}
            }
        }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.endless {
            return Poll::Pending;
        }
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(SILENCE)));
        match silence.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(BodyError::Silence))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => this.poll_silence(cx),
            Poll::Ready(Some(Ok(frame))) => {
                this.silence = None;
                this.give_back_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.held = None;
                Poll::Ready(Some(Err(BodyError::Http(error))))
            }
            Poll::Ready(None) => {
                match this.held.take() {
                    Some(Held::H1(returned)) => returned.give_back(),
                    Some(Held::H2(lease)) => drop(lease),
                    None => {}
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
