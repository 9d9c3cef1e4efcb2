//! The sidecar in this process against the real Go chisel server, with an agent-core that is played.
//!
//! ```text
//!   core (played) ──spec──► sidecar ──► relay (delays, stalls, cuts) ──► chisel server (real)
//!         ◄──report──          │                                              ▲
//!                              └──► targets (played: echo, talker, stalled)   └── user
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests and their doubles stop at the first thing that is not as it should be, doubles spawn their own tasks, and a skipped test says so"
)]

mod bytes;
mod changes;
mod control;
mod faults;
mod features;

mod isolation;
mod process;
mod proof;
mod refusals;
mod settings;
mod table;
mod world;
