//! k8s-proxy: the Kubernetes API of a cluster that nothing outside can reach, over WebSocket and HTTP.
//!
//! # The way of the data
//!
//! ```text
//!  control plane ─ wss ─► doors::dial ───┐
//!  control plane ─ ws ──► doors::served ─┤ frames::session ─┐
//!  curl, kubectl, agent-core ─► doors::http ────────────────┼─► engine ─► policy ─► upstream ─► apiserver
//!  agent-core ─ gRPC ─► doors::exchange ────────────────────┘    │
//!                                                 streams (table) ┴ audit ┴ metrics ┴ trace
//!
//!  agent-core ─ spec ──► link ─► identity (who may knock), doors::dial (where to knock)
//!             ◄─ report ─ report
//! ```
//!
//! # What holds
//!
//! * A caller's credential and ours never go upstream together ([`engine::credential`]).
//! * The policy and the apiserver read the same request: what could be read in two ways is refused ([`path`]).
//! * A watch event is passed on whole or not at all ([`events`]), and a watch outlives its connection ([`engine`]).
//! * Every queue is bounded; a stalled reader costs its own call ([`frames::outbox`]).
//! * agent-core may touch its own objects through here and nothing else ([`policy::Scope`]).
#![forbid(unsafe_code)]

mod app;
pub mod audit;
pub mod config;
pub mod control;
pub mod doors;
pub mod engine;
pub mod events;
pub mod frames;
pub mod fuzzing;
pub mod headers;
pub mod identity;
pub mod limits;
pub mod link;
pub mod metrics;
pub mod path;
pub mod policy;
pub mod report;
pub mod shared;
pub mod status;
mod stop;
pub mod streams;
pub mod target;
pub mod upstream;

pub use app::{Addresses, App, BUILD, Bound, Error};
pub use config::{Args, Config, Flags};
