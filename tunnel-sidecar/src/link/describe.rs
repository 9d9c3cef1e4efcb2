//! What the world is told about the link: status, conditions, gauges. Reads the manager, decides nothing.

use std::time::SystemTime;

use proto::v1::{ForwardState, SessionState};
use runtime::conditions::Status;

use super::{
    manager::Manager,
    state::{Fate, Lane, LaneState},
};
use crate::{
    spec::{Desired, Forward},
    status::{Row, Session},
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
        if let Some(why) = self.idle_reason() {
            session.reason = why;
            return session;
        }
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
                Row {
                    dials: way.map(|way| way.dials()).unwrap_or_default(),
                    listen: way.map(|way| way.listen.clone()),
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
        let holds = |lane: &&Lane| !matches!(lane.fate, Fate::Stop) && lane.listens.contains(&way.listen);
        let Some(lane) = self.lanes.values().find(holds) else {
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
        // A plain chisel server echoes pings and nothing else, so that is what is claimed.
        let proof = match session.round_trip {
            Some(trip) => format!(
                "proven by ping, last round trip {:.1} ms",
                trip.as_secs_f64() * 1000.0
            ),
            None => "no ping answered yet".to_owned(),
        };
        let mut text = format!(
            "{listening} of {held} forwards listen at {}; {proof}",
            session.server
        );
        for (what, rows) in [("waiting", &waiting), ("not allowed here", &refused)] {
            if !rows.is_empty() {
                text.push_str(&format!("; {what}: {}", not_held(rows)));
            }
        }
        let status = if waiting.is_empty() {
            Status::True
        } else {
            Status::False
        };
        (status, text)
    }
}
