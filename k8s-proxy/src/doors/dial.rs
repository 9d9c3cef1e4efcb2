//! WebSockets that we open to a control plane, because nobody can reach us.
//!
//! Each door dials, serves, and dials again with full jitter. HTTP/2 is offered; a control plane that does not take it
//! is served frames. A spec with the same content touches nothing; a changed door is opened anew before the old
//! connection is given up, the others do not notice.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use proto::v1::{DialedDoor, DoorProtocol};
use runtime::{
    backoff::{Backoff, Policy},
    dial::url_is_loopback,
    secret::SecretString,
    supervise::{Supervisor, chain},
    tls,
    websocket::{self, Connect, ConnectError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep},
};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use super::{
    board::Board,
    v2,
    watchdog::{WRITE_LIMIT, Watchdog},
};
use crate::{
    engine::Engine,
    frames::{
        codec::MAX_FRAME,
        session::{self, SessionEnd},
    },
    identity::{Caller, Mode},
    shared::Shared,
};

/// A control plane that restarts is back within seconds; one that is away is asked twice a minute.
const BACKOFF: Policy = Policy {
    min: Duration::from_millis(250),
    max: Duration::from_secs(15),
    stable: Duration::from_secs(30),
};
/// A refused credential does not get better by asking often.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// For each of connection, TLS and upgrade.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long the old connection of a changed door waits for the new one.
const TAKEOVER: Duration = Duration::from_secs(30);

/// What every dialled door needs.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Carries out the calls.
    pub engine: Engine,
    /// Owns the doors.
    pub supervisor: Supervisor,
    /// For sessions.
    pub shared: Shared,
    /// Where doors tell how they are.
    pub board: Board,
}

/// The dialled doors, kept as the spec wants them.
pub struct Dialler {
    environment: Environment,
    running: BTreeMap<String, Running>,
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.running.keys()).finish()
    }
}

struct Running {
    spec: DialedDoor,
    stop: CancellationToken,
}

impl Dialler {
    /// No doors yet.
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            running: BTreeMap::new(),
        }
    }

    /// Makes the doors be those of a spec.
    pub fn apply(&mut self, wanted: &[DialedDoor]) {
        let mut named = BTreeMap::new();
        for (index, door) in wanted.iter().enumerate() {
            let plain = if door.name.is_empty() {
                format!("dial:{index}")
            } else {
                format!("dial:{}", door.name)
            };
            let name = if named.contains_key(&plain) {
                format!("{plain}-{index}")
            } else {
                plain
            };
            named.insert(name, door);
        }
        let board = &self.environment.board;
        self.running.retain(|name, running| {
            let keep = named.contains_key(name);
            if !keep {
                running.stop.cancel();
                board.remove(name);
            }
            keep
        });
        for (name, door) in named {
            let old = self.running.get(&name);
            if old.is_some_and(|old| old.spec == *door) {
                continue;
            }
            let stop = CancellationToken::new();
            let old = old.map(|old| old.stop.clone());
            self.environment.start(&name, door, stop.clone(), old);
            let spec = door.clone();
            self.running.insert(name, Running { spec, stop });
        }
    }
}

/// A door that may be dialled.
struct Plan {
    url: Url,
    bearer: SecretString,
    caller: Arc<Caller>,
    tls: Arc<rustls::ClientConfig>,
    /// Whether HTTP/2 is offered.
    http2: bool,
}

