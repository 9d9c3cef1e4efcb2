//! Everything the simulated cluster knows: what the server answers from and what the workload changes.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    SimulationConfig,
    auth::Auth,
    clock::{Chance, Clock},
    faults::Faults,
    logs::Logs,
    requests::Requests,
    store::Store,
    workload::Pace,
};

/// The shared state of one simulation.
#[derive(Debug)]
pub struct Cluster {
    /// Objects.
    pub store: Store,
    /// Lines that containers wrote.
    pub logs: Logs,
    /// Who may do what.
    pub auth: Auth,
    /// What is made to go wrong.
    pub faults: Faults,
    /// What was asked.
    pub requests: Requests,
    /// Time in timestamps.
    pub clock: Clock,
    /// Chance for uids and generated names: apart from the workload's, so that requests do not change its course.
    pub chance: Chance,
    /// Chance of the workload.
    pub workload_chance: Chance,
    /// Whether and how fast the workload lives.
    pub pace: Pace,
    /// How often a watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// When a watch without `timeoutSeconds` ends.
    pub watch_timeout: Duration,
    /// Counts up to end every open watch cleanly.
    pub end_watches: watch::Sender<u64>,
    /// Counts up to send a bookmark on every watch that asked for bookmarks.
    pub bookmark: watch::Sender<u64>,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(config: &SimulationConfig) -> Self {
        Self {
            store: Store::new(config.watch_cache),
            logs: Logs::new(),
            auth: Auth::new(&config.users, config.anonymous),
            faults: Faults::default(),
            requests: Requests::new(config.request_log),
            clock: Clock::new(config.start),
            chance: Chance::new(config.seed),
            workload_chance: Chance::new(config.seed.wrapping_add(1)),
            pace: Pace::new(config.tick),
            bookmark_interval: config.bookmark_interval,
            watch_timeout: config.watch_timeout,
            end_watches: watch::channel(0).0,
            bookmark: watch::channel(0).0,
        }
    }
}
