//! The local gRPC contract between agent-core, tunnel-sidecar and k8s-proxy.
//!
//! ```text
//!              TunnelSpec, ProxySpec (desired state, stream)
//!   agent-core ───────────────────────────────────────────► siblings
//!              ◄───────────────────────────────────────────
//!              TunnelReport, ProxyReport (observed state, stream)
//! ```
//!
//! The `.proto` files under `pipeops/agent/v1` are the contract; later changes only add.
#![forbid(unsafe_code)]

pub mod process;
pub mod variables;

/// Generated messages, clients and servers of package `pipeops.agent.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::wildcard_enum_match_arm,
    clippy::str_to_string,
    clippy::use_self,
    reason = "generated code; the .proto files carry the documentation, and which lints it trips depends on the generator"
)]
pub mod v1 {
    tonic::include_proto!("pipeops.agent.v1");
}

/// The encoded descriptor set, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
