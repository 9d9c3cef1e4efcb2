//! The table of open calls: bounded, listed for people, each entry cancellable from outside.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use proto::v1::{self, stream_event::Kind};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many events a slow watcher of the table may lag behind.
const WATCHER_QUEUE: usize = 256;

/// Why a call was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// Its caller asked for it.
    Caller,
    /// The caller's connection is gone.
    ConnectionLost,
    /// A person asked for it over gRPC.
    Operator,
    /// The process stops.
    Draining,
    /// The credential it came with is not accepted any more.
    Withdrawn,
    /// Its own deadline.
    Deadline,
    /// Its reader took nothing while too many other readers did not either.
    Stalled,
}

impl CancelReason {
    /// One sentence for the caller.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Caller => "cancelled by the caller",
            Self::ConnectionLost => "the connection of the caller is gone",
            Self::Operator => "cancelled by an operator of the cluster",
            Self::Draining => "k8s-proxy is stopping: open the call again",
            Self::Withdrawn => "the credential of this connection is not accepted any more",
            Self::Deadline => "the call's own deadline is over",
            Self::Stalled => "the reader took nothing, and too many others do not either",
        }
    }

    /// A word for audit.
    pub fn word(self) -> &'static str {
        match self {
            Self::Caller => "cancelled",
            Self::ConnectionLost => "connection_lost",
            Self::Operator => "cancelled_by_operator",
            Self::Draining => "draining",
            Self::Withdrawn => "withdrawn",
            Self::Deadline => "deadline",
            Self::Stalled => "stalled",
        }
    }
}

/// Ends one call; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl Cancel {
    /// Ends the call; the first reason stands.
    pub fn cancel(&self, reason: CancelReason) {
        self.reason.set(reason).ok();
        self.token.cancel();
    }

    /// Why it was ended, if it was.
    pub fn reason(&self) -> Option<CancelReason> {
        self.token
            .is_cancelled()
            .then(|| self.reason.get().copied().unwrap_or(CancelReason::Caller))
    }

    /// Resolves when it is ended.
    pub fn cancelled(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }
}

/// One open call.
#[derive(Debug)]
pub struct Stream {
    /// Number in this table.
    pub id: u64,
    /// The door it came through.
    pub door: Arc<str>,
    /// The caller's id, where the protocol has one.
    pub request_id: String,
    /// Identity or impersonated person.
    pub user: String,
    /// HTTP method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Whether it is a watch.
    pub watch: bool,
    /// Whether it may last for hours.
    pub endless: bool,
    /// When it was opened.
    pub opened: SystemTime,
    /// Watch events passed on.
    pub events: AtomicU64,
    /// Bytes passed on.
    pub bytes: AtomicU64,
    /// How often the watch was opened again upstream.
    pub rewatches: AtomicU32,
    /// Last resourceVersion passed on.
    pub version: Mutex<String>,
    /// Ends it.
    pub cancel: Cancel,
}

impl Stream {
    fn to_proto(&self) -> v1::Stream {
        v1::Stream {
            id: self.id,
            door: self.door.to_string(),
            request_id: self.request_id.clone(),
            user: self.user.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            watch: self.watch,
            opened: Some(self.opened.into()),
            events: self.events.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            resource_version: lock(&self.version).clone(),
            rewatches: self.rewatches.load(Relaxed),
        }
    }
}

/// What a call brings into the table.
#[derive(Clone, Debug)]
pub struct NewStream {
    /// See [`Stream::door`].
    pub door: Arc<str>,
    /// See [`Stream::request_id`].
    pub request_id: String,
    /// See [`Stream::user`].
    pub user: String,
    /// See [`Stream::method`].
    pub method: String,
    /// See [`Stream::path`].
    pub path: String,
    /// See [`Stream::watch`].
    pub watch: bool,
    /// See [`Stream::endless`].
    pub endless: bool,
    /// See [`Stream::cancel`].
    pub cancel: Cancel,
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
    events: broadcast::Sender<v1::StreamEvent>,
}

