//! What is made to go wrong on demand.
//!
//! A fault is *added*, applies to requests that match it, and ends by its count, by [`Faults::remove`] or by
//! [`Faults::clear`]. What happens once and at once (compaction, ending all watches, cutting all connections, taking
//! the listener down) are methods of [`Simulation`](super::Simulation). `POST /_sim/faults` offers all of it to people.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultKind {
    /// Matching requests are taken and not answered until the fault ends.
    StallRequests,
    /// Open and new watches and followed logs send nothing until the fault ends, then go on with what they missed.
    StallStreams,
    /// New TCP connections are accepted and nothing is ever read from or written to them.
    StallConnections,
    /// The TCP connection breaks in the middle of the next event of a stream, or of the body of another answer.
    Cut,
    /// 410 `Expired`: in the stream for a watch with a resourceVersion, as the answer for a list with one or a page.
    Gone,
    /// The answer is this status; 429 with `Retry-After` if given.
    Fail {
        /// HTTP status.
        status: u16,
        /// Seconds for `Retry-After`.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Answers are sent at this pace.
    Slow {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// The answer begins this much later.
    Delay {
        /// Milliseconds.
        millis: u64,
    },
}

/// What goes wrong, for whom and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Only for requests whose path contains this.
    #[serde(default)]
    pub path: Option<String>,
    /// Only for requests of this Kubernetes verb.
    #[serde(default)]
    pub verb: Option<String>,
    /// Only for requests of this effective user.
    #[serde(default)]
    pub user: Option<String>,
    /// How many times; absent: until it is removed.
    #[serde(default)]
    pub times: Option<u32>,
}

impl Fault {
    /// For everybody, until removed.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            path: None,
            verb: None,
            user: None,
            times: None,
        }
    }

    /// Only this many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only for requests whose path contains this.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Only for requests of this Kubernetes verb.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.to_owned());
        self
    }

    /// Only for requests of this effective user.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    fn matches(&self, asked: Asked<'_>) -> bool {
        let is = |rule: &Option<String>, value: &str| rule.as_deref().is_none_or(|rule| rule == value);
        self.path.as_deref().is_none_or(|part| asked.path.contains(part))
            && is(&self.verb, asked.verb)
            && is(&self.user, asked.user)
    }
}

/// A request, as far as faults look at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Path.
    pub path: &'a str,
    /// Kubernetes verb.
    pub verb: &'a str,
    /// Effective user.
    pub user: &'a str,
}

/// An added fault with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Active {
    /// For [`Faults::remove`].
    pub id: u64,
    /// The fault, with the times that are left.
    #[serde(flatten)]
    pub fault: Fault,
}

/// The faults at this moment.
#[derive(Debug)]
pub struct Faults {
    active: Mutex<(u64, Vec<Active>)>,
    changed: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            active: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Active>)> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Adds a fault.
    pub fn add(&self, fault: Fault) -> u64 {
        let mut active = self.lock();
        active.0 += 1;
        let id = active.0;
        active.1.push(Active { id, fault });
        drop(active);
        self.wake();
        id
    }

    /// Ends one fault.
    pub fn remove(&self, id: u64) {
        self.lock().1.retain(|active| active.id != id);
        self.wake();
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.lock().1.clear();
        self.wake();
    }

    /// The active faults.
    pub fn list(&self) -> Vec<Active> {
        self.lock().1.clone()
    }

    /// The first matching fault of a sort, counted down.
    pub(super) fn take<T>(&self, asked: Asked<'_>, wanted: impl Fn(&FaultKind) -> Option<T>) -> Option<T> {
        let mut active = self.lock();
        let (place, found) = active.1.iter().enumerate().find_map(|(place, active)| {
            active
                .fault
                .matches(asked)
                .then(|| wanted(&active.fault.kind))
                .flatten()
                .map(|found| (place, found))
        })?;
        if let Some(left) = &mut active.1[place].fault.times {
            *left = left.saturating_sub(1);
            if *left == 0 {
                active.1.remove(place);
            }
        }
        Some(found)
    }

    /// Whether a fault of a sort is active, without counting it.
    pub(super) fn active(&self, asked: Asked<'_>, kind: &FaultKind) -> bool {
        self.lock()
            .1
            .iter()
            .any(|active| active.fault.kind == *kind && active.fault.matches(asked))
    }

    /// Waits while a fault of a sort is active.
    pub(super) async fn wait_while(&self, asked: Asked<'_>, kind: &FaultKind) {
        let mut changed = self.changed.subscribe();
        while self.active(asked, kind) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_count_down_and_match() {
        let faults = Faults::default();
        faults.add(Fault::new(FaultKind::Cut).times(2).path("/pods").verb("watch"));
        let cut = |path, verb| {
            let asked = Asked { path, verb, user: "" };
            faults
                .take(asked, |kind| (*kind == FaultKind::Cut).then_some(()))
                .is_some()
        };
        assert!(!cut("/api/v1/nodes", "watch") && !cut("/api/v1/pods", "list"));
        assert!(cut("/api/v1/pods", "watch") && cut("/api/v1/pods", "watch"));
        assert!(!cut("/api/v1/pods", "watch"), "used up");
        assert!(faults.list().is_empty());
    }

    #[test]
    fn people_write_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"kind":"fail","status":429,"retry_after":2,"times":3}"#).unwrap();
        assert_eq!(
            fault,
            Fault::new(FaultKind::Fail {
                status: 429,
                retry_after: Some(2)
            })
            .times(3)
        );
        let fault: Fault = serde_json::from_str(r#"{"kind":"stall_streams","path":"/pods"}"#).unwrap();
        assert_eq!(fault, Fault::new(FaultKind::StallStreams).path("/pods"));
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"explode"}"#).is_err());
    }
}
