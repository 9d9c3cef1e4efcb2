//! One WebSocket to one k8s-proxy, with many calls at once on it: as HTTP/2 where the proxy takes it, else as frames.
//!
//! ```text
//!  frames:
//!  request / stream ─► out queue ─► writer ─► WebSocket ─► k8s-proxy
//!  Waiting ◄─ table ◄─ decode ◄─ reader ◄─────────┘         (taps see every text message first)
//! ```

pub(super) mod http2;
mod pump;
mod stream;
mod table;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use self::http2::Http2;
use self::table::{Table, Waiting};
pub use self::{
    http2::{LinkBody, Unanswered},
    stream::{End, ResponseStream},
};
use super::frames::{Call, Frame};

/// Messages that wait for the socket; a caller that finds it full waits its turn.
const OUT_QUEUE: usize = 256;
/// Messages a tap keeps for a test that looks later; what is above is counted as lost.
const TAP_QUEUE: usize = 8192;

/// Why a call got no (whole) answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The link ended.
    #[error("the link to the cluster is lost: {0}")]
    Lost(String),
    /// No answer within the time a call may take.
    #[error("the cluster did not answer in time")]
    Timeout,
    /// The caller read too slowly, and its stream was ended.
    #[error("the reader was too slow, its stream was ended")]
    Overflow,
    /// The request does not fit into one frame.
    #[error("the request is larger than a frame of {0} bytes")]
    TooLarge(usize),
    /// Too many calls are open.
    #[error("too many calls are open on this link")]
    Busy,
    /// The proxy ended the stream with this error.
    #[error("{0}")]
    Peer(String),
}

/// Who opened the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The proxy dialled us.
    FromProxy,
    /// We dialled the proxy's `/ws/k8s`.
    ToProxy,
}

/// What a link keeps to.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// Time for a call that is no stream, and for the first frame of one that is.
    pub call_timeout: Duration,
    /// The largest frame that is sent; the proxy closes the link on a larger one.
    pub max_frame_out: usize,
    /// The largest message that is read: a body of 8 MiB in base64, and its frame.
    pub max_frame_in: usize,
    /// Bytes that wait for one caller before its stream is ended: one body of the largest size there is.
    pub queue_bytes: usize,
    /// Time between two WebSocket pings.
    pub ping_interval: Duration,
    /// Silence after which the link is taken for dead.
    pub silence: Duration,
    /// Whether HTTP/2 is spoken where the other side takes it.
    pub http2: bool,
    /// HTTP/2: what may be on its way to one caller who does not read.
    pub stream_window: u32,
    /// HTTP/2: what may be on its way in all. Less than `stream_window` × the streams that may stall at once, and
    /// those hold up everyone else for ever.
    pub connection_window: u32,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(60),
            max_frame_out: 1024 * 1024,
            max_frame_in: 16 * 1024 * 1024,
            queue_bytes: 8 * 1024 * 1024,
            ping_interval: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            http2: true,
            stream_window: 256 * 1024,
            // The largest there is.
            connection_window: i32::MAX as u32,
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers in the order of their names.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
    /// The proxy's sentence when something failed.
    pub error: String,
}

impl Response {
    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
    }
}

impl From<Frame> for Response {
    fn from(answer: Frame) -> Self {
        Self {
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            error: answer.error,
        }
    }
}

/// An open link; clones are made with `Arc`.
pub struct ProxyLink {
    id: u64,
    cluster: String,
    direction: Direction,
    since: SystemTime,
    limits: LinkLimits,
    shared: Arc<Shared>,
    http2: Option<Http2>,
}

/// What callers and the pump of a link share.
struct Shared {
    table: Table,
    out: mpsc::Sender<Message>,
    stall: watch::Sender<bool>,
    /// Asks the pump to end.
    close: CancellationToken,
    /// The pump has ended.
    ended: CancellationToken,
    reason: OnceLock<String>,
    taps: Mutex<Vec<TapSender>>,
    pong: Notify,
    frames_in: AtomicU64,
    bad_in: AtomicU64,
}

