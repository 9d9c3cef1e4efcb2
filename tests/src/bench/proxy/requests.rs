//! Small GETs, 16 at once.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use tokio::{task::JoinSet, time::Instant};

use super::{
    rig::Rig,
    ways::{Door, Way},
};
use crate::bench::{
    figures::{Figures, Goal, quantile},
    sample::cpu_ms,
};

const CONCURRENCY: usize = 16;
/// The object of 1 KB.
pub(super) const SMALL: &str = "/api/v1/namespaces/bench/configmaps/small";

#[derive(Default)]
struct Runs {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
}

pub(super) async fn measure(
    figures: &mut Figures,
    rig: &mut Rig,
    rounds: usize,
    requests: usize,
) -> Result<()> {
    let mut all: BTreeMap<Door, Runs> = BTreeMap::new();
    for round in 0..=rounds {
        for door in Door::ALL {
            let (way, pid) = (rig.way(door).await?, rig.pid(door)?);
            let before = pid.map(cpu_ms).transpose()?;
            let (seconds, mut latencies) = load(&way, requests).await?;
            // The first round warms up pools and caches.
            if round == 0 {
                continue;
            }
            let runs = all.entry(door).or_default();
            runs.per_second.push(latencies.len() as f64 / seconds);
            runs.p50.push(quantile(&mut latencies, 0.5));
            runs.p99.push(quantile(&mut latencies, 0.99));
            if let (Some(pid), Some(before)) = (pid, before) {
                runs.cpu
                    .push((cpu_ms(pid)? - before) / (latencies.len() as f64 / 1000.0));
            }
        }
    }
    report(figures, rig.name, &all)
}

fn report(figures: &mut Figures, sim: &str, all: &BTreeMap<Door, Runs>) -> Result<()> {
    let of = |door: Door| all.get(&door).context("measured");
    let (peer, direct) = (of(Door::Kubectl)?, of(Door::Direct)?);
    let simulated = sim == "sim";
    for door in Door::OURS {
        let (ours, what) = (
            of(door)?,
            format!("{sim}: GET 1 KB, {CONCURRENCY} at once, {}", door.name()),
        );
        let name = |figure: &str| format!("{what}: {figure}");
        figures.beside(name("cpu/1,000"), "ms", &ours.cpu, "kubectl proxy", &peer.cpu);
        figures.goal(Goal::RatioAtMost(if simulated { 0.22 } else { 0.33 }));
        let (rps, peers) = (&ours.per_second, &peer.per_second);
        figures.beside(name("requests"), "1/s", rps, "kubectl proxy", peers);
        figures.goal(Goal::RatioAtLeast(if simulated { 3.0 } else { 1.3 }));
        figures.beside(name("p99"), "ms", &ours.p99, "kubectl proxy", &peer.p99);
        figures.goal(Goal::RatioAtMost(0.85));
        figures.beside(name("p50"), "ms", &ours.p50, "kubectl proxy", &peer.p50);
        figures.beside(name("requests"), "1/s", rps, "direct", &direct.per_second);
        figures.beside(name("p99"), "ms", &ours.p99, "direct", &direct.p99);
    }
    Ok(())
}

async fn load(way: &Way, requests: usize) -> Result<(f64, Vec<f64>)> {
    let mut sessions = Vec::new();
    for _ in 0..CONCURRENCY {
        sessions.push(way.session().await?);
    }
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for mut session in sessions {
        workers.spawn(async move {
            let mut latencies = Vec::with_capacity(requests / CONCURRENCY);
            for _ in 0..requests / CONCURRENCY {
                let begun = Instant::now();
                session.get(SMALL).await?;
                latencies.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(requests);
    for worker in workers.join_all().await {
        latencies.extend(worker?);
    }
    Ok((start.elapsed().as_secs_f64(), latencies))
}
