//! The table of open calls: bounded in number and in bytes that wait, listed for people, each entry cancellable from
//! outside.

mod budget;
mod cancel;
mod stalls;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use proto::v1::{self, stream_event::Kind};
use tokio::{sync::broadcast, time::Instant};
use tokio_util::sync::CancellationToken;

pub use budget::{Budget, Hold, Share};
pub use cancel::{Cancel, CancelReason};

use crate::{
    identity::{Caller, Who},
    target::Target,
};

/// How many events a slow watcher of the table may lag behind.
const WATCHER_QUEUE: usize = 256;
/// Places that only agent-core may take: a full table must not keep it from its state.
const RESERVED: usize = 16;

/// One open call.
#[derive(Debug)]
pub struct Stream {
    /// Number in this table.
    pub id: u64,
    /// The door it came through.
    pub door: Arc<str>,
    /// The caller's id, where the protocol has one.
    pub request_id: String,
    /// Identity of the door.
    pub caller: Arc<Caller>,
    /// That identity or the person it speaks for.
    pub who: Arc<Who>,
    /// HTTP method.
    pub method: http::Method,
    /// What is asked for.
    pub target: Arc<Target>,
    /// Whether it may last for hours.
    pub endless: bool,
    /// When it was opened.
    pub opened: SystemTime,
    /// Watch events passed on.
    pub events: AtomicU64,
    /// Bytes passed on.
    pub bytes: AtomicU64,
    /// Bytes that wait for its reader.
    pub held: AtomicUsize,
    /// How often the watch was opened again upstream.
    pub rewatches: AtomicU32,
    /// Last resourceVersion passed on.
    pub version: Mutex<String>,
    /// Ends it.
    pub cancel: Cancel,
    /// Ends what carries it, for a reader that never comes back to hear of it.
    stop: Option<CancellationToken>,
    /// Milliseconds of the table's clock, plus one, since which its reader has something to take; zero: nothing.
    handed: AtomicU64,
}

impl Stream {
    /// Its reader has something to take since now.
    pub(crate) fn hand(&self, at: Duration) {
        self.handed.store(millis(at) + 1, Relaxed);
    }

    /// Its reader has taken all there was; returns for how long it let us wait.
    pub(crate) fn take(&self, now: Duration) -> Duration {
        match self.handed.swap(0, Relaxed) {
            0 => Duration::ZERO,
            at => now.saturating_sub(Duration::from_millis(at - 1)),
        }
    }

    /// How long its reader has let something wait.
    fn stalled_for(&self, now: Duration) -> Option<Duration> {
        match self.handed.load(Relaxed) {
            0 => None,
            at => Some(now.saturating_sub(Duration::from_millis(at - 1))),
        }
    }

    /// Ends the call. A reader that takes nothing would never hear of it, so what carries it is ended too.
    fn end(&self, reason: CancelReason) {
        self.cancel.cancel(reason);
        if self.handed.load(Relaxed) > 0
            && let Some(stop) = &self.stop
        {
            stop.cancel();
        }
    }

    fn to_proto(&self) -> v1::Stream {
        v1::Stream {
            id: self.id,
            door: self.door.to_string(),
            request_id: self.request_id.clone(),
            user: self.who.user.clone(),
            method: self.method.to_string(),
            path: self.target.path.clone(),
            watch: self.target.watch,
            opened: Some(self.opened.into()),
            events: self.events.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            resource_version: lock(&self.version).clone(),
            rewatches: self.rewatches.load(Relaxed),
            caller: self.caller.name.clone(),
            waiting_bytes: self.held.load(Relaxed) as u64,
        }
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX - 1)
}

/// What a call brings into the table.
#[derive(Clone, Debug)]
pub struct NewStream {
    /// See [`Stream::door`].
    pub door: Arc<str>,
    /// See [`Stream::request_id`].
    pub request_id: String,
    /// See [`Stream::caller`].
    pub caller: Arc<Caller>,
    /// See [`Stream::who`].
    pub who: Arc<Who>,
    /// See [`Stream::method`].
    pub method: http::Method,
    /// See [`Stream::target`].
    pub target: Arc<Target>,
    /// See [`Stream::endless`].
    pub endless: bool,
    /// See [`Stream::cancel`].
    pub cancel: Cancel,
    /// Ends what carries the call.
    pub stop: Option<CancellationToken>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    open: BTreeMap<u64, Arc<Stream>>,
}

