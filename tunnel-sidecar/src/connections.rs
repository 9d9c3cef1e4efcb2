//! The open connections: who sees them, who may close them, and who waits for them to end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{address::HostPort, plan::LaneId};

/// One open connection.
#[derive(Debug)]
pub struct Connection {
    /// Unique for the life of the process.
    pub id: u64,
    /// The lane whose session carries it.
    pub lane: LaneId,
    /// Name of its forward.
    pub forward: String,
    /// What was dialled.
    pub target: HostPort,
    /// When it was opened, for people.
    pub opened: SystemTime,
    /// Cancelled to close it.
    pub close: CancellationToken,
    /// The same by a clock that nobody sets; every duration is measured with it.
    start: Instant,
    /// Milliseconds after `start`.
    last_byte: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the server to the target.
    In,
    /// From the target to the server.
    Out,
}

impl Connection {
    /// Bytes so far, in and out.
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }

    /// How long it is open.
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    /// Since when no byte passed, either way.
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_byte.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }

    fn count(&self, direction: Direction, bytes: u64, now: Instant) {
        let counter = match direction {
            Direction::In => &self.bytes_in,
            Direction::Out => &self.bytes_out,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.last_byte.store(millis(self.start, now), Ordering::Relaxed);
    }
}

fn millis(start: Instant, now: Instant) -> u64 {
    let passed = now.saturating_duration_since(start).as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX)
}

/// All open connections of the process; clones share them.
#[derive(Clone, Debug)]
pub struct Connections {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    ended: watch::Sender<u64>,
    start: Instant,
    /// Milliseconds after `start`.
    last_active: AtomicU64,
}

impl Default for Connections {
    fn default() -> Self {
        let inner = Inner {
            open: Mutex::default(),
            next: AtomicU64::new(1),
            ended: watch::Sender::new(0),
            start: Instant::now(),
            last_active: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl Connections {
    /// Enters a connection; it is open until the returned guard is dropped.
    pub fn enter(&self, lane: LaneId, forward: &str, target: &HostPort) -> Guard {
        let start = Instant::now();
        let connection = Arc::new(Connection {
            id: self.inner.next.fetch_add(1, Ordering::Relaxed),
            lane,
            forward: forward.to_owned(),
            target: target.clone(),
            opened: SystemTime::now(),
            close: CancellationToken::new(),
            start,
            last_byte: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        self.lock().insert(connection.id, Arc::clone(&connection));
        self.active_at(start);
        Guard {
            connection,
            all: self.clone(),
        }
    }

    /// Every open connection, oldest first.
    pub fn list(&self) -> Vec<Arc<Connection>> {
        self.lock().values().cloned().collect()
    }

    /// Closes one; false when it is not open.
    pub fn close(&self, id: u64) -> bool {
        let open = self.lock();
        let found = open.get(&id);
        found.inspect(|connection| connection.close.cancel()).is_some()
    }

    /// Closes those that `stale` picks.
    pub fn close_where(&self, stale: impl Fn(&Connection) -> bool) {
        for connection in self.lock().values().filter(|connection| stale(connection)) {
            connection.close.cancel();
        }
    }

    /// Names of the forwards that have open connections in `lane`.
    pub fn busy(&self, lane: LaneId) -> BTreeSet<String> {
        let open = self.lock();
        open.values()
            .filter(|connection| connection.lane == lane)
            .map(|found| found.forward.clone())
            .collect()
    }

    /// Resolves when nothing is open.
    pub async fn none_open(&self) {
        let mut ended = self.inner.ended.subscribe();
        while !self.lock().is_empty() {
            // The sender lives in `self`, so waiting cannot fail.
            ended.changed().await.ok();
        }
    }

    /// Resolves when `lane` has no open connection.
    pub async fn idle(&self, lane: LaneId) {
        let mut ended = self.inner.ended.subscribe();
        while self.lock().values().any(|connection| connection.lane == lane) {
            // The sender lives in `self`, so waiting cannot fail.
            ended.changed().await.ok();
        }
    }

    /// A counter that rises with each connection that ends.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.inner.ended.subscribe()
    }

    /// Since when nothing has moved.
    pub fn last_active(&self) -> Instant {
        let last = self.inner.last_active.load(Ordering::Relaxed);
        self.inner.start + Duration::from_millis(last)
    }

    /// Notes that something moved.
    pub fn active(&self) {
        self.active_at(Instant::now());
    }

    fn active_at(&self, now: Instant) {
        self.inner
            .last_active
            .store(millis(self.inner.start, now), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the bytes of a connection.
#[derive(Clone, Debug)]
pub struct Meter {
    connection: Arc<Connection>,
    all: Connections,
}

impl Meter {
    /// Counts bytes that passed.
    pub fn count(&self, direction: Direction, bytes: u64) {
        let now = Instant::now();
        self.connection.count(direction, bytes, now);
        self.all.active_at(now);
    }
}

/// Holds a connection open.
#[derive(Debug)]
pub struct Guard {
    connection: Arc<Connection>,
    all: Connections,
}

impl Guard {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What counts the bytes of this connection without holding it open.
    pub fn meter(&self) -> Meter {
        Meter {
            connection: Arc::clone(&self.connection),
            all: self.all.clone(),
        }
    }

    /// Counts bytes that passed.
    pub fn count(&self, direction: Direction, bytes: u64) {
        let now = Instant::now();
        self.connection.count(direction, bytes, now);
        self.all.active_at(now);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all.lock().remove(&self.connection.id);
        self.all.active();
        self.all.inner.ended.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn age_and_silence_are_told_by_a_clock_that_nobody_sets() {
        let all = Connections::default();
        let open = all.enter(1, "a", &"127.0.0.1:80".parse().unwrap());
        tokio::time::advance(Duration::from_secs(3)).await;
        open.count(Direction::In, 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        let open = open.connection();
        assert_eq!((open.age().as_secs(), open.idle().as_secs()), (5, 2));
    }

    #[tokio::test]
    async fn a_lane_is_idle_when_its_last_connection_has_ended() {
        let all = Connections::default();
        let target: HostPort = "127.0.0.1:80".parse().unwrap();
        let (first, other) = (all.enter(1, "a", &target), all.enter(2, "b", &target));
        first.count(Direction::In, 3);
        first.count(Direction::Out, 4);
        assert_eq!(all.list()[0].bytes(), (3, 4));
        assert_eq!(all.busy(1), ["a".to_owned()].into());
        let idle = all.idle(1);
        tokio::pin!(idle);
        assert!(idle.as_mut().now_or_never().is_none());
        assert!(all.close(first.connection().id));
        assert!(first.connection().close.is_cancelled() && !other.connection().close.is_cancelled());
        drop(first);
        idle.await;
        assert!(!all.close(1), "closed ones are gone");
        assert_eq!(all.list().len(), 1);
    }
}
