//! A simulated Kubernetes API with a living workload, on a real socket, with faults on demand.
//!
//! # The way of the data
//!
//! ```text
//!  TCP ─► server (TLS, ALPN, h1 and h2 with 100 streams) ─► api: record ─ identify ─ route ─ authorise ─ faults
//!                                                             │
//!                 ┌──────────────┬──────────────┬─────────────┼──────────────┬───────────────┐
//!               list           watch          write          logs        discovery        control (/_sim)
//!                 │              ▲              │              ▲
//!                 ▼              │ changes      ▼              │ lines
//!               store: objects, one revision, bounded history ◄── workload + controllers, one step per tick
//! ```
//!
//! What it promises, [`contract`] checks, here and against a real kube-apiserver. Known limits: protobuf is read for
//! a few kinds and written in watches of these only, no OpenAPI schemas, no exec, attach or port-forward; pods are deleted at once without a grace period; apply has no field
//! ownership; strategic merge as [`patch`] says; unknown fields are kept.

mod api;
mod auth;
mod bench;
mod body;
mod clock;
mod cluster;
mod connection;
pub mod contract;
mod control;
mod controllers;
mod defaults;
mod discovery;
mod fast;
mod faults;
mod list;
mod log_stream;
mod logs;
mod mutate;
mod negotiate;
mod object;
mod openapi;
pub mod patch;
pub mod protobuf;
mod requests;
mod resources;
mod review;
mod route;
mod seed;
mod selector;
mod server;
mod simulation;
mod status;
mod store;
mod table;
mod tls;
mod watch;
mod workload;
mod write;

#[cfg(test)]
mod tests;

pub use auth::{Auth, Deny, User};
pub use cluster::Cluster;
pub use fast::Fast;
pub use faults::{Active, Fault, FaultKind, Faults};
pub use requests::{Request, Requests};
pub use simulation::{Simulation, SimulationConfig};
pub use status::Status;
