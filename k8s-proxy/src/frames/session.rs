//! One frame connection, from its first frame to its last.
//!
//! Reading, writing and pinging go on side by side; each call is a task of its own. Nothing a call does can keep
//! the reader from reading or the writer from pinging. The end of the connection cancels every call on it once.

mod answer;
mod calls;

use std::{sync::Arc, time::Duration};

use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use http::StatusCode;
use runtime::supervise::Supervisor;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::{Instant, interval, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    codec::{self, BadFrame, Call, Inbound, Outbound},
    outbox::{Item, Limits, Outbox},
};
use crate::{
    engine::Engine,
    identity::Caller,
    shared::Shared,
    status::Failure,
    streams::{Cancel, CancelReason},
};
use calls::Calls;

/// Silence after which the peer is pinged, and how long its answer may take: together below the ten seconds within
/// which an idle link that died is to be found. The larger part is the answer's, because it queues behind what a slow
/// uplink still has to carry (4 MiB of socket buffer at 6 Mbit/s).
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(6);
/// A call whose reader takes nothing for so long is ended.
const STALL: Duration = Duration::from_secs(30);
/// What may wait for one call and for the connection. One frame may go over each.
const LIMITS: Limits = Limits {
    per_call: 256 * 1024,
    total: 16 * 1024 * 1024,
};
/// Our close frame and the peer's answer to it.
const GOODBYE: Duration = Duration::from_secs(2);
/// Cause of a refusal that concerns a call with the id of another.
const DUPLICATE: &str = "duplicate_id";
/// How often a draining connection looks whether its calls are over.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// What a connection needs to work.
#[derive(Clone, Debug)]
pub struct Context {
    /// Carries out the calls.
    pub engine: Engine,
    /// Owns the tasks of calls.
    pub supervisor: Supervisor,
    /// Says when a credential is withdrawn.
    pub shared: Shared,
    /// Name of the door.
    pub door: Arc<str>,
    /// Who is at the other end.
    pub caller: Arc<Caller>,
    /// How long a reader may take nothing.
    pub stall: Duration,
    /// Closes the connection: its door is not wanted any more.
    pub stop: CancellationToken,
}

impl Context {
    /// With the ordinary limits.
    pub fn new(
        engine: Engine,
        supervisor: Supervisor,
        shared: Shared,
        door: Arc<str>,
        caller: Arc<Caller>,
    ) -> Self {
        Self {
            engine,
            supervisor,
            shared,
            door,
            caller,
            stall: STALL,
            stop: CancellationToken::new(),
        }
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The peer closed it.
    Closed,
    /// We closed it.
    ByUs(&'static str),
    /// It broke, or the peer did not answer.
    Lost(String),
}

impl SessionEnd {
    /// One sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Closed => "closed by the peer".to_owned(),
            Self::ByUs(why) => format!("closed by us: {why}"),
            Self::Lost(why) => format!("lost: {why}"),
        }
    }
}

/// Why the reader stopped.
enum Stop {
    /// Nothing can be sent any more.
    Gone(SessionEnd),
    /// Say goodbye with this code.
    Close(u16, &'static str),
    /// The same after a frame that was too large; the rest of it is still on its way.
    TooLarge,
}

/// Serves a connection until it ends.
pub async fn run<S>(socket: WebSocketStream<S>, context: Context) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let outbox = Outbox::new(LIMITS);
    let calls = Calls::default();
    let (mut sink, mut stream) = socket.split();
    let stop = {
        let session = Session {
            context: &context,
            outbox: &outbox,
            calls: &calls,
        };
        tokio::select! {
            stop = session.read(&mut stream) => stop,
            result = write(&mut sink, &outbox) => {
                Stop::Gone(SessionEnd::Lost(result.err().map_or_else(|| "closed".to_owned(), |error| error.to_string())))
            }
        }
    };
    calls.cancel_all(CancelReason::ConnectionLost);
    let end = match stop {
        Stop::Gone(end) => {
            timeout(GOODBYE, sink.close()).await.ok();
            end
        }
        Stop::Close(code, why) => {
            say_goodbye(&mut sink, &outbox, code, why).await;
            timeout(GOODBYE, async { while let Some(Ok(_)) = stream.next().await {} })
                .await
                .ok();
            SessionEnd::ByUs(why)
        }
        Stop::TooLarge => {
            let why = "frame larger than 1 MiB";
            say_goodbye(&mut sink, &outbox, CloseCode::Size.into(), why).await;
            // Closing with bytes unread would reset the connection, and the peer would never see why.
            if let Ok(mut socket) = stream.reunite(sink) {
                timeout(GOODBYE, discard(socket.get_mut())).await.ok();
            }
            SessionEnd::ByUs(why)
        }
    };
    outbox.abandon();
    debug!(door = %context.door, end = end.sentence(), "a frame connection ended");
    end
}

