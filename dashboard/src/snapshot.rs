//! What the page shows, as plain values. Every text is a [`Line`]; there is no field for a token or credential.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::Line;

/// How many heartbeats are kept and drawn.
pub(crate) const HEARTBEATS_SHOWN: usize = 60;

/// How many open streams are listed; the counts beside the list are complete.
pub(crate) const STREAMS_SHOWN: usize = 50;

/// Everything the page shows, replaced whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Who we are and how the control plane sees us.
    pub agent: Agent,
    /// The three containers, agent-core first.
    pub containers: Vec<Container>,
    /// Newest last; the last 60 are kept.
    pub heartbeats: Vec<Heartbeat>,
    /// The chisel session and its forwards.
    pub tunnel: Tunnel,
    /// The doors of k8s-proxy and what goes through them.
    pub proxy: Proxy,
    /// Open streams, as far as they are known; the first 50 are shown.
    pub streams: Vec<OpenStream>,
}

impl Snapshot {
    /// Drops what the page would not show, so that a frame has a bounded size.
    pub(crate) fn bounded(mut self) -> Self {
        let surplus = self.heartbeats.len().saturating_sub(HEARTBEATS_SHOWN);
        self.heartbeats.drain(..surplus);
        self.streams.truncate(STREAMS_SHOWN);
        self
    }
}

/// A moment: milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct At(pub u64);

impl At {
    /// From the two fields of a protobuf timestamp; times before 1970 become 0.
    pub fn from_parts(seconds: i64, nanos: i32) -> Self {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        let millis = u64::try_from(nanos / 1_000_000).unwrap_or(0);
        Self(seconds.saturating_mul(1000).saturating_add(millis))
    }

    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for At {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Who we are and how the control plane sees us.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Agent {
    /// The agent's own identity.
    pub id: Line,
    /// The identity the control plane gave; empty before registration.
    pub cluster_uuid: Line,
    /// The name people gave the cluster.
    pub cluster_name: Line,
    /// Where the agent stands with the control plane.
    pub phase: Phase,
    /// Why it stands there.
    pub reason: Line,
    /// Address of the control plane.
    pub control_plane: Line,
    /// When this agent-core started.
    pub started: At,
    /// Version of agent-core.
    pub version: Line,
    /// Nodes in the cluster, when known.
    pub nodes: Option<u64>,
    /// Pods in the cluster, when known.
    pub pods: Option<u64>,
    /// What the apiserver says it is; empty when not known.
    pub kubernetes_version: Line,
}

/// Where the agent stands with the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The stored identity is not read yet.
    #[default]
    Loading,
    /// No registration has been accepted yet.
    Unregistered,
    /// A registration is under way.
    Registering,
    /// Registered, heartbeats accepted.
    Active,
    /// Registered, but heartbeats are not accepted at present.
    Lapsed,
    /// The control plane refuses this agent.
    Refused,
    /// This agent is stopping.
    Draining,
}

/// One of the three containers as agent-core sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Container {
    /// `agent-core`, `tunnel-sidecar` or `k8s-proxy`.
    pub name: Line,
    /// Whether its reports are fresh; without them nothing else here is current.
    pub known: bool,
    /// Since when its reports are missing.
    pub unknown_since: Option<At>,
    /// When it was last heard.
    pub last_report: Option<At>,
    /// What it says of itself.
    pub ready: bool,
    /// The named statements behind `ready`.
    pub conditions: Vec<Condition>,
    /// How many different instances were seen since agent-core started.
    pub instances_seen: u32,
    /// Its version.
    pub version: Line,
}

/// A named statement of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Condition {
    /// For example `TunnelUp`.
    pub name: Line,
    /// Whether it holds.
    pub status: Status,
    /// One sentence for the operator.
    pub reason: Line,
    /// Since when the status is what it is.
    pub since: At,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Neither good nor bad: the thing is off or idle on purpose.
    #[default]
    NotApplicable,
}

/// One heartbeat and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Heartbeat {
    /// When it was sent.
    pub at: At,
    /// Whether the control plane took it.
    pub accepted: bool,
    /// HTTP status, 0 when no answer came.
    pub status: u16,
    /// From sending to the answer or the failure.
    pub ms: u32,
    /// Why it was not accepted; empty otherwise.
    pub error: Line,
}

/// The chisel session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tunnel {
    /// Where the session stands.
    pub state: SessionState,
    /// Cause of the last disconnect, or why it is idle.
    pub reason: Line,
    /// The server's address.
    pub server: Line,
    /// Fingerprint of the server's key, once seen.
    pub fingerprint: Line,
    /// Since when it is connected.
    pub connected_since: Option<At>,
    /// When the next try comes.
    pub next_retry: Option<At>,
    /// How many sessions were opened.
    pub connects: u64,
    /// Last ping round trip.
    pub round_trip_us: Option<u64>,
    /// What listens on the server for us.
    pub forwards: Vec<Forward>,
}

/// Where the chisel session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Nothing to do.
    #[default]
    Idle,
    /// Dialling or shaking hands.
    Connecting,
    /// Up.
    Connected,
    /// Waiting for the next try.
    Backoff,
}

/// One forward of the session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Forward {
    /// Its name, for example `kubernetes-api`.
    pub name: Line,
    /// Listening port on the server.
    pub remote_port: u16,
    /// Where connections are meant to go.
    pub target: Line,
    /// The address that is dialled for the target.
    pub dials: Line,
    /// Where it stands.
    pub state: ForwardState,
    /// Why.
    pub reason: Line,
    /// Connections open at this moment.
    pub connections_open: u64,
    /// Connections since the sidecar started.
    pub connections_total: u64,
    /// From the server to the target.
    pub bytes_in: u64,
    /// From the target to the server.
    pub bytes_out: u64,
}

/// Where a forward stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardState {
    /// Asked for, not answered.
    #[default]
    Pending,
    /// The server listens.
    Listening,
    /// The server or the target said no.
    Failed,
    /// The target is not allowed here.
    Refused,
}

/// k8s-proxy at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Proxy {
    /// Ways in, and ways out to a control plane.
    pub doors: Vec<Door>,
    /// Streams open at this moment, watches included.
    pub streams_open: u32,
    /// Watches open at this moment.
    pub watches_open: u32,
    /// Requests since the proxy started.
    pub requests: u64,
    /// Of these, refused by policy or credential.
    pub refused: u64,
    /// Watches re-opened upstream unseen by the caller.
    pub rewatched: u64,
    /// Hex SHA-256 of the https door's certificate.
    pub certificate_sha256: Line,
    /// Whether only reading is allowed.
    pub read_only: bool,
    /// The apiserver's address.
    pub upstream: Line,
}

/// One door of k8s-proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Door {
    /// `http`, `https`, `ws:k8s`, `dial:<name>` …
    pub name: Line,
    /// Where it listens or what it dials.
    pub address: Line,
    /// Whether someone can come in.
    pub open: bool,
    /// Why, or why not.
    pub reason: Line,
    /// Since when.
    pub since: Option<At>,
}

/// A request or watch that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpenStream {
    /// Number within k8s-proxy.
    pub id: u64,
    /// The door it came through.
    pub door: Line,
    /// Who asks.
    pub user: Line,
    /// HTTP method.
    pub method: Line,
    /// Path without the query.
    pub path: Line,
    /// Whether it is a watch.
    pub watch: bool,
    /// When it was opened.
    pub opened: Option<At>,
    /// Events passed on, for watches.
    pub events: u64,
    /// Bytes passed on.
    pub bytes: u64,
    /// How often it was re-opened upstream unseen by the caller.
    pub rewatches: u32,
}
