//! One budget of bytes for everything that waits in this process: frames in queues, answers that a reader does not
//! take, bodies that are gathered.
//!
//! ```text
//!  Hold   what one open call keeps waiting; set as it changes, never refused
//!  Share  what is gathered before it can go on; waits for room, one may go over so that no two wait for each other
//!  over?  ─► the calls that have been stalled the longest are ended, and new calls are refused, until it fits again
//! ```

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::interval,
};

use super::Stream;

/// How often a share that waits looks whether others have made room.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes that wait, and how many may; clones share them.
#[derive(Clone, Debug)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
    gauge: IntGauge,
    /// The right to go over, held by one [`Share`] at a time.
    overdraft: Arc<Semaphore>,
}

impl Budget {
    /// At most `limit` bytes; `gauge` follows what is used.
    pub fn new(limit: usize, gauge: IntGauge) -> Self {
        Self {
            inner: Arc::new(Inner {
                limit,
                used: AtomicUsize::new(0),
                gauge,
                overdraft: Arc::new(Semaphore::new(1)),
            }),
        }
    }

    /// Bytes that wait now.
    pub fn used(&self) -> usize {
        self.inner.used.load(Relaxed)
    }

    /// Bytes that may wait.
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// By how much it is passed.
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.inner.limit)
    }

    /// Room for `bytes`, or nothing.
    pub fn try_share(&self, bytes: usize) -> Option<Share> {
        let mut share = self.share();
        share.try_grow(bytes).then_some(share)
    }

    /// An empty share.
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            bytes: 0,
            overdraft: None,
        }
    }

    /// What `stream` keeps waiting, beginning with nothing.
    pub fn hold(&self, stream: Arc<Stream>) -> Hold {
        Hold {
            budget: self.clone(),
            stream,
            bytes: 0,
        }
    }

    fn add(&self, bytes: usize) {
        self.inner.used.fetch_add(bytes, Relaxed);
        self.inner.gauge.add(signed(bytes));
    }

    fn sub(&self, bytes: usize) {
        self.inner.used.fetch_sub(bytes, Relaxed);
        self.inner.gauge.sub(signed(bytes));
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The bytes that one open call keeps waiting. Given back when dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    stream: Arc<Stream>,
    bytes: usize,
}

impl Hold {
    /// It is so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.add(more);
            self.stream.held.fetch_add(more, Relaxed);
        } else {
            let less = self.bytes - bytes;
            self.budget.sub(less);
            self.stream.held.fetch_sub(less, Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes that are gathered. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: usize,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Room for `bytes` more if there is any.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let inner = &self.budget.inner;
        let fits = inner
            .used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes)
                    .filter(|sum| *sum <= inner.limit || self.overdraft.is_some())
            })
            .is_ok();
        if fits {
            inner.gauge.add(signed(bytes));
            self.bytes += bytes;
        }
        fits
    }

    /// Waits for room for `bytes` more. Whoever has waited the longest goes on without room and is then never
    /// stopped again, so that shares that are half full cannot wait for each other.
    pub async fn grow(&mut self, bytes: usize) {
        if self.try_grow(bytes) {
            return;
        }
        let mut overdraft = pin!(Arc::clone(&self.budget.inner.overdraft).acquire_owned());
        let mut looks = interval(LOOK);
        loop {
            tokio::select! {
                permit = &mut overdraft => {
                    self.overdraft = permit.ok();
                    self.try_grow(bytes);
                    return;
                }
                _ = looks.tick() => if self.try_grow(bytes) { return },
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}
