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
pub mod echo;
#[doc(hidden)]
pub mod fuzzing;
pub mod known;
pub mod limits;
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
mod shaped;
pub mod socks;
mod spans;
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

    /// A clock that jumps changes what people are shown and nothing else: every wait and every age is taken from the
    /// monotonic clock. The wall clock is read only where a moment is told to somebody, and never measured with.
    #[test]
    fn nothing_waits_for_the_wall_clock() {
        /// Where moments are told, and how often the clock is read there.
        const TOLD: [(&str, usize); 6] = [
            ("connections.rs", 1),
            ("control.rs", 1),
            ("link/describe.rs", 1),
            ("link/manager.rs", 1),
            ("link/outcomes.rs", 3),
            ("status.rs", 1),
        ];
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders = vec![root.clone()];
        let mut read = Vec::new();
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                let code = text.split("mod tests {").next().unwrap();
                let reads = code.matches("SystemTime::now()").count();
                if reads > 0 && name != "lib.rs" {
                    read.push((name.clone(), reads));
                }
                for measure in [".duration_since(", "UNIX_EPOCH"] {
                    assert!(
                        name == "lib.rs" || !code.contains(measure),
                        "{name} measures with {measure}"
                    );
                }
            }
        }
        read.sort();
        let told = TOLD.map(|(name, count)| (name.to_owned(), count));
        assert!(files > 20 && read == told, "{files} files, {read:?}");
    }
}
