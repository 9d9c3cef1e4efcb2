//! agent-core
#![forbid(unsafe_code)]
pub mod cli;
pub mod config;
mod kubernetes;
mod session;
mod state;
mod wire;
