//! One try at a session: TCP, TLS, trust, chisel handshake, each with its own timeout.
//!
//! When the server refuses a single port, the session is tried at once with the others: one bad forward does not
//! fail the rest.

use std::{fmt, sync::Arc, time::Duration};

use chisel_ssh::{
    Advice, ClientConfig, ConnectError, Driver, Fingerprint, Password, RefusalCause, Session, SessionEvents,
    Trust, chisel::config_json, connect,
};
use runtime::{
    dial::DialError, proxy::ProxyError, secret::ExposeSecret as _, supervise::chain, tls::MaybeTls,
};
use tracing::{info, warn};

use crate::{
    known::KnownServers,
    outbound::{Outbound, OutboundError},
    remotes::Listen,
    spec::Link,
    timing::Timing,
};

/// What every session of one link needs.
pub(super) struct Endpoint {
    pub(super) link: Link,
    outbound: Arc<Outbound>,
    known: Arc<KnownServers>,
    timing: Timing,
    max_channels: usize,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// An open session.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) events: SessionEvents,
    pub(super) driver: Driver<MaybeTls>,
    /// What it listens on.
    pub(super) listens: Vec<Listen>,
    /// What the server refused.
    pub(super) rejected: Vec<Rejected>,
    /// The key differs from the one first seen, and the owner accepts that.
    pub(super) key_changed: Option<String>,
}

/// A forward that the server refused by name.
#[derive(Clone, Debug)]
pub(super) struct Rejected {
    pub(super) listen: Listen,
    pub(super) text: String,
    /// By its rules, so that only somebody's change helps.
    pub(super) denied: bool,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) struct Failure {
    /// For the operator.
    pub(super) text: String,
    /// When to try again.
    pub(super) advice: Advice,
    /// The label of the metric.
    pub(super) cause: &'static str,
    /// The server shows another key than the expected one.
    pub(super) key_changed: bool,
    /// What the server refused, when it refused everything that was left.
    pub(super) rejected: Vec<Rejected>,
}

impl Failure {
    fn new(text: String, advice: Advice, cause: &'static str) -> Self {
        Self {
            text,
            advice,
            cause,
            key_changed: false,
            rejected: Vec::new(),
        }
    }
}

impl From<OutboundError> for Failure {
    fn from(error: OutboundError) -> Self {
        let (advice, cause) = match &error {
            OutboundError::Identity { .. } | OutboundError::Tls(_) => (Advice::Retry, "tls"),
            OutboundError::Proxy(ProxyError::Dial(dial)) => (
                Advice::Retry,
                match dial {
                    DialError::Resolve { .. } => "resolve",
                    DialError::Connect { .. } => "connect",
                    DialError::Timeout { .. } => "connect_timeout",
                },
            ),
            OutboundError::Proxy(ProxyError::Credentials { .. }) => (Advice::RetrySlowly, "proxy"),
            OutboundError::Proxy(
                ProxyError::Io { .. }
                | ProxyError::Timeout { .. }
                | ProxyError::Refused { .. }
                | ProxyError::Protocol { .. },
            ) => (Advice::Retry, "proxy"),
        };
        Self::new(chain(&error), advice, cause)
    }
}

impl Endpoint {
    /// Prepares a link.
    pub(super) fn new(
        link: Link,
        known: Arc<KnownServers>,
        outbound: Arc<Outbound>,
        timing: Timing,
        max_channels: usize,
    ) -> Self {
        if let Some(proxy) = outbound.proxy(&link) {
            info!(server = %link.server, %proxy, "the server is reached through a proxy");
        }
        if link.any_certificate && link.server.tls() {
            warn!(server = %link.server, "any certificate is taken from the server, because the owner says so");
        }
        Self {
            link,
            outbound,
            known,
            timing,
            max_channels,
        }
    }

    /// Opens a session for as many of `listens` as the server takes.
    pub(super) async fn open(&self, mut listens: Vec<Listen>) -> Result<Opened, Failure> {
        let mut rejected: Vec<Rejected> = Vec::new();
        loop {
            let error = match self.once(&listens).await? {
                Ok(mut opened) => {
                    opened.rejected = rejected;
                    return Ok(opened);
                }
                Err(error) => error,
            };
            let mut failure = self.failure(&error);
            let Some((remote, denied)) = named_remote(&error) else {
                return Err(failure);
            };
            let Some(place) = listens.iter().position(|listen| listen.is_named_by(remote)) else {
                return Err(failure);
            };
            rejected.push(Rejected {
                listen: listens.remove(place),
                text: failure.text.clone(),
                denied,
            });
            if listens.is_empty() {
                failure.rejected = rejected;
                return Err(failure);
            }
        }
    }

