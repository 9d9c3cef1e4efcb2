//! Waiting for a condition with a deadline.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a scenario waits for what a user is promised within seconds: ten times the longest promise.
///
/// `PIPEOPS_TEST_PATIENCE` (seconds) overrides it on slow machines.
pub fn patience() -> Duration {
    std::env::var("PIPEOPS_TEST_PATIENCE")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::from_secs(60), Duration::from_secs)
}

/// Waits until `condition` gives a value, and returns it with the time it took.
///
/// # Panics
/// When [`patience`] runs out: the message names `what`.
pub async fn eventually<T, F, C>(what: &str, mut condition: C) -> (T, Duration)
where
    C: FnMut() -> F,
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return (value, start.elapsed());
        }
        assert!(
            start.elapsed() < patience(),
            "waited {:?} in vain for: {what}",
            start.elapsed()
        );
        sleep(POLL).await;
    }
}
