//! When to try again. Pure: no clock, no task.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// Bounds of a series of tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Ceiling of the first delay.
    pub min: Duration,
    /// Ceiling of every later delay.
    pub max: Duration,
    /// A session that lasted so long starts the series anew.
    pub stable: Duration,
}

/// A series of tries with full jitter: each delay is uniform between zero and a ceiling that doubles.
///
/// Full jitter spreads a herd of agents best after a control plane comes back, because no two of them share a
/// lower bound.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    attempt: u32,
    random: SmallRng,
}

impl Backoff {
    /// A series with its own randomness.
    pub fn new(policy: Policy) -> Self {
        Self::with_seed(policy, rand::random())
    }

    /// A repeatable series.
    pub fn with_seed(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            attempt: 0,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// The delay before the next try. What the peer asked for (`Retry-After`) is a lower bound, to which the
    /// jitter is added.
    pub fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let doubled = self
            .policy
            .min
            .saturating_mul(2_u32.saturating_pow(self.attempt.min(31)));
        let ceiling = doubled.min(self.policy.max);
        self.attempt = self.attempt.saturating_add(1);
        let jitter = ceiling.mul_f64(self.random.random::<f64>());
        retry_after.unwrap_or_default().saturating_add(jitter)
    }

    /// Starts the series anew if the session that just ended was a stable one.
    pub fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= self.policy.stable {
            self.reset();
        }
    }

    /// Starts the series anew.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many delays were given since the start of the series.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        min: Duration::from_millis(100),
        max: Duration::from_secs(5),
        stable: Duration::from_secs(5),
    };

    proptest! {
        #[test]
        fn a_delay_stays_below_its_ceiling(seed: u64, tries in 1_u32..80) {
            let mut backoff = Backoff::with_seed(POLICY, seed);
            for attempt in 0..tries {
                let ceiling = POLICY.max.min(POLICY.min * 2_u32.saturating_pow(attempt).min(1 << 20));
                prop_assert!(backoff.next(None) <= ceiling);
            }
        }

        #[test]
        fn what_the_peer_asked_for_is_never_undercut(seed: u64, seconds in 0_u64..4000) {
            let asked = Duration::from_secs(seconds);
            prop_assert!(Backoff::with_seed(POLICY, seed).next(Some(asked)) >= asked);
        }
    }

    #[test]
    fn only_a_stable_session_starts_the_series_anew() {
        let mut backoff = Backoff::with_seed(POLICY, 1);
        backoff.next(None);
        backoff.session_lasted(Duration::from_secs(4));
        assert_eq!(backoff.attempt(), 1);
        backoff.session_lasted(Duration::from_secs(5));
        assert_eq!(backoff.attempt(), 0);
    }

    #[test]
    fn two_agents_do_not_come_back_together() {
        let delays = |seed| {
            let mut backoff = Backoff::with_seed(POLICY, seed);
            (0..5).map(|_| backoff.next(None)).collect::<Vec<_>>()
        };
        assert_ne!(delays(1), delays(2));
    }
}
