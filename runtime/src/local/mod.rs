//! gRPC between the processes of one pod: plain HTTP/2 on the loopback, one secret per edge.
//!
//! A server maps a token to a [`Role`] and a role to a fixed list of methods ([`Access`]). The peer's address is
//! never an identity: what a forward brings also comes from 127.0.0.1. Health and reflection are open.

mod access;
mod client;
mod server;
pub mod streams;

pub use access::{Access, Role};
pub use client::{Credentials, LocalChannel, LocalError, channel};
pub use server::serve;

/// Metadata key that carries the caller's version.
pub(crate) const VERSION_KEY: &str = "pipeops-version";
/// What a server or client says while a token file is not there yet.
pub(crate) const WAITING: &str = "waiting for token";

#[cfg(test)]
mod tests;
