//! One TCP connection that can be broken from outside, also in the middle of what is being sent.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// What answers know of the connection that carries them.
#[derive(Debug)]
pub struct Connection {
    /// Rises by one per connection.
    pub id: u64,
    break_after_flush: AtomicBool,
    broken: CancellationToken,
}

impl Connection {
    /// A connection that breaks at the latest when `until` is cancelled.
    pub fn new(id: u64, until: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            id,
            break_after_flush: AtomicBool::new(false),
            broken: until.child_token(),
        })
    }

    /// Breaks it as soon as what is queued has been sent.
    pub fn break_after_flush(&self) {
        self.break_after_flush.store(true, Ordering::SeqCst);
    }

    /// Resolves when it is to be dropped.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }
}

/// The socket under TLS, so that a break sends no farewell of any protocol.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    connection: Arc<Connection>,
}

impl Wire {
    /// Wraps an accepted socket.
    pub fn new(tcp: TcpStream, connection: Arc<Connection>) -> Self {
        Self { tcp, connection }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.tcp).poll_flush(cx);
        if flushed.is_ready() && self.connection.break_after_flush.load(Ordering::SeqCst) {
            self.connection.broken.cancel();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