async fn say_goodbye<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    outbox: &Outbox,
    code: u16,
    why: &'static str,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    outbox.control(Item::Close(code, why.to_owned()));
    timeout(GOODBYE, write(sink, outbox)).await.ok();
}

async fn discard(raw: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 16 * 1024];
    while raw.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Writes what waits, in the order the outbox gives, and flushes when nothing waits. Ends after a close frame.
async fn write<S>(sink: &mut SplitSink<WebSocketStream<S>, Message>, outbox: &Outbox) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let item = match outbox.take() {
            Some(item) => item,
            None => {
                sink.flush().await?;
                outbox.next().await
            }
        };
        match item {
            Item::Text(text) => sink.feed(Message::Text(text.into())).await?,
            Item::Ping => sink.feed(Message::Ping(bytes::Bytes::new())).await?,
            Item::Close(code, why) => {
                let frame = CloseFrame {
                    code: code.into(),
                    reason: Utf8Bytes::from(why),
                };
                sink.send(Message::Close(Some(frame))).await?;
                return Ok(());
            }
        }
    }
}

struct Session<'a> {
    context: &'a Context,
    outbox: &'a Outbox,
    calls: &'a Calls,
}

impl Session<'_> {
    async fn read<S>(&self, stream: &mut SplitStream<WebSocketStream<S>>) -> Stop
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let supervisor = &self.context.supervisor;
        let mut accepted = self.context.shared.accepted();
        let (mut heard, mut pinged) = (Instant::now(), None);
        let mut drain_poll = interval(DRAIN_POLL);
        let mut draining = supervisor.is_draining();
        loop {
            let next_ping = pinged.map_or(heard + PING_INTERVAL, |pinged: Instant| pinged + PING_TIMEOUT);
            tokio::select! {
                message = stream.next() => {
                    heard = Instant::now();
                    pinged = None;
                    match message {
                        None => return Stop::Gone(SessionEnd::Closed),
                        Some(Ok(message)) => if let Some(stop) = self.message(message) { return stop },
                        Some(Err(Error::Capacity(_))) => return Stop::TooLarge,
                        Some(Err(Error::Utf8(_))) => return Stop::Close(CloseCode::Invalid.into(), "text that is not UTF-8"),
                        Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                            return Stop::Gone(SessionEnd::Closed);
                        }
                        Some(Err(error)) => return Stop::Gone(SessionEnd::Lost(error.to_string())),
                    }
                }
                () = sleep_until(next_ping) => {
                    if pinged.is_some() {
                        let why = format!("no answer to a ping within {PING_TIMEOUT:?}");
                        return Stop::Gone(SessionEnd::Lost(why));
                    }
                    self.outbox.control(Item::Ping);
                    pinged = Some(Instant::now());
                }
                Ok(()) = accepted.changed() => {
                    let held = accepted.borrow_and_update().still_holds(&self.context.caller);
                    if self.context.caller.digest.is_some() && !held {
                        self.calls.cancel_all(CancelReason::Withdrawn);
                        return Stop::Close(CloseCode::Policy.into(), CancelReason::Withdrawn.sentence());
                    }
                }
                () = self.context.stop.cancelled() => {
                    self.calls.cancel_all(CancelReason::Withdrawn);
                    return Stop::Close(CloseCode::Normal.into(), "this door is not wanted any more");
                }
                () = supervisor.draining(), if !draining => draining = true,
                _ = drain_poll.tick(), if draining => {
                    if supervisor.is_cut() || (self.calls.is_empty() && self.outbox.is_idle()) {
                        return Stop::Close(CloseCode::Normal.into(), "k8s-proxy is stopping");
                    }
                }
            }
        }
    }

    fn message(&self, message: Message) -> Option<Stop> {
        match message {
            Message::Text(text) => self.frame(&text),
            // Some callers put their JSON into binary frames.
            Message::Binary(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.frame(text),
                Err(_) => self.refuse(
                    "",
                    &Failure::new(
                        StatusCode::BAD_REQUEST,
                        "bad_frame",
                        "this is not a frame: not UTF-8",
                    ),
                ),
            },
            Message::Close(_) => return Some(Stop::Gone(SessionEnd::Closed)),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
        None
    }

    fn frame(&self, text: &str) {
        match codec::read(text) {
            Err(BadFrame { id, failure }) => {
                self.context
                    .engine
                    .metrics()
                    .refused
                    .with_label_values(&[failure.cause])
                    .inc();
                self.refuse(&id, &failure);
            }
            Ok(Inbound::Ping) => self.outbox.control(Item::Text(r#"{"type":"pong"}"#.to_owned())),
            Ok(Inbound::Pong) => {}
            Ok(Inbound::Cancel { id, target }) => self.cancel(&id, &target),
            Ok(Inbound::Call(call)) => self.open(*call),
        }
    }

    /// An error frame beside all queues: it belongs to no call.
    fn refuse(&self, id: &str, failure: &Failure) {
        let (head, body) = (failure.response(()), failure.json());
        let frame = Outbound {
            id,
            status: failure.code.as_u16(),
            headers: Some(head.headers()),
            body: &body,
            error: &failure.message,
            // An id that is open twice: the frame must not look like the end of the first.
            done: failure.cause != DUPLICATE,
            ..Outbound::default()
        };
        self.outbox.control(Item::Text(frame.write()));
    }

    fn cancel(&self, id: &str, target: &str) {
        match self.calls.remove_named(target) {
            Some(open) => {
                // First the last frame, so that nothing the dying call still does can come after it.
                let (status, error) = if open.stream {
                    (200, "")
                } else {
                    (499, CancelReason::Caller.sentence())
                };
                let frame = Outbound {
                    id: &open.id,
                    status,
                    error,
                    stream: open.stream,
                    stream_id: &open.stream_id,
                    done: true,
                    ..Outbound::default()
                };
                self.outbox.finish(open.key, frame.write(), true);
                open.cancel.cancel(CancelReason::Caller);
            }
            // It crossed the last frame of its call on the way.
            None if self.calls.has_ended(target) => {}
            None => {
                let sentence = format!("nothing is open by the name {target:?}");
                self.refuse(
                    id,
                    &Failure::new(StatusCode::NOT_FOUND, "unknown_stream", sentence),
                );
            }
        }
    }

    fn open(&self, call: Call) {
        if self.context.supervisor.is_draining() {
            let failure = Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                CancelReason::Draining.sentence(),
            );
            return self.refuse(&call.id, &failure.retry_after(1));
        }
        let cancel = Cancel::default();
        let Some(open) = self.calls.open(&call.id, call.stream, cancel) else {
            let sentence = format!("a call with id {:?} is open already", call.id);
            return self.refuse(&call.id, &Failure::new(StatusCode::CONFLICT, DUPLICATE, sentence));
        };
        let room = self.outbox.open(open.key);
        let carrier = answer::Carrier {
            context: self.context.clone(),
            outbox: self.outbox.clone(),
            calls: self.calls.clone(),
            room,
            open,
        };
        self.context.supervisor.spawn("call", carrier.run(call));
    }
}
