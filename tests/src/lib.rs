//! Doubles that speak the wire on real sockets, the reference control plane, and what the scenarios share.
//!
//! ```text
//!  control_plane   the server side of every contract, usable by hand (bin `reference-control-plane`)
//!  kubernetes      a simulated Kubernetes API with a living workload (bin `simulated-kubernetes`)
//!  events          watch events out of bytes, in JSON and protobuf
//!  otlp            a receiver of spans
//!  pod             our three processes side by side
//!  relay           a TCP relay that delays, stalls and cuts
//!  process         runs our built binaries, learns their ports, kills them
//!  wait            `eventually`: a condition with a deadline, never a sleep
//!  wire            a bare HTTP client that keeps every byte as it came
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "doubles are peers, not our processes: they spawn their own tasks and read the wall clock"
)]

pub mod bench;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod events;
pub mod folder;
pub mod kubernetes;
pub mod lab;
pub mod otlp;
pub mod peers;
pub mod pod;
pub mod process;
pub mod relay;
pub mod scenarios;
pub mod wait;
pub mod wire;
