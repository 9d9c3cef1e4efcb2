//! The link: keeps the sessions that the spec asks for, whatever the network does.
//!
//! ```text
//!   spec ──► manager ── plan ──► lanes (one session each, see [`crate::plan`])
//!              ▲  │                │
//!   Reconnect ─┘  └─► status   channels ──► carrier ──► targets
//! ```
//!
//! All lanes are polled by the manager's one task; what they do between two decisions is in `lane`, one try at a
//! session is in `open`, what its end means is in `outcomes`, what the world is told is in `describe`.

mod describe;
mod lane;
mod manager;
mod open;
mod outcomes;
mod state;

use std::sync::Arc;

use runtime::{conditions::Conditions, supervise::Supervisor};
use tokio::sync::mpsc;

use crate::{
    carrier::Carrier, known::KnownServers, metrics::TunnelMetrics, outbound::Outbound, spec::Desired,
    status::Board, timing::Timing,
};

pub use manager::Manager;

/// Commands wait here while the manager is between two awaits; there is one sender of specs and people are slow.
const COMMANDS: usize = 8;

/// What the manager is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// The spec says this.
    Apply(Desired),
    /// Somebody wants new sessions now.
    Reconnect(String),
}

/// Tells the manager; clones share it.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    commands: mpsc::Sender<Command>,
}

impl LinkHandle {
    /// Makes the desired state be kept. Equal content touches nothing.
    pub async fn apply(&self, desired: Desired) {
        // The manager ends only when the process does.
        self.commands.send(Command::Apply(desired)).await.ok();
    }

    /// Opens all sessions anew, at once.
    pub async fn reconnect(&self, reason: String) {
        self.commands.send(Command::Reconnect(reason)).await.ok();
    }
}

/// What the link works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Carries the connections.
    pub carrier: Carrier,
    /// Keys seen first.
    pub known: Arc<KnownServers>,
    /// The way to servers.
    pub outbound: Arc<Outbound>,
    /// What the world is told.
    pub board: Board,
    /// Whether we are ready.
    pub conditions: Conditions,
    /// Figures.
    pub metrics: TunnelMetrics,
    /// Owner of all tasks.
    pub supervisor: Supervisor,
    /// Durations.
    pub timing: Timing,
    /// Connections at a time.
    pub max_connections: usize,
}

/// A link that has nothing to do yet, and the handle that tells it.
pub fn link(parts: Parts) -> (LinkHandle, Manager) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    (LinkHandle { commands }, Manager::new(parts, receiver))
}
