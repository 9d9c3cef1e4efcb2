//! A stream whose peer has to begin. HTTP/2's pings start with the first bytes of the peer: a link that dies between
//! its WebSocket handshake and them would be waited for without end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes of HTTP/2's client preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Fails a read when the preface is not there in time.
#[derive(Debug)]
pub(super) struct Opening<S> {
    inner: S,
    limit: Duration,
    missing: usize,
    /// `None` once the preface is there.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    /// From now on.
    pub(super) fn new(inner: S, limit: Duration) -> Self {
        Self {
            inner,
            limit,
            missing: PREFACE,
            waiting: Some(Box::pin(sleep(limit))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        let Some(waiting) = &mut this.waiting else {
            return polled;
        };
        if polled.is_ready() {
            this.missing = this.missing.saturating_sub(buf.filled().len() - before);
            if this.missing == 0 {
                this.waiting = None;
            }
            return polled;
        }
        match waiting.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let why = format!("the peer did not begin to speak HTTP/2 within {:?}", this.limit);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
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
