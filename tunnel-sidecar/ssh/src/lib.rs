//! The SSH-2 client transport chisel speaks, over a WebSocket it opens itself.
//!
//! No published SSH crate talks to an unmodified chisel server (its version line, its channel type and its keepalive are its own), and none keeps a stalled
//! consumer from stopping the whole session. This one does exactly what a chisel client needs.
//!
//! # The way of the data
//!
//! ```text
//!            connection (TCP, TLS, proxy tunnel: the caller's)
//!                 │ bytes                      ▲ bytes
//!   ┌─ driver ────▼────────────────────────────┴──────────────┐   reads, writes, and nothing else
//!   │           inbuf: WebSocket frames off    websocket: on  │ ┐
//!   │             ▼                              ▲            │ │
//!   │         transport: packets, key exchanges, rekeying     │ │ pure: no socket, no clock, no task
//!   │             ▼                              ▲            │ │
//!   │         client: auth, requests, channel table           │ ┘
//!   └─────────────┬──────────────────────────────▲────────────┘
//!            events, queues                 sealed packets
//!                 ▼                              │
//!        Session · SessionEvents · Channel (AsyncRead + AsyncWrite), used from any task
//! ```
//!
//! # Invariants
//!
//! * The password is sent only after the signature of the host key was verified and its fingerprint found trustworthy.
//! * No input can panic: every index is checked, every length limited.
//! * What is queued for a channel never exceeds the window it granted, and credit is given only for what was consumed.
//! * Nothing is sent for a channel after its CLOSE, CLOSE is sent once, and a number is free only when both sides have closed.
#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests start their doubles as plain tasks"
    )
)]

mod auth;
mod channel;
pub mod chisel;
mod cipher;
mod client;
mod config;
mod connect;
#[cfg(test)]
mod double;
mod driver;
mod error;
mod exchange;
mod fault;
mod fingerprint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hostkey;
mod http;
mod inbuf;
mod kexinit;
mod md5;
mod msg;
mod packet;
mod requests;
#[cfg(test)]
mod scenarios;
mod session;
mod shared;
mod stream;
mod transport;
mod websocket;
mod wire;

pub use auth::Password;
pub use channel::RejectReason;
pub use config::{ClientConfig, Limits, Timeouts};
pub use connect::connect;
pub use driver::{Driver, SessionEnd};
pub use error::{Advice, BadRequest, ConnectError, ProtocolError, RefusalCause, Step};
pub use exchange::Kex;
pub use fingerprint::{BadFingerprint, Fingerprint};
pub use kexinit::Ciphers;
pub use session::{Algorithms, IncomingChannel, OpenError, Session, SessionEvents, SessionGone, Stats};
pub use stream::{Channel, Sink};
pub use transport::Trust;
