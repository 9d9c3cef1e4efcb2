//! What one forward may take: connections at a time, bytes a second each way, silence.
//!
//! All connections of a forward pay into the same two buckets, so the limit is the forward's and not the
//! connection's. Who has to wait does not read, credit is not given, and the sender is slowed down: nothing piles up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::connections::Direction;

/// What may go at once after a pause, as a share of a second's worth …
const BURST_DIVISOR: u64 = 10;
/// … and at least: a read is up to 32 KiB, and half a read cannot be taken back.
const LEAST_BURST: u64 = 32 * 1024;

/// The limits of one forward as desired; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: Option<usize>,
    /// Bytes a second from the server to the target.
    pub bytes_in: Option<u64>,
    /// Bytes a second from the target to the server.
    pub bytes_out: Option<u64>,
    /// A connection without a byte for so long is closed.
    pub idle: Option<Duration>,
}

/// When the next bytes may go, at a steady rate with a small burst. Pure: the caller brings the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When everything paid for so far would have gone at the rate alone.
    paid_until: Duration,
}

impl Bucket {
    /// Takes note of `bytes` at `now` and says how long their sender waits before its next ones. A rate of 0 is
    /// read as 1: nothing would ever go, and nobody would see why.
    pub fn pay(&mut self, now: Duration, bytes: u64, rate: u64) -> Duration {
        let worth = |bytes: u64| {
            let seconds = precise(bytes) / precise(rate.max(1));
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        };
        let burst = worth((rate / BURST_DIVISOR).max(LEAST_BURST));
        let start = self.paid_until.max(now.saturating_sub(burst));
        self.paid_until = start.saturating_add(worth(bytes));
        self.paid_until.saturating_sub(now)
    }
}

/// Exact up to 2^53, which is 9 PB.
#[expect(
    clippy::cast_precision_loss,
    reason = "the error is far below a nanosecond of any rate there is"
)]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// The limits of a forward at work; clones share them, and they outlive sessions and specs.
#[derive(Clone, Debug)]
pub struct Limiter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: watch::Sender<Limits>,
    open: AtomicUsize,
    buckets: Mutex<[Bucket; 2]>,
    start: Instant,
}

impl Default for Limiter {
    fn default() -> Self {
        let inner = Inner {
            limits: watch::Sender::new(Limits::default()),
            open: AtomicUsize::new(0),
            buckets: Mutex::default(),
            start: Instant::now(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

/// A place among the connections of a forward, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    limiter: Limiter,
}

impl Limiter {
    /// Puts other limits in force, for open connections too.
    pub fn set(&self, limits: Limits) {
        self.inner.limits.send_if_modified(|present| {
            let changed = *present != limits;
            *present = limits;
            changed
        });
    }

    /// A place for one more connection.
    ///
    /// # Errors
    /// The limit, when it is reached.
    pub fn seat(&self) -> Result<Seat, usize> {
        let limit = self.inner.limits.borrow().connections;
        let open = self.inner.open.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            limiter: self.clone(),
        };
        match limit {
            Some(limit) if open >= limit => Err(limit),
            Some(_) | None => Ok(seat),
        }
    }

    /// Whether bytes have to wait for a rate.
    pub fn has_rates(&self) -> bool {
        let limits = self.inner.limits.borrow();
        limits.bytes_in.is_some() || limits.bytes_out.is_some()
    }

    /// Pays for bytes that passed; waits as long as the rate asks for.
    pub async fn pay(&self, direction: Direction, bytes: u64) {
        let wait = {
            let limits = self.inner.limits.borrow();
            let (rate, index) = match direction {
                Direction::In => (limits.bytes_in, 0),
                Direction::Out => (limits.bytes_out, 1),
            };
            let Some(rate) = rate else { return };
            let mut buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            let bucket = buckets.get_mut(index);
            bucket.map(|bucket| bucket.pay(self.inner.start.elapsed(), bytes, rate))
        };
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            sleep(wait).await;
        }
    }

    /// Resolves when a connection has been silent for too long; `silent` says for how long it is.
    pub async fn silent_for_too_long(&self, silent: impl Fn() -> Duration) -> Duration {
        let mut limits = self.inner.limits.subscribe();
        loop {
            let idle = limits.borrow_and_update().idle;
            let Some(idle) = idle else {
                // The sender lives in `self`, so waiting cannot fail.
                limits.changed().await.ok();
                continue;
            };
            let rest = idle.saturating_sub(silent());
            if rest.is_zero() {
                return idle;
            }
            tokio::select! { () = sleep(rest) => {}, _ = limits.changed() => {} }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.limiter.inner.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seats_are_counted_and_given_back() {
        let limiter = Limiter::default();
        let free = limiter.seat().unwrap();
        limiter.set(Limits {
            connections: Some(2),
            ..Limits::default()
        });
        let second = limiter.seat().unwrap();
        assert_eq!(limiter.seat().map(|_| ()), Err(2));
        drop(free);
        let third = limiter.seat().unwrap();
        assert_eq!(limiter.seat().map(|_| ()), Err(2));
        drop((second, third));
        assert!(limiter.seat().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_by_all_connections_together() {
        let limiter = Limiter::default();
        limiter.set(Limits {
            bytes_in: Some(1_000_000),
            ..Limits::default()
        });
        let start = Instant::now();
        let one = async {
            for _ in 0..50 {
                limiter.pay(Direction::In, 32 * 1024).await;
            }
        };
        tokio::join!(one, async {
            for _ in 0..50 {
                limiter.pay(Direction::In, 32 * 1024).await;
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        // 100 reads of 32 KiB, less the burst of a tenth of a second.
        assert!((3.1..3.4).contains(&seconds), "{seconds}");
        let start = Instant::now();
        limiter.pay(Direction::Out, u64::MAX).await;
        assert!(start.elapsed().is_zero(), "the other way has no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_when_a_limit_is_set_meanwhile() {
        let limiter = Limiter::default();
        let start = Instant::now();
        let ended = limiter.silent_for_too_long(|| start.elapsed());
        tokio::pin!(ended);
        assert!(
            tokio::time::timeout(Duration::from_secs(3600), &mut ended)
                .await
                .is_err()
        );
        limiter.set(Limits {
            idle: Some(Duration::from_secs(4000)),
            ..Limits::default()
        });
        ended.await;
        assert_eq!(start.elapsed().as_secs(), 4000);
    }

    proptest! {
        /// Whatever is paid whenever: no more passes than the rate and one burst allow, plus the last payment.
        #[test]
        fn a_bucket_never_lets_more_through_than_its_rate(
            rate in 1_000_u64..10_000_000_000,
            steps in proptest::collection::vec((0_u64..100_000, 0_u64..2_000_000), 1..60),
        ) {
            let mut bucket = Bucket::default();
            let (mut now, mut passed) = (Duration::from_secs(100), 0_u64);
            let start = now;
            for (micros, bytes) in steps {
                now += Duration::from_micros(micros);
                now += bucket.pay(now, bytes, rate);
                passed += bytes;
                let burst = precise((rate / BURST_DIVISOR).max(LEAST_BURST));
                let allowed = (now - start).as_secs_f64() * precise(rate) + burst;
                prop_assert!(precise(passed) <= allowed * 1.000_001 + 1.0, "{} of {}", passed, allowed);
            }
        }
    }
}
