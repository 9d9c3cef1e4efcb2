//! tunnel-sidecar: many forwards on one chisel connection.
//!
//! # The way of the data
//!
//! ```text
//!            agent-core (127.0.0.1:7070)
//!      spec │ ▲ report
//!   ┌───────▼─┴───────────────────────────────────────────────────────────────┐
//!   │ core ──► spec ──► link::manager ── plan ──► link::lane ── link::open ────┼──► chisel server
//!   │           │            │                     │  one session, pings       │     listens on R: ports
//!   │        targets       status              carrier ◄── channel ────────────┼──◄  users
//!   │        never           │                     │                           │
//!   │                   report, control         reach (DNS, never-list) ───────┼──► local services
//!   │   users of ours ──► local, datagrams ── sessions ── channel we open ─────┼──► chisel server dials
//!   └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! [`core`] receives the desired state; [`spec`] reads it once into typed parts, with [`targets`] and [`mod@never`]
//! deciding what may be dialled; [`link`] keeps the sessions; [`carrier`] carries each connection, [`datagrams`] each
//! peer of UDP, [`socks`] who may choose the target, and [`local`] those that begin here; [`status`] is what
//! everybody outside is told, by [`report`], [`control`], probes and [`metrics`].
//!
//! # Invariants
//!
//! * No password leaves before TLS is verified or the server's key is the expected one.
//! * Nothing is dialled that is not a forward of the present spec, and nothing on the never-list at all.
//! * A lost agent-core changes nothing: the last spec is kept for ever.
//! * A stalled target, a refused port and a bad forward cost themselves only.
#![forbid(unsafe_code)]

pub mod address;
mod app;
pub mod carrier;
pub mod config;
pub mod connections;
pub mod control;
pub mod core;
pub mod datagrams;
#[doc(hidden)]
pub mod fuzzing;
pub mod known;
pub mod link;
pub mod local;
pub mod metrics;
pub mod never;
pub mod outbound;
pub mod plan;
pub mod reach;
pub mod remotes;
pub mod report;
pub mod server;
pub mod sessions;
pub mod socks;
pub mod spec;
pub mod spelling;
pub mod status;
pub mod targets;
pub mod timing;

pub use app::{App, Bound, Error};
pub use config::{Args, Config};

/// What was built.
pub const BUILD: runtime::build::BuildInfo = runtime::build::build_info("tunnel-sidecar");

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_pure_stays_pure() {
        for (name, text) in [
            ("address", include_str!("address.rs")),
            ("datagrams::gob", include_str!("datagrams/gob.rs")),
            ("never", include_str!("never.rs")),
            ("plan", include_str!("plan.rs")),
            ("remotes", include_str!("remotes.rs")),
            ("server", include_str!("server.rs")),
            ("socks::rules", include_str!("socks/rules.rs")),
            ("socks::wire", include_str!("socks/wire.rs")),
            ("spec", include_str!("spec.rs")),
            ("spelling", include_str!("spelling.rs")),
            ("targets", include_str!("targets.rs")),
        ] {
            for outside in ["tokio", "Instant", "SystemTime", "std::fs"] {
                assert!(!text.contains(outside), "{name} must not know {outside}");
            }
        }
    }
}
