//! The books of one caller. Pure: time comes from outside.

use std::time::Duration;

use tokio::time::Instant;

use super::Limits;

/// Smallest burst of bytes: a single piece of an answer must never wait for itself.
const MIN_BURST: f64 = 64.0 * 1024.0;

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Streams,
    InFlight,
    Requests(Duration),
    Bytes(Duration),
}

/// A bucket that fills with time and may go into debt: what is paid for has happened already.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// None before its first use: it begins full.
    filled: Option<(Instant, f64)>,
}

impl Bucket {
    fn level(&self, now: Instant, rate: f64, burst: f64) -> f64 {
        match self.filled {
            None => burst,
            Some((at, level)) => {
                let since = now.saturating_duration_since(at).as_secs_f64();
                (level + since * rate).min(burst)
            }
        }
    }

    fn take(&mut self, now: Instant, rate: f64, burst: f64, amount: f64) {
        self.filled = Some((now, self.level(now, rate, burst) - amount));
    }
}

/// Seconds until `missing` has come in at `rate`, rounded up to what a timer can keep.
fn until(missing: f64, rate: f64) -> Duration {
    const LONGEST: f64 = 3600.0;
    let wait = Duration::from_secs_f64((missing / rate).clamp(0.0, LONGEST));
    wait.max(Duration::from_millis(1))
}

#[derive(Debug, Default)]
pub(super) struct Account {
    open: u32,
    in_flight: u32,
    requests: Bucket,
    bytes: Bucket,
}

impl Account {
    pub(super) fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Takes one call in, or says which bound it would pass. A refused call costs nothing.
    pub(super) fn admit(&mut self, limits: &Limits, now: Instant, endless: bool) -> Result<(), Refusal> {
        if limits.streams > 0 && self.open >= limits.streams {
            return Err(Refusal::Streams);
        }
        if !endless && limits.in_flight > 0 && self.in_flight >= limits.in_flight {
            return Err(Refusal::InFlight);
        }
        if let Some(wait) = self.wait_for_bytes(limits, now) {
            return Err(Refusal::Bytes(wait));
        }
        if limits.requests_per_second > 0 {
            let rate = f64::from(limits.requests_per_second);
            let level = self.requests.level(now, rate, rate);
            if level < 1.0 {
                return Err(Refusal::Requests(until(1.0 - level, rate)));
            }
            self.requests.take(now, rate, rate, 1.0);
        }
        self.open += 1;
        self.in_flight += u32::from(!endless);
        Ok(())
    }

    pub(super) fn leave(&mut self, endless: bool) {
        self.open = self.open.saturating_sub(1);
        self.in_flight = self.in_flight.saturating_sub(u32::from(!endless));
    }

    pub(super) fn pay(&mut self, limits: &Limits, now: Instant, bytes: usize) {
        if let Some((rate, burst)) = byte_rate(limits) {
            self.bytes.take(now, rate, burst, as_f64(bytes));
        }
    }

    /// How long until bytes may move again; `None` when they may now.
    pub(super) fn wait_for_bytes(&self, limits: &Limits, now: Instant) -> Option<Duration> {
        let (rate, burst) = byte_rate(limits)?;
        let level = self.bytes.level(now, rate, burst);
        (level <= 0.0).then(|| until(1.0 - level, rate))
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "rates and sizes are far below 2^52, and a rate need not be exact to the byte"
)]
fn byte_rate(limits: &Limits) -> Option<(f64, f64)> {
    let rate = limits.bytes_per_second as f64;
    (limits.bytes_per_second > 0).then(|| (rate, rate.max(MIN_BURST)))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a piece of a body is far below 2^52 bytes"
)]
fn as_f64(bytes: usize) -> f64 {
    bytes as f64
}
