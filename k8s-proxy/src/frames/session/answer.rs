//! One call on a frame connection: ask the engine, turn the answer into frames.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::{sync::Notify, time::timeout};

use super::{Context, calls::Calls, calls::Open};
use crate::{
    engine::{AnswerEnd, Ask, EngineBody, Ours},
    frames::{
        codec::{self, Call, Outbound},
        outbox::{Outbox, Push},
    },
    status::Failure,
    streams::{CancelReason, Share},
    target::Target,
    upstream::RequestBody,
};

/// Largest body that fits one frame.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Largest piece of a streamed body; with base64 and the rest it stays below 1 MiB.
const MAX_PIECE: usize = 760 * 1024;
/// A body that becomes a frame is in memory as it came, as base64, and as the frame.
const COPIES: usize = 4;
/// Compressing more than this would keep the event loop from everybody else.
const COMPRESS_INLINE: usize = 128 * 1024;

/// Carries one call from its frame to its last answer.
pub(super) struct Carrier {
    pub(super) context: Context,
    pub(super) outbox: Outbox,
    pub(super) calls: Calls,
    pub(super) room: Arc<Notify>,
    pub(super) open: Open,
}

/// How the frames of a call end.
enum End {
    Done {
        status: u16,
        error: String,
    },
    Failed(Failure),
    /// Somebody else has sent the last frame, or nobody is there to read it.
    Closed,
}

impl Carrier {
    pub(super) async fn run(self, call: Call) {
        let (stream, gzip) = (call.stream, call.gzip);
        if !stream && Target::read(&call.method, &call.uri, false).endless() {
            let sentence = "a watch or a followed log has no end: ask with stream:true";
            return self.fail(
                &Failure::new(StatusCode::BAD_REQUEST, "needs_stream", sentence),
                false,
            );
        }
        let mut headers = call.headers;
        let authorization = headers.remove(header::AUTHORIZATION);
        // What is compressed on this socket is marked by the frame, not by a header inside it.
        headers.remove(header::ACCEPT_ENCODING);
        let lines = headers.len();
        let ask = Ask {
            door: Arc::clone(&self.context.door),
            caller: Arc::clone(&self.context.caller),
            request_id: call.id,
            method: call.method,
            uri: call.uri,
            headers,
            authorization,
            body: RequestBody::Full(call.body),
            rewatch_clean_end: stream,
            cancel: self.open.cancel.clone(),
        };
        // Boxed: once the head is there its memory goes, while the answer itself may last for hours.
        let response = Box::pin(self.context.engine.call(ask)).await;
        if response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE && response.body().is_end_stream()
        {
            // Refused before anything of Kubernetes looked at it, so nobody has written a Status.
            let sentence = format!(
                "the apiserver takes no request with so many or so large headers ({lines} lines here): send fewer"
            );
            let failure = Failure::new(response.status(), "headers", sentence);
            return self.fail(&failure, false);
        }
        let streamed = stream && response.status().as_u16() < 400;
        if streamed {
            self.stream(response, gzip).await;
        } else {
            self.plain(response, gzip).await;
        }
    }

    async fn plain(&self, response: Response<EngineBody>, gzip: bool) {
        let (parts, mut body) = response.into_parts();
        if let Some(hold) = body.hand_over_hold() {
            self.outbox.count(self.open.key, hold);
        }
        let error = parts
            .extensions
            .get::<Ours>()
            .map(|ours| ours.0.message.clone())
            .unwrap_or_default();
        let mut room = self.context.engine.streams().budget().share();
        let body = match self.gather(body, &mut room).await {
            Ok(body) => body,
            Err(failure) => return self.fail(&failure, false),
        };
        let (body, marked) = pack(gzip, &parts.headers, body).await;
        let frame = Outbound {
            id: &self.open.id,
            status: parts.status.as_u16(),
            headers: Some(&parts.headers),
            body: &body,
            gzip: marked,
            error: &error,
            stream: self.open.stream,
            stream_id: &self.open.stream_id,
            done: true,
            ..Outbound::default()
        };
        self.last(frame.write(), false);
    }

