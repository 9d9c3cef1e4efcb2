//! What the manager makes of a lane's news: a session that opened, one that did not, one that was lost.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use chisel_ssh::Advice;
use runtime::backoff::Backoff;
use tracing::{info, warn};

use super::{
    lane::{End, Event, Up},
    manager::Manager,
    open::{Failure, Rejected, asked_wait},
    state::{Fate, Lane, LaneState},
};
use crate::plan::{Kind, LaneId, absorbed};

impl Manager {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Opening(id) => {
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.state = LaneState::Opening;
                }
            }
            Event::Up(id, up) => self.on_up(id, *up),
            Event::Pong(id, pong) => {
                let now = SystemTime::now();
                self.round_trip = Some((pong.round_trip, now));
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.pong = Some(pong);
                }
            }
        }
    }

    fn on_up(&mut self, id: LaneId, up: Up) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if !matches!(lane.fate, Fate::Keep) {
            // It ends in a moment, and its forwards are spoken for.
            return;
        }
        let names: Vec<_> = up.listens.iter().map(|listen| listen.name.as_str()).collect();
        info!(lane = id, fingerprint = %up.fingerprint, forwards = names.join(","), "session open");
        let algorithms = up.algorithms;
        lane.listens = up.listens;
        lane.kind = Kind::Common;
        lane.failure.clear();
        lane.refusals.clear();
        lane.pong = None;
        lane.handshake = Some(up.handshake);
        lane.state = LaneState::Up {
            since: SystemTime::now(),
            fingerprint: up.fingerprint.to_string(),
            algorithms: format!(
                "{}, {}, {} out, {} in",
                algorithms.kex, algorithms.host_key, algorithms.cipher_out, algorithms.cipher_in
            ),
        };
        self.connects += 1;
        self.key_changed = up.key_changed;
        self.parts.carrier.connections().active();
        let (denied, taken): (Vec<_>, Vec<_>) = up.rejected.into_iter().partition(|rejected| rejected.denied);
        self.set_apart(Kind::Denied, &denied);
        self.set_apart(Kind::PortTaken, &taken);
        self.replan();
    }

    /// Forwards that the server refused wait in a lane of their own.
    fn set_apart(&mut self, kind: Kind, rejected: &[Rejected]) {
        if rejected.is_empty() {
            return;
        }
        for rejected in rejected {
            warn!(
                forward = rejected.listen.name,
                "the server refused this forward, the others go on: {}", rejected.text
            );
        }
        let mut listens: Vec<_> = rejected.iter().map(|rejected| rejected.listen.clone()).collect();
        let mut refusals = texts(rejected);
        // Those that wait for the same reason wait together, so that they come back as one session.
        let waiting = |(_, lane): &(&LaneId, &mut Lane)| {
            lane.kind == kind && matches!(lane.fate, Fate::Keep) && !lane.is_up()
        };
        for (_, other) in self.lanes.iter_mut().filter(waiting) {
            listens.append(&mut other.listens);
            refusals.extend(std::mem::take(&mut other.refusals));
            other.fate = Fate::Stop;
            other.stop.cancel();
        }
        let timing = &self.parts.timing;
        let wait = match kind {
            Kind::Denied => Backoff::new(timing.slow).next(Some(timing.slow_least)),
            Kind::Common | Kind::PortTaken => Backoff::new(timing.port_taken).next(None),
        };
        let id = self.add(kind, listens, wait);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.refusals = refusals;
        }
    }

    pub(super) fn on_end(&mut self, id: LaneId, end: End) {
        match &end {
            End::Stopped => {}
            End::Failed(failure) => self.parts.metrics.ends.with_label_values(&[failure.cause]).inc(),
            End::Lost { cause, .. } => self.parts.metrics.ends.with_label_values(&[*cause]).inc(),
        }
        let draining = self.parts.supervisor.is_draining();
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        match (std::mem::replace(&mut lane.fate, Fate::Keep), end) {
            (Fate::Stop, _) | (Fate::Keep, End::Stopped) => self.forget(id),
            (Fate::Reopen(_) | Fate::Keep, _) if draining => self.forget(id),
            (Fate::Reopen(listens), _) => {
                lane.listens = listens;
                self.start(id, Duration::ZERO);
            }
            (Fate::Keep, End::Failed(failure)) => self.on_failure(id, failure),
            (Fate::Keep, End::Lost { text, after, .. }) => self.on_loss(id, text, after),
        }
        if self.clearing && self.lanes.is_empty() {
            self.clearing = false;
        }
        self.replan();
    }

    /// A lane that will not come back.
    fn forget(&mut self, id: LaneId) {
        self.lanes.remove(&id);
        self.parts.metrics.forget_session(id);
    }

    fn on_failure(&mut self, id: LaneId, failure: Failure) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let least = self.parts.timing.slow_least;
        let port_taken = failure.rejected.iter().any(|rejected| !rejected.denied);
        let wait = match failure.advice {
            _ if port_taken => lane.port_taken.next(None),
            Advice::RetrySlowly | Advice::Fix => lane.slow.next(Some(least)),
            Advice::Retry | Advice::RetryAfter(_) => lane.retry.next(asked_wait(failure.advice)),
        };
        warn!(lane = id, retry_in = ?wait, "no session: {}", failure.text);
        if failure.key_changed {
            self.key_changed = Some(failure.text.clone());
        }
        lane.refusals = texts(&failure.rejected);
        self.last_cause.clone_from(&failure.text);
        lane.failure = failure.text;
        self.retry(id, wait);
    }

    fn on_loss(&mut self, id: LaneId, text: String, after: Duration) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        // "Connected and dropped at once" is a failure like any other: only a real session starts the series anew.
        for series in [&mut lane.retry, &mut lane.port_taken, &mut lane.slow] {
            series.session_lasted(after);
        }
        let wait = lane.retry.next(None);
        warn!(lane = id, ?after, retry_in = ?wait, "session lost: {text}");
        lane.failure.clone_from(&text);
        self.last_cause = text;
        self.retry(id, wait);
    }

    /// Tries a lane again, together with those that are down anyway.
    fn retry(&mut self, id: LaneId, wait: Duration) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.state = LaneState::Waiting(SystemTime::now() + wait);
            if lane.kind == Kind::Common {
                for other in absorbed(&self.views(), id, self.sessions()) {
                    self.absorb(id, other);
                }
            }
        }
        self.start(id, wait);
    }

    fn absorb(&mut self, id: LaneId, other: LaneId) {
        let Some(absorbed) = self.lanes.get_mut(&other) else {
            return;
        };
        let listens = match std::mem::replace(&mut absorbed.fate, Fate::Stop) {
            Fate::Reopen(listens) => listens,
            Fate::Keep | Fate::Stop => std::mem::take(&mut absorbed.listens),
        };
        absorbed.listens.clear();
        absorbed.stop.cancel();
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.listens.extend(listens);
        }
    }
}

fn texts(rejected: &[Rejected]) -> HashMap<String, String> {
    rejected
        .iter()
        .map(|rejected| (rejected.listen.name.clone(), rejected.text.clone()))
        .collect()
}
