//! What the world is told about the link: status, conditions, gauges. Reads the manager, decides nothing.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use proto::v1::{ForwardState, SessionState, TunnelSession};
use runtime::conditions::Status;

use super::{
    manager::Manager,
    state::{Fate, Lane, LaneState},
};
use crate::{
    echo::{MISSED, Proof},
    plan::LaneId,
    spec::{Desired, Forward, Way},
    status::{Row, Session, micros},
};

/// Whether the link does its work.
pub(super) const TUNNEL: &str = "Tunnel";
/// True when the server shows another key than before: a warning, whatever the tunnel does about it.
pub(super) const FINGERPRINT_CHANGED: &str = "FingerprintChanged";

impl Manager {
    /// Brings board, conditions and gauges up to date.
    pub(super) fn publish(&mut self) {
        let session = self.session();
        let rows = self.rows();
        let (status, reason) = self.tunnel_condition(&session, &rows);
        let parts = &self.parts;
        parts.conditions.set(TUNNEL, status, reason);
        match &self.key_changed {
            Some(text) => parts
                .conditions
                .set(FINGERPRINT_CHANGED, Status::True, text.clone()),
            None if session.fingerprint.is_empty() => {
                parts.conditions.set(
                    FINGERPRINT_CHANGED,
                    Status::NotApplicable,
                    "no server key was seen yet",
                );
            }
            None => {
                let text = format!("the server shows the expected key {}", session.fingerprint);
                parts
                    .conditions
                    .set(FINGERPRINT_CHANGED, Status::NotApplicable, text);
            }
        }
        for (name, counters) in &self.counters {
            if let Some(proof) = parts.carrier.proofs().of(name) {
                let age = proof.at.elapsed().as_secs();
                counters.proof_age.set(i64::try_from(age).unwrap_or(i64::MAX));
            }
        }
        let up = self
            .lanes
            .values()
            .filter(|lane| matches!(lane.state, LaneState::Up { .. }))
            .count();
        parts.metrics.sessions.set(i64::try_from(up).unwrap_or_default());
        let listening = rows
            .iter()
            .filter(|row| row.state == ForwardState::Listening)
            .count();
        parts
            .metrics
            .listening
            .set(i64::try_from(listening).unwrap_or_default());
        parts.board.publish(session, rows, self.connects);
    }

    fn session(&self) -> Session {
        let mut session = Session {
            reason: self.last_cause.clone(),
            ..Session::default()
        };
        session.server = match &self.desired {
            Some(Desired::Tunnel(tunnel)) => tunnel.link.server.to_string(),
            Some(Desired::Refused { server, .. }) => server.clone(),
            Some(Desired::Idle { .. }) | None => String::new(),
        };
        session.asleep = self.asleep.is_some();
        if let Some(why) = self.idle_reason() {
            session.reason = why;
            return session;
        }
        session.sessions = self
            .lanes
            .iter()
            .map(|(id, lane)| one_session(*id, lane))
            .collect();
        for lane in self.lanes.values() {
            match &lane.state {
                LaneState::Up {
                    since,
                    fingerprint,
                    algorithms,
                } => {
                    session.state = SessionState::Connected;
                    session.fingerprint.clone_from(fingerprint);
                    session.algorithms.clone_from(algorithms);
                    session.connected_since = Some(
                        session
                            .connected_since
                            .map_or(*since, |earlier| earlier.min(*since)),
                    );
                }
                LaneState::Opening if session.state != SessionState::Connected => {
                    session.state = SessionState::Connecting;
                }
                LaneState::Waiting(until) => {
                    if session.state == SessionState::Idle {
                        session.state = SessionState::Backoff;
                    }
                    session.next_retry =
                        Some(session.next_retry.map_or(*until, |earlier| earlier.min(*until)));
                }
                LaneState::Opening => {}
            }
        }
        if session.state == SessionState::Connected
            && let Some((round_trip, at)) = self.round_trip
        {
            session.round_trip = Some(round_trip);
            session.last_pong = Some(at);
        }
        session
    }

