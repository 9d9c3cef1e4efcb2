//! What waits to be written to one frame connection.
//!
//! ```text
//!  call 1 ─► queue ─┐
//!  call 2 ─► queue ─┼─ in turns, one frame each ─► writer ─► socket
//!  call 3 ─► queue ─┘                    ▲
//!  pings, pongs, close ── control lane ──┘  (first)
//! ```
//!
//! Each queue is bounded in bytes, and so is their sum. A call whose queue is full waits; the others do not notice.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use crate::streams::{Hold, lock};

/// Pings, pongs and refusals that may wait. A peer that sends faster than it reads loses the rest.
const CONTROL_QUEUE: usize = 256;

/// How much may wait, in bytes of text.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For one call. One frame may go over it, else a large frame could never be sent.
    pub per_call: usize,
    /// For the whole connection.
    pub total: usize,
}

/// What the writer sends next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A text frame.
    Text(String),
    /// A WebSocket ping.
    Ping,
    /// The end of the connection, with a close code and a reason.
    Close(u16, String),
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It waits its turn.
    Queued,
    /// No room: wait for what [`Outbox::open`] returned.
    Full,
    /// The call is over; nothing of it is sent any more.
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<String>,
    bytes: usize,
    /// Wakes its call when there is room again. One for each queue: waking all for each frame would cost more than
    /// the frames.
    room: Arc<Notify>,
    /// Its last frame is in; it leaves the table once that is taken.
    finished: bool,
    /// Its part of the bytes that wait in the whole process.
    hold: Option<Hold>,
}

impl Queue {
    fn resize(&mut self, bytes: usize) {
        self.bytes = bytes;
        if let Some(hold) = &mut self.hold {
            hold.set(bytes);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    control: VecDeque<Item>,
    queues: HashMap<u64, Queue>,
    /// Calls with something to send, in the order of their turns.
    turns: VecDeque<u64>,
    bytes: usize,
    closing: bool,
}

/// The queues of one connection; clones share them.
#[derive(Clone, Debug)]
pub struct Outbox {
    state: Arc<Mutex<State>>,
    limits: Limits,
    /// Something to write.
    ready: Arc<Notify>,
}

impl Outbox {
    /// Empty queues.
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Arc::default(),
            limits,
            ready: Arc::default(),
        }
    }

    /// A queue for call `key`. The result wakes when a [`Push::Full`] one is worth another try.
    pub fn open(&self, key: u64) -> Arc<Notify> {
        let queue = Queue::default();
        let room = Arc::clone(&queue.room);
        lock(&self.state).queues.insert(key, queue);
        room
    }

    /// From here on what waits of call `key` counts as `hold`.
    pub fn count(&self, key: u64, mut hold: Hold) {
        if let Some(queue) = lock(&self.state).queues.get_mut(&key) {
            hold.set(queue.bytes);
            queue.hold = Some(hold);
        }
    }

    /// Queues a frame of call `key`. The frame stays with the caller unless it was queued.
    pub fn push(&self, key: u64, frame: &mut String) -> Push {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let Some(queue) = state
            .queues
            .get_mut(&key)
            .filter(|queue| !queue.finished && !state.closing)
        else {
            return Push::Closed;
        };
        let full = queue.bytes >= self.limits.per_call;
        if full || (state.bytes >= self.limits.total && queue.bytes > 0) {
            return Push::Full;
        }
        self.append(
            queue,
            &mut state.turns,
            &mut state.bytes,
            key,
            std::mem::take(frame),
        );
        Push::Queued
    }