impl Environment {
    /// `old` ends the connection that this door had before it was changed.
    fn start(&self, name: &str, door: &DialedDoor, stop: CancellationToken, old: Option<CancellationToken>) {
        match plan(door) {
            Ok(plan) => {
                if old.is_none() {
                    self.board.set(name, plan.url.as_str(), false, "connecting");
                }
                let (environment, name) = (self.clone(), name.to_owned());
                let opened = CancellationToken::new();
                if let Some(old) = old {
                    let (opened, stop) = (opened.clone(), stop.clone());
                    self.supervisor.spawn(format!("takeover {name}"), async move {
                        tokio::select! { () = opened.cancelled() => {}, () = stop.cancelled() => {}, () = sleep(TAKEOVER) => {} }
                        old.cancel();
                    });
                }
                self.supervisor.spawn(format!("door {name}"), async move {
                    tokio::select! {
                        () = environment.keep(&name, plan, stop, opened) => {}
                        // A session drains by itself; what is left of it goes at the cut.
                        () = environment.supervisor.cut() => {}
                    }
                });
            }
            Err(why) => {
                warn!(door = name, why, "a door cannot be dialled");
                if let Some(old) = old {
                    old.cancel();
                }
                self.board.set(name, &door.url, false, &why);
            }
        }
    }

    /// Dials and serves until the door is not wanted any more.
    async fn keep(&self, name: &str, plan: Plan, stop: CancellationToken, opened: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF);
        while !stop.is_cancelled() && !self.supervisor.is_draining() {
            let pause = self.once(name, &plan, &stop, &opened, &mut backoff).await;
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => break,
                () = self.supervisor.draining() => break,
            }
        }
    }

    /// One connection; returns how long to wait before the next.
    async fn once(
        &self,
        name: &str,
        plan: &Plan,
        stop: &CancellationToken,
        opened: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Duration {
        let connecting = websocket::negotiate(
            Connect {
                url: &plan.url,
                bearer: Some(&plan.bearer),
                subprotocol: plan.http2.then_some(v2::SUBPROTOCOL),
                tls: Arc::clone(&plan.tls),
                timeout: TIMEOUT,
                max_message: MAX_FRAME,
            },
            |stream| Watchdog::new(stream, WRITE_LIMIT),
        );
        let connected = tokio::select! {
            connected = connecting => connected,
            () = stop.cancelled() => return Duration::ZERO,
            () = self.supervisor.draining() => return Duration::ZERO,
        };
        let dials = &self.engine.metrics().dials;
        match connected {
            Ok((socket, http2)) => {
                dials.with_label_values(&["connected"]).inc();
                let spoken = if http2 { "HTTP/2" } else { "frames" };
                info!(door = name, url = %plan.url, spoken, "connected");
                self.board
                    .set(name, plan.url.as_str(), true, &format!("connected, {spoken}"));
                opened.cancel();
                let started = Instant::now();
                let end = self.serve(socket, http2, name, plan, stop).await;
                backoff.session_lasted(started.elapsed());
                let pause = backoff.next(None);
                info!(door = name, end = end.sentence(), ?pause, "disconnected");
                if !stop.is_cancelled() {
                    self.board.set(
                        name,
                        plan.url.as_str(),
                        false,
                        &format!("{}; dialling again", end.sentence()),
                    );
                }
                pause
            }
            Err(error) => {
                dials.with_label_values(&["failed"]).inc();
                let pause = backoff.next(advice(&error));
                warn!(door = name, error = chain(&error), ?pause, "cannot connect");
                self.board.set(name, plan.url.as_str(), false, &chain(&error));
                pause
            }
        }
    }
}

impl Environment {
    async fn serve<S>(
        &self,
        socket: WebSocketStream<S>,
        http2: bool,
        name: &str,
        plan: &Plan,
        stop: &CancellationToken,
    ) -> SessionEnd
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (engine, supervisor, shared) =
            (self.engine.clone(), self.supervisor.clone(), self.shared.clone());
        let (door, caller, stop) = (name.into(), Arc::clone(&plan.caller), stop.clone());
        if http2 {
            let session = v2::Session {
                engine,
                supervisor,
                shared,
                board: self.board.clone(),
                door,
                caller,
                stop,
            };
            return v2::run(socket, session).await;
        }
        let context = session::Context::new(engine, supervisor, shared, door, caller);
        session::run(socket, session::Context { stop, ..context }).await
    }
}