    /// Why there is nothing to do, if there is not.
    fn idle_reason(&self) -> Option<String> {
        match &self.desired {
            None => Some("no spec from agent-core yet".to_owned()),
            Some(Desired::Idle { reason } | Desired::Refused { reason, .. }) => Some(reason.clone()),
            Some(Desired::Tunnel(_)) => self.asleep.clone(),
        }
    }

    fn rows(&mut self) -> Vec<Row> {
        let forwards = self
            .tunnel()
            .map(|tunnel| tunnel.forwards.clone())
            .unwrap_or_default();
        self.since
            .retain(|name, _| forwards.iter().any(|forward| forward.name == *name));
        let now = SystemTime::now();
        forwards
            .into_iter()
            .map(|forward| {
                let (state, reason) = self.forward_state(&forward);
                let since = match self.since.get(&forward.name) {
                    Some((known, since)) if *known == state => *since,
                    Some(_) | None => {
                        self.since.insert(forward.name.clone(), (state, now));
                        now
                    }
                };
                let way = forward.way.as_ref().ok();
                let (session, next_retry) = way.map_or((0, None), |way| self.carried_by(way));
                Row {
                    dials: way.map(|way| way.dials()).unwrap_or_default(),
                    listen: way.map(|way| way.listen.clone()),
                    session,
                    next_retry,
                    proof: self.parts.carrier.proofs().of(&forward.name),
                    counters: way.and_then(|way| self.counters.get(&way.listen.name).cloned()),
                    name: forward.name,
                    port: forward.port,
                    target: forward.target,
                    state,
                    reason,
                    since,
                }
            })
            .collect()
    }

    fn forward_state(&self, forward: &Forward) -> (ForwardState, String) {
        let way = match &forward.way {
            Ok(way) => way,
            Err(reason) => return (ForwardState::Refused, reason.clone()),
        };
        let Some((_, lane)) = self.lane_of(way) else {
            let why = self
                .asleep
                .clone()
                .unwrap_or_else(|| "waits for earlier sessions to end".to_owned());
            return (ForwardState::Pending, why);
        };
        if let Some(problem) = self.parts.carrier.locals().problem(&forward.name) {
            return (ForwardState::Failed, problem);
        }
        if lane.is_up() {
            return (ForwardState::Listening, String::new());
        }
        match lane.refusals.get(&forward.name) {
            Some(text) => (ForwardState::Failed, text.clone()),
            None if lane.failure.is_empty() => (ForwardState::Pending, "connecting".to_owned()),
            None => (ForwardState::Pending, lane.failure.clone()),
        }
    }

    /// What is known of the data path, and whether it is good enough to be called up. The listener, the session and
    /// the channel of a forward are proven by bytes the server side sent through them; a plain chisel server echoes
    /// pings and nothing else, and then that is what is claimed.
    fn proof(&self, session: &Session, rows: &[Row]) -> (String, bool) {
        let proofs = self.parts.carrier.proofs();
        let listening = || rows.iter().filter(|row| row.state == ForwardState::Listening);
        let broken: Vec<_> = listening()
            .filter(|row| proofs.missed(&row.name) >= MISSED)
            .map(|row| row.name.as_str())
            .collect();
        if !broken.is_empty() {
            let names = broken.join(", ");
            return (
                format!("bytes that the server side sends do not arrive: {names}"),
                false,
            );
        }
        let ping = match session.round_trip {
            Some(trip) => format!("proven by ping, last round trip {}", shown(trip)),
            None => "no ping answered yet".to_owned(),
        };
        let fresh: Vec<_> = listening()
            .filter_map(|row| row.proof.filter(Proof::fresh))
            .collect();
        let slowest = fresh.iter().map(|proof| proof.round_trip).max();
        let oldest = fresh.iter().map(|proof| proof.at.elapsed()).max();
        let (Some(slowest), Some(oldest)) = (slowest, oldest) else {
            return (ping, true);
        };
        let (count, all) = (fresh.len(), listening().count());
        let bytes = format!(
            "proven by bytes there and back through {count} of {all}, oldest {} s ago, slowest round trip {}",
            oldest.as_secs(),
            shown(slowest)
        );
        let text = if count == all {
            bytes
        } else {
            format!("{bytes}; the rest {ping}")
        };
        (text, true)
    }

