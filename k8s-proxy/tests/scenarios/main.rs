//! The whole proxy in one process, between a scripted apiserver and a scripted agent-core, on real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code: a panic is a failed test, and its doubles end with it"
)]

mod dial;
mod drain;
mod frames;
mod grpc;
mod hostile;
mod http;
mod limits;
mod memory;
mod rewatch;
mod stall;
mod support;
mod trust;
mod upgrades;
mod v2;