fn advice(error: &ConnectError) -> Option<Duration> {
    match error {
        ConnectError::Refused {
            status, retry_after, ..
        } => retry_after.or_else(|| matches!(status.as_u16(), 401 | 403).then_some(REFUSED_PAUSE)),
        ConnectError::Url(_)
        | ConnectError::Dial(_)
        | ConnectError::Tls(_)
        | ConnectError::Timeout { .. }
        | ConnectError::Protocol { .. } => None,
    }
}

/// What a door of a spec means, or why it is not dialled.
fn plan(door: &DialedDoor) -> Result<Plan, String> {
    let url = Url::parse(&door.url).map_err(|error| format!("its URL does not read: {error}"))?;
    match url.scheme() {
        "wss" => {}
        "ws" if door.allow_insecure || url_is_loopback(&url) => {}
        "ws" => {
            return Err(
                "ws:// would send the credential in clear: use wss://, or set proxy.allow_insecure"
                    .to_owned(),
            );
        }
        scheme => return Err(format!("{scheme}:// is no WebSocket URL")),
    }
    if door.bearer.is_empty() {
        return Err("there is no token to show at this door".to_owned());
    }
    let mode = Mode::from_proto(door.mode).ok_or_else(|| "its credential mode is not set".to_owned())?;
    let roots = (!door.ca_pem.is_empty()).then_some(door.ca_pem.as_ref());
    let tls = tls::client_config(roots, &[b"http/1.1"]).map_err(|error| chain(&error))?;
    let name = if door.name.is_empty() {
        "control-plane"
    } else {
        &door.name
    };
    let caller = Arc::new(Caller::new(name, Vec::new(), mode));
    Ok(Plan {
        url,
        bearer: SecretString::from(door.bearer.as_str()),
        caller,
        tls,
        http2: door.protocol() != DoorProtocol::Frames,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::CredentialMode;

    fn door(url: &str) -> DialedDoor {
        DialedDoor {
            url: url.to_owned(),
            bearer: "canary".to_owned(),
            mode: CredentialMode::Agent.into(),
            name: "cp".to_owned(),
            ..DialedDoor::default()
        }
    }

    #[test]
    fn what_the_control_plane_asks_for_is_waited() {
        let refused = |status: http::StatusCode, retry_after| ConnectError::Refused {
            url: Url::parse("ws://localhost/").unwrap(),
            status,
            retry_after,
            body: String::new(),
        };
        let asked = Some(Duration::from_secs(7));
        assert_eq!(
            advice(&refused(http::StatusCode::SERVICE_UNAVAILABLE, asked)),
            asked
        );
        assert_eq!(
            advice(&refused(http::StatusCode::UNAUTHORIZED, None)),
            Some(REFUSED_PAUSE)
        );
        assert_eq!(advice(&refused(http::StatusCode::BAD_GATEWAY, None)), None);
    }

    #[test]
    fn a_credential_is_not_sent_in_clear_or_without_a_mode() {
        tls::install_provider();
        assert!(plan(&door("ws://127.0.0.1:1/x")).is_ok());
        assert!(
            plan(&DialedDoor {
                allow_insecure: true,
                ..door("ws://cp.example/x")
            })
            .is_ok()
        );
        for (broken, word) in [
            (door("ws://cp.example/x"), "clear"),
            (door("https://cp.example/x"), "no WebSocket"),
            (door("nonsense"), "does not read"),
            (
                DialedDoor {
                    bearer: String::new(),
                    ..door("wss://cp.example/x")
                },
                "no token",
            ),
            (
                DialedDoor {
                    mode: 0,
                    ..door("wss://cp.example/x")
                },
                "mode",
            ),
            (
                DialedDoor {
                    ca_pem: bytes::Bytes::from_static(b"x"),
                    ..door("wss://cp.example/x")
                },
                "CA",
            ),
        ] {
            let error = plan(&broken).map(|_| ()).unwrap_err();
            assert!(error.contains(word) && !error.contains("canary"), "{error}");
        }
    }
}