    fn lane_of(&self, way: &Way) -> Option<(LaneId, &Lane)> {
        let holds = |lane: &Lane| !matches!(lane.fate, Fate::Stop) && lane.listens.contains(&way.listen);
        let found = self.lanes.iter().find(|(_, lane)| holds(lane));
        found.map(|(id, lane)| (*id, lane))
    }

    /// The session that has a forward, and when the server is asked for it again.
    fn carried_by(&self, way: &Way) -> (LaneId, Option<SystemTime>) {
        match self.lane_of(way) {
            Some((id, lane)) => {
                let next = match lane.state {
                    LaneState::Waiting(until) => Some(until),
                    LaneState::Opening | LaneState::Up { .. } => None,
                };
                (id, next)
            }
            None => (0, None),
        }
    }

    fn tunnel_condition(&self, session: &Session, rows: &[Row]) -> (Status, String) {
        if self.parts.supervisor.is_draining() {
            let open = self.parts.carrier.connections().list().len();
            return (
                Status::False,
                format!("shutting down, {open} connections are still open"),
            );
        }
        match &self.desired {
            None => return (Status::NotApplicable, "no spec from agent-core yet".to_owned()),
            Some(Desired::Idle { reason }) => return (Status::NotApplicable, reason.clone()),
            Some(Desired::Refused { reason, .. }) => return (Status::False, reason.clone()),
            Some(Desired::Tunnel(_)) => {}
        }
        if let Some(asleep) = &self.asleep {
            return (Status::NotApplicable, asleep.clone());
        }
        let refused: Vec<_> = rows
            .iter()
            .filter(|row| row.state == ForwardState::Refused)
            .collect();
        let not_held = |rows: &[&Row]| {
            rows.iter()
                .map(|row| format!("{}: {}", row.name, row.reason))
                .collect::<Vec<_>>()
                .join("; ")
        };
        let held = rows.len() - refused.len();
        if held == 0 {
            return (
                Status::False,
                format!("no forward can be held: {}", not_held(&refused)),
            );
        }
        let waiting: Vec<_> = rows
            .iter()
            .filter(|row| !matches!(row.state, ForwardState::Listening | ForwardState::Refused))
            .collect();
        if session.state != SessionState::Connected {
            let why = if self.last_cause.is_empty() {
                "first try"
            } else {
                &self.last_cause
            };
            let next = session
                .next_retry
                .map(|at| format!("; next try at {}", humantime::format_rfc3339_seconds(at)));
            let next = next.unwrap_or_default();
            return (
                Status::False,
                format!("no session with {}: {why}{next}", session.server),
            );
        }
        let listening = held - waiting.len();
        let (proof, proven) = self.proof(session, rows);
        let mut text = format!(
            "{listening} of {held} forwards listen at {}; {proof}",
            session.server
        );
        for (what, rows) in [("waiting", &waiting), ("not allowed here", &refused)] {
            if !rows.is_empty() {
                text.push_str(&format!("; {what}: {}", not_held(rows)));
            }
        }
        let status = if waiting.is_empty() && proven {
            Status::True
        } else {
            Status::False
        };
        (status, text)
    }
}

fn one_session(id: LaneId, lane: &Lane) -> TunnelSession {
    let (state, since, next_retry) = match &lane.state {
        LaneState::Waiting(until) => (SessionState::Backoff, None, Some(*until)),
        LaneState::Opening => (SessionState::Connecting, None, None),
        LaneState::Up { since, .. } => (SessionState::Connected, Some(*since), None),
    };
    let pong = lane.pong.filter(|_| lane.is_up());
    TunnelSession {
        id,
        state: state.into(),
        forwards: lane.listens.iter().map(|listen| listen.name.clone()).collect(),
        since: since.map(Timestamp::from),
        next_retry: next_retry.map(Timestamp::from),
        reason: lane.failure.clone(),
        round_trip_us: pong.map_or(0, |pong| micros(pong.round_trip)),
        handshake_us: lane.handshake.map_or(0, micros),
        rekeys: pong.map_or(0, |pong| pong.rekeys),
        bytes_in: pong.map_or(0, |pong| pong.bytes_in),
        bytes_out: pong.map_or(0, |pong| pong.bytes_out),
    }
}

fn shown(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
