//! What can go wrong, and whether trying again helps.

use crate::fingerprint::Fingerprint;
use std::{fmt, io, time::Duration};

/// A step of the connection's set-up. Each has its own timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The HTTP request that turns the connection into a WebSocket.
    Upgrade,
    /// The exchange of SSH version lines.
    Version,
    /// The first key exchange, up to the verified host key.
    KeyExchange,
    /// User and password.
    Auth,
    /// The list of remotes.
    Config,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upgrade => "WebSocket upgrade",
            Self::Version => "SSH version exchange",
            Self::KeyExchange => "SSH key exchange",
            Self::Auth => "authentication",
            Self::Config => "chisel configuration",
        })
    }
}

/// What to do about a failed attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// A passing trouble: try again with the usual backoff.
    Retry,
    /// The server named the time to wait.
    RetryAfter(Duration),
    /// Somebody must change something at one of the ends; try again, but rarely.
    RetrySlowly,
    /// Our own request cannot be sent as configured; trying again changes nothing.
    Fix,
}

/// Why a connection could not be established.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The HTTP server answered, but is no chisel server of our protocol.
    #[error(
        "the server answered the WebSocket request with HTTP {status}: not a chisel server at this URL, one of another protocol version, or a proxy in front that does not pass WebSockets"
    )]
    NotChisel {
        /// The HTTP status.
        status: u16,
    },
    /// The HTTP server, or a proxy in front, cannot serve now.
    #[error("the server answered the WebSocket request with HTTP {status}: not available now")]
    Retry {
        /// The HTTP status.
        status: u16,
        /// The wait the server asked for.
        after: Option<Duration>,
    },
    /// The server did not accept user and password.
    #[error("the chisel server refused the credentials of user {user:?}")]
    AuthFailed {
        /// The user that was named.
        user: String,
    },
    /// The server showed another host key than the pinned one. No password was sent.
    #[error(
        "the chisel server shows host key fingerprint {seen}, expected {expected}: either its key was replaced (a server without a key file has a new one at each start) or somebody is in between; no credentials were sent"
    )]
    FingerprintMismatch {
        /// What was pinned.
        expected: Fingerprint,
        /// What the server showed.
        seen: Fingerprint,
    },
    /// The server did not accept the list of remotes.
    #[error("the chisel server refused the remotes: {text}")]
    ConfigRefused {
        /// The server's words.
        text: String,
        /// What they mean.
        cause: RefusalCause,
    },
    /// The server was silent for too long.
    #[error("the server did not finish the {step} within {after:?}")]
    Timeout {
        /// The step that took too long.
        step: Step,
        /// The time it had.
        after: Duration,
    },
    /// The server, or something between, closed the connection.
    #[error("the connection was closed during the {step}")]
    Closed {
        /// The step that was under way.
        step: Step,
    },
    /// The server ended the session with an SSH message.
    #[error("the server disconnected during the {step}: {reason} (code {code})")]
    Disconnected {
        /// The step that was under way.
        step: Step,
        /// The reason code of RFC 4253 section 11.1.
        code: u32,
        /// The server's words.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("the connection failed during the {step}")]
    Io {
        /// The step that was under way.
        step: Step,
        /// What the system said.
        source: io::Error,
    },
    /// The server broke the protocol.
    #[error("the server broke the protocol during the {step}")]
    Protocol {
        /// The step that was under way.
        step: Step,
        /// What was wrong.
        source: ProtocolError,
    },
    /// Our own upgrade request cannot be written.
    #[error("the upgrade request cannot be sent")]
    BadRequest(#[from] BadRequest),
}

impl ConnectError {
    /// Whether, and how soon, another attempt makes sense.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Retry {
                after: Some(after), ..
            } => Advice::RetryAfter(*after),
            Self::Retry { after: None, .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Disconnected { .. }
            | Self::Io { .. } => Advice::Retry,
            // The port of a session that died silently is freed only when the server notices; that passes.
            Self::ConfigRefused {
                cause: RefusalCause::CannotListen { .. },
                ..
            } => Advice::Retry,
            Self::NotChisel { .. }
            | Self::AuthFailed { .. }
            | Self::FingerprintMismatch { .. }
            | Self::ConfigRefused { .. }
            | Self::Protocol { .. } => Advice::RetrySlowly,
            Self::BadRequest(_) => Advice::Fix,
        }
    }
}

/// What a refusal of the remotes means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusalCause {
    /// The server runs without `--reverse`.
    ReverseDisabled,
    /// The server cannot listen for this remote: the port is taken or not allowed to it.
    CannotListen {
        /// The remote as the server wrote it, like `R:8001=>127.0.0.1:8001`.
        remote: String,
    },
    /// The server's rules for this user do not contain the remote.
    Denied {
        /// The remote as the server wrote it, like `R:0.0.0.0:8001`.
        remote: String,
    },
    /// Anything else.
    Other,
}

