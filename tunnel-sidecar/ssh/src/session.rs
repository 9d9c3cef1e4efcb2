//! The handles of a session.

use crate::{
    channel::{MAX_TARGET, Open, RejectReason},
    fingerprint::Fingerprint,
    msg,
    shared::Shared,
    stream::Channel,
};
use std::{future::poll_fn, task::Poll, time::Duration};

/// A handle of a running session. Cheap to clone; dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Session {
    pub(crate) shared: Shared,
    pub(crate) fingerprint: Fingerprint,
}

/// The algorithms in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithms {
    /// The key exchange.
    pub kex: &'static str,
    /// The host key.
    pub host_key: &'static str,
    /// The cipher towards the server.
    pub cipher_out: &'static str,
    /// The cipher from the server.
    pub cipher_in: &'static str,
}

/// What a session has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes read from the connection.
    pub bytes_in: u64,
    /// Bytes written to the connection.
    pub bytes_out: u64,
    /// Key exchanges after the first.
    pub rekeys: u64,
    /// Channels that are not closed by both sides, or still have a consumer.
    pub channels_open: usize,
    /// Bytes received that no consumer has read.
    pub queued_bytes: usize,
    /// How often a channel had data to send and no window to send it in.
    pub window_stalls: u64,
    /// The round trip of the latest ping; `None` before the first.
    pub round_trip: Option<Duration>,
    /// From the upgrade request to the accepted remotes.
    pub handshake: Duration,
}

/// The session ended before the answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chisel session has ended")]
pub struct SessionGone;

/// Why the server opened no channel for us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The server said no.
    #[error("the chisel server refused the connection: {text} (code {code})")]
    Refused {
        /// The reason code of RFC 4254 section 5.1.
        code: u32,
        /// The server's words.
        text: String,
    },
    /// The session has as many channels as its limits allow.
    #[error("the chisel session has as many connections open as it may")]
    TooMany,
    /// The target is not `host:port`, `host:port/udp` or `socks`, in at most 1024 bytes.
    #[error(
        "the target of a connection through the chisel server is empty, too long or has control characters"
    )]
    Target,
    /// The session ended first.
    #[error(transparent)]
    Gone(#[from] SessionGone),
}

impl Session {
    /// Asks the server to open a channel to `target`: `host:port`, `host:port/udp`, or `socks`, as the server dials it.
    ///
    /// A chisel server confirms before it dials, so a target that it cannot reach shows as a channel that ends at once. Dropping the future gives the
    /// channel up, whatever the answer.
    ///
    /// # Errors
    /// When the server refuses, the session has too many channels, or it ends first.
    pub async fn open(&self, target: &str) -> Result<Channel, OpenError> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(char::is_control) {
            return Err(OpenError::Target);
        }
        let (channel, answer) = {
            let mut state = self.shared.lock();
            if state.is_over() {
                return Err(SessionGone.into());
            }
            let (id, answer) = state.open(target).ok_or(OpenError::TooMany)?;
            // From here on a dropped future gives the number back.
            (Channel::new(Some(id), self.shared.clone()), answer)
        };
        match answer.await {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(refusal)) => Err(OpenError::Refused {
                code: refusal.code,
                text: refusal.text,
            }),
            Err(_) => Err(SessionGone.into()),
        }
    }

    /// Asks the server for a sign of life. How long to wait is the caller's decision; a server answers at once.
    ///
    /// # Errors
    /// When the session ends first.
    pub async fn ping(&self) -> Result<(), SessionGone> {
        let answer = self.shared.lock().ping().ok_or(SessionGone)?;
        answer.await.map_err(|_| SessionGone)
    }

    /// Ends the session: the server is told the reason, everything written before is flushed, then the connection is closed.
    pub fn disconnect(&self, reason: &str) {
        let mut state = self.shared.lock();
        state.client.disconnect(msg::DISCONNECT_BY_APPLICATION, reason);
        state.wake_driver();
    }

    /// The fingerprint of the host key the server showed.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// The algorithms in use.
    #[must_use]
    pub fn algorithms(&self) -> Algorithms {
        let agreement = self.shared.lock().client.transport().agreement();
        agreement.map_or(
            Algorithms {
                kex: "",
                host_key: "",
                cipher_out: "",
                cipher_in: "",
            },
            |agreement| Algorithms {
                kex: agreement.method.name(),
                host_key: agreement.host_key.name(),
                cipher_out: agreement.cipher_out.name(),
                cipher_in: agreement.cipher_in.name(),
            },
        )
    }

    /// What the session has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.shared.lock();
        Stats {
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
            rekeys: state.client.transport().rekeys(),
            channels_open: state.client.channels().open_channels(),
            queued_bytes: state.client.channels().queued_bytes(),
            window_stalls: state.client.channels().window_stalls(),
            round_trip: state.round_trip,
            handshake: state.handshake,
        }
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().is_ended()
    }

    /// Resolves when the session has ended.
    pub async fn closed(&self) {
        self.shared.ended().await;
    }
}

/// The connections that arrive at the server's listeners. Dropping it refuses all further ones.
#[derive(Debug)]
pub struct SessionEvents {
    pub(crate) shared: Shared,
}

impl SessionEvents {
    /// The next channel the server wants to open; `None` when the session has ended.
    pub async fn next(&mut self) -> Option<IncomingChannel> {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            match state.next_open() {
                Some(open) => Poll::Ready(Some(open)),
                None if state.is_ended() => Poll::Ready(None),
                None => {
                    state.set_opens_waker(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
        .map(|open| IncomingChannel {
            open: Some(open),
            shared: self.shared.clone(),
        })
    }
}

impl Drop for SessionEvents {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.takes_opens = false;
        while let Some(open) = state.next_open() {
            let result =
                state
                    .client
                    .reject(&open, RejectReason::Prohibited, "the client takes no connections");
            state.settle(result);
        }
    }
}

/// A channel the server wants to open. Dropped undecided, it is rejected.
#[derive(Debug)]
pub struct IncomingChannel {
    /// `None` once decided.
    open: Option<Open>,
    shared: Shared,
}

impl IncomingChannel {
    /// Where the server wants the channel to lead, as it wrote it: `host:port`, `host:port/udp`, or `socks`.
    ///
    /// The server may name anything: compare it with the remotes that were asked for before dialling.
    #[must_use]
    pub fn target(&self) -> &str {
        self.open.as_ref().map_or("", |open| &open.target)
    }

    /// Confirms the channel.
    #[must_use]
    pub fn accept(mut self) -> Channel {
        let mut id = None;
        if let Some(open) = self.open.take() {
            let mut state = self.shared.lock();
            if !state.is_over() {
                let result = state.client.accept(&open);
                id = state.settle(result);
            }
        }
        Channel::new(id, self.shared.clone())
    }

    /// Refuses the channel; the server logs the text and closes its user's connection.
    pub fn reject(mut self, reason: RejectReason, text: &str) {
        self.refuse(reason, text);
    }

    fn refuse(&mut self, reason: RejectReason, text: &str) {
        let Some(open) = self.open.take() else { return };
        let mut state = self.shared.lock();
        if !state.is_over() {
            let result = state.client.reject(&open, reason, text);
            state.settle(result);
        }
    }
}

impl Drop for IncomingChannel {
    fn drop(&mut self) {
        self.refuse(
            RejectReason::ConnectFailed,
            "the client did not take the connection",
        );
    }
}
