//! Datagrams through the tunnel (`/udp`): one channel per forward for all peers, told apart by the address that the
//! listening side wrote.
//!
//! ```text
//!   reverse   server's socket ─► channel ─► one connected socket per peer ─► target, and back to that peer alone
//!   local     our socket ─► channel ─► server ─► its target, and back to the peer it names, if we know it
//! ```
//!
//! A datagram that finds no room is dropped, as everywhere in UDP; nobody waits for it.

pub mod gob;
mod local;
mod reverse;

use std::time::Duration;

pub(crate) use local::Local;
pub(crate) use reverse::{Reverse, hold};

/// A peer from which and to which nothing came for so long is forgotten. Longer than chisel's 15 s, so that a DNS
/// server that asks others, or a game with a pause, is not cut off.
const IDLE: Duration = Duration::from_secs(60);
/// The same while the process drains: an answer under way may still arrive.
const IDLE_DRAINING: Duration = Duration::from_secs(2);
/// Peers of one forward at a time; each is a socket. The one that was silent for the longest time makes room.
const MAX_PEERS: usize = 256;
/// Datagrams that wait for one peer's socket while its target's name is looked up.
const WAITING: usize = 64;
/// Answers of all peers of one forward that wait for the channel.
const ANSWERS: usize = 256;
/// The largest datagram a socket can give.
const LARGEST: usize = 65_535;