impl RefusalCause {
    /// Reads the cause from the server's words (chisel v1.11 `server/server_handler.go`).
    pub(crate) fn of(text: &str) -> Self {
        if text.contains("everse port forwaring not enabled")
            || text.contains("everse port forwarding not enabled")
        {
            return Self::ReverseDisabled;
        }
        if let Some((_, remote)) = text.split_once("cannot listen on ") {
            return Self::CannotListen {
                remote: remote.trim().to_owned(),
            };
        }
        if let Some((_, tail)) = text.split_once("access to '")
            && let Some((remote, _)) = tail.split_once("' denied")
        {
            return Self::Denied {
                remote: remote.to_owned(),
            };
        }
        Self::Other
    }
}

/// A setting of ours that cannot be put into an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// The path has a character that may not stand in a request line.
    #[error("the path of the server URL contains a space, a control or a non-ASCII character")]
    Path,
    /// The host has a character that may not stand in a header.
    #[error("the host of the server URL contains a space, a control or a non-ASCII character")]
    Host,
    /// A header name that is no HTTP token, or a value with control characters.
    #[error("the extra header {name:?} has a name or value that HTTP does not allow")]
    Header {
        /// The header's name.
        name: String,
    },
    /// A header that belongs to the upgrade itself.
    #[error("the extra header {name:?} belongs to the WebSocket upgrade and cannot be set")]
    ReservedHeader {
        /// The header's name.
        name: String,
    },
}

/// How the server broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The HTTP answer is no HTTP answer.
    #[error("the answer to the WebSocket request is not valid HTTP/1.1")]
    Http,
    /// The HTTP answer is too long.
    #[error("the answer to the WebSocket request has more than 16 KiB of headers")]
    HttpTooLong,
    /// The 101 answer does not belong to our request.
    #[error("the answer to the WebSocket request does not prove that it is one ({0} is wrong or missing)")]
    Upgrade(&'static str),
    /// A WebSocket frame that may not be.
    #[error("invalid WebSocket frame: {0}")]
    Frame(&'static str),
    /// The version line is missing or too long.
    #[error("the server's first line is no SSH version")]
    Version,
    /// A length field outside the allowed range.
    #[error("an SSH packet of {0} bytes is not allowed here")]
    PacketLength(u32),
    /// The packet's padding is wrong.
    #[error("an SSH packet has invalid padding")]
    Padding,
    /// The packet was changed on its way, or the keys differ.
    #[error("an SSH packet failed its integrity check")]
    Integrity,
    /// A message ended too early.
    #[error("an SSH message is shorter than its fields say")]
    ShortMessage,
    /// A message went on after its end.
    #[error("an SSH message has bytes after its end")]
    TrailingBytes,
    /// A text field is not UTF-8.
    #[error("a text in an SSH message is not UTF-8")]
    NotText,
    /// A number is negative.
    #[error("a number in an SSH message is negative")]
    NegativeNumber,
    /// A message that may not come at this point.
    #[error("SSH message {number} is not allowed during {during}")]
    Unexpected {
        /// The message number.
        number: u8,
        /// What was under way.
        during: &'static str,
    },
    /// No algorithm in common.
    #[error("no common {0} algorithm with the server")]
    NoCommon(&'static str),
    /// ChaCha20-Poly1305 needs strict key exchange to be safe.
    #[error("the server chose chacha20-poly1305 but does not know strict key exchange")]
    NotStrict,
    /// The key exchange values are unusable.
    #[error("the server's key exchange value is invalid")]
    KeyExchange,
    /// The host key is malformed or of another type than agreed.
    #[error("the server's host key is invalid or not of the agreed type")]
    HostKey,
    /// The host key is an RSA key that is too short to trust.
    #[error("the server's host key is an RSA key of {0} bits; at least 2048 are needed")]
    WeakHostKey(usize),
    /// The host key's signature is wrong.
    #[error("the signature of the server's host key is wrong")]
    Signature,
    /// The host key changed within one session.
    #[error("the server's host key changed during the session")]
    HostKeyChanged,
    /// Messages piled up while the server did not finish a key exchange.
    #[error("too many messages wait for a key exchange that does not end")]
    HeldBack,
    /// A channel number we do not have.
    #[error("the server named channel {0}, which is not open")]
    NoSuchChannel(u32),
    /// More data than the window allows.
    #[error("the server sent more than the window of channel {0} allows")]
    WindowExceeded(u32),
    /// A window beyond 2^32 - 1.
    #[error("the server credited channel {0} beyond the largest window")]
    WindowOverflow(u32),
    /// A data message that is larger than allowed.
    #[error("the server sent a larger data message than channel {0} allows")]
    DataTooLong(u32),
    /// Data or a second close after the close.
    #[error("the server went on using channel {0} after closing it")]
    AfterClose(u32),
    /// A channel that may not carry a byte.
    #[error("the server confirmed channel {0} with a packet size of zero")]
    NoData(u32),
    /// A reply to nothing.
    #[error("the server answered a request that was never made")]
    UnaskedReply,
    /// Too many requests that wait for an answer.
    #[error("the server does not answer requests")]
    Unanswered,
    /// Our own randomness or key generation failed.
    #[error("the cryptographic library failed to make keys")]
    Keys,
}
