//! The thin shell: moves bytes between the connection and the state machine.

use crate::{
    client::Phase,
    error::{ProtocolError, Step},
    fault::Fault,
    inbuf::InBuf,
    msg,
    shared::Shared,
};
use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long a good-bye may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds of reading and writing before other tasks get their turn.
const ROUNDS: usize = 32;
/// An output buffer that grew beyond this is not kept for reuse.
const KEEP: usize = 512 * 1024;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// We disconnected.
    #[error("the session was closed by this side")]
    Local,
    /// The server said good-bye.
    #[error("the chisel server disconnected: {reason} (code {code})")]
    Peer {
        /// The reason code of RFC 4253 section 11.1.
        code: u32,
        /// The server's words.
        reason: String,
    },
    /// The connection was closed without a word, which is how a chisel server ends.
    #[error("the connection to the chisel server was closed")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection to the chisel server failed")]
    Io(#[source] io::Error),
    /// The server broke the protocol.
    #[error("the chisel server broke the protocol")]
    Protocol(#[source] ProtocolError),
    /// A key exchange did not end in time.
    #[error("the chisel server did not finish a key exchange in time")]
    RekeyTimeout,
}

/// What runs a session: it reads, writes, and does nothing else. Nothing moves while it is not polled; dropping it cuts the session.
#[must_use = "a session makes no progress without its driver"]
pub struct Driver<S> {
    io: S,
    shared: Shared,
    input: InBuf,
    /// Being written: `written` bytes of it are done.
    output: Vec<u8>,
    written: usize,
    /// Bytes went out since the last flush.
    unflushed: bool,
    rekey_timeout: Duration,
    rekey: Option<Pin<Box<Sleep>>>,
    goodbye: Option<(SessionEnd, Pin<Box<Sleep>>)>,
}

impl<S> fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// What ends the moving of bytes.
#[derive(Debug)]
pub(crate) enum Stop {
    Eof,
    Io(io::Error),
    Fault(Fault),
}

impl From<Stop> for SessionEnd {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Eof | Stop::Fault(Fault::WebSocketClosed) => Self::Closed,
            Stop::Io(error) => Self::Io(error),
            Stop::Fault(Fault::Protocol(error)) => Self::Protocol(error),
            Stop::Fault(Fault::Disconnected { code, reason }) => Self::Peer { code, reason },
            // These belong to the set-up and cannot arise in an open session.
            Stop::Fault(
                Fault::Http { .. } | Fault::Fingerprint { .. } | Fault::AuthFailed | Fault::Refused { .. },
            ) => Self::Closed,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(crate) fn new(io: S, shared: Shared, rekey_timeout: Duration) -> Self {
        Self {
            io,
            shared,
            input: InBuf::new(),
            output: Vec::new(),
            written: 0,
            unflushed: false,
            rekey_timeout,
            rekey: None,
            goodbye: None,
        }
    }

    /// Moves bytes until the given step of the set-up is done.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>, step: Step) -> Poll<Result<(), Stop>> {
        loop {
            match self.shared.lock().client.phase() {
                Phase::SettingUp(current) if current <= step => {}
                Phase::SettingUp(_) | Phase::Open => return Poll::Ready(Ok(())),
            }
            ready!(self.poll_move(cx))?;
        }
    }

    /// One round: writes what can be written, reads once. Ready when something was read.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        self.poll_write_out(cx).map_err(Stop::Io)?;
        {
            let mut state = self.shared.lock();
            if let Some(error) = state.take_fault() {
                return Poll::Ready(Err(Stop::Fault(error.into())));
            }
            state.set_driver(cx.waker());
            // Output may have come since it was looked at; the waker was not set then.
            if state.client.has_output() && self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !state.client.takes_input() {
                return Poll::Pending;
            }
        }
        let mut buffer = ReadBuf::new(self.input.room());
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)).map_err(Stop::Io)?;
        let n = buffer.filled().len();
        if n == 0 {
            return Poll::Ready(Err(Stop::Eof));
        }
        self.input.filled(n);
        let mut state = self.shared.lock();
        state.bytes_in += n as u64;
        Poll::Ready(state.receive(&mut self.input).map_err(Stop::Fault))
    }

    /// Writes until nothing is left or the connection takes no more. Errors are the only outcome that matters.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let rest = self.output.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                let mut state = self.shared.lock();
                if !state.client.has_output() {
                    break;
                }
                state.bytes_out += self.written as u64;
                self.output.clear();
                if self.output.capacity() > KEEP {
                    self.output = Vec::new();
                }
                self.written = 0;
                state.client.take_output(&mut self.output);
                continue;
            }
            match Pin::new(&mut self.io).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    self.written += n;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.shared.lock().wake_for_room();
                    return Ok(());
                }
            }
        }
        let more = {
            let mut state = self.shared.lock();
            state.bytes_out += self.written as u64;
            state.wake_for_room()
        };
        if more {
            // Those woken may have nothing to write any more; the others must not wait for them.
            cx.waker().wake_by_ref();
        }
        self.output.clear();
        self.written = 0;
        if self.unflushed
            && let Poll::Ready(result) = Pin::new(&mut self.io).poll_flush(cx)
        {
            result?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Everything is written and flushed.
    fn is_drained(&self) -> bool {
        self.written >= self.output.len() && !self.unflushed && !self.shared.lock().client.has_output()
    }

    fn poll_rekey_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shared.lock().client.transport().is_exchanging() {
            self.rekey = None;
            return Poll::Pending;
        }
        let timeout = self.rekey_timeout;
        self.rekey
            .get_or_insert_with(|| Box::pin(sleep(timeout)))
            .as_mut()
            .poll(cx)
    }

    /// Ends the session: the peer is told, as far as it still listens.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        let written = self.poll_write_out(cx).is_err() || self.is_drained();
        let closed = written && Pin::new(&mut self.io).poll_shutdown(cx).is_ready();
        if let Some((_, timeout)) = &mut self.goodbye
            && !closed
        {
            ready!(timeout.as_mut().poll(cx));
        }
        Poll::Ready(self.goodbye.take().map_or(SessionEnd::Local, |(end, _)| end))
    }

    fn say_goodbye(&mut self, end: SessionEnd) {
        let reason = match &end {
            SessionEnd::Protocol(error) => Some(error.to_string()),
            SessionEnd::RekeyTimeout => Some("key exchange timed out".to_owned()),
            SessionEnd::Local | SessionEnd::Peer { .. } | SessionEnd::Closed | SessionEnd::Io(_) => None,
        };
        if let Some(reason) = reason {
            self.shared
                .lock()
                .client
                .disconnect(msg::DISCONNECT_PROTOCOL_ERROR, &reason);
        }
        self.shared.end();
        self.goodbye = Some((end, Box::pin(sleep(FLUSH_TIMEOUT))));
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        for _ in 0..ROUNDS {
            let moved = self.poll_move(cx);
            if self.shared.lock().client.is_closing() {
                return Poll::Ready(SessionEnd::Local);
            }
            match moved {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(stop)) => return Poll::Ready(stop.into()),
                Poll::Pending => {
                    return self.poll_rekey_timeout(cx).map(|()| SessionEnd::RekeyTimeout);
                }
            }
        }
        cx.waker().wake_by_ref();
        self.poll_rekey_timeout(cx).map(|()| SessionEnd::RekeyTimeout)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = SessionEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        if self.goodbye.is_none() {
            let end = ready!(self.poll_run(cx));
            self.say_goodbye(end);
        }
        self.poll_goodbye(cx)
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.shared.end();
    }
}
