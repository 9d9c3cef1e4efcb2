//! Memory of many idle watches, and what is left of it once they are closed.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

use super::{rig::Rig, ways::Door};
use crate::{
    bench::{
        figures::{Figures, Goal},
        sample::resident_mb,
    },
    wait::eventually,
};

const WATCH: &str =
    "/api/v1/namespaces/bench/configmaps?watch=true&resourceVersion=1&allowWatchBookmarks=true";
const FEW: usize = 1_000;
/// After opening, before memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);
/// After closing, until memory shall be given back.
const GIVE_BACK: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Runs {
    few: Vec<f64>,
    many: Vec<f64>,
    closed: Vec<f64>,
}

pub(super) async fn measure(figures: &mut Figures, rig: &mut Rig, rounds: usize, many: usize) -> Result<()> {
    let mut all: BTreeMap<Door, Runs> = BTreeMap::new();
    for _ in 0..rounds {
        for door in [Door::Kubectl, Door::Http, Door::V2, Door::V1] {
            if door != Door::Kubectl {
                rig.fresh().await?;
            }
            let (way, pid) = (rig.way(door).await?, rig.pid(door)?.context("a process")?);
            // kubectl proxy speaks HTTP/1.1 only.
            let http2 = door != Door::Kubectl;
            let mut streams = way.streams(FEW, WATCH, http2).await?;
            settled(rig, FEW).await?;
            let runs = all.entry(door).or_default();
            runs.few.push(resident_mb(pid)?);
            if door == Door::Kubectl {
                continue;
            }
            streams.extend(way.streams(many.saturating_sub(FEW), WATCH, http2).await?);
            settled(rig, streams.len()).await?;
            runs.many.push(resident_mb(pid)?);
            drop(streams);
            settled(rig, 0).await?;
            tokio::time::sleep(GIVE_BACK).await;
            runs.closed.push(resident_mb(pid)?);
        }
    }
    let of = |door: Door| all.get(&door).context("measured");
    let peer = of(Door::Kubectl)?;
    for door in Door::OURS {
        let (ours, what) = (of(door)?, |what: &str| format!("sim: {what}, {}", door.name()));
        figures.beside(
            what("memory with 1,000 idle watches"),
            "MB",
            &ours.few,
            "kubectl proxy",
            &peer.few,
        );
        figures.goal(Goal::AtMost(14.0));
        figures.ours(
            what(&format!("memory with {many} idle watches")),
            "MB",
            &ours.many,
        );
        if many == 10_000 {
            figures.goal(Goal::AtMost(70.0));
        }
        figures.ours(what("memory 10 s after closing them"), "MB", &ours.closed);
        // "Given back": no more than what a process holds that has done some work.
        figures.goal(Goal::AtMost(14.0));
    }
    Ok(())
}

async fn settled(rig: &Rig, open: usize) -> Result<()> {
    let fast = rig.fast()?;
    eventually(&format!("{open} open watches at the apiserver"), || async {
        (fast.open() == open).then_some(())
    })
    .await;
    tokio::time::sleep(SETTLE).await;
    Ok(())
}
