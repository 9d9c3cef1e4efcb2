//! Time and chance, both replaceable: with a start time and a seed two simulations are equal byte by byte.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Letters of generated names: no vowels, so that no word comes out.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Where timestamps come from.
#[derive(Debug)]
pub struct Clock {
    /// Milliseconds since 1970; negative: the clock of the machine.
    simulated: AtomicI64,
}

impl Clock {
    /// The machine's clock, or one that begins at `start` and moves only by [`Clock::advance`].
    pub fn new(start: Option<Timestamp>) -> Self {
        Self {
            simulated: AtomicI64::new(start.map_or(-1, Timestamp::as_millisecond)),
        }
    }

    /// This moment.
    pub fn now(&self) -> Timestamp {
        match self.simulated.load(Ordering::Relaxed) {
            ..0 => Timestamp::now(),
            millis => Timestamp::from_millisecond(millis).unwrap_or_default(),
        }
    }

    /// Moves a simulated clock.
    pub fn advance(&self, by: std::time::Duration) {
        if self.simulated.load(Ordering::Relaxed) >= 0 {
            let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            self.simulated.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// As in `creationTimestamp`.
    pub fn seconds(&self) -> String {
        self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// As in a Lease.
    pub fn micros(&self) -> String {
        self.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    }
}

/// Chance by seed.
#[derive(Debug)]
pub struct Chance(Mutex<StdRng>);

impl Chance {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn lock(&self) -> MutexGuard<'_, StdRng> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A number below `end`, 0 when there is none.
    pub fn below(&self, end: usize) -> usize {
        if end == 0 {
            0
        } else {
            self.lock().random_range(0..end)
        }
    }

    /// One of a slice.
    pub fn pick<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// A uid.
    pub fn uid(&self) -> String {
        uuid::Builder::from_random_bytes(self.lock().random())
            .into_uuid()
            .to_string()
    }

    /// Letters for a generated name.
    pub fn suffix(&self, length: usize) -> String {
        let mut rng = self.lock();
        (0..length)
            .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_simulated_clock_moves_only_when_told() {
        let clock = Clock::new(Some("2026-01-02T03:04:05Z".parse().unwrap()));
        assert_eq!(clock.seconds(), "2026-01-02T03:04:05Z");
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.micros(), "2026-01-02T03:04:06.500000Z");
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed| {
            let chance = Chance::new(seed);
            (chance.uid(), chance.suffix(5), chance.below(1000))
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
