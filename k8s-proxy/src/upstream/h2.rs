//! HTTP/2 connections to the apiserver, for what may last for hours.
//!
//! The apiserver allows 100 streams on a connection, and the 101st waits for ever without an error (measured). So
//! several connections, each with a few streams in hand. An idle watch costs a fifth of what it costs on HTTP/1.1,
//! and pings find a connection that died in silence.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{supervise::Supervisor, tls::MaybeTls};
use tracing::debug;

use super::{AnswerBody, RequestBody, Upstream, UpstreamError, body::Held};
use crate::streams::lock;

/// A tenth below the apiserver's limit of 100.
const MAX_STREAMS: usize = 90;
/// A full connection of stalled streams must not block itself: 90 × 256 KiB < 24 MiB.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 24 * 1024 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Connection {
    sender: SendRequest<RequestBody>,
    open: AtomicUsize,
}

/// Open connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One dial at a time: a hundred watches at once need two connections, not a hundred.
    dialling: tokio::sync::Mutex<()>,
}

impl Pool {
    fn lease(&self) -> Option<Lease> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.sender.is_closed());
        let connection = connections
            .iter()
            .find(|connection| connection.open.load(Relaxed) < MAX_STREAMS)?;
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
    let dialling = pool.dialling.lock().await;
    if let Some(lease) = pool.lease() {
        return Ok(Acquired::Lease(lease));
    }
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
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(UpstreamError::Http)?;
    upstream.drive("h2", async move {
        if let Err(error) = connection.await {
            debug!(%error, "an HTTP/2 connection to the apiserver ended");
        }
    });
    let connection = Arc::new(Connection {
        sender,
        open: AtomicUsize::new(1),
    });
    lock(&pool.connections).push(Arc::clone(&connection));
    drop(dialling);
    Ok(Acquired::Lease(Lease { connection }))
}

/// Runs hyper's own tasks under the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Supervised(pub(crate) Supervisor);

impl<F> hyper::rt::Executor<F> for Supervised
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn("http2", task);
    }
}
