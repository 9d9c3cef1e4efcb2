//! HTTP/2 connections to the apiserver, for what may last for hours.
//!
//! The apiserver allows 100 streams on a connection, and the 101st waits for ever without an error (measured). So
//! several connections, each with a few streams in hand. An idle watch costs a fifth of what it costs on HTTP/1.1,
//! and pings find a connection that died in silence.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{
    supervise::{Supervisor, chain},
    tls::MaybeTls,
};
use tokio::time::Instant;
use tracing::debug;

use super::{AnswerBody, RequestBody, Upstream, UpstreamError, body::Held};
use crate::{stop::stoppable, streams::lock};

/// A tenth below the apiserver's limit of 100. A server that allows less is believed; one that allows more is not
/// used for more, for the windows below bear no more.
const MAX_STREAMS: usize = 90;
/// A full connection of stalled streams must not block itself: 90 × 256 KiB < 24 MiB.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 24 * 1024 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Answers of one stream that hyper keeps for us; a stalled one is bounded by its window instead.
const HEADER_LIST: u32 = 64 * 1024;

#[derive(Debug)]
struct Connection {
    sender: SendRequest<RequestBody>,
    open: AtomicUsize,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` of the server, as last seen.
    allowed: Arc<AtomicUsize>,
}

impl Connection {
    fn has_room(&self) -> bool {
        self.open.load(Relaxed) < room(self.allowed.load(Relaxed))
    }
}

/// How many streams a connection carries whose server allows `allowed`.
fn room(allowed: usize) -> usize {
    (allowed - allowed.div_ceil(10)).clamp(1, MAX_STREAMS)
}

/// Open connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One dial at a time: a hundred watches at once need two connections, not a hundred. Those that waited for a
    /// dial that failed share its failure, else a thousand watches would wait for a thousand timeouts in a row.
    dialling: tokio::sync::Mutex<()>,
    failed: Mutex<Option<(Instant, String)>>,
}

impl Pool {
    fn lease(&self) -> Option<Lease> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.sender.is_closed());
        let connection = connections.iter().find(|connection| connection.has_room())?;
        connection.open.fetch_add(1, Relaxed);
        Some(Lease {
            connection: Arc::clone(connection),
        })
    }

    pub(super) fn sweep(&self, all: bool) {
        lock(&self.connections)
            .retain(|connection| !all && !connection.sender.is_closed() && connection.open.load(Relaxed) > 0);
    }
}

/// A place for one stream.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Arc<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.open.fetch_sub(1, Relaxed);
    }
}

impl Lease {
    pub(super) async fn send(
        self,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        let mut sender = self.connection.sender.clone();
        sender.ready().await.map_err(UpstreamError::Http)?;
        let response = sender.send_request(request).await.map_err(UpstreamError::Http)?;
        Ok(response.map(|incoming| AnswerBody::new(incoming, Held::H2(self), true)))
    }
}

pub(super) enum Acquired {
    Lease(Lease),
    /// The apiserver speaks HTTP/1.1 only; this connection is still unused.
    OnlyH1(Box<MaybeTls>),
}

pub(super) async fn acquire(upstream: &Upstream) -> Result<Acquired, UpstreamError> {
    let pool = &upstream.inner.h2;
    if let Some(lease) = pool.lease() {
        return Ok(Acquired::Lease(lease));
    }
    if upstream.inner.settings.tls.is_none() {
        return Ok(Acquired::OnlyH1(Box::new(upstream.dial(false).await?)));
    }
    let waited_since = Instant::now();
    let _dialling = pool.dialling.lock().await;
    if let Some(lease) = pool.lease() {
        return Ok(Acquired::Lease(lease));
    }
    if let Some((at, why)) = lock(&pool.failed).as_ref()
        && *at > waited_since
    {
        return Err(UpstreamError::Shared(why.clone()));
    }
    let opened = open(upstream).await;
    if let Err(error) = &opened {
        *lock(&pool.failed) = Some((Instant::now(), chain(error)));
    }
    opened
}

async fn open(upstream: &Upstream) -> Result<Acquired, UpstreamError> {
    let io = upstream.dial(true).await?;
    let speaks_h2 = match &io {
        MaybeTls::Plain(_) => false,
        MaybeTls::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
    };
    if !speaks_h2 {
        return Ok(Acquired::OnlyH1(Box::new(io)));
    }
    let executor = Supervised(upstream.inner.supervisor.clone());
    let (sender, connection) = Builder::new(executor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(UpstreamError::Http)?;
    // Until the server's SETTINGS are here, hyper assumes a limit of its own.
    let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let seen = Arc::clone(&allowed);
    upstream.drive("h2", async move {
        let mut connection = pin!(connection);
        let driven = poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            seen.store(connection.current_max_send_streams(), Relaxed);
            polled
        });
        if let Err(error) = driven.await {
            debug!(%error, "an HTTP/2 connection to the apiserver ended");
        }
    });
    let connection = Arc::new(Connection {
        sender,
        open: AtomicUsize::new(1),
        allowed,
    });
    lock(&upstream.inner.h2.connections).push(Arc::clone(&connection));
    Ok(Acquired::Lease(Lease { connection }))
}

/// Runs hyper's own tasks under the supervisor. On a server's side each HTTP/2 stream is such a task, which its call
/// can end (see [`crate::stop`]). Boxed, for the wrappers around it would each hold the size of hyper's state machine.
#[derive(Clone, Debug)]
pub(crate) struct Supervised(pub(crate) Supervisor);

impl<F> hyper::rt::Executor<F> for Supervised
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn("http2", stoppable(Box::pin(task)));
    }
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn a_tenth_of_what_the_server_allows_stays_in_hand() {
        for (allowed, expected) in [
            (100, 90),
            (250, 90),
            (50, 45),
            (5, 4),
            (1, 1),
            (0, 1),
            (usize::MAX, 90),
        ] {
            assert_eq!(room(allowed), expected, "{allowed}");
        }
    }
}
