//! Small GETs while others do not read what they asked for.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    requests::SMALL,
    rig::Rig,
    ways::{Door, Way},
};
use crate::{
    bench::{
        figures::{Figures, Goal, quantile},
        sample::resident_mb,
    },
    wait::eventually,
};

const FLOOD: &str = "/api/v1/namespaces/bench/pods/flood/log?follow=true";
const STALLED: [usize; 4] = [0, 1, 10, 100];
const CONCURRENCY: usize = 4;
/// A call that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(3);
/// Until every buffer on the way is full.
const FILL: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Runs {
    p99: BTreeMap<usize, Vec<f64>>,
    errors: Vec<f64>,
    memory: Vec<f64>,
}

pub(super) async fn measure(
    figures: &mut Figures,
    rig: &mut Rig,
    rounds: usize,
    requests: usize,
) -> Result<()> {
    let mut all: BTreeMap<Door, Runs> = BTreeMap::new();
    let doors = Door::ALL;
    for round in 0..=rounds {
        for door in doors {
            if Door::OURS.contains(&door) {
                rig.fresh().await?;
            }
            let (way, pid) = (rig.way(door).await?, rig.pid(door)?);
            load(&way, requests).await?;
            let mut errors = 0;
            for stalled in STALLED {
                let streams = way.streams(stalled, FLOOD, false).await?;
                tokio::time::sleep(FILL).await;
                let (mut latencies, failed) = load(&way, requests).await?;
                errors += failed;
                let memory = pid.map(resident_mb).transpose()?;
                drop(streams);
                let fast = rig.fast()?;
                eventually("the floods to be closed at the apiserver", || async {
                    (fast.open() == 0).then_some(())
                })
                .await;
                if round == 0 {
                    continue;
                }
                let runs = all.entry(door).or_default();
                let p99 = runs.p99.entry(stalled).or_default();
                p99.push(quantile(&mut latencies, 0.99));
                if stalled == 100 {
                    runs.memory.extend(memory);
                }
            }
            if round > 0 {
                all.entry(door).or_default().errors.push(f64::from(errors));
            }
        }
    }
    for door in doors {
        let runs = all.get(&door).context("measured")?;
        let none = runs.p99.get(&0).context("measured")?;
        let of = |what: &str| format!("sim: {what}, {}", door.name());
        for stalled in STALLED {
            let p99 = runs.p99.get(&stalled).context("measured")?;
            let name = of(&format!("p99 of a GET beside {stalled} stalled streams"));
            if stalled == 0 {
                figures.ours(name, "ms", p99);
                continue;
            }
            figures.beside(name, "ms", p99, "none stalled", none);
            if Door::OURS.contains(&door) {
                figures.goal(Goal::RatioAtMost(if stalled == 100 { 1.2 } else { 1.5 }));
            }
        }
        figures.ours(of("failed GETs beside stalled streams"), "calls", &runs.errors);
        figures.goal(Goal::AtMost(0.0));
        if Door::OURS.contains(&door) {
            figures.ours(of("memory with 100 stalled streams"), "MB", &runs.memory);
            figures.goal(Goal::AtMost(30.0));
        }
    }
    Ok(())
}

async fn load(way: &Way, requests: usize) -> Result<(Vec<f64>, u32)> {
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let mut session = way.session().await?;
        let way = way.clone();
        workers.spawn(async move {
            let (mut latencies, mut errors) = (Vec::with_capacity(requests / CONCURRENCY), 0);
            for _ in 0..requests / CONCURRENCY {
                let begun = Instant::now();
                let answered = matches!(timeout(PATIENCE, session.get(SMALL)).await, Ok(Ok(_)));
                latencies.push(begun.elapsed().as_secs_f64() * 1000.0);
                if !answered {
                    errors += 1;
                    session = way.session().await?;
                }
            }
            anyhow::Ok((latencies, errors))
        });
    }
    let (mut latencies, mut errors) = (Vec::with_capacity(requests), 0);
    for worker in workers.join_all().await {
        let (some, failed) = worker?;
        latencies.extend(some);
        errors += failed;
    }
    Ok((latencies, errors))
}
