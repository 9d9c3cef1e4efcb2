//! The page that agent-core serves: what this agent is doing and why, live, for a person with the operator token.
//!
//! # The way of the data
//!
//! ```text
//! agent-core ── Snapshot ──► Feed ──► Snapshots ──► events (SSE, at most two per second) ──► web/src/main.ts
//!                                         └───────► GET /dashboard/api/snapshot                    │
//!      closures ◄── Action ◄── POST /dashboard/api/actions/… ◄── guard, session, CSRF header ◄─────┘
//! ```
//!
//! The crate knows neither the local gRPC contract nor where tokens come from: agent-core fills a [`Snapshot`],
//! answers "is this the operator token?", and lends closures for the three actions. [`Snapshot`] has no place for a
//! secret, and every text in it passes through [`Line`], which masks what looks like one.
//!
//! The web sources are in `web/src`, their built form in `web/dist` is embedded, so building needs no node.

mod assets;
mod events;
mod feed;
mod guard;
mod line;
mod page;
mod routes;
mod session;
mod snapshot;

pub use feed::{Feed, Snapshots, feed};
pub use guard::{Guard, GuardError};
pub use line::Line;
pub use page::{Action, Page};
pub use routes::router;
pub use session::{CSRF_HEADER, Sessions, has_csrf_header};
pub use snapshot::{
    Agent, At, Condition, Container, Door, Forward, ForwardState, Heartbeat, OpenStream, Phase, Proxy,
    SessionState, Snapshot, Status, Tunnel,
};
