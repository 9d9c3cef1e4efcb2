//! Benches: what it costs, beside peers that are measured in the same run.
//!
//! Each figure is printed in a table and written as one JSON object a line to `target/bench/bench.jsonl`.

mod figures;
mod idle;
mod kubectl;
pub mod proxy;
mod requests;
mod sample;
mod sizes;
mod start;
pub mod tunnel;
mod watches;

use anyhow::{Result, ensure};

use self::figures::Figures;
use crate::{
    control_plane::ControlPlaneConfig,
    lab::{Cluster, Lab, TOKEN},
    pod::{Part, PodConfig},
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of parts; none is all.
    pub parts: Vec<String>,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// How long the idle measurement lasts.
    pub idle_seconds: u64,
}

const PARTS: [&str; 5] = ["sizes", "start", "idle", "requests", "watches"];

/// Measures, prints and writes.
///
/// # Errors
/// When a peer is missing or something could not be measured.
pub async fn run(options: Options) -> Result<()> {
    let wanted = chosen(&options.parts, &PARTS)?;
    let mut figures = Figures::default();
    if wanted("sizes") {
        sizes::measure(&mut figures)?;
    }
    if wanted("start") {
        start::measure(&mut figures, options.rounds).await?;
    }
    if wanted("idle") {
        idle::measure(&mut figures, options.idle_seconds).await?;
    }
    if wanted("requests") {
        requests::measure(&mut figures, options.rounds).await?;
    }
    if wanted("watches") {
        watches::measure(&mut figures, options.rounds).await?;
    }
    figures.finish("bench")
}

/// Says of each part whether it is wanted: those of `parts`, or all of `known` when none is named.
fn chosen<'a>(parts: &'a [String], known: &[&str]) -> Result<impl Fn(&str) -> bool + use<'a>> {
    for part in parts {
        ensure!(
            known.contains(&part.as_str()),
            "no part {part}; there are {}",
            known.join(", ")
        );
    }
    Ok(|name: &str| parts.is_empty() || parts.iter().any(|part| part == name))
}

/// A lab that runs as an installation does: it logs what the chart logs, and beats and polls every five seconds.
async fn installed() -> Result<(Lab, String)> {
    let mut lab = Lab::with(
        Cluster::simulated().await?,
        ControlPlaneConfig::new(TOKEN),
        as_installed,
    )
    .await?;
    let id = lab.start().await?;
    Ok((lab, id))
}

fn as_installed(pod: PodConfig) -> PodConfig {
    let quiet = Part::ALL
        .into_iter()
        .fold(pod, |pod, part| pod.env(part, "PIPEOPS_LOG_LEVEL", "info"));
    quiet.env(Part::Core, "PIPEOPS_HEARTBEAT_INTERVAL", "5s").env(
        Part::Core,
        "PIPEOPS_TUNNEL_POLL_INTERVAL",
        "5s",
    )
}
