//! Watch events of 1 KB over 100 watches: at full speed, and at a pace that shows what each one waits.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{task::JoinSet, time::Instant};

use super::{
    rig::Rig,
    ways::{Door, Reading, Way},
};
use crate::bench::{
    figures::{Figures, Goal, median, quantile},
    sample::cpu_ms,
};

const WATCHES: usize = 100;
const BYTES: usize = 1_000;
/// Events a second on each watch at the pace: 5,000 together.
const PACE: usize = 50;
/// How long it is kept up.
const SECONDS: usize = 3;
/// Before the time of sending in each event.
const SENT: &[u8] = b"\"sim/sent-nanos\":\"";

#[derive(Default)]
struct Runs {
    speed: Vec<f64>,
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    paced_cpu: Vec<f64>,
}

pub(super) async fn measure(
    figures: &mut Figures,
    rig: &mut Rig,
    rounds: usize,
    events: usize,
) -> Result<()> {
    let mut all: BTreeMap<Door, Runs> = BTreeMap::new();
    for round in 0..=rounds {
        for door in Door::ALL {
            let (way, pid) = (rig.way(door).await?, rig.pid(door)?);
            let cpu = || pid.map(cpu_ms).transpose();
            // kubectl proxy speaks HTTP/1.1 only.
            let http2 = door != Door::Kubectl;
            let before = cpu()?;
            let (seconds, _) = run(&way, 0, events / WATCHES, http2).await?;
            let between = cpu()?;
            let (_, mut latencies) = run(&way, PACE, PACE * SECONDS, http2).await?;
            if round == 0 {
                continue;
            }
            let runs = all.entry(door).or_default();
            runs.speed.push(events as f64 / seconds);
            runs.p50.push(quantile(&mut latencies, 0.5));
            runs.p99.push(quantile(&mut latencies, 0.99));
            if let (Some(before), Some(between), Some(after)) = (before, between, cpu()?) {
                runs.cpu.push((between - before) / (events as f64 / 1000.0));
                let paced = (WATCHES * PACE * SECONDS) as f64;
                runs.paced_cpu.push((after - between) / (paced / 1000.0));
            }
        }
    }
    let of = |door: Door| all.get(&door).context("measured");
    let (peer, direct) = (of(Door::Kubectl)?, of(Door::Direct)?);
    for door in Door::OURS {
        let (ours, what) = (
            of(door)?,
            format!("sim: events of 1 KB, 100 watches, {}", door.name()),
        );
        let name = |figure: &str| format!("{what}: {figure}");
        figures.beside(
            name("at full speed, none lost"),
            "1/s",
            &ours.speed,
            "kubectl proxy",
            &peer.speed,
        );
        figures.goal(Goal::AtLeast(130_000.0));
        figures.beside(
            name("cpu/1,000 at full speed"),
            "ms",
            &ours.cpu,
            "kubectl proxy",
            &peer.cpu,
        );
        let base = median(&direct.p50);
        let added: Vec<f64> = ours.p50.iter().map(|p50| p50 - base).collect();
        let peers: Vec<f64> = peer.p50.iter().map(|p50| p50 - base).collect();
        figures.beside(
            name("added p50 at 5,000/s"),
            "ms",
            &added,
            "kubectl proxy",
            &peers,
        );
        figures.goal(Goal::AtMost(1.0));
        figures.beside(name("p99 at 5,000/s"), "ms", &ours.p99, "direct", &direct.p99);
        let (cpu, peers) = (&ours.paced_cpu, &peer.paced_cpu);
        figures.beside(name("cpu/1,000 at 5,000/s"), "ms", cpu, "kubectl proxy", peers);
    }
    Ok(())
}

/// All watches with so many events each; the seconds it took, and what each event waited, in ms.
async fn run(way: &Way, rate: usize, count: usize, http2: bool) -> Result<(f64, Vec<f64>)> {
    let path = format!(
        "/api/v1/namespaces/bench/configmaps?watch=true&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=600&sim_rate={rate}&sim_size={BYTES}&sim_count={count}"
    );
    let start = Instant::now();
    let streams = way.streams(WATCHES, &path, http2).await?;
    let mut readers: JoinSet<Result<(usize, Vec<f64>)>> = JoinSet::new();
    for stream in streams {
        readers.spawn(read(stream, count, rate > 0));
    }
    let (mut seen, mut latencies) = (0, Vec::new());
    let all = tokio::time::timeout(Duration::from_secs(120), readers.join_all()).await?;
    for reader in all {
        let (events, some) = reader?;
        seen += events;
        latencies.extend(some);
    }
    ensure!(seen == count * WATCHES, "{seen} of {} events", count * WATCHES);
    Ok((start.elapsed().as_secs_f64(), latencies))
}

async fn read(mut stream: Reading, count: usize, timed: bool) -> Result<(usize, Vec<f64>)> {
    let (mut seen, mut latencies) = (0, Vec::new());
    while seen < count {
        let piece = stream.next().await?.context("the watch ended")?;
        seen += memchr::memchr_iter(b'\n', &piece).count();
        if timed {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
            for place in memchr::memmem::find_iter(&piece, SENT) {
                let digits = piece.get(place + SENT.len()..place + SENT.len() + 19);
                let Some(sent) =
                    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u128>().ok())
                else {
                    continue;
                };
                latencies.push(now.saturating_sub(sent) as f64 / 1e6);
            }
        }
    }
    Ok((seen, latencies))
}
