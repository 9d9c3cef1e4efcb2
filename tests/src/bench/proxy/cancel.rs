//! From the moment a caller gives a stream up to the moment the apiserver sees it closed.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::{Instant, timeout};

use super::{rig::Rig, ways::Door};
use crate::{
    bench::figures::{Figures, Goal, quantile},
    wait::eventually,
};

const WATCH: &str =
    "/api/v1/namespaces/bench/configmaps?watch=true&resourceVersion=1&allowWatchBookmarks=true";
/// After which it is an error.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn measure(
    figures: &mut Figures,
    rig: &mut Rig,
    rounds: usize,
    cancels: usize,
) -> Result<()> {
    let mut all: BTreeMap<Door, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for door in Door::ALL {
            let way = rig.way(door).await?;
            let mut took = Vec::new();
            for _ in 0..cancels {
                let fast = rig.fast()?;
                // Else the end of an earlier one would be taken for this one's.
                eventually("every earlier stream to be closed", || async {
                    (fast.open() == 0).then_some(())
                })
                .await;
                let mut closed = fast.closed();
                let reading = way.stream(WATCH).await?;
                let given_up = Instant::now();
                drop(reading);
                let seen = timeout(PATIENCE, closed.recv()).await.context("never closed")??;
                took.push(seen.saturating_duration_since(given_up).as_secs_f64() * 1000.0);
            }
            all.entry(door).or_default().push(quantile(&mut took, 0.99));
        }
    }
    let of = |door: Door| all.get(&door).context("measured");
    let peer = of(Door::Kubectl)?;
    for door in Door::OURS {
        let name = format!("sim: cancel to upstream closed, p99, {}", door.name());
        figures.beside(name, "ms", of(door)?, "kubectl proxy", peer);
        figures.goal(Goal::AtMost(5.0));
    }
    Ok(())
}
