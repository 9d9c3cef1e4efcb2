//! From the start of three processes to the first accepted heartbeat, with everything else up.

use anyhow::Result;
use tokio::time::Instant;

use super::figures::Figures;
use crate::{
    lab::{Cluster, Lab},
    pod::Part,
};

pub(super) async fn measure(figures: &mut Figures, rounds: usize) -> Result<()> {
    let mut runs = Vec::new();
    for _ in 0..rounds {
        let mut lab = Lab::prepare(Cluster::simulated().await?).await?;
        let start = Instant::now();
        for part in Part::ALL {
            lab.pod.start_part(part)?;
        }
        let id = lab.control_plane.wait_registered().await;
        let first = loop {
            if let Some(beat) = lab.control_plane.heartbeats(&id).first() {
                break beat.at;
            }
            tokio::task::yield_now().await;
        };
        runs.push(first.saturating_duration_since(start).as_secs_f64());
    }
    figures.ours("start to first accepted heartbeat", "s", &runs);
    Ok(())
}
