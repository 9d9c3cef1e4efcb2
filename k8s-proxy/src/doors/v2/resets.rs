//! How many calls a peer may cancel before they are answered. Pure, but for the clock it is given.
//!
//! Each such call may have cost a connection to the apiserver, so a peer that does nothing else is slowed down. A page
//! that is closed cancels a thousand at once, which is well within the limit.

use std::sync::Mutex;

use tokio::time::Instant;

use crate::streams::lock;

/// Cancelled calls at once.
const BURST: f64 = 10_000.0;
/// Cancelled calls per second that go on for ever.
const RATE: f64 = 500.0;

/// A bucket of calls that may be cancelled.
#[derive(Debug)]
pub(super) struct Resets {
    bucket: Mutex<Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + seconds * RATE).min(BURST);
        self.at = now;
    }
}

impl Resets {
    /// A full bucket.
    pub(super) fn new() -> Self {
        Self {
            bucket: Mutex::new(Bucket {
                left: BURST,
                at: Instant::now(),
            }),
        }
    }

    /// A call was cancelled before its answer.
    pub(super) fn note(&self, now: Instant) {
        let mut bucket = lock(&self.bucket);
        bucket.fill(now);
        bucket.left -= 1.0;
    }

    /// Whether the peer has to slow down.
    pub(super) fn spent(&self, now: Instant) -> bool {
        let mut bucket = lock(&self.bucket);
        bucket.fill(now);
        bucket.left < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_storm_is_borne_and_a_flood_is_slowed() {
        let (resets, start) = (Resets::new(), Instant::now());
        for _ in 0..4000 {
            resets.note(start);
        }
        assert!(!resets.spent(start));
        for _ in 0..6000 {
            resets.note(start);
        }
        assert!(resets.spent(start));
        assert!(!resets.spent(start + Duration::from_secs(1)));
        for _ in 0..1000 {
            resets.note(start + Duration::from_secs(1));
        }
        assert!(resets.spent(start + Duration::from_secs(1)));
    }
}
