//! A two-way connection into a container or onto a node: exec, attach, port-forward.
//!
//! ```text
//!  caller ══► door ══► Tunnel::join ══► apiserver, on an HTTP/1.1 connection of its own
//!                        │ counts bytes, ends when either side goes, when it is cancelled, or at the drain's end
//!                        └ audit record
//! ```

use std::{
    fmt, io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header, response::Parts, uri::PathAndQuery,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use runtime::trace;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use tracing::{Instrument as _, Span};

use super::{Ask, Engine, EngineBody, body, ticket::Ticket};
use crate::{
    headers,
    status::Failure,
    streams::{Cancel, CancelReason},
    target::Target,
    upstream::{AnswerBody, RequestBody, Switched},
};

/// Bytes in each direction that are on their way through us.
const BUFFER: usize = 16 * 1024;
/// After one side has ended, the other may go on as long as it moves something within this time. A caller that is
/// gone must not hold its process in the container for longer.
const LINGER: Duration = Duration::from_millis(500);

/// The apiserver's side of an upgraded call, before the caller's side is there.
pub struct Tunnel {
    /// Headers of the apiserver's 101 that concern the caller: the chosen subprotocol.
    pub headers: HeaderMap,
    upstream: TokioIo<Upgraded>,
    ticket: Ticket,
    cancel: Cancel,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Carries out a call that asks for a two-way connection: its headers name the protocol in `Upgrade`.
    ///
    /// # Errors
    /// Everything but the apiserver's 101 is an answer for the caller.
    pub async fn upgrade(&self, ask: Ask) -> Result<Tunnel, Response<EngineBody>> {
        let (target, span, mut ticket) = self.begin(&ask, true);
        let cancel = ask.cancel.clone();
        let outcome = self
            .switch(ask, &target, &mut ticket)
            .instrument(span.clone())
            .await;
        match outcome {
            Ok(Switched::Switched(parts, io)) => {
                ticket.status = StatusCode::SWITCHING_PROTOCOLS;
                span.record("http.response.status_code", parts.status.as_u16());
                Ok(Tunnel {
                    headers: for_the_caller(parts),
                    upstream: TokioIo::new(io),
                    ticket,
                    cancel,
                })
            }
            Ok(Switched::Answer(response)) => {
                let response = response.map(|body: AnswerBody| body::Inner::Plain(Box::new(body)));
                Err(Self::finish(Ok(response), ticket, &span))
            }
            Err(failure) => Err(Self::finish(Err(failure), ticket, &span)),
        }
    }

    async fn switch(&self, ask: Ask, target: &Arc<Target>, ticket: &mut Ticket) -> Result<Switched, Failure> {
        let (headers, own_token) = self.admit(&ask, target, true, ticket)?;
        let wrong = |sentence: &str| Failure::new(StatusCode::BAD_REQUEST, "upgrade", sentence);
        let protocol = headers::upgrade_protocol(&ask.headers)
            .ok_or_else(|| wrong("only upgrades to websocket and SPDY/3.1 are carried"))?;
        let mut call = super::Sendable {
            method: ask.method.clone(),
            headers: headers::clean_upgrade(headers, protocol),
            own_token,
        };
        trace::inject(&Span::current(), &mut call.headers);
        // The rest of what was asked, its body above all, is not held while the apiserver thinks.
        let Ask { uri, cancel, .. } = ask;
        let cancelled = cancel.cancelled();
        let work = async {
            let own = self.own_token(&call)?;
            let switched = self.switch_with(&call, &uri, own.as_ref()).await?;
            let refused = matches!(&switched, Switched::Answer(response) if response.status() == StatusCode::UNAUTHORIZED);
            if refused
                && own_token
                && let Some(newer) = self.inner.upstream.credential().after_refusal(own.as_ref())
            {
                drop(switched);
                return self.switch_with(&call, &uri, Some(&newer)).await;
            }
            Ok(switched)
        };
        tokio::select! {
            biased;
            () = cancelled => Err(super::ended(&cancel)),
            result = work => result,
        }
    }

    async fn switch_with(
        &self,
        call: &super::Sendable,
        uri: &PathAndQuery,
        own: Option<&HeaderValue>,
    ) -> Result<Switched, Failure> {
        let mut request = Request::new(RequestBody::Full(bytes::Bytes::new()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = Uri::from(uri.clone());
        *request.headers_mut() = call.headers.clone();
        if let Some(own) = own {
            request.headers_mut().insert(header::AUTHORIZATION, own.clone());
        }
        let sent = self.inner.upstream.upgrade(request);
        match timeout(self.inner.settings.head_timeout, sent).await {
            Err(_) => Err(self.too_slow()),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Ok(Ok(mut switched)) => {
                self.inner.shared.upstream_answered();
                if let Switched::Answer(response) = &mut switched {
                    headers::clean_response(response.headers_mut());
                }
                Ok(switched)
            }
        }
    }
}

/// Of the apiserver's 101 only what was negotiated end to end.
fn for_the_caller(parts: Parts) -> HeaderMap {
    let mut headers = parts.headers;
    headers::clean_response(&mut headers);
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    headers.remove(header::CONTENT_LENGTH);
    headers
}

impl Tunnel {
    /// Ends the tunnel from outside.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Carries bytes both ways until one side ends or the tunnel is cancelled.
    pub async fn join(mut self, caller: impl AsyncRead + AsyncWrite) {
        let moved = Arc::new(AtomicU64::new(0));
        let (down, cancelled) = (AtomicU64::new(0), self.cancel.cancelled());
        let stream = self.ticket.stream().map(Arc::clone);
        // What moves here counts for the caller's bytes a second; too much of it keeps new calls out.
        let purse = self.ticket.permit.pace();
        let pay = |count: u64| purse.pay(usize::try_from(count).unwrap_or(usize::MAX));
        let end = {
            let (caller_read, caller_write) = tokio::io::split(caller);
            let (upstream_read, upstream_write) = tokio::io::split(&mut self.upstream);
            let mut to_upstream = pin!(pump(caller_read, upstream_write, |count| {
                moved.fetch_add(count, Relaxed);
                pay(count);
            }));
            let mut to_caller = pin!(pump(upstream_read, caller_write, |count| {
                moved.fetch_add(count, Relaxed);
                down.fetch_add(count, Relaxed);
                pay(count);
                if let Some(stream) = &stream {
                    stream.bytes.fetch_add(count, Relaxed);
                }
            }));
            let moves = || moved.load(Relaxed);
            tokio::select! {
                biased;
                () = cancelled => self.cancel.reason().unwrap_or(CancelReason::Caller).word(),
                ended = &mut to_caller => {
                    linger(to_upstream, moves).await;
                    if ended.is_ok() { "complete" } else { "caller_gone" }
                }
                ended = &mut to_upstream => {
                    linger(to_caller, moves).await;
                    if ended.is_ok() { "complete" } else { "upstream_lost" }
                }
            }
        };
        self.ticket.bytes = down.load(Relaxed);
        self.ticket.end = end;
    }
}

/// One direction, to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut moved: impl FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
        to.flush().await?;
        moved(count as u64);
    }
}

/// Lets the other direction go on while it moves anything.
async fn linger(direction: impl Future<Output = io::Result<()>>, moves: impl Fn() -> u64) {
    let mut direction = pin!(direction);
    loop {
        let before = moves();
        tokio::select! {
            _ = &mut direction => return,
            () = sleep(LINGER) => if moves() == before { return },
        }
    }
}