impl StreamTable {
    /// An empty table that holds at most `limit` calls.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: Arc::default(),
            limit,
            events: broadcast::Sender::new(WATCHER_QUEUE),
        }
    }

    /// Takes a call in; `None` when the table is full. The call leaves when the result is dropped.
    pub fn open(&self, new: NewStream) -> Option<OpenStream> {
        let stream = {
            let mut entries = lock(&self.entries);
            if entries.open.len() >= self.limit {
                return None;
            }
            entries.next += 1;
            let stream = Arc::new(Stream {
                id: entries.next,
                door: new.door,
                request_id: new.request_id,
                user: new.user,
                method: new.method,
                path: new.path,
                watch: new.watch,
                endless: new.endless,
                opened: SystemTime::now(),
                events: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                rewatches: AtomicU32::new(0),
                version: Mutex::default(),
                cancel: new.cancel,
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
            stream.cancel.cancel(reason);
            true
        })
    }

    /// Ends every call that may last for hours.
    pub fn cancel_endless(&self, reason: CancelReason) {
        let endless: Vec<_> = lock(&self.entries)
            .open
            .values()
            .filter(|stream| stream.endless)
            .cloned()
            .collect();
        for stream in endless {
            stream.cancel.cancel(reason);
        }
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
            watches: entries.open.values().filter(|stream| stream.watch).count(),
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn new(path: &str, watch: bool) -> NewStream {
        NewStream {
            door: "http".into(),
            request_id: String::new(),
            user: "u".to_owned(),
            method: "GET".to_owned(),
            path: path.to_owned(),
            watch,
            endless: watch,
            cancel: Cancel::default(),
        }
    }

    #[test]
    fn the_first_reason_stands() {
        let cancel = Cancel::default();
        assert_eq!(cancel.reason(), None);
        cancel.cancel(CancelReason::Operator);
        cancel.cancel(CancelReason::Draining);
        assert_eq!(cancel.reason(), Some(CancelReason::Operator));
    }

    #[test]
    fn watchers_of_the_table_see_each_call_open_and_close() {
        let table = StreamTable::new(2);
        let mut events = table.subscribe();
        drop(table.open(new("/a", true)));
        let seen = |event: v1::StreamEvent| (event.kind(), event.stream.unwrap().path);
        assert_eq!(seen(events.try_recv().unwrap()), (Kind::Opened, "/a".to_owned()));
        assert_eq!(seen(events.try_recv().unwrap()), (Kind::Closed, "/a".to_owned()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(bool),
        CloseOldest,
        CancelOldest,
        CancelEndless,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(Step::Open),
            Just(Step::CloseOldest),
            Just(Step::CancelOldest),
            Just(Step::CancelEndless)
        ]
    }

    proptest! {
        #[test]
        fn the_table_is_a_bounded_set_of_calls(limit in 1_usize..5, steps in prop::collection::vec(step(), 0..40)) {
            let table = StreamTable::new(limit);
            let mut model: VecDeque<(OpenStream, bool, bool)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Open(watch) => match table.open(new("/x", watch)) {
                        Some(open) => model.push_back((open, watch, false)),
                        None => prop_assert_eq!(model.len(), limit),
                    },
                    Step::CloseOldest => drop(model.pop_front()),
                    Step::CancelOldest => match model.front_mut() {
                        Some((open, _, cancelled)) => {
                            prop_assert!(table.cancel(open.stream.id, CancelReason::Operator));
                            *cancelled = true;
                        }
                        None => prop_assert!(!table.cancel(1, CancelReason::Operator)),
                    },
                    Step::CancelEndless => {
                        table.cancel_endless(CancelReason::Draining);
                        for (_, watch, cancelled) in &mut model {
                            *cancelled |= *watch;
                        }
                    }
                }
                let counts = table.counts();
                prop_assert!(counts.open <= limit);
                prop_assert_eq!(counts.open, model.len());
                prop_assert_eq!(counts.watches, model.iter().filter(|(_, watch, _)| *watch).count());
                let ids: Vec<_> = table.list().iter().map(|stream| stream.id).collect();
                let expected: Vec<_> = model.iter().map(|(open, ..)| open.stream.id).collect();
                prop_assert_eq!(ids, expected);
                for (open, _, cancelled) in &model {
                    prop_assert_eq!(open.stream.cancel.reason().is_some(), *cancelled);
                }
            }
        }
    }
}
