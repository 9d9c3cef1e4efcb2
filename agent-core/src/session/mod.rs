//! The life of a registration: a pure state machine, `now` and events in, actions out.
//!
//! ```text
//!             identity read, no cluster            accepted
//!   Loading ──────────────► Unregistered ─► Registering ─► Active ◄──► Lapsed
//!      │                        ▲  fails: backoff │           │ "not registered"
//!      │ cluster known          └─────────────────┤           ▼
//!      └─────────────► Lapsed (first beat)        │      Registering, with the cluster as hint
//!                                        refused  ▼           │ refused
//!                      no cluster known: Fail (process ends)  ▼
//!                                                          Refused ─ 1–5 min, or new token ─► Registering
//! ```
//!
//! Only the very first registration may end the process. Whoever knows a cluster UUID keeps trying for ever,
//! because a restart would change nothing and a fresh registration would make a second cluster.
//!
//! Times are offsets from the start of the process; the driver owns the clock, the sockets and the store.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use runtime::backoff::{Backoff, Policy};

pub(crate) mod refusal;
#[cfg(test)]
mod tests;

/// A single lost beat is a hiccup; with the third in a row the link counts as lost.
const LAPSED_AFTER: u32 = 3;
/// So many beats after a registration may still find a control plane that does not know of it: its replicas and
/// caches learn one after the other, and half a minute at the default pace is long for that.
const SETTLING_BEATS: u32 = 6;
/// Between registrations of an agent that is refused though it has a cluster: seldom enough not to be a nuisance,
/// often enough that a mended control plane is found the same hour.
const REFUSED_RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));

/// Where the registration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Unregistered,
    Registering,
    Active,
    Lapsed,
    Refused,
    Draining,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The identity cannot be read yet, because …
    Waiting(String),
    /// The identity is read. `current` is false when what we would register differs from what was registered.
    Loaded {
        cluster: Option<String>,
        current: bool,
    },
    Registered {
        cluster: String,
    },
    /// A final no.
    RegistrationRefused {
        sentence: String,
    },
    /// No answer, or one that invites another try.
    RegistrationFailed {
        reason: String,
        retry_after: Option<Duration>,
    },
    BeatAccepted,
    /// The control plane does not know us, or not any more.
    BeatRefused {
        reason: String,
    },
    BeatFailed {
        reason: String,
        retry_after: Option<Duration>,
    },
    TokenChanged,
    /// A person asked for a beat.
    BeatWanted,
    /// A person asked for a new registration with the known cluster as hint.
    RegistrationWanted,
    Drain,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Register {
        hint: Option<String>,
    },
    Beat {
        cluster: String,
    },
    /// Give up the process, with a sentence that says what to do.
    Fail(String),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Session {
    phase: Phase,
    reason: String,
    cluster: Option<String>,
    interval: Duration,
    backoff: Backoff,
    random: StdRng,
    registration_due: Option<Duration>,
    registering: bool,
    beat_due: Option<Duration>,
    failures: u32,
    last_accepted: Option<Duration>,
    /// A re-registration was answered and no beat was accepted since.
    unproven: bool,
    /// How many more refused beats are taken for a registration that has not come through everywhere.
    settling: u32,
    failed: Option<String>,
}

