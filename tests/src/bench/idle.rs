//! What the three cost while nothing happens but heartbeats.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    figures::Figures,
    sample::{cpu_ms, resident_mb},
};
use crate::pod::Part;

pub(super) async fn measure(figures: &mut Figures, seconds: u64) -> Result<()> {
    let (mut lab, _) = super::installed().await?;
    let mut before = Vec::new();
    for part in Part::ALL {
        before.push(cpu_ms(lab.pod.process(part)?.pid().context("it runs")?)?);
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let mut all = 0.0;
    for (part, before) in Part::ALL.into_iter().zip(before) {
        let pid = lab.pod.process(part)?.pid().context("it runs")?;
        let memory = resident_mb(pid)?;
        all += memory;
        figures.ours(
            format!("idle memory {} after {seconds} s", part.name()),
            "MB",
            &[memory],
        );
        let per_second = (cpu_ms(pid)? - before) / seconds as f64;
        figures.ours(
            format!("idle processor time {}", part.name()),
            "ms/s",
            &[per_second],
        );
    }
    figures.ours("idle memory of the three together", "MB", &[all]);
    Ok(())
}
