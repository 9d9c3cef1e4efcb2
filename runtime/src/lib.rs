//! What every process of ours is, before its own work.
//!
//! # The life of a process
//!
//! ```text
//!  cli ─► config ─► telemetry ─► bind ─► ready ─────────────► drain ─► exit code
//!         Problems  LogFilter    admin   conditions  signal ─► supervise
//!                                local   metrics
//! ```
//!
//! [`cli`] reads flags, [`settings`] what all have in common, [`config`] collects every fault at once, [`telemetry`] starts logs and traces, [`admin`]
//! and [`local`] serve what people, kubelet and siblings ask, [`conditions`] says whether the process can do its
//! work, and [`supervise`] owns every task from the first to the last. [`dial`], [`proxy`], [`tls`], [`websocket`],
//! [`carrier`] and [`backoff`] are what an outbound link is made of. Nothing in here knows what the process is for.
#![forbid(unsafe_code)]

pub mod accept;
pub mod admin;
pub mod backoff;
pub mod build;
pub mod carrier;
pub mod cli;
pub mod conditions;
pub mod config;
pub mod dial;
pub mod local;
pub mod metrics;
pub mod proxy;
pub mod secret;
pub mod settings;
pub mod supervise;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod websocket;
