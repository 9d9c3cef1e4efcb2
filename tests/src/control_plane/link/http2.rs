//! A link that speaks HTTP/2 over its WebSocket: we are the client, whichever side dialled.
//!
//! The windows are ours to size, and they decide whether stalled readers hold up everyone else: the connection's window
//! must be larger than all streams that may stall can hold.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body::{Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use runtime::carrier::Carrier;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{LinkError, LinkLimits, Shared};
use crate::control_plane::frames::Call;

/// The WebSocket subprotocol that says this is spoken.
pub(crate) const SUBPROTOCOL: &str = "pipeops.k8s.h2";
/// The proxy's SETTINGS are the first thing it sends.
const SETTINGS: Duration = Duration::from_secs(5);

/// The client's end.
#[derive(Debug)]
pub(super) struct Http2 {
    sender: SendRequest<Body>,
    open: Arc<AtomicUsize>,
    /// The proxy has said that it carries two-way connections.
    upgrades: watch::Receiver<bool>,
}

/// A request that brought no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub error: LinkError,
    /// The request, if the peer has certainly not seen it.
    pub unsent: Option<Request<Body>>,
}

impl Http2 {
    /// Begins to speak; the connection lives until it is lost or asked to close.
    pub(super) async fn start<S>(
        socket: WebSocketStream<S>,
        shared: Arc<Shared>,
        limits: LinkLimits,
    ) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_header_list_size(256 * 1024)
            .max_concurrent_reset_streams(10_000)
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.silence)
            .keep_alive_while_idle(true);
        let (sender, connection) = builder
            .handshake(TokioIo::new(Carrier::new(socket)))
            .await
            .context("beginning HTTP/2")?;
        let (said, upgrades) = watch::channel(false);
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // Whether the proxy carries two-way connections is in its SETTINGS, which only the connection sees.
            let driven = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                let carries = connection.is_extended_connect_protocol_enabled();
                said.send_if_modified(|said| carries && !std::mem::replace(said, true));
                polled
            });
            let reason = tokio::select! {
                ended = driven => match ended {
                    Ok(()) => "the proxy ended the connection".to_owned(),
                    Err(error) => runtime::supervise::chain(&error),
                },
                () = shared.close.cancelled() => "cut by the control plane".to_owned(),
            };
            shared.end(&reason);
            shared.close.cancel();
            shared.ended.cancel();
        });
        Ok(Self {
            sender,
            open: Arc::default(),
            upgrades,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub(super) fn open_streams(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Sends a request whose URI is a path and query.
    pub(super) async fn send(
        &self,
        mut request: Request<Body>,
        shared: &Shared,
    ) -> Result<Response<LinkBody>, Unanswered> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        // Nobody looks at the authority; HTTP/2 wants one.
        let uri = format!("http://kubernetes{path}").parse::<Uri>();
        match uri {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => {
                return Err(Unanswered {
                    error: LinkError::Peer(error.to_string()),
                    unsent: None,
                });
            }
        }
        let guard = Open::new(&self.open);
        let mut sender = self.sender.clone();
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|incoming| LinkBody {
                incoming,
                _open: guard,
            })),
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                let error = match shared.lost() {
                    LinkError::Lost(reason) if reason == "closed" => {
                        LinkError::Lost(runtime::supervise::chain(&error))
                    }
                    lost => lost,
                };
                Err(Unanswered { error, unsent })
            }
        }
    }

    /// Waits until the peer has said that it carries two-way connections.
    pub(super) async fn carries_upgrades(&self) -> bool {
        let mut upgrades = self.upgrades.clone();
        matches!(
            timeout(SETTINGS, upgrades.wait_for(|carries| *carries)).await,
            Ok(Ok(_))
        )
    }
}

/// A call as an HTTP request.
pub(super) fn request(call: &Call) -> Result<Request<Body>, LinkError> {
    let wrong = |error: http::Error| LinkError::Peer(error.to_string());
    let query: String = {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, values) in &call.query {
            for value in values {
                query.append_pair(name, value);
            }
        }
        query.finish()
    };
    let uri = if query.is_empty() {
        call.path.clone()
    } else {
        format!("{}?{query}", call.path)
    };
    let mut request = Request::builder().method(call.method.as_str()).uri(uri);
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    if call.accept_gzip {
        request = request.header(header::ACCEPT_ENCODING, "gzip");
    }
    request.body(Body::from(call.body.clone())).map_err(wrong)
}

/// Counts a stream while it is open.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer; dropping it before its end cancels the call.
#[derive(Debug)]
pub struct LinkBody {
    incoming: Incoming,
    _open: Open,
}

impl http_body::Body for LinkBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// What can be done to the socket under a link: nothing is read while it is stalled, and it fails once it is cut.
///
/// HTTP/2 keeps a socket for as long as any stream of it is held, so dropping the connection would not end it.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(super) stall: watch::Sender<bool>,
    pub(super) cut: CancellationToken,
}

impl Hold {
    pub(crate) fn new() -> Self {
        Self {
            stall: watch::Sender::new(false),
            cut: CancellationToken::new(),
        }
    }
}

/// A stream under a [`Hold`].
pub(crate) struct Stallable<S> {
    inner: S,
    hold: Hold,
    /// Resolves when it is cut.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Stallable<S> {
    pub(crate) fn new(inner: S, hold: &Hold) -> Self {
        Self {
            inner,
            hold: hold.clone(),
            cut: Box::pin(hold.cut.clone().cancelled_owned()),
            waiting: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stallable<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if *this.hold.stall.borrow() && this.waiting.is_none() {
            let mut stalled = this.hold.stall.subscribe();
            this.waiting = Some(Box::pin(async move {
                let _ = stalled.wait_for(|on| !on).await;
            }));
        }
        if let Some(waiting) = &mut this.waiting {
            ready!(waiting.as_mut().poll(cx));
            this.waiting = None;
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stallable<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
