//! The look from outside at readers that take nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use runtime::supervise::Supervisor;
use tokio::time::interval;
use tracing::warn;

use super::Engine;

/// How often memory is looked at, and after how many such looks the whole table.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS_PER_TABLE: u32 = 2;

pub(super) async fn watch(engine: &Engine, supervisor: &Supervisor) {
    let (mut looks, mut count) = (interval(LOOK), 0_u32);
    let mut doors = BTreeSet::new();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = supervisor.draining() => return,
        }
        let ended = engine.inner.streams.shed();
        if ended > 0 {
            warn!(
                ended,
                "calls whose readers take nothing were ended: memory for waiting bytes is used up"
            );
            engine.metrics().stalled.inc_by(ended as u64);
        }
        count = (count + 1) % LOOKS_PER_TABLE;
        if count == 0 {
            tell(engine, &mut doors);
        }
    }
}

fn tell(engine: &Engine, known: &mut BTreeSet<Arc<str>>) {
    let stalled = engine.inner.streams.stalled();
    let gauge = &engine.metrics().stalled_now;
    for door in known.iter().filter(|door| !stalled.contains_key(*door)) {
        gauge.with_label_values(&[&**door]).set(0);
    }
    for (door, count) in &stalled {
        gauge
            .with_label_values(&[&**door])
            .set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    *known = stalled.into_keys().collect();
}
