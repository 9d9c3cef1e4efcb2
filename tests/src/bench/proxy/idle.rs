//! Memory of a k8s-proxy that has nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::rig::Rig;
use crate::bench::{
    figures::{Figures, Goal},
    sample::{cpu_ms, resident_mb},
};

/// From its start until it is looked at.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) async fn measure(figures: &mut Figures, rig: &mut Rig, rounds: usize) -> Result<()> {
    let (mut memory, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        rig.fresh().await?;
        let pid = rig.proxy_pid()?;
        tokio::time::sleep(SETTLE).await;
        let before = cpu_ms(pid)?;
        tokio::time::sleep(SETTLE).await;
        cpu.push((cpu_ms(pid)? - before) / SETTLE.as_secs_f64());
        memory.push(resident_mb(pid)?);
    }
    figures.ours("idle: memory", "MB", &memory);
    figures.goal(Goal::AtMost(6.0));
    figures.ours("idle: processor time", "ms/s", &cpu);
    Ok(())
}
