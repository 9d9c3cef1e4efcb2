//! Frames v1: JSON text on a WebSocket, many calls at once.
//!
//! ```text
//!  text ─► codec::read ─► Call │ Cancel │ Ping │ bad frame (with the id, if it could be read)
//!                           │
//!  session.rs: one task per call ─► engine ─► Outbox (a bounded queue per call) ─► one writer, in turns
//! ```
//!
//! [`codec`] and [`outbox`] know no socket; [`session`] does.

pub mod codec;
pub mod outbox;
pub mod session;
