//! HTTP/2 turned around: over a WebSocket, whichever side dialled it, we are the server.
//!
//! ```text
//!  control plane = HTTP/2 client ══ binary messages = one byte stream ══ HTTP/2 server = we ─► engine
//!      its windows bound what waits in us; ours bound what it uploads
//! ```
//!
//! Each Kubernetes call is one request with the path and query of the Kubernetes API; exec, attach and port-forward
//! are extended CONNECTs (RFC 8441). A drain is a GOAWAY: what is open goes on, what is new goes elsewhere.

mod call;
mod calls;
mod opening;
mod resets;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{
    carrier::Carrier,
    supervise::{Supervisor, chain},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, interval, sleep_until},
};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;

use self::{call::Door, calls::Calls, opening::Opening, resets::Resets};
use super::board::Board;
use crate::{
    engine::Engine, frames::session::SessionEnd, identity::Caller, shared::Shared, streams::CancelReason,
    upstream::Supervised,
};

/// The WebSocket subprotocol that says this is spoken.
pub const SUBPROTOCOL: &str = "pipeops.k8s.h2";

/// Calls at once; a watch is one. The peer is a control plane that knocked with its token.
const STREAMS: u32 = 10_000;
/// What the peer may upload without our reading: per call, and in all, so that 256 stalled uploads fit.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// The grain in which calls take turns; larger brought nothing (measured).
const FRAME: u32 = 16 * 1024;
/// What waits in us for one stalled reader, beside the apiserver's own buffers.
const SEND_BUFFER: usize = 64 * 1024;
/// Large tokens and many groups fit.
const HEADER_LIST: u32 = 256 * 1024;
/// A control plane cancels a thousand calls at once when a page is closed; at h2's own limit of 20 the link would
/// end. What a peer may do of this is bounded by [`Resets`].
const PENDING_RESETS: usize = 10_000;
/// An idle link that died is found within the sum of both; one that is being written to, by the watchdog below it.
/// The sum is below the ten seconds that are promised; the larger part is the answer's, because it queues behind what
/// a slow uplink still has to carry (4 MiB of socket buffer at 6 Mbit/s).
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(6);
/// Until the peer speaks, no ping asks whether it lives: as long as both together.
const BEGIN: Duration = PING_INTERVAL.saturating_add(PING_TIMEOUT);
/// How often open calls are looked through for those whose reader takes nothing.
const LOOK: Duration = Duration::from_secs(1);
/// After a GOAWAY because another link took over: what ends by itself may take so long.
const HANDOVER: Duration = Duration::from_secs(30);
/// After a credential was withdrawn: time for the GOAWAY to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a link needs to work.
#[derive(Clone, Debug)]
pub struct Session {
    /// Carries out the calls.
    pub engine: Engine,
    /// Owns the tasks of calls.
    pub supervisor: Supervisor,
    /// Says when a credential is withdrawn.
    pub shared: Shared,
    /// Where the link tells how it is.
    pub board: Board,
    /// Name of the door.
    pub door: Arc<str>,
    /// Who is at the other end.
    pub caller: Arc<Caller>,
    /// Ends the link: its door is not wanted any more, or another link took over.
    pub stop: CancellationToken,
}

/// Serves a link until it ends.
pub async fn run<S>(socket: WebSocketStream<S>, session: Session) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let calls = Calls::default();
    let door = Door {
        session: session.clone(),
        calls: calls.clone(),
        resets: Arc::new(Resets::new()),
    };
    let service = service_fn(move |request| {
        let door = door.clone();
        // Boxed: once the head is there its memory goes, while the answer itself may last for hours.
        Box::pin(async move { Ok::<_, Infallible>(door.answer(request).await) })
    });
    let mut builder = Builder::new(Supervised(session.supervisor.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .enable_connect_protocol()
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let io = Opening::new(Carrier::new(socket), BEGIN);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));

    let Session {
        supervisor, shared, ..
    } = &session;
    let mut accepted = shared.accepted();
    let mut looks = interval(LOOK);
    // Why and until when, once a GOAWAY was sent.
    let mut leaving: Option<(&'static str, Instant)> = None;
    let end = loop {
        let goes = leaving.map_or_else(Instant::now, |(_, until)| until);
        tokio::select! {
            result = connection.as_mut() => break match (result, leaving) {
                (_, Some((why, _))) => SessionEnd::ByUs(why),
                (Ok(()), None) => SessionEnd::Closed,
                (Err(error), None) => SessionEnd::Lost(chain(&error)),
            },
            _ = looks.tick() => session.look(&calls),
            Ok(()) = accepted.changed() => {
                let held = accepted.borrow_and_update().still_holds(&session.caller);
                if session.caller.digest.is_some() && !held {
                    calls.cancel(CancelReason::Withdrawn, |_| true);
                    connection.as_mut().graceful_shutdown();
                    leaving = Some((CancelReason::Withdrawn.sentence(), Instant::now() + GOODBYE));
                }
            }
            () = session.stop.cancelled(), if leaving.is_none() => {
                connection.as_mut().graceful_shutdown();
                // What never ends by itself is opened again on the link that took over.
                calls.cancel(CancelReason::Draining, |call| call.is_endless());
                leaving = Some(("another link took over, or the door is not wanted any more", Instant::now() + HANDOVER));
            }
            () = supervisor.draining(), if leaving.is_none() => {
                connection.as_mut().graceful_shutdown();
                // The end of the drain is the supervisor's.
                leaving = Some(("k8s-proxy is stopping", Instant::now() + Duration::from_secs(24 * 3600)));
            }
            () = sleep_until(goes), if leaving.is_some() => {
                break SessionEnd::ByUs(leaving.map_or("", |(why, _)| why));
            }
            () = supervisor.cut() => break SessionEnd::ByUs("k8s-proxy is stopping"),
        }
    };
    calls.cancel(CancelReason::ConnectionLost, |_| true);
    session.board.window(&session.door, None);
    end
}

impl Session {
    /// Ends what has to end although nobody asks for its next piece, and tells whether the peer's window is full.
    fn look(&self, calls: &Calls) {
        let seen = calls.look();
        let metrics = self.engine.metrics();
        metrics.stalled.inc_by(seen.ended);
        if seen.window_full {
            let milliseconds = u64::try_from(LOOK.as_millis()).unwrap_or_default();
            metrics.window_blocked.inc_by(milliseconds);
            let why = "the control plane takes no answer, not even the first piece of a new one: its HTTP/2 connection window is too small for its stalled streams";
            self.board.window(&self.door, Some(why));
        } else {
            self.board.window(&self.door, None);
        }
    }
}
