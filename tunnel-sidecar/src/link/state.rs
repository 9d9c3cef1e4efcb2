//! A lane as the manager keeps it.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use runtime::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use super::lane::Pong;
use crate::{plan::Kind, remotes::Listen, timing::Timing};

/// One lane as the manager keeps it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) kind: Kind,
    pub(super) listens: Vec<Listen>,
    pub(super) state: LaneState,
    /// Why its last try failed; empty when it did not.
    pub(super) failure: String,
    /// What the server said about single forwards in the last try.
    pub(super) refusals: HashMap<String, String>,
    /// The last answer of its session to a ping.
    pub(super) pong: Option<Pong>,
    /// How long its session took to open.
    pub(super) handshake: Option<Duration>,
    pub(super) fate: Fate,
    pub(super) stop: CancellationToken,
    pub(super) retry: Backoff,
    pub(super) port_taken: Backoff,
    pub(super) slow: Backoff,
}

#[derive(Debug)]
pub(super) enum LaneState {
    Waiting(SystemTime),
    Opening,
    Up {
        since: SystemTime,
        fingerprint: String,
        algorithms: String,
    },
}

/// What happens to a lane when its run ends.
#[derive(Debug)]
pub(super) enum Fate {
    Keep,
    Reopen(Vec<Listen>),
    Stop,
}

impl Lane {
    /// A lane that is about to open for the first time.
    pub(super) fn new(kind: Kind, listens: Vec<Listen>, timing: &Timing) -> Self {
        Self {
            kind,
            listens,
            state: LaneState::Opening,
            failure: String::new(),
            refusals: HashMap::new(),
            pong: None,
            handshake: None,
            fate: Fate::Keep,
            stop: CancellationToken::new(),
            retry: Backoff::new(timing.retry),
            port_taken: Backoff::new(timing.port_taken),
            slow: Backoff::new(timing.slow),
        }
    }

    /// Whether its session is open.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, LaneState::Up { .. })
    }
}