/// The table; clones share it.
#[derive(Clone, Debug)]
pub struct StreamTable {
    entries: Arc<Mutex<Entries>>,
    limit: usize,
    budget: Budget,
    started: Instant,
    events: broadcast::Sender<v1::StreamEvent>,
}

impl StreamTable {
    /// An empty table that holds at most `limit` calls, whose waiting bytes are counted in `budget`.
    pub fn new(limit: usize, budget: Budget) -> Self {
        Self {
            entries: Arc::default(),
            limit,
            budget,
            started: Instant::now(),
            events: broadcast::Sender::new(WATCHER_QUEUE),
        }
    }

    /// The bytes that wait.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The table's clock.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes a call in; `None` when the table is full. The call leaves when the result is dropped.
    pub fn open(&self, new: NewStream) -> Option<OpenStream> {
        let stream = {
            let mut entries = lock(&self.entries);
            let reserved = if new.caller.agent_core { RESERVED } else { 0 };
            if entries.open.len() >= self.limit + reserved {
                return None;
            }
            entries.next += 1;
            let stream = Arc::new(Stream {
                id: entries.next,
                door: new.door,
                request_id: new.request_id,
                caller: new.caller,
                who: new.who,
                method: new.method,
                target: new.target,
                endless: new.endless,
                opened: SystemTime::now(),
                events: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                held: AtomicUsize::new(0),
                rewatches: AtomicU32::new(0),
                version: Mutex::default(),
                cancel: new.cancel,
                stop: new.stop,
                handed: AtomicU64::new(0),
            });
            entries.open.insert(stream.id, Arc::clone(&stream));
            stream
        };
        self.tell(Kind::Opened, &stream);
        Some(OpenStream {
            table: self.clone(),
            stream,
        })
    }

    /// Ends the call `id`; false when there is none.
    pub fn cancel(&self, id: u64, reason: CancelReason) -> bool {
        let stream = lock(&self.entries).open.get(&id).cloned();
        stream.is_some_and(|stream| {
            stream.end(reason);
            true
        })
    }

    /// Ends every call that may last for hours.
    pub fn cancel_endless(&self, reason: CancelReason) {
        self.cancel_where(reason, |stream| stream.endless);
    }

    /// Ends every call that `which` picks; returns how many.
    pub fn cancel_where(&self, reason: CancelReason, which: impl Fn(&Stream) -> bool) -> usize {
        let picked: Vec<_> = lock(&self.entries)
            .open
            .values()
            .filter(|stream| which(stream))
            .cloned()
            .collect();
        for stream in &picked {
            stream.end(reason);
        }
        picked.len()
    }

    /// Every open call, oldest first.
    pub fn list(&self) -> Vec<v1::Stream> {
        let open: Vec<_> = lock(&self.entries).open.values().cloned().collect();
        open.iter().map(|stream| stream.to_proto()).collect()
    }

    /// How many calls are open, how many of them are watches, and how many will end by themselves.
    pub fn counts(&self) -> Counts {
        let entries = lock(&self.entries);
        Counts {
            open: entries.open.len(),
            watches: entries.open.values().filter(|stream| stream.target.watch).count(),
            finite: entries.open.values().filter(|stream| !stream.endless).count(),
        }
    }

    /// Openings and closings from here on. What is open already comes from [`StreamTable::list`], which is taken
    /// after subscribing so that nothing is missed.
    pub fn subscribe(&self) -> broadcast::Receiver<v1::StreamEvent> {
        self.events.subscribe()
    }

    fn tell(&self, kind: Kind, stream: &Stream) {
        if self.events.receiver_count() > 0 {
            self.events
                .send(v1::StreamEvent {
                    kind: kind.into(),
                    stream: Some(stream.to_proto()),
                })
                .ok();
        }
    }
}

/// Figures of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub open: usize,
    /// Watches.
    pub watches: usize,
    /// Those that end by themselves.
    pub finite: usize,
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
pub struct OpenStream {
    table: StreamTable,
    /// The call.
    pub stream: Arc<Stream>,
}

impl OpenStream {
    /// What the call keeps waiting.
    pub fn hold(&self) -> Hold {
        self.table.budget.hold(Arc::clone(&self.stream))
    }

    /// The table's clock.
    pub(crate) fn now(&self) -> Duration {
        self.table.now()
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        lock(&self.table.entries).open.remove(&self.stream.id);
        self.table.tell(Kind::Closed, &self.stream);
    }
}

/// A lock whose holder never panics halfway through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