    /// A whole body, as far as it fits a frame and there is memory for it.
    async fn gather(&self, mut body: EngineBody, room: &mut Share) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| Failure::new(StatusCode::BAD_GATEWAY, "upstream", error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > MAX_BODY {
                let sentence =
                    "the answer is larger than 8 MiB: ask with stream:true, or with limit and continue";
                return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", sentence));
            }
            tokio::select! {
                grown = timeout(self.context.stall, room.grow(data.len() * COPIES)) => if grown.is_err() {
                    let sentence = "too many bytes wait on this agent";
                    return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "memory", sentence).retry_after(1));
                },
                () = self.open.cancel.cancelled() => {}
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    async fn stream(&self, response: Response<EngineBody>, gzip: bool) {
        let (parts, mut body) = response.into_parts();
        if let Some(hold) = body.hand_over_hold() {
            self.outbox.count(self.open.key, hold);
        }
        let status = parts.status.as_u16();
        let head = Outbound {
            headers: Some(&parts.headers),
            ..self.piece(status)
        };
        let mut end = self.push(head.write()).await.err();
        while end.is_none() {
            end = match body.frame().await {
                None => Some(End::Done {
                    status,
                    error: String::new(),
                }),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pieces(data, gzip, &parts.headers, status).await.err(),
                    Err(_) => None,
                },
                Some(Err(AnswerEnd::Cancelled(CancelReason::Memory))) => Some(End::Failed(Failure::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "stalled",
                    CancelReason::Memory.sentence(),
                ))),
                Some(Err(AnswerEnd::Cancelled(reason))) => Some(End::Done {
                    status,
                    error: reason.sentence().to_owned(),
                }),
                Some(Err(AnswerEnd::Upstream(why))) => Some(End::Failed(Failure::new(
                    StatusCode::BAD_GATEWAY,
                    "upstream",
                    why,
                ))),
            };
        }
        // The apiserver's side goes first: the caller may count on it once it has the last frame.
        drop(body);
        match end {
            Some(End::Done { status, error }) => {
                let frame = Outbound {
                    error: &error,
                    done: true,
                    ..self.piece(status)
                };
                self.last(frame.write(), false);
            }
            Some(End::Failed(failure)) => self.fail(&failure, failure.cause == "stalled"),
            Some(End::Closed) | None => self.calls.remove(&self.open),
        }
    }

    /// One whole event, or a part of a body; cut only where it is larger than a frame may be.
    async fn pieces(&self, mut data: Bytes, gzip: bool, headers: &HeaderMap, status: u16) -> Result<(), End> {
        while !data.is_empty() {
            let piece = data.split_to(MAX_PIECE.min(data.len()));
            let (piece, marked) = pack(gzip, headers, piece).await;
            let frame = Outbound {
                body: &piece,
                gzip: marked,
                chunk: true,
                ..self.piece(status)
            };
            self.push(frame.write()).await?;
        }
        Ok(())
    }

    fn piece(&self, status: u16) -> Outbound<'_> {
        Outbound {
            id: &self.open.id,
            status,
            stream: true,
            stream_id: &self.open.stream_id,
            ..Outbound::default()
        }
    }

    /// Queues a frame, waiting for room. A reader that takes nothing for too long loses the call.
    async fn push(&self, mut frame: String) -> Result<(), End> {
        loop {
            match self.outbox.push(self.open.key, &mut frame) {
                Push::Queued => return Ok(()),
                Push::Closed => return Err(End::Closed),
                Push::Full => {}
            }
            let cancelled = self.open.cancel.cancelled();
            let waited = timeout(self.context.stall, async {
                tokio::select! { () = self.room.notified() => false, () = cancelled => true }
            });
            match waited.await {
                Ok(false) => {}
                Ok(true) => {
                    let reason = self.open.cancel.reason().unwrap_or(CancelReason::Caller);
                    if reason == CancelReason::Memory {
                        return Err(End::Failed(Failure::new(
                            StatusCode::GATEWAY_TIMEOUT,
                            "stalled",
                            reason.sentence(),
                        )));
                    }
                    return Err(End::Done {
                        status: 200,
                        error: reason.sentence().to_owned(),
                    });
                }
                Err(_) => {
                    self.context.engine.metrics().stalled.inc();
                    let sentence = format!("the reader took nothing for {:?}", self.context.stall);
                    return Err(End::Failed(Failure::new(
                        StatusCode::GATEWAY_TIMEOUT,
                        "stalled",
                        sentence,
                    )));
                }
            }
        }
    }

    fn fail(&self, failure: &Failure, discard: bool) {
        let (head, body) = (failure.response(()), failure.json());
        let frame = Outbound {
            headers: Some(head.headers()),
            body: &body,
            error: &failure.message,
            stream: self.open.stream,
            done: true,
            ..self.piece(failure.code.as_u16())
        };
        self.last(frame.write(), discard);
    }

    fn last(&self, frame: String, discard: bool) {
        self.outbox.finish(self.open.key, frame, discard);
        self.calls.remove(&self.open);
    }
}

/// Compresses what is worth it, and says whether it did.
async fn pack(gzip: bool, headers: &HeaderMap, body: Bytes) -> (Bytes, bool) {
    if !gzip || !codec::compressible(headers, body.len()) {
        return (body, false);
    }
    let packed = if body.len() <= COMPRESS_INLINE {
        codec::gzip(&body)
    } else {
        let body = body.clone();
        tokio::task::spawn_blocking(move || codec::gzip(&body))
            .await
            .ok()
            .flatten()
    };
    match packed {
        Some(packed) => (packed.into(), true),
        None => (body, false),
    }
}
