//! `make bench-proxy`: what k8s-proxy costs, door by door, beside `kubectl proxy` and no proxy at all.
//!
//! ```text
//!  driver ─┬───────────────────────────► apiserver     direct
//!          ├─► kubectl proxy ──────────► apiserver     the peer
//!          ├─► k8s-proxy's HTTP door ──► apiserver     http
//!          ├─► WebSocket (dialled by k8s-proxy) ─────► v2, HTTP/2 turned around
//!          └─► WebSocket (dialled to k8s-proxy) ─────► v1, frames
//! ```
//! All rounds are interleaved, so that a neighbour on the machine costs each way the same. Policy, audit, metrics and
//! log are on as the chart has them. Processor time is the proxy's own: `schedstat` of all its threads.

mod blackhole;
mod cancel;
mod events;
mod idle;
mod lists;
mod requests;
mod rig;
mod stalled;
mod watches;
mod ways;

use std::path::PathBuf;

use anyhow::Result;

use self::rig::Rig;
use super::figures::Figures;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of parts; none is all.
    pub parts: Vec<String>,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Sizes.
    pub sizes: Sizes,
    /// Measure requests and lists on this real cluster too.
    pub real: Option<PathBuf>,
}

/// How much of each.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Small GETs in a round, on the simulated apiserver.
    pub requests: usize,
    /// The same on a real one.
    pub real_requests: usize,
    /// The larger number of idle watches.
    pub watches: usize,
    /// GETs beside each number of stalled streams.
    pub stalled_requests: usize,
    /// Events at full speed in a round, over 100 watches.
    pub events: usize,
    /// Streams that are cancelled in a round.
    pub cancels: usize,
}

impl Sizes {
    /// What the figures are quoted with.
    pub const FULL: Self = Self {
        requests: 8_000,
        real_requests: 2_000,
        watches: 10_000,
        stalled_requests: 1_000,
        events: 200_000,
        cancels: 30,
    };
    /// To see that all of it works.
    pub const QUICK: Self = Self {
        requests: 1_600,
        real_requests: 400,
        watches: 1_000,
        stalled_requests: 200,
        events: 20_000,
        cancels: 5,
    };
}

/// Names of parts.
pub const PARTS: [&str; 8] = [
    "idle",
    "requests",
    "lists",
    "watches",
    "stalled",
    "events",
    "cancel",
    "blackhole",
];

/// Measures, prints beside the goals, and writes `target/bench/bench-proxy.jsonl`.
///
/// # Errors
/// When a peer is missing, something could not be measured, or an event was lost.
pub async fn run(options: Options) -> Result<()> {
    let wanted = super::chosen(&options.parts, &PARTS)?;
    let (mut figures, rounds, sizes) = (Figures::default(), options.rounds, options.sizes);
    {
        let mut rig = Rig::simulated().await?;
        if wanted("idle") {
            idle::measure(&mut figures, &mut rig, rounds).await?;
        }
        if wanted("requests") {
            requests::measure(&mut figures, &mut rig, rounds, sizes.requests).await?;
        }
        if wanted("lists") {
            lists::measure(&mut figures, &mut rig, rounds).await?;
        }
        if wanted("events") {
            events::measure(&mut figures, &mut rig, rounds, sizes.events).await?;
        }
        if wanted("cancel") {
            cancel::measure(&mut figures, &mut rig, rounds, sizes.cancels).await?;
        }
        if wanted("stalled") {
            stalled::measure(&mut figures, &mut rig, rounds, sizes.stalled_requests).await?;
        }
        if wanted("watches") {
            watches::measure(&mut figures, &mut rig, rounds, sizes.watches).await?;
        }
    }
    if wanted("blackhole") {
        blackhole::measure(&mut figures, rounds).await?;
    }
    if let Some(kubeconfig) = options.real {
        let mut rig = Rig::real(kubeconfig).await?;
        if wanted("requests") {
            requests::measure(&mut figures, &mut rig, rounds, sizes.real_requests).await?;
        }
        if wanted("lists") {
            lists::measure(&mut figures, &mut rig, rounds).await?;
        }
    }
    figures.finish("bench-proxy")
}
