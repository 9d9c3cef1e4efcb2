//! Who waits for which frames: one bounded queue per open request, and the rule for what overflows it.
//!
//! ```text
//!  reader ── dispatch(answer) ──► Entry ── queue (frames and bytes bounded) ──► caller
//!                                   └─ full, or the caller has gone: CANCEL to the peer, the rest is thrown away until `done`
//! ```
//! Nothing here waits, so a caller that does not read never holds up the reader, and with it nobody else.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::mpsc;

use super::LinkError;
use crate::control_plane::frames::Frame;

/// Frames that wait for one caller: a burst of small watch events, far above what a caller that reads leaves behind.
const QUEUE_FRAMES: usize = 1024;
/// Requests open at once on one link; what is above is a leak in the caller.
const MAX_OPEN: usize = 20_000;

/// The caller's end of one request.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: String,
    queue: mpsc::Receiver<Frame>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queued: AtomicUsize,
    end: OnceLock<LinkError>,
}

impl Waiting {
    /// The next frame, or why none will come.
    pub(super) async fn next(&mut self) -> Result<Frame, LinkError> {
        match self.queue.recv().await {
            Some(answer) => {
                self.shared.queued.fetch_sub(answer.body.len(), Ordering::Relaxed);
                Ok(answer)
            }
            None => Err(self
                .shared
                .end
                .get()
                .cloned()
                .unwrap_or_else(|| LinkError::Lost("unknown".to_owned()))),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// `None` once nobody listens: what still comes is thrown away until `done`.
    queue: Option<mpsc::Sender<Frame>>,
    shared: Arc<Shared>,
    stream: bool,
    /// Its first frame has come.
    begun: bool,
    stream_id: String,
}

#[derive(Debug, Default)]
struct Open {
    entries: HashMap<String, Entry>,
    closed: Option<LinkError>,
}

/// All open requests of one link.
#[derive(Debug)]
pub(super) struct Table {
    /// Bytes that may wait for one caller.
    queue_bytes: usize,
    open: Mutex<Open>,
    next: AtomicU64,
    stray: AtomicU64,
}

impl Table {
    /// No request is open.
    pub(super) fn new(queue_bytes: usize) -> Self {
        Self {
            queue_bytes,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            stray: AtomicU64::new(0),
        }
    }

    /// Opens a request under a fresh id.
    pub(super) fn open(&self, stream: bool) -> Result<Waiting, LinkError> {
        let id = format!("cp-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
        let shared = Arc::new(Shared::default());
        let mut open = self.lock();
        if let Some(error) = &open.closed {
            return Err(error.clone());
        }
        if open.entries.len() >= MAX_OPEN {
            return Err(LinkError::Busy);
        }
        let entry = Entry {
            queue: Some(sender),
            shared: Arc::clone(&shared),
            stream,
            begun: false,
            stream_id: String::new(),
        };
        open.entries.insert(id.clone(), entry);
        Ok(Waiting { id, queue, shared })
    }

    /// Hands a frame to its caller; returns the ids of a stream to cancel when that caller is too slow or gone.
    pub(super) fn dispatch(&self, answer: Frame) -> Option<(String, String)> {
        let mut open = self.lock();
        let of_stream = answer.stream || answer.chunk;
        let entry = open.entries.get_mut(&answer.id);
        let Some(entry) = entry.filter(|entry| !entry.begun || of_stream || answer.done) else {
            // What belongs to no stream is the refusal of a frame: of a CANCEL that came too late, or of a second
            // request with an id that is open, which must not end the first.
            if of_stream || answer.done {
                self.stray.fetch_add(1, Ordering::Relaxed);
            }
            return None;
        };
        entry.begun = true;
        if !answer.stream_id.is_empty() {
            entry.stream_id.clone_from(&answer.stream_id);
        }
        let (id, last) = (answer.id.clone(), answer.done || !entry.stream || !of_stream);
        let mut cancel = None;
        if let Some(queue) = &entry.queue {
            let (length, queued) = (answer.body.len(), entry.shared.queued.load(Ordering::Relaxed));
            let fits = queued == 0 || queued + length <= self.queue_bytes;
            entry.shared.queued.fetch_add(length, Ordering::Relaxed);
            if !fits || queue.try_send(answer).is_err() {
                // Of a reader that has gone nobody will ask for the reason.
                let _ = entry.shared.end.set(LinkError::Overflow);
                entry.queue = None;
                cancel = (!last).then(|| (id.clone(), entry.stream_id.clone()));
            }
        }
        if last {
            open.entries.remove(&id);
        }
        cancel
    }

    /// Stops listening; returns the ids to cancel while the peer still works on it.
    pub(super) fn abandon(&self, id: &str) -> Option<(String, String)> {
        let mut open = self.lock();
        let entry = open.entries.get_mut(id)?;
        entry.queue.take()?;
        Some((id.to_owned(), entry.stream_id.clone()))
    }

    /// The stream id of an open request, to cancel it and go on listening.
    pub(super) fn stream_id(&self, id: &str) -> Option<String> {
        self.lock().entries.get(id).map(|entry| entry.stream_id.clone())
    }

    /// Ends every request: the link is gone.
    pub(super) fn close(&self, error: &LinkError) {
        let mut open = self.lock();
        open.closed = Some(error.clone());
        for (_, entry) in open.entries.drain() {
            let _ = entry.shared.end.set(error.clone());
        }
    }

    /// Requests that are not answered to the end.
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Frames of streams that are not open.
    pub(super) fn stray(&self) -> u64 {
        self.stray.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE_BYTES: usize = 100;

    fn frame(id: &str, length: usize) -> Frame {
        let body = vec![0; length].into();
        Frame {
            id: id.to_owned(),
            stream: true,
            chunk: true,
            stream_id: "s".to_owned(),
            body,
            ..Frame::default()
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_loses_its_own_stream_only() {
        let table = Table::new(QUEUE_BYTES);
        let (mut slow, mut other) = (table.open(true).unwrap(), table.open(true).unwrap());
        assert_eq!(table.dispatch(frame(&slow.id, QUEUE_BYTES)), None);
        assert_eq!(
            table.dispatch(frame(&slow.id, 1)),
            Some((slow.id.clone(), "s".to_owned()))
        );
        assert_eq!(table.dispatch(frame(&slow.id, 1)), None, "one CANCEL is enough");
        assert_eq!(table.dispatch(frame(&other.id, 1)), None);
        assert_eq!(slow.next().await.unwrap().body.len(), QUEUE_BYTES);
        assert_eq!(slow.next().await, Err(LinkError::Overflow));
        assert_eq!(other.next().await.unwrap().body.len(), 1);
        assert_eq!(table.len(), 2, "the cancelled one is open until its last frame");
        table.dispatch(Frame {
            done: true,
            ..frame(&slow.id, 0)
        });
        assert_eq!((table.len(), table.stray()), (1, 0));
        table.dispatch(frame(&slow.id, 1));
        assert_eq!(table.stray(), 1);
    }

    #[tokio::test]
    async fn the_number_of_frames_is_bounded_too() {
        let table = Table::new(QUEUE_BYTES);
        let waiting = table.open(true).unwrap();
        for _ in 0..QUEUE_FRAMES {
            assert_eq!(table.dispatch(frame(&waiting.id, 0)), None);
        }
        assert!(table.dispatch(frame(&waiting.id, 0)).is_some());
    }

    #[tokio::test]
    async fn a_lost_link_ends_what_is_open_and_refuses_what_comes() {
        let table = Table::new(QUEUE_BYTES);
        let mut waiting = table.open(false).unwrap();
        let lost = LinkError::Lost("gone".to_owned());
        table.close(&lost);
        assert_eq!(waiting.next().await.unwrap_err(), lost);
        assert_eq!(table.open(false).unwrap_err(), lost);
    }

    #[tokio::test]
    async fn a_refusal_with_the_id_of_an_open_stream_does_not_end_it() {
        let table = Table::new(QUEUE_BYTES);
        let mut waiting = table.open(true).unwrap();
        table.dispatch(frame(&waiting.id, 1));
        table.dispatch(Frame {
            id: waiting.id.clone(),
            status: 409,
            ..Frame::default()
        });
        table.dispatch(frame(&waiting.id, 2));
        assert_eq!(
            (
                waiting.next().await.unwrap().body.len(),
                waiting.next().await.unwrap().body.len()
            ),
            (1, 2)
        );
        assert_eq!((table.len(), table.stray()), (1, 0));
    }

    #[tokio::test]
    async fn a_plain_answer_ends_its_request() {
        let table = Table::new(QUEUE_BYTES);
        let (mut plain, mut refused) = (table.open(false).unwrap(), table.open(true).unwrap());
        table.dispatch(Frame {
            id: plain.id.clone(),
            status: 200,
            ..Frame::default()
        });
        table.dispatch(Frame {
            id: refused.id.clone(),
            status: 403,
            ..Frame::default()
        });
        assert_eq!(
            (
                plain.next().await.unwrap().status,
                refused.next().await.unwrap().status
            ),
            (200, 403)
        );
        assert_eq!(table.len(), 0);
    }
}
