//! Every duration of this process that is not in the spec, with its origin. Tests shorten them.

use std::time::Duration;

use runtime::{backoff::Policy, local::streams::Pace};

/// A session that lived so long was a real one; chisel's own client uses the same bound. Shorter ones are failures:
/// a server that accepts the config and then cannot bind drops the session at once.
const STABLE: Duration = Duration::from_secs(5);

/// How long things may take and how soon they are tried again.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// TCP to the server, all its addresses together.
    pub dial: Duration,
    /// TLS with the server.
    pub tls: Duration,
    /// Each step of the chisel handshake; `None` for what the transport finds right.
    pub handshake_step: Option<Duration>,
    /// DNS and TCP to a target. The user behind the server waits for it.
    pub target: Duration,
    /// Between sessions: the herd of all agents comes back within the first ceilings.
    pub retry: Policy,
    /// While the server cannot bind a port: the old listener goes the moment the server notices that its TCP is
    /// dead, and then the first to ask wins. A try costs both sides a few milliseconds.
    pub port_taken: Policy,
    /// While somebody has to change something (credentials, key, rules): never sooner than this …
    pub slow_least: Duration,
    /// … plus jitter.
    pub slow: Policy,
    /// To agent-core.
    pub core: Pace,
    /// Changes within this time make one report.
    pub coalesce: Duration,
    /// How long an ended session may take to say goodbye.
    pub goodbye: Duration,
    /// How long what the server sent before a target closed may take to reach that target.
    pub linger: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let policy = |min, max| Policy {
            min,
            max,
            stable: STABLE,
        };
        Self {
            dial: Duration::from_secs(10),
            tls: Duration::from_secs(10),
            handshake_step: None,
            target: Duration::from_secs(10),
            retry: policy(Duration::from_millis(200), Duration::from_secs(30)),
            port_taken: policy(Duration::from_millis(100), Duration::from_secs(2)),
            slow_least: Duration::from_secs(30),
            slow: policy(Duration::from_secs(30), Duration::from_secs(270)),
            core: Pace::default(),
            coalesce: Duration::from_millis(100),
            goodbye: Duration::from_secs(3),
            linger: Duration::from_secs(2),
        }
    }
}