struct TapSender {
    queue: mpsc::Sender<String>,
    lost: Arc<AtomicU64>,
}

/// Sees every text message that comes in from its making on.
#[derive(Debug)]
pub struct Tap {
    queue: mpsc::Receiver<String>,
    lost: Arc<AtomicU64>,
}

impl Tap {
    /// The next message, `None` when the link has ended.
    pub async fn next(&mut self) -> Option<String> {
        self.queue.recv().await
    }

    /// The next message if it is there already.
    pub fn try_next(&mut self) -> Option<String> {
        self.queue.try_recv().ok()
    }

    /// Messages that were not kept because nobody took the earlier ones.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl ProxyLink {
    /// Starts to serve an open WebSocket.
    pub fn start<S>(
        socket: WebSocketStream<S>,
        id: u64,
        cluster: &str,
        direction: Direction,
        limits: LinkLimits,
    ) -> Arc<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (shared, queue) = Shared::new(&limits, http2::Hold::new());
        tokio::spawn(pump::run(socket, queue, Arc::clone(&shared), limits));
        let (cluster, since) = (cluster.to_owned(), SystemTime::now());
        Arc::new(Self {
            id,
            cluster,
            direction,
            since,
            limits,
            shared,
            http2: None,
        })
    }

    /// Starts to speak HTTP/2 over an open WebSocket; `hold` has the socket under it.
    ///
    /// # Errors
    /// When the other side does not.
    pub(super) async fn start_http2<S>(
        socket: WebSocketStream<S>,
        hold: http2::Hold,
        id: u64,
        cluster: &str,
        direction: Direction,
        limits: LinkLimits,
    ) -> anyhow::Result<Arc<Self>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (shared, _) = Shared::new(&limits, hold);
        let http2 = Http2::start(socket, Arc::clone(&shared), limits).await?;
        let (cluster, since) = (cluster.to_owned(), SystemTime::now());
        Ok(Arc::new(Self {
            id,
            cluster,
            direction,
            since,
            limits,
            shared,
            http2: Some(http2),
        }))
    }

    /// Whether HTTP/2 is spoken here.
    pub fn is_http2(&self) -> bool {
        self.http2.is_some()
    }

    /// Sends an HTTP request as it is; its URI is the path and query of the Kubernetes API. Only over HTTP/2.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn http(
        &self,
        request: http::Request<axum::body::Body>,
    ) -> Result<http::Response<LinkBody>, Unanswered> {
        match &self.http2 {
            Some(http2) => http2.send(request, &self.shared).await,
            None => Err(Unanswered {
                error: LinkError::Peer("this link speaks frames".to_owned()),
                unsent: Some(request),
            }),
        }
    }

    /// Whether two-way connections can be opened.
    pub async fn carries_upgrades(&self) -> bool {
        match &self.http2 {
            Some(http2) => http2.carries_upgrades().await,
            None => false,
        }
    }

    /// Sends a call and waits for the head of its answer.
    async fn call_http2(&self, call: &Call) -> Result<http::Response<LinkBody>, LinkError> {
        let sent = self.http(http2::request(call)?);
        match timeout(self.limits.call_timeout, sent).await {
            Ok(answer) => answer.map_err(|unanswered| unanswered.error),
            Err(_) => Err(LinkError::Timeout),
        }
    }

    /// Makes one call and waits for its whole answer.
    ///
    /// # Errors
    /// When the link does not bring one.
    pub async fn request(&self, call: &Call) -> Result<Response, LinkError> {
        if self.is_http2() {
            let stream = ResponseStream::http2(self.call_http2(call).await?);
            let (status, headers) = (stream.status(), stream.headers().to_vec());
            let body = timeout(self.limits.call_timeout, stream.collect());
            return Ok(Response {
                status,
                headers,
                body: body.await.map_err(|_| LinkError::Timeout)??,
                error: String::new(),
            });
        }
        let mut waiting = self.send(call, false).await?;
        let first = self.first(&mut waiting).await?;
        Ok(first.into())
    }

    /// Makes a call whose answer is a stream; returns when its status is known.
    ///
    /// # Errors
    /// When no first frame comes.
    pub async fn stream(&self, call: &Call) -> Result<ResponseStream, LinkError> {
        if self.is_http2() {
            return self.call_http2(call).await.map(ResponseStream::http2);
        }
        let mut waiting = self.send(call, true).await?;
        let first = self.first(&mut waiting).await?;
        Ok(ResponseStream::new(waiting, first, Arc::clone(&self.shared)))
    }

    async fn send(&self, call: &Call, stream: bool) -> Result<Waiting, LinkError> {
        let waiting = self.shared.table.open(stream)?;
        let text = call.encode(&waiting.id, stream);
        let sent = if text.len() > self.limits.max_frame_out {
            Err(LinkError::TooLarge(self.limits.max_frame_out))
        } else {
            let sending = self.shared.out.send(Message::text(text));
            match timeout(self.limits.call_timeout, sending).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(self.shared.lost()),
                Err(_) => Err(LinkError::Timeout),
            }
        };
        match sent {
            Ok(()) => Ok(waiting),
            Err(error) => {
                // It never reached the peer, so nothing has to be cancelled there.
                self.shared.table.dispatch(Frame {
                    id: waiting.id.clone(),
                    done: true,
                    ..Frame::default()
                });
                Err(error)
            }
        }
    }

    async fn first(&self, waiting: &mut Waiting) -> Result<Frame, LinkError> {
        let guard = CancelOnDrop {
            shared: &self.shared,
            id: waiting.id.clone(),
        };
        let first = timeout(self.limits.call_timeout, waiting.next())
            .await
            .unwrap_or(Err(LinkError::Timeout));
        if first.is_ok() {
            std::mem::forget(guard);
        }
        first
    }

    /// Sends any text, good or bad.
    ///
    /// # Errors
    /// When the link has ended.
    pub async fn send_text(&self, text: impl Into<String>) -> Result<(), LinkError> {
        let text: String = text.into();
        self.shared
            .out
            .send(Message::text(text))
            .await
            .map_err(|_| self.shared.lost())
    }

    /// Sends any bytes as a binary message.
    ///
    /// # Errors
    /// When the link has ended.
    pub async fn send_binary(&self, bytes: impl Into<Bytes>) -> Result<(), LinkError> {
        self.shared
            .out
            .send(Message::binary(bytes))
            .await
            .map_err(|_| self.shared.lost())
    }

    /// Sends the protocol's own ping and waits for its pong.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ping(&self) -> Result<(), LinkError> {
        let pong = self.shared.pong.notified();
        self.send_text(r#"{"type":"ping"}"#).await?;
        tokio::select! {
            () = pong => Ok(()),
            () = self.shared.ended.cancelled() => Err(self.shared.lost()),
            () = tokio::time::sleep(self.limits.call_timeout) => Err(LinkError::Timeout),
        }
    }

    /// Looks at every text message from here on.
    pub fn tap(&self) -> Tap {
        let (sender, queue) = mpsc::channel(TAP_QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let tap = TapSender {
            queue: sender,
            lost: Arc::clone(&lost),
        };
        self.shared
            .taps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(tap);
        Tap { queue, lost }
    }

    /// While true nothing is read from the socket, so that the proxy finds its side full.
    pub fn stall(&self, on: bool) {
        self.shared.stall.send_replace(on);
    }

    /// Closes the WebSocket in order, with a code, and waits for the end.
    pub async fn close(&self, code: u16) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "closed by the control plane".into(),
        };
        let _ = self.shared.out.send(Message::Close(Some(frame))).await;
        self.shared.end("closed by the control plane");
        if self.is_http2() {
            self.shared.close.cancel();
        }
        self.shared.ended.cancelled().await;
    }

    /// Drops the socket without a word.
    pub fn cut(&self, reason: &str) {
        self.shared.end(reason);
        self.shared.close.cancel();
    }

    /// Waits for the end and says why.
    pub async fn closed(&self) -> String {
        self.shared.ended.cancelled().await;
        self.shared.reason.get().cloned().unwrap_or_default()
    }

    /// Whether calls can be made.
    pub fn is_open(&self) -> bool {
        !self.shared.ended.is_cancelled()
            && !self.shared.close.is_cancelled()
            && self.http2.as_ref().is_none_or(Http2::is_open)
    }

    /// Number of this link, rising with each new one of the control plane.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Cluster it leads to.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Who opened it.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Requests that are not answered to the end.
    pub fn open_streams(&self) -> usize {
        self.shared.table.len() + self.http2.as_ref().map_or(0, Http2::open_streams)
    }

    /// Frames of streams that are not open: after CANCEL and its `done` this must not grow.
    pub fn stray(&self) -> u64 {
        self.shared.table.stray()
    }

    /// The link as people see it.
    pub fn view(&self) -> LinkView {
        LinkView {
            id: self.id,
            direction: self.direction,
            since: jiff::Timestamp::try_from(self.since)
                .unwrap_or_default()
                .to_string(),
            http2: self.is_http2(),
            open_streams: self.open_streams(),
            frames_in: self.shared.frames_in.load(Ordering::Relaxed),
            bad_frames_in: self.shared.bad_in.load(Ordering::Relaxed),
            stray_frames_in: self.stray(),
            stalled: *self.shared.stall.borrow(),
        }
    }
}

