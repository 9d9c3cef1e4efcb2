//! A channel as an asynchronous byte stream.

use crate::{
    channel::{Drained, Read},
    client::{Filled, WriteError, Written},
    shared::Shared,
};
use bytes::BufMut;
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// The write side of a local socket, for data that should not be queued on its way.
pub trait Sink: fmt::Debug + Send + Sync + 'static {
    /// Takes what it can without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when it can take nothing now; anything else is final.
    fn try_write(&self, data: &[u8]) -> io::Result<usize>;

    /// Ready when another [`Sink::try_write`] makes sense.
    ///
    /// # Errors
    /// When it never will.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

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

    /// How often this channel had data to send and no window to send it in.
    #[must_use]
    pub fn window_stalls(&self) -> u64 {
        self.id
            .map_or(0, |id| self.shared.lock().client.channels_mut().stalls_of(id))
    }

    /// Our number of the channel, for logs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.id
    }
}

/// Without copies: data between a channel and a local socket that are joined for good. Not to be mixed with [`AsyncRead`] on the same channel.
impl Channel {
    /// From here on data goes to `sink` as it arrives. What the sink does not take is queued for [`Channel::poll_drain`].
    pub fn attach(&self, sink: Arc<dyn Sink>) {
        if let Some(id) = self.id {
            self.shared.lock().attach(id, sink);
        }
    }

    /// Undoes [`Channel::attach`].
    pub fn detach(&self) {
        if let Some(id) = self.id {
            self.shared.lock().detach(id);
        }
    }

    /// Moves what had to be queued to `sink`, the attached one. Ready when the server has closed and everything was taken.
    ///
    /// # Errors
    /// When the sink fails, or the session ends before the channel does.
    pub fn poll_drain(&self, cx: &mut Context<'_>, sink: &dyn Sink) -> Poll<io::Result<()>> {
        let Some(id) = self.id else {
            return Poll::Ready(Err(session_ended()));
        };
        loop {
            {
                let mut state = self.shared.lock();
                let drained = state.client.drain(id, |data| match sink.try_write(data) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                    other => other,
                });
                match state.settle(drained) {
                    Some(Ok(Drained::End)) => return Poll::Ready(Ok(())),
                    Some(Ok(Drained::Blocked)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Err(session_ended())),
                    Some(Ok(Drained::Empty)) if state.is_ended() => {
                        return Poll::Ready(Err(session_ended()));
                    }
                    Some(Ok(Drained::Empty)) => {
                        state.set_reader(id, cx.waker());
                        return Poll::Pending;
                    }
                }
            }
            ready!(sink.poll_writable(cx))?;
        }
    }

    /// Reads once from `source`, straight to where the data is sent from. Ready with how much that was; 0 is the end of the source.
    ///
    /// # Errors
    /// When the source fails, or the channel takes no more.
    pub fn poll_send_from(
        &self,
        cx: &mut Context<'_>,
        source: Pin<&mut impl AsyncRead>,
    ) -> Poll<io::Result<usize>> {
        let Some(id) = self.id else {
            return Poll::Ready(Err(session_ended()));
        };
        let mut state = self.shared.lock();
        if state.is_over() {
            return Poll::Ready(Err(session_ended()));
        }
        let outcome = state
            .client
            .fill(id, |out, limit| poll_read_buf(source, cx, &mut out.limit(limit)));
        let outcome = match outcome {
            Ok(outcome) => Ok(outcome),
            Err(WriteError::Closed) => return Poll::Ready(Err(channel_closed())),
            Err(WriteError::Protocol(error)) => Err(error),
        };
        match state.settle(outcome) {
            Some(Filled::Bytes(_, read)) => read,
            Some(Filled::NoRoom) => {
                state.set_writer(id, cx.waker(), true);
                Poll::Pending
            }
            Some(Filled::NoWindow) => {
                state.set_writer(id, cx.waker(), false);
                Poll::Pending
            }
            None => Poll::Ready(Err(session_ended())),
        }
    }

    /// Sends CLOSE, once: our side is done. What the server sends until its own CLOSE still arrives.
    pub fn close(&self) {
        let Some(id) = self.id else { return };
        let mut state = self.shared.lock();
        if !state.is_over() {
            let result = state.client.close(id);
            state.settle(result);
        }
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
        self.close();
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
