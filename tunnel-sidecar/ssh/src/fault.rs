//! What ends a session from within the protocol, before it is told to the outside.

use crate::{
    error::{ConnectError, ProtocolError, RefusalCause, Step},
    fingerprint::Fingerprint,
};
use std::time::Duration;

/// Texts of a peer longer than this are cut before they reach a log.
const MAX_TEXT: usize = 512;

#[derive(Debug)]
pub(crate) enum Fault {
    Protocol(ProtocolError),
    Http {
        status: u16,
        after: Option<Duration>,
    },
    Fingerprint {
        expected: Fingerprint,
        seen: Fingerprint,
    },
    AuthFailed,
    Refused {
        text: String,
    },
    Disconnected {
        code: u32,
        reason: String,
    },
    /// A WebSocket close frame.
    WebSocketClosed,
}

impl From<ProtocolError> for Fault {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl Fault {
    /// The fault as an error of the attempt to connect.
    pub(crate) fn during(self, step: Step, user: &str) -> ConnectError {
        match self {
            Self::Protocol(source) => ConnectError::Protocol { step, source },
            // What a proxy or gateway answers while the server behind it is away or overloaded.
            Self::Http {
                status: status @ (408 | 425 | 429 | 500 | 502..=504 | 520..=530),
                after,
            } => ConnectError::Retry { status, after },
            Self::Http { status, .. } => ConnectError::NotChisel { status },
            Self::Fingerprint { expected, seen } => ConnectError::FingerprintMismatch { expected, seen },
            Self::AuthFailed => ConnectError::AuthFailed {
                user: user.to_owned(),
            },
            Self::Refused { text } => ConnectError::ConfigRefused {
                cause: RefusalCause::of(&text),
                text,
            },
            Self::Disconnected { code, reason } => ConnectError::Disconnected { step, code, reason },
            Self::WebSocketClosed => ConnectError::Closed { step },
        }
    }
}

/// A peer's text, fit for a log line: no control characters, not too long.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = text.get(..text.len().min(MAX_TEXT)).unwrap_or_default();
    String::from_utf8_lossy(text)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}