    /// Queues the last frame of call `key`. With `discard`, what still waits of it is dropped first. Nothing of the
    /// call follows.
    pub fn finish(&self, key: u64, frame: String, discard: bool) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let Some(queue) = state
            .queues
            .get_mut(&key)
            .filter(|queue| !queue.finished && !state.closing)
        else {
            return;
        };
        if discard {
            state.bytes -= queue.bytes;
            queue.resize(0);
            if !queue.frames.is_empty() {
                queue.frames.clear();
                state.turns.retain(|turn| *turn != key);
            }
        }
        queue.finished = true;
        queue.room.notify_one();
        self.append(queue, &mut state.turns, &mut state.bytes, key, frame);
    }

    fn append(
        &self,
        queue: &mut Queue,
        turns: &mut VecDeque<u64>,
        bytes: &mut usize,
        key: u64,
        frame: String,
    ) {
        if queue.frames.is_empty() {
            turns.push_back(key);
        }
        queue.resize(queue.bytes + frame.len());
        *bytes += frame.len();
        queue.frames.push_back(frame);
        self.ready.notify_one();
    }

    /// Queues something that goes before all frames of calls.
    pub fn control(&self, item: Item) {
        let mut state = lock(&self.state);
        if state.closing {
            return;
        }
        if matches!(item, Item::Close(..)) {
            state.closing = true;
        } else if state.control.len() >= CONTROL_QUEUE {
            return;
        }
        state.control.push_back(item);
        self.ready.notify_one();
        if state.closing {
            state.queues.values().for_each(|queue| queue.room.notify_one());
        }
    }

    /// Takes what is to be written next, if there is anything.
    pub fn take(&self) -> Option<Item> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if let Some(item) = state.control.pop_front() {
            return Some(item);
        }
        if state.closing {
            return None;
        }
        let key = state.turns.pop_front()?;
        let queue = state.queues.get_mut(&key)?;
        let frame = queue.frames.pop_front()?;
        queue.resize(queue.bytes - frame.len());
        state.bytes -= frame.len();
        if queue.bytes < self.limits.per_call {
            queue.room.notify_one();
        }
        if !queue.frames.is_empty() {
            state.turns.push_back(key);
        } else if queue.finished {
            state.queues.remove(&key);
        }
        Some(Item::Text(frame))
    }

    /// Waits for what is to be written next.
    pub async fn next(&self) -> Item {
        loop {
            if let Some(item) = self.take() {
                return item;
            }
            self.ready.notified().await;
        }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// Whether no call has anything left to send.
    pub fn is_idle(&self) -> bool {
        lock(&self.state).queues.is_empty()
    }

    /// Drops all that waits: the connection is gone. What is pushed later is [`Push::Closed`].
    pub fn abandon(&self) {
        let mut state = lock(&self.state);
        state.queues.values().for_each(|queue| queue.room.notify_one());
        *state = State {
            closing: true,
            ..State::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    fn outbox(per_call: usize, total: usize) -> Outbox {
        Outbox::new(Limits { per_call, total })
    }

    fn push(outbox: &Outbox, key: u64, text: &str) -> Push {
        outbox.push(key, &mut text.to_owned())
    }

    fn texts(outbox: &Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.take())
            .map(|item| match item {
                Item::Text(text) => text,
                Item::Ping => "ping".to_owned(),
                Item::Close(code, _) => format!("close {code}"),
            })
            .collect()
    }

    #[test]
    fn calls_take_turns_and_pings_go_first() {
        let outbox = outbox(100, 1000);
        outbox.open(1);
        outbox.open(2);
        for text in ["a1", "a2", "a3"] {
            assert_eq!(push(&outbox, 1, text), Push::Queued);
        }
        push(&outbox, 2, "b1");
        outbox.control(Item::Ping);
        assert_eq!(texts(&outbox), ["ping", "a1", "b1", "a2", "a3"]);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn a_full_queue_stops_its_call_only() {
        let outbox = outbox(4, 1000);
        let room = outbox.open(1);
        outbox.open(2);
        assert_eq!(
            push(&outbox, 1, "aaaaaa"),
            Push::Queued,
            "one frame may go over the bound"
        );
        let mut kept = "b".to_owned();
        assert_eq!(outbox.push(1, &mut kept), Push::Full);
        assert_eq!(kept, "b", "a refused frame stays with its call");
        assert_eq!(push(&outbox, 2, "c"), Push::Queued);
        assert!(room.notified().now_or_never().is_none());
        outbox.take();
        assert!(room.notified().now_or_never().is_some());
        assert_eq!(push(&outbox, 1, "b"), Push::Queued);
    }

    #[test]
    fn nothing_follows_the_last_frame() {
        let outbox = outbox(100, 1000);
        outbox.open(1);
        push(&outbox, 1, "a1");
        push(&outbox, 1, "a2");
        outbox.finish(1, "done".to_owned(), true);
        assert_eq!(push(&outbox, 1, "late"), Push::Closed);
        outbox.finish(1, "again".to_owned(), false);
        assert_eq!(texts(&outbox), ["done"]);
        assert!(outbox.is_idle());
        assert_eq!(push(&outbox, 1, "late"), Push::Closed);
    }

    #[test]
    fn a_close_is_the_last_thing_written() {
        let outbox = outbox(100, 1000);
        outbox.open(1);
        push(&outbox, 1, "a1");
        outbox.control(Item::Close(1000, String::new()));
        outbox.control(Item::Ping);
        assert_eq!(push(&outbox, 1, "a2"), Push::Closed);
        assert_eq!(texts(&outbox), ["close 1000"]);
        outbox.abandon();
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn control_is_bounded() {
        let outbox = outbox(100, 1000);
        for _ in 0..1000 {
            outbox.control(Item::Ping);
        }
        assert_eq!(texts(&outbox).len(), CONTROL_QUEUE);
    }

    proptest! {
        #[test]
        fn every_call_keeps_its_order_and_bytes_are_counted(
            steps in prop::collection::vec((0_u64..4, 0_usize..30, any::<bool>()), 0..80)
        ) {
            let outbox = outbox(40, 90);
            (0..4).for_each(|key| drop(outbox.open(key)));
            let (mut sent, mut seen) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
            let note = |seen: &mut Vec<Vec<String>>, item: Option<Item>| {
                if let Some(Item::Text(text)) = item {
                    let key: usize = text[..1].parse().unwrap();
                    seen[key].push(text);
                }
            };
            for (number, (key, size, take)) in steps.into_iter().enumerate() {
                let text = format!("{key}-{number}-{}", "x".repeat(size));
                if push(&outbox, key, &text) == Push::Queued {
                    sent[usize::try_from(key).unwrap()].push(text);
                }
                // Each call may go over with one frame, below its own bound.
                prop_assert!(outbox.bytes() <= 4 * (40 + 40));
                if take {
                    note(&mut seen, outbox.take());
                }
            }
            while let Some(item) = outbox.take() {
                note(&mut seen, Some(item));
            }
            prop_assert_eq!(sent, seen);
            prop_assert_eq!(outbox.bytes(), 0);
        }
    }
}