    async fn once(&self, listens: &[Listen]) -> Result<Result<Opened, ConnectError>, Failure> {
        let server = &self.link.server;
        let io = self.outbound.connect(&self.link, &self.timing).await?;
        let seen_before = self.known.get(&server.authority());
        match connect(io, self.config(listens, seen_before.as_ref())).await {
            Ok((session, events, driver)) => {
                let key_changed = self.keep_key(&session.fingerprint(), seen_before.as_ref());
                let listens = listens.to_vec();
                Ok(Ok(Opened {
                    session,
                    events,
                    driver,
                    listens,
                    rejected: Vec::new(),
                    key_changed,
                }))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn config(&self, listens: &[Listen], seen_before: Option<&Fingerprint>) -> ClientConfig {
        let link = &self.link;
        let mut config = ClientConfig::new(&link.server.authority(), link.server.path());
        config.headers = link
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.expose_secret().to_owned()))
            // The last `Host` is the one that is sent.
            .chain(link.hostname.iter().map(|name| ("Host".to_owned(), name.clone())))
            .collect();
        config.user.clone_from(&link.user);
        config.password = Password::new(link.password.expose_secret().to_owned());
        config.trust = match (&link.fingerprint, seen_before) {
            (Some(pinned), _) => Trust::Pinned(pinned.clone()),
            (None, Some(first)) if !link.allow_insecure => Trust::Pinned(first.clone()),
            (None, _) => Trust::FirstUse,
        };
        let remotes: Vec<_> = listens.iter().map(Listen::remote).collect();
        config.config_json = config_json(&remotes);
        if let Some(step) = self.timing.handshake_step {
            let timeouts = &mut config.timeouts;
            for timeout in [
                &mut timeouts.upgrade,
                &mut timeouts.version,
                &mut timeouts.kex,
                &mut timeouts.auth,
                &mut timeouts.config,
            ] {
                *timeout = step;
            }
        }
        // The carrier refuses what is too much, with a sentence; the transport's own bound lies behind it.
        config.limits.max_channels = self.max_channels.saturating_mul(2);
        config.limits.backlog = self.max_channels;
        config
    }

    /// Keeps the key of a session that opened; says so when it is another than the first one.
    fn keep_key(&self, shown: &Fingerprint, seen_before: Option<&Fingerprint>) -> Option<String> {
        if self.link.fingerprint.is_some() {
            return None;
        }
        let server = self.link.server.authority();
        if let Err(error) = self.known.remember(&server, shown) {
            warn!(
                server,
                "the server's key is remembered only until this process ends: {error}"
            );
        }
        match seen_before {
            None => {
                info!(server, fingerprint = %shown, "first session with this server: its key is trusted from here on");
                None
            }
            Some(first) if first == shown => None,
            Some(first) => Some(format!(
                "{server} shows key {shown}, at first it was {first}; accepted because of allow_insecure"
            )),
        }
    }

    fn failure(&self, error: &ConnectError) -> Failure {
        let (text, advice) = (chain(error), error.advice());
        let plain = |cause| Failure::new(text.clone(), advice, cause);
        match error {
            ConnectError::FingerprintMismatch { expected, seen } => {
                let server = &self.link.server;
                let text = if self.link.fingerprint.is_some() {
                    format!(
                        "{server} shows key {seen}, but {expected} is pinned: no credentials were sent; if the server's \
                         key was replaced, set tunnel.fingerprint to the new one"
                    )
                } else {
                    format!(
                        "{server} shows key {seen}, at first it was {expected}: no credentials were sent; if the \
                         server's key was replaced, set tunnel.fingerprint to the new one (a chisel server without a \
                         key file makes a new key at each start)"
                    )
                };
                Failure {
                    key_changed: true,
                    ..Failure::new(text, advice, "fingerprint")
                }
            }
            ConnectError::AuthFailed { .. } => plain("credentials"),
            ConnectError::NotChisel { .. } => plain("not_chisel"),
            ConnectError::Retry { .. } => plain("unavailable"),
            ConnectError::ConfigRefused { cause, .. } => plain(match cause {
                RefusalCause::CannotListen { .. } => "port_taken",
                RefusalCause::Denied { .. } => "denied",
                RefusalCause::ReverseDisabled => "reverse_disabled",
                RefusalCause::Other => "config_refused",
            }),
            ConnectError::Timeout { .. } => plain("handshake_timeout"),
            ConnectError::Closed { .. } | ConnectError::Io { .. } | ConnectError::Disconnected { .. } => {
                plain("closed")
            }
            // The enum may grow; whatever it is, its own advice decides about the next try.
            ConnectError::Protocol { .. } | ConnectError::BadRequest(_) | _ => plain("protocol"),
        }
    }
}

/// The remote that the server refused, and whether by its rules.
fn named_remote(error: &ConnectError) -> Option<(&str, bool)> {
    let ConnectError::ConfigRefused { cause, .. } = error else {
        return None;
    };
    match cause {
        RefusalCause::CannotListen { remote } => Some((remote, false)),
        RefusalCause::Denied { remote } => Some((remote, true)),
        RefusalCause::ReverseDisabled | RefusalCause::Other => None,
    }
}

/// The wait that a failure asks for at least.
pub(super) fn asked_wait(advice: Advice) -> Option<Duration> {
    match advice {
        Advice::RetryAfter(after) => Some(after),
        Advice::Retry | Advice::RetrySlowly | Advice::Fix => None,
    }
}