impl Session {
    pub(crate) fn new(interval: Duration, policy: Policy, seed: u64) -> Self {
        Self {
            phase: Phase::Loading,
            reason: "reading the stored identity".to_owned(),
            cluster: None,
            interval,
            backoff: Backoff::with_seed(policy, seed),
            random: StdRng::seed_from_u64(seed),
            registration_due: None,
            registering: false,
            beat_due: None,
            failures: 0,
            last_accepted: None,
            unproven: false,
            settling: 0,
            failed: None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it is in this phase: one sentence for the operator.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// When the last beat was accepted.
    pub(crate) fn last_accepted(&self) -> Option<Duration> {
        self.last_accepted
    }

    /// Takes in what happened at `now`.
    pub(crate) fn on(&mut self, now: Duration, event: Event) {
        match event {
            Event::Waiting(reason) => {
                if self.phase == Phase::Loading {
                    self.reason = reason;
                }
            }
            Event::Loaded { cluster, current } => self.loaded(now, cluster, current),
            Event::Registered { cluster } => self.registered(now, &cluster),
            Event::RegistrationRefused { sentence } => self.registration_refused(now, sentence),
            Event::RegistrationFailed { reason, retry_after } => {
                self.registering = false;
                self.registration_due = Some(now + self.backoff.next(retry_after));
                match self.phase {
                    // The heartbeats say how the link is.
                    Phase::Refused | Phase::Draining | Phase::Active | Phase::Lapsed => {}
                    Phase::Loading | Phase::Unregistered | Phase::Registering => {
                        self.set(Phase::Unregistered, reason);
                    }
                }
            }
            Event::BeatAccepted => self.beat_accepted(now),
            Event::BeatRefused { reason } => self.beat_refused(now, &reason),
            Event::BeatFailed { reason, retry_after } => self.beat_failed(now, &reason, retry_after),
            Event::TokenChanged => match self.phase {
                Phase::Refused | Phase::Unregistered | Phase::Registering => {
                    self.registration_due = Some(now);
                    self.backoff.reset();
                }
                Phase::Active | Phase::Lapsed => self.beat_due = Some(now),
                Phase::Loading | Phase::Draining => {}
            },
            Event::BeatWanted => {
                if self.cluster.is_some() && self.phase != Phase::Refused {
                    self.beat_due = Some(now);
                }
            }
            Event::RegistrationWanted => {
                if !matches!(self.phase, Phase::Loading | Phase::Draining) {
                    self.registration_due = Some(now);
                }
            }
            Event::Drain => {
                let told = self.cluster.is_some() && !matches!(self.phase, Phase::Refused | Phase::Loading);
                self.set(Phase::Draining, "the process is asked to stop".to_owned());
                self.registration_due = None;
                // The control plane hears of the stop before anybody else.
                self.beat_due = told.then_some(now);
            }
        }
    }

    /// Everything that is due at `now`.
    pub(crate) fn poll(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(sentence) = self.failed.take() {
            actions.push(Action::Fail(sentence));
            return actions;
        }
        if self.registration_due.is_some_and(|due| due <= now) && !self.registering {
            self.registration_due = None;
            self.registering = true;
            if self.phase == Phase::Unregistered {
                self.phase = Phase::Registering;
            }
            actions.push(Action::Register {
                hint: self.cluster.clone(),
            });
        }
        if let (Some(due), Some(cluster)) = (self.beat_due, &self.cluster)
            && due <= now
        {
            actions.push(Action::Beat {
                cluster: cluster.clone(),
            });
            self.beat_due = Some(self.next_beat(due, now));
        }
        actions
    }

    /// When [`Self::poll`] has something to do again.
    pub(crate) fn wake(&self) -> Option<Duration> {
        if self.failed.is_some() {
            return Some(Duration::ZERO);
        }
        let registration = self.registration_due.filter(|_| !self.registering);
        [registration, self.beat_due.filter(|_| self.cluster.is_some())]
            .into_iter()
            .flatten()
            .min()
    }

    fn loaded(&mut self, now: Duration, cluster: Option<String>, current: bool) {
        if self.phase != Phase::Loading {
            return;
        }
        self.cluster = cluster;
        match &self.cluster {
            Some(cluster) => {
                let reason = format!("cluster {cluster} is known; waiting for the first heartbeat's answer");
                self.beat_due = Some(now);
                // Something that the control plane was told has changed; it hears of it beside the beats.
                self.registration_due = (!current).then_some(now);
                self.set(Phase::Lapsed, reason);
            }
            None => {
                self.registration_due = Some(now);
                self.set(Phase::Unregistered, "no registration yet".to_owned());
            }
        }
    }

    fn registered(&mut self, now: Duration, cluster: &str) {
        self.registering = false;
        self.registration_due = None;
        self.backoff.reset();
        let recovering = matches!(self.phase, Phase::Registering | Phase::Refused) && self.cluster.is_some();
        self.unproven |= recovering;
        self.settling = SETTLING_BEATS;
        self.cluster = Some(cluster.to_owned());
        if self.phase != Phase::Draining {
            self.failures = 0;
            self.beat_due = Some(now);
            self.set(Phase::Active, format!("registered as cluster {cluster}"));
        }
    }

    fn registration_refused(&mut self, now: Duration, sentence: String) {
        self.registering = false;
        if self.phase == Phase::Draining {
            return;
        }
        if self.cluster.is_none() {
            self.registration_due = None;
            self.reason.clone_from(&sentence);
            self.failed = Some(sentence);
            return;
        }
        match self.phase {
            // Only the news was refused; whether the cluster itself is, the heartbeats say.
            Phase::Active | Phase::Lapsed => self.registration_due = None,
            Phase::Loading | Phase::Unregistered | Phase::Registering | Phase::Refused | Phase::Draining => {
                self.refuse(now, sentence);
            }
        }
    }

    fn refuse(&mut self, now: Duration, reason: String) {
        self.beat_due = None;
        let pause = self.random.random_range(REFUSED_RETRY.0..=REFUSED_RETRY.1);
        self.registration_due = Some(now + pause);
        self.set(Phase::Refused, reason);
    }

    fn beat_accepted(&mut self, now: Duration) {
        self.last_accepted = Some(now);
        self.failures = 0;
        self.unproven = false;
        self.settling = 0;
        if matches!(self.phase, Phase::Active | Phase::Lapsed) {
            let cluster = self.cluster.as_deref().unwrap_or_default();
            let reason = format!("heartbeats of cluster {cluster} are accepted");
            self.set(Phase::Active, reason);
        }
    }

    fn beat_refused(&mut self, now: Duration, reason: &str) {
        if !matches!(self.phase, Phase::Active | Phase::Lapsed) {
            return;
        }
        if self.settling > 0 {
            self.settling -= 1;
            let reason = format!("registered, but not known everywhere yet: {reason}");
            self.failures = self.failures.saturating_add(1);
            self.set(Phase::Lapsed, reason);
            return;
        }
        if self.unproven {
            // Registered again and still refused: another registration at once would be an endless loop.
            self.refuse(
                now,
                format!("registered again, but heartbeats are refused: {reason}"),
            );
            return;
        }
        self.beat_due = None;
        self.registration_due = Some(now);
        self.set(
            Phase::Registering,
            format!("{reason}; registering again with the known cluster as hint"),
        );
    }

    fn beat_failed(&mut self, now: Duration, reason: &str, retry_after: Option<Duration>) {
        self.note_failure(reason);
        if let (Some(due), Some(wait)) = (self.beat_due, retry_after) {
            self.beat_due = Some(due.max(now + wait + self.jitter()));
        }
    }

    fn note_failure(&mut self, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        let lapsed = self.failures >= LAPSED_AFTER || self.last_accepted.is_none();
        if self.phase == Phase::Lapsed || (self.phase == Phase::Active && lapsed) {
            self.set(Phase::Lapsed, reason.to_owned());
        }
    }

    /// The pace is exact while all is well. After a miss it is spread, so that the agents of a control plane that
    /// comes back do not knock together.
    fn next_beat(&mut self, due: Duration, now: Duration) -> Duration {
        if self.failures > 0 {
            return now + self.interval / 2 + self.jitter();
        }
        let next = due + self.interval;
        if next > now { next } else { now + self.interval }
    }

    fn jitter(&mut self) -> Duration {
        self.interval.mul_f64(self.random.random::<f64>())
    }

    fn set(&mut self, phase: Phase, reason: String) {
        self.phase = phase;
        self.reason = reason;
    }
}