impl fmt::Debug for ProxyLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyLink")
            .field("id", &self.id)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// A link as people see it.
#[derive(Clone, Debug, Serialize)]
pub struct LinkView {
    /// Number of the link.
    pub id: u64,
    /// Who opened it.
    pub direction: Direction,
    /// Open since (RFC 3339).
    pub since: String,
    /// Whether HTTP/2 is spoken, else frames.
    pub http2: bool,
    /// Requests that are not answered to the end.
    pub open_streams: usize,
    /// Text messages that came.
    pub frames_in: u64,
    /// Messages that were no frames of the contract.
    pub bad_frames_in: u64,
    /// Frames of streams that are not open.
    pub stray_frames_in: u64,
    /// Whether nothing is read from it.
    pub stalled: bool,
}

impl Shared {
    fn new(limits: &LinkLimits, hold: http2::Hold) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        let shared = Self {
            table: Table::new(limits.queue_bytes),
            out,
            stall: hold.stall,
            close: hold.cut,
            ended: CancellationToken::new(),
            reason: OnceLock::new(),
            taps: Mutex::default(),
            pong: Notify::new(),
            frames_in: AtomicU64::new(0),
            bad_in: AtomicU64::new(0),
        };
        (Arc::new(shared), queue)
    }

    fn lost(&self) -> LinkError {
        LinkError::Lost(self.reason.get().cloned().unwrap_or_else(|| "closed".to_owned()))
    }

    /// Keeps the first reason for the end.
    fn end(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
    }

    /// Sends CANCEL without waiting: from `drop`, and from the reader, which must never wait for the writer.
    fn cancel_later(self: &Arc<Self>, (id, stream_id): (String, String)) {
        let message = Message::text(Call::cancel(&id, &stream_id));
        if let Err(mpsc::error::TrySendError::Full(message)) = self.out.try_send(message) {
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                let _ = shared.out.send(message).await;
            });
        }
    }
}

/// Cancels a call whose caller stops waiting for the first frame.
struct CancelOnDrop<'a> {
    shared: &'a Arc<Shared>,
    id: String,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ids) = self.shared.table.abandon(&self.id) {
            self.shared.cancel_later(ids);
        }
    }
}
