//! What became of the spec: the one place that probes, reports and people read.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;
use proto::v1::{ForwardKind, ForwardState, ForwardStatus, SessionState, TunnelSession, TunnelStatus};
use tokio::sync::watch;

use crate::{
    echo::Proof,
    metrics::{Counters, Opened},
    remotes::{Listen, Shape},
    spelling::Dials,
};

/// The sessions, seen as one.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// The best that can be said.
    pub state: SessionState,
    /// Cause of the last disconnect, or why it is idle.
    pub reason: String,
    /// The server.
    pub server: String,
    /// Its key, once seen.
    pub fingerprint: String,
    /// What was agreed on.
    pub algorithms: String,
    /// Since when a session is open.
    pub connected_since: Option<SystemTime>,
    /// When the next try comes.
    pub next_retry: Option<SystemTime>,
    /// Last ping round trip.
    pub round_trip: Option<Duration>,
    /// When it was.
    pub last_pong: Option<SystemTime>,
    /// Closed because nothing moved.
    pub asleep: bool,
    /// Each session by itself.
    pub sessions: Vec<TunnelSession>,
}

impl Session {
    fn without_ping(&self) -> Self {
        Self {
            round_trip: None,
            last_pong: None,
            sessions: self.sessions.iter().map(without_figures).collect(),
            ..self.clone()
        }
    }
}

impl Row {
    fn says_the_same(&self, other: &Self) -> bool {
        let said = |row: &Self| {
            (
                row.name.clone(),
                row.port,
                row.target.clone(),
                row.dials.clone(),
                row.listen.clone(),
                row.state,
                row.reason.clone(),
                row.next_retry,
                row.session,
            )
        };
        said(self) == said(other)
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            state: SessionState::Idle,
            reason: String::new(),
            server: String::new(),
            fingerprint: String::new(),
            algorithms: String::new(),
            connected_since: None,
            next_retry: None,
            round_trip: None,
            last_pong: None,
            asleep: false,
            sessions: Vec::new(),
        }
    }
}

/// What changes with every ping.
fn without_figures(session: &TunnelSession) -> TunnelSession {
    TunnelSession {
        round_trip_us: 0,
        rekeys: 0,
        bytes_in: 0,
        bytes_out: 0,
        ..session.clone()
    }
}

/// One forward.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Listening port as it was written.
    pub port: u32,
    /// The target as written.
    pub target: String,
    /// What is dialled for it.
    pub dials: String,
    /// Its listener; none for a forward that is not held.
    pub listen: Option<Listen>,
    /// What became of it.
    pub state: ForwardState,
    /// Why.
    pub reason: String,
    /// Since when it is so.
    pub since: SystemTime,
    /// Its counters; none for a forward that is not held.
    pub counters: Option<Counters>,
    /// When the server is asked for it again.
    pub next_retry: Option<SystemTime>,
    /// The session that carries it; 0 for none.
    pub session: u64,
    /// Bytes that went through it and back last.
    pub proof: Option<Proof>,
}

#[derive(Debug, Default)]
struct State {
    session: Session,
    rows: Vec<Row>,
    connects: u64,
}

/// The status of the process; clones share it.
#[derive(Clone, Debug)]
pub struct Board {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Board {
    /// Replaces everything. A ping's answer alone is no change worth a report of its own.
    pub fn publish(&self, session: Session, rows: Vec<Row>, connects: u64) {
        let mut state = self.lock();
        let same = state.session.without_ping() == session.without_ping()
            && state.rows.len() == rows.len()
            && state
                .rows
                .iter()
                .zip(&rows)
                .all(|(old, new)| old.says_the_same(new));
        *state = State {
            session,
            rows,
            connects,
        };
        drop(state);
        if !same {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// A counter that rises with each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// As it goes over the wire, with the counters of this moment.
    pub fn status(&self) -> TunnelStatus {
        let state = self.lock();
        let session = &state.session;
        TunnelStatus {
            state: session.state.into(),
            reason: session.reason.clone(),
            server: session.server.clone(),
            fingerprint: session.fingerprint.clone(),
            connected_since: session.connected_since.map(Timestamp::from),
            next_retry: session.next_retry.map(Timestamp::from),
            connects_total: state.connects,
            round_trip_us: session.round_trip.map_or(0, micros),
            last_pong: session.last_pong.map(Timestamp::from),
            forwards: state.rows.iter().map(forward).collect(),
            algorithms: session.algorithms.clone(),
            asleep: session.asleep,
            sessions: session.sessions.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forward(row: &Row) -> ForwardStatus {
    let count = |result| row.counters.as_ref().map_or(0, |counters| counters.count(result));
    ForwardStatus {
        name: row.name.clone(),
        remote_port: row.port,
        target: row.target.clone(),
        dials: row.dials.clone(),
        state: row.state.into(),
        reason: row.reason.clone(),
        connections_open: row.counters.as_ref().map_or(0, |counters| {
            u64::try_from(counters.open.get()).unwrap_or_default()
        }),
        connections_total: count(Opened::Accepted),
        dial_failures_total: count(Opened::TargetFailed) + count(Opened::Forbidden),
        bytes_in: row
            .counters
            .as_ref()
            .map_or(0, |counters| counters.bytes_in.get()),
        bytes_out: row
            .counters
            .as_ref()
            .map_or(0, |counters| counters.bytes_out.get()),
        since: Some(Timestamp::from(row.since)),
        kind: row.listen.as_ref().map_or(ForwardKind::Unspecified, kind).into(),
        listens: row
            .listen
            .as_ref()
            .map(|listen| format!("{}:{}", listen.host, listen.port))
            .unwrap_or_default(),
        next_retry: row.next_retry.map(Timestamp::from),
        // Counted back from now, so that the two cannot disagree.
        last_proof: row
            .proof
            .map(|proof| Timestamp::from(SystemTime::now() - proof.at.elapsed())),
        proof_age_ms: row.proof.map_or(0, |proof| millis(proof.at.elapsed())),
        proof_round_trip_us: row.proof.map_or(0, |proof| micros(proof.round_trip)),
        session: row.session,
        idle_closed_total: row
            .counters
            .as_ref()
            .map_or(0, |counters| counters.idle_closed.get()),
    }
}

fn kind(listen: &Listen) -> ForwardKind {
    match &listen.shape {
        Shape::Tcp => ForwardKind::ReverseTcp,
        Shape::Udp => ForwardKind::ReverseUdp,
        Shape::Socks => ForwardKind::ReverseSocks,
        Shape::LocalTcp(Dials::Address { .. }) => ForwardKind::LocalTcp,
        Shape::LocalTcp(Dials::Socks) => ForwardKind::LocalSocks,
        Shape::LocalUdp(_) => ForwardKind::LocalUdp,
    }
}

/// As the wire has it.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// As the wire has it.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
