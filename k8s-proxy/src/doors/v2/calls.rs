//! The open calls of one link. hyper asks a body for its next piece only while the peer's windows have room, so what
//! has to happen to a call whose reader is stalled is done from here.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::{
    engine::{AnswerEnd, EngineBody},
    streams::{Cancel, CancelReason, lock},
};

/// Stalled calls on one link; each holds a third of a MiB at most. Beyond it the oldest are ended.
const MAX_STALLED: usize = 200;
/// Looks after which a piece that is not taken counts as stalled.
const STALLED_LOOKS: u32 = 3;

/// One open call.
pub(super) struct Slot {
    pub(super) cancel: Cancel,
    /// When it is ended, if its caller said so.
    deadline: Option<Instant>,
    endless: AtomicBool,
    body: Mutex<Option<Box<EngineBody>>>,
    /// Pieces that hyper took from the body so far, up to two: after the first it first needs room in the windows.
    pieces: AtomicU32,
    /// Looks since hyper took a piece and did not come back; zero while it waits for us.
    held: AtomicU32,
    waits_for_us: AtomicBool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("endless", &self.endless)
            .finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn is_endless(&self) -> bool {
        self.endless.load(Relaxed)
    }

    /// Ends the answer now: the apiserver's side is closed although nobody asks for the next piece.
    fn end(&self, reason: CancelReason) {
        self.cancel.cancel(reason);
        lock(&self.body).take();
    }
}

/// The calls of a link; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    open: Arc<Mutex<Vec<Weak<Slot>>>>,
}

/// What a look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Not even the first piece of some answer was taken: the peer's connection window is full.
    pub(super) window_full: bool,
    /// Calls ended because too many were stalled.
    pub(super) ended: u64,
}

impl Calls {
    pub(super) fn open(&self, cancel: Cancel, deadline: Option<Instant>) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            cancel,
            deadline,
            endless: AtomicBool::new(false),
            body: Mutex::default(),
            pieces: AtomicU32::new(0),
            held: AtomicU32::new(0),
            waits_for_us: AtomicBool::new(true),
        });
        let mut open = lock(&self.open);
        // Ended calls are swept when they are half of all, so that this stays cheap.
        if open.len() == open.capacity() {
            open.retain(|slot| slot.strong_count() > 0);
            let len = open.len();
            open.reserve(len.max(16));
        }
        open.push(Arc::downgrade(&slot));
        slot
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        let mut open = lock(&self.open);
        open.retain(|slot| slot.strong_count() > 0);
        open.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn cancel(&self, reason: CancelReason, which: impl Fn(&Slot) -> bool) {
        for slot in self.all().iter().filter(|slot| which(slot)) {
            slot.cancel.cancel(reason);
        }
    }

    /// Looks through all calls, once a second.
    pub(super) fn look(&self) -> Seen {
        let now = Instant::now();
        let (mut stalled, mut seen) = (Vec::new(), Seen::default());
        for slot in self.all() {
            if slot.deadline.is_some_and(|deadline| deadline <= now) && !slot.is_endless() {
                slot.cancel.cancel(CancelReason::Deadline);
            }
            if slot.waits_for_us.load(Relaxed) {
                continue;
            }
            if let Some(reason) = slot.cancel.reason() {
                slot.end(reason);
                continue;
            }
            let held = slot.held.fetch_add(1, Relaxed) + 1;
            if held >= STALLED_LOOKS {
                seen.window_full |= slot.pieces.load(Relaxed) == 1;
                stalled.push((held, slot));
            }
        }
        if stalled.len() > MAX_STALLED {
            stalled.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
            for (_, slot) in stalled.drain(..stalled.len() - MAX_STALLED) {
                slot.end(CancelReason::Stalled);
                seen.ended += 1;
            }
        }
        seen
    }
}

/// What goes back over the link.
#[derive(Debug)]
pub(super) enum CallBody {
    /// A refusal.
    Full(Bytes),
    /// An answer of the engine.
    Call(Arc<Slot>),
}

impl CallBody {
    pub(super) fn new(slot: Arc<Slot>, body: Box<EngineBody>) -> Self {
        slot.endless.store(body.is_endless(), Relaxed);
        *lock(&slot.body) = Some(body);
        Self::Call(slot)
    }
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = AnswerEnd;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerEnd>>> {
        let slot = match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Full(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Call(slot) => slot,
        };
        let mut body = lock(&slot.body);
        let Some(inner) = body.as_mut() else {
            let reason = slot.cancel.reason().unwrap_or(CancelReason::Caller);
            return Poll::Ready(Some(Err(AnswerEnd::Cancelled(reason))));
        };
        let polled = Pin::new(inner.as_mut()).poll_frame(cx);
        slot.waits_for_us.store(polled.is_pending(), Relaxed);
        slot.held.store(0, Relaxed);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            let pieces = slot.pieces.load(Relaxed);
            slot.pieces.store(2.min(pieces + 1), Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Call(slot) => lock(&slot.body).as_ref().is_some_and(|body| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Call(slot) => lock(&slot.body)
                .as_ref()
                .map_or_else(SizeHint::default, |body| body.size_hint()),
        }
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        if let Self::Call(slot) = self {
            lock(&slot.body).take();
        }
    }
}
