//! A list of 10 MB: time, processor time, and what it adds to memory while it passes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::{rig::Rig, ways::Door};
use crate::bench::{
    figures::{Figures, Goal},
    sample::{cpu_ms, forget_peak, peak_mb, resident_mb},
};

const LIST: &str = "/api/v1/namespaces/bench/configmaps";
const BYTES: usize = 10_000_000;
/// Lists in a row for one run: one alone is over before the clock of the scheduler moves.
const IN_A_ROW: usize = 5;

#[derive(Default)]
struct Runs {
    time: Vec<f64>,
    cpu: Vec<f64>,
    growth: Vec<f64>,
}

pub(super) async fn measure(figures: &mut Figures, rig: &mut Rig, rounds: usize) -> Result<()> {
    let mut all: BTreeMap<Door, Runs> = BTreeMap::new();
    for round in 0..=rounds {
        for door in Door::ALL {
            let (way, pid) = (rig.way(door).await?, rig.pid(door)?);
            if let Some(pid) = pid {
                forget_peak(pid)?;
            }
            let memory = pid.map(resident_mb).transpose()?;
            let (before, start) = (pid.map(cpu_ms).transpose()?, Instant::now());
            for _ in 0..IN_A_ROW {
                let bytes = way.stream(LIST).await?.count().await?;
                ensure!(bytes > BYTES, "{}: a list of {bytes} bytes", door.name());
            }
            let seconds = start.elapsed().as_secs_f64() / IN_A_ROW as f64;
            if round == 0 {
                continue;
            }
            let runs = all.entry(door).or_default();
            runs.time.push(seconds * 1000.0);
            if let (Some(pid), Some(before), Some(memory)) = (pid, before, memory) {
                runs.cpu.push((cpu_ms(pid)? - before) / IN_A_ROW as f64);
                runs.growth.push((peak_mb(pid)? - memory).max(0.0));
            }
        }
    }
    let of = |door: Door| all.get(&door).context("measured");
    let (peer, direct) = (of(Door::Kubectl)?, of(Door::Direct)?);
    for door in Door::OURS {
        let (ours, what) = (of(door)?, format!("{}: list of 10 MB, {}", rig.name, door.name()));
        figures.beside(
            format!("{what}: cpu"),
            "ms",
            &ours.cpu,
            "kubectl proxy",
            &peer.cpu,
        );
        figures.goal(Goal::RatioAtMost(0.12));
        figures.beside(format!("{what}: time"), "ms", &ours.time, "direct", &direct.time);
        figures.goal(Goal::RatioAtMost(1.1));
        figures.beside(
            format!("{what}: growth of memory"),
            "MB",
            &ours.growth,
            "kubectl proxy",
            &peer.growth,
        );
        figures.goal(Goal::AtMost(2.0));
    }
    Ok(())
}
