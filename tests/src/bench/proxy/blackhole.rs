//! How long until k8s-proxy sees that its WebSocket leads nowhere: it dials again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{task::JoinSet, time::Instant};

use super::ways::{Door, Way};
use crate::{
    bench::{
        as_installed,
        figures::{Figures, Goal},
    },
    control_plane::ControlPlaneConfig,
    kubernetes::{Simulation, SimulationConfig},
    lab::{Cluster, Lab, TOKEN},
    pod::free_port,
    relay::{Fault, Relay},
};

const FLOOD: &str = "/api/v1/namespaces/bench/pods/flood/log?follow=true";
/// After which it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Until bytes flow at full speed.
const WARM: Duration = Duration::from_secs(1);

pub(super) async fn measure(figures: &mut Figures, rounds: usize) -> Result<()> {
    for door in [Door::V2, Door::V1] {
        let (mut idle, mut sending) = (Vec::new(), Vec::new());
        // They sleep most of the time, so that all rounds may run beside each other.
        let mut runs = JoinSet::new();
        for _ in 0..rounds {
            runs.spawn(async move { anyhow::Ok((false, one(door, false).await?)) });
            runs.spawn(async move { anyhow::Ok((true, one(door, true).await?)) });
        }
        for run in runs.join_all().await {
            let (busy, seconds) = run?;
            if busy { &mut sending } else { &mut idle }.push(seconds);
        }
        figures.ours(format!("black hole found, idle, {}", door.name()), "s", &idle);
        figures.goal(Goal::AtMost(10.0));
        figures.ours(
            format!("black hole found, while sending, {}", door.name()),
            "s",
            &sending,
        );
        figures.goal(Goal::AtMost(20.0));
    }
    Ok(())
}

async fn one(door: Door, busy: bool) -> Result<f64> {
    let (listen, mut config) = (free_port(), ControlPlaneConfig::new(TOKEN));
    let relay = Relay::start(listen).await?;
    config.listen = listen;
    config.proxy_address = Some(relay.address());
    config.link.http2 = door == Door::V2;
    let simulation = SimulationConfig {
        tick: None,
        fast: true,
        ..SimulationConfig::default()
    };
    let cluster = Cluster::Simulated(Box::new(Simulation::start(simulation).await?));
    let mut lab = Lab::with(cluster, config, as_installed).await?;
    let id = lab.start().await?;
    let link = lab.control_plane.wait_link(&id).await;
    let way = match door {
        Door::V2 | Door::V1 => Way::Link(link),
        other => anyhow::bail!("{} is not dialled", other.name()),
    };
    let mut reader = JoinSet::new();
    if busy {
        let mut stream = way.stream(FLOOD).await?;
        reader.spawn(async move { while stream.next().await.is_ok_and(|piece| piece.is_some()) {} });
    }
    tokio::time::sleep(WARM).await;
    let (dialled, start) = (relay.accepted(), Instant::now());
    relay.set(Fault::BlackHole);
    let again = async {
        while relay.accepted() == dialled {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again)
        .await
        .context("the black hole was never found")?;
    Ok(start.elapsed().as_secs_f64())
}
