//! agent-core in process, between doubles that speak the wire: a scripted control plane and k8s-proxy's door.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "doubles and helpers of tests: a panic is how a test fails, and their tasks end with the test"
)]

mod agent;
mod binary;
mod control_plane;
mod disk;
mod door;
mod http;
mod local_api;
mod registration;
mod state;
