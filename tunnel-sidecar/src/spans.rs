//! What a connection leaves behind for those who look: a span now and then, and how long bytes had to wait.

use std::{
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use prometheus::Histogram;
use tokio::time::Instant;
use tracing::Span;

/// Runs `work`, and notes how long it took if it could not be done at once.
pub(crate) async fn timed<T>(work: impl Future<Output = T>, stalls: &Histogram) -> T {
    tokio::pin!(work);
    if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
        return done;
    }
    let start = Instant::now();
    let done = work.await;
    stalls.observe(start.elapsed().as_secs_f64());
    done
}

/// Spans a second at most: a trace of everything would cost more than what it shows.
const SPANS_A_SECOND: u32 = 10;

/// Decides which connections get a span.
#[derive(Debug)]
pub(crate) struct Spans {
    second: Mutex<(Instant, u32)>,
}

impl Default for Spans {
    fn default() -> Self {
        Self {
            second: Mutex::new((Instant::now(), 0)),
        }
    }
}

impl Spans {
    /// The span of the next connection, or none.
    pub(crate) fn next(&self, span: impl FnOnce() -> Span) -> Span {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0.elapsed() >= Duration::from_secs(1) {
            *second = (Instant::now(), 0);
        }
        second.1 += 1;
        if second.1 > SPANS_A_SECOND {
            return Span::none();
        }
        drop(second);
        span()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_spans_a_second_and_no_more() {
        let spans = Spans::default();
        for _ in 0..2 {
            let mut made = 0;
            for _ in 0..100 {
                spans.next(|| {
                    made += 1;
                    Span::none()
                });
            }
            assert_eq!(made, SPANS_A_SECOND);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_has_to_wait_is_a_stall() {
        let stalls = Histogram::with_opts(prometheus::HistogramOpts::new("stalls", "-")).unwrap();
        timed(async {}, &stalls).await;
        assert_eq!(stalls.get_sample_count(), 0);
        timed(tokio::time::sleep(Duration::from_secs(2)), &stalls).await;
        assert_eq!(
            (stalls.get_sample_count(), stalls.get_sample_sum().round()),
            (1, 2.0)
        );
    }
}
