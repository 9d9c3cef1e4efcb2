//! Between the calls and the thread that writes their lines: one buffer, which the writer takes whole.
//!
//! ```text
//!  a call ends ─► append to the buffer ─► writer: swap it for an empty one ─► standard output
//!                 full: dropped, counted
//! ```

use std::{
    io::Write,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use crate::streams::lock;

/// Bytes that may wait for the writer: some thousand lines. A reader of our output that sleeps costs this and no more.
const ROOM: usize = 2 * 1024 * 1024;
/// A buffer that a burst made larger is not kept.
const KEPT: usize = 32 * 1024;
/// Lines that come so soon after the last ones were written are some of many.
const BUSY: Duration = Duration::from_millis(1);
/// Of many, those of this time are written together: to wake the writer and to write for each costs a fifth of the
/// processor time of small calls (measured).
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    hurry: bool,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    /// Wakes the writer, the only one that waits: for a first line, or while it gathers for the hurry.
    wake: Condvar,
}

/// Lines on their way to the writer; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    inner: Arc<Inner>,
}

impl Queue {
    /// Adds a line; false when there is no room for it.
    pub(super) fn push(&self, line: &impl Serialize) -> bool {
        let mut waiting = lock(&self.inner.waiting);
        let before = waiting.lines.len();
        // serde_json escapes control characters, so a name cannot forge a line of its own.
        let written = serde_json::to_writer(&mut waiting.lines, line).is_ok();
        if !written || waiting.lines.len() >= ROOM {
            waiting.lines.truncate(before);
            return false;
        }
        waiting.lines.push(b'\n');
        drop(waiting);
        if before == 0 {
            self.inner.wake.notify_one();
        }
        true
    }

    /// From here on no line waits for others.
    pub(super) fn hurry(&self) {
        lock(&self.inner.waiting).hurry = true;
        self.inner.wake.notify_one();
    }

    /// Swaps all that waits for `empty`, once there is any. `busy` says that some were written a moment ago.
    fn take(&self, empty: Vec<u8>, busy: bool) -> Vec<u8> {
        let mut waiting = lock(&self.inner.waiting);
        while waiting.lines.is_empty() {
            waiting = self
                .inner
                .wake
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if busy {
            waiting = self
                .inner
                .wake
                .wait_timeout_while(waiting, GATHER, |waiting| !waiting.hurry)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::replace(&mut waiting.lines, empty)
    }

    /// Writes what comes, for as long as the process lives. Its reader may be gone: there is nobody to tell.
    pub(super) fn write_to(&self, mut out: impl Write) {
        let (mut spare, mut written) = (Vec::new(), None::<Instant>);
        loop {
            let busy = written.is_some_and(|at| at.elapsed() < BUSY);
            let mut lines = self.take(spare, busy);
            out.write_all(&lines).and_then(|()| out.flush()).ok();
            lines.clear();
            lines.shrink_to(KEPT);
            (spare, written) = (lines, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_in_order() {
        let queue = Queue::default();
        assert!(queue.push(&"one") && queue.push(&"two\n"));
        let lines = queue.take(Vec::new(), false);
        assert_eq!(lines, b"\"one\"\n\"two\\n\"\n");
        assert!(queue.push(&"three"));
        assert_eq!(queue.take(Vec::new(), false), b"\"three\"\n");
    }

    #[test]
    fn what_finds_no_room_is_refused_and_leaves_nothing_behind() {
        let queue = Queue::default();
        let line = "x".repeat(ROOM / 4);
        let taken = (0..8).filter(|_| queue.push(&line)).count();
        assert_eq!(taken, 3);
        assert!(queue.push(&"short"), "a short one still fits");
        let lines = String::from_utf8(queue.take(Vec::new(), false)).unwrap();
        assert_eq!(lines.lines().count(), 4);
        assert!(
            lines
                .lines()
                .all(|line| serde_json::from_str::<String>(line).is_ok())
        );
        assert!(queue.push(&line), "there is room again");
    }

    #[test]
    fn in_a_hurry_nothing_is_gathered() {
        let queue = Queue::default();
        queue.hurry();
        queue.push(&"last");
        assert_eq!(queue.take(Vec::new(), true), b"\"last\"\n");
    }
}
