//! What a session needs to know before it starts.

use crate::{auth::Password, exchange::Kex, kexinit::Ciphers, transport::Trust};
use std::time::Duration;

/// Everything about a session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The `Host` header, with the port always, as Go sends it.
    pub host_header: String,
    /// Path and query of the server's URL, `/` when it has none.
    pub path_and_query: String,
    /// Further headers of the upgrade request. `Host` replaces [`ClientConfig::host_header`].
    pub headers: Vec<(String, String)>,
    /// The user; empty for a server without authentication.
    pub user: String,
    /// The password; it is sent only after the host key was found trustworthy.
    pub password: Password,
    /// Whose host key to trust.
    pub trust: Trust,
    /// The payload of the config request, from [`crate::chisel::config_json`].
    pub config_json: Vec<u8>,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// How much a session may hold.
    pub limits: Limits,
    /// Which cipher to prefer.
    pub ciphers: Ciphers,
    /// Offer this key exchange method alone; `None` offers all, ML-KEM first.
    pub kex: Option<Kex>,
    /// Send the first packet of the preferred method unasked (RFC 4253 section 7.1): one round trip less with a server that prefers the same, a packet
    /// thrown away with any other.
    pub guess_kex: bool,
}

impl ClientConfig {
    /// A configuration with defaults and no credentials.
    #[must_use]
    pub fn new(host_header: &str, path_and_query: &str) -> Self {
        Self {
            host_header: host_header.to_owned(),
            path_and_query: path_and_query.to_owned(),
            headers: Vec::new(),
            user: String::new(),
            password: Password::default(),
            trust: Trust::FirstUse,
            config_json: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            ciphers: Ciphers::default(),
            kex: None,
            guess_kex: true,
        }
    }
}

/// The WebSocket timeout of the Go client is 45 s; a healthy server answers each step within a round trip.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(20);
/// For every later step. The Go client has no working timeout here and can hang for ever.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

/// How long each step of the set-up may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The HTTP upgrade.
    pub upgrade: Duration,
    /// The server's version line.
    pub version: Duration,
    /// A key exchange, the first and any later one.
    pub kex: Duration,
    /// Logging in.
    pub auth: Duration,
    /// The answer to the list of remotes.
    pub config: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            upgrade: UPGRADE_TIMEOUT,
            version: STEP_TIMEOUT,
            kex: STEP_TIMEOUT,
            auth: STEP_TIMEOUT,
            config: STEP_TIMEOUT,
        }
    }
}

/// How much a session may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The receive window of a new channel. The Go client's is the same.
    pub initial_window: u32,
    /// The window of a channel that is limited by it, while its reader keeps up, grows up to this.
    pub max_window: u32,
    /// Receive windows of all channels together, which bounds what they can make us hold. New channels share half of it, the other half is for windows
    /// that limit their stream. When nothing is left, new channels start with 64 KiB each, and larger windows shrink as their data is consumed.
    pub receive_budget: usize,
    /// Channels at once; more opens are refused.
    pub max_channels: usize,
    /// Opens waiting for a decision; more are refused.
    pub backlog: usize,
    /// Bytes under one key, per direction, before new keys are asked for.
    pub rekey_bytes: u64,
    /// Packets under one key, per direction.
    pub rekey_packets: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            initial_window: 2 * 1024 * 1024,
            max_window: 16 * 1024 * 1024,
            receive_budget: 64 * 1024 * 1024,
            max_channels: 1024,
            backlog: 128,
            // Half of what the Go server takes with AES, so that we come first; RFC 4344 allows far more.
            rekey_bytes: 32 * 1024 * 1024 * 1024,
            rekey_packets: 1 << 30,
        }
    }
}
