//! Watch events at full speed over 1, 100 and 1,000 watches on one WebSocket, and what they cost k8s-proxy.

use anyhow::{Context as _, Result, ensure};
use tokio::{task::JoinSet, time::Instant};

use super::{
    figures::Figures,
    sample::{cpu_ms, resident_mb},
};
use crate::{control_plane::Call, pod::Part};

/// Events of all watches together in one round.
const EVENTS: usize = 60_000;
const EVENT_BYTES: usize = 1_000;

pub(super) async fn measure(figures: &mut Figures, rounds: usize) -> Result<()> {
    for watches in [1, 100, 1_000] {
        let (mut speed, mut memory, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (mut lab, id) = super::installed().await?;
            let pid = lab.pod.process(Part::Proxy)?.pid().context("k8s-proxy runs")?;
            let link = lab.control_plane.wait_link(&id).await;
            let each = EVENTS / watches;
            let before = cpu_ms(pid)?;
            let start = Instant::now();
            let mut readers = JoinSet::new();
            for _ in 0..watches {
                let call = Call::get("/api/v1/namespaces/default/configmaps")
                    .query("watch", "true")
                    .query("sim_rate", "0")
                    .query("sim_size", &EVENT_BYTES.to_string())
                    .query("sim_count", &each.to_string());
                let mut stream = link.stream(&call).await?;
                readers.spawn(async move {
                    let mut seen = 0;
                    while seen < each {
                        let chunk = stream.next().await.context("the watch ended")??;
                        seen += chunk.iter().filter(|byte| **byte == b'\n').count();
                    }
                    anyhow::Ok(seen)
                });
            }
            let mut seen = 0;
            for reader in readers.join_all().await {
                seen += reader?;
            }
            ensure!(seen >= each * watches, "{seen} of {} events", each * watches);
            speed.push(seen as f64 / start.elapsed().as_secs_f64());
            cpu.push((cpu_ms(pid)? - before) / (seen as f64 / 1000.0));
            memory.push(resident_mb(pid)?);
        }
        figures.ours(
            format!("{watches} watches: events of {EVENT_BYTES} bytes"),
            "1/s",
            &speed,
        );
        figures.ours(
            format!("{watches} watches: processor time for 1,000 events"),
            "ms",
            &cpu,
        );
        figures.ours(format!("{watches} watches: memory of k8s-proxy"), "MB", &memory);
    }
    Ok(())
}
