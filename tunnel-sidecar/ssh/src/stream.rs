//! A channel as an asynchronous byte stream.

use crate::{
    channel::Read,
    client::{WriteError, Written},
    shared::Shared,
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One connection through the tunnel.
///
/// Window credit goes to the server only as this is read, so a consumer that does not read stops its own stream and no other.
///
/// Chisel has no half-close: `shutdown` sends CLOSE, upon which the server closes its user's connection in both directions. What the server had sent before
/// can still be read. Dropping the channel sends CLOSE, too, and throws away what was not read.
#[derive(Debug)]
pub struct Channel {
    /// `None` when the session was over before the channel began.
    id: Option<u32>,
    shared: Shared,
}

impl Channel {
    pub(crate) fn new(id: Option<u32>, shared: Shared) -> Self {
        Self { id, shared }
    }

    /// Our number of the channel, for logs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.id
    }
}

fn session_ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the chisel session ended")
}

fn channel_closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the chisel channel is closed")
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(id) = self.id else {
            return Poll::Ready(Err(session_ended()));
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.lock();
        let result = state.client.read(id, buf.initialize_unfilled());
        match state.settle(result) {
            Some(Read::Data(n)) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Some(Read::End) => Poll::Ready(Ok(())),
            Some(Read::Pending) if state.is_ended() => Poll::Ready(Err(session_ended())),
            Some(Read::Pending) => {
                state.set_reader(id, cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(Err(session_ended())),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(id) = self.id else {
            return Poll::Ready(Err(session_ended()));
        };
        let mut state = self.shared.lock();
        if state.is_over() {
            return Poll::Ready(Err(session_ended()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let outcome = match state.client.write(id, data) {
            Ok(outcome) => Ok(outcome),
            Err(WriteError::Closed) => return Poll::Ready(Err(channel_closed())),
            Err(WriteError::Protocol(error)) => Err(error),
        };
        match state.settle(outcome) {
            Some(Written::Bytes(n)) => Poll::Ready(Ok(n)),
            Some(wait @ (Written::NoRoom | Written::NoWindow)) => {
                state.set_writer(id, cx.waker(), wait == Written::NoRoom);
                Poll::Pending
            }
            None => Poll::Ready(Err(session_ended())),
        }
    }

    /// What was written is sealed and queued already; the driver writes it without further asking.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(id) = self.id else {
            return Poll::Ready(Ok(()));
        };
        let mut state = self.shared.lock();
        if !state.is_over() {
            let result = state.client.close(id);
            state.settle(result);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut state = self.shared.lock();
        state.forget(id);
        if !state.is_ended() {
            let result = state.client.release(id);
            state.settle(result);
        }
    }
}
