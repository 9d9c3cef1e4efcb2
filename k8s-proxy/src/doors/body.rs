//! Bodies as the doors of HTTP take them in and give them back.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    engine::{AnswerEnd, EngineBody},
    status::Failure,
    streams::CancelReason,
    upstream::{BoxError, RequestBody},
};

/// Small bodies are taken in whole, so that they can be sent again with a newer token.
const SMALL_BODY: u64 = 64 * 1024;

pub(super) async fn take_body(body: Incoming) -> Result<RequestBody, Failure> {
    if body.is_end_stream() {
        return Ok(RequestBody::Full(Bytes::new()));
    }
    if body.size_hint().exact().is_some_and(|size| size <= SMALL_BODY) {
        let whole = body.collect().await.map_err(|error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                "body",
                format!("the request body did not arrive: {error}"),
            )
        })?;
        return Ok(RequestBody::Full(whole.to_bytes()));
    }
    Ok(RequestBody::Stream(body.map_err(BoxError::from).boxed_unsync()))
}

/// What goes back through an HTTP door.
#[derive(Debug)]
pub enum DoorBody {
    /// A refusal.
    Full(Bytes),
    /// An answer of the engine.
    Engine(Box<EngineBody>),
}

impl Body for DoorBody {
    type Data = Bytes;
    type Error = AnswerEnd;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerEnd>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Engine(body) => Poll::Ready(match ready!(Pin::new(body.as_mut()).poll_frame(cx)) {
                // Between two events a watch may end at any time; its client opens it again. Anything else that is
                // cut short must look cut short.
                Some(Err(AnswerEnd::Cancelled(CancelReason::Draining))) if body.is_events() => None,
                frame => frame,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Engine(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Engine(body) => body.size_hint(),
        }
    }
}
