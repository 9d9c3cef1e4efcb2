//! One channel.

use super::queue::Queue;

/// `granted + queue + uncredited` is `target`, for as long as both sides are open.
#[derive(Debug)]
pub(super) struct Slot {
    /// The peer's number.
    pub(super) peer: u32,
    /// What we may send.
    pub(super) send_window: u32,
    /// In one message.
    pub(super) max_data: u32,
    /// What the peer may send.
    pub(super) granted: u32,
    /// Consumed, but not given back yet.
    pub(super) uncredited: u32,
    /// The window we want the peer to have.
    pub(super) target: u32,
    /// Received, not consumed.
    pub(super) queue: Queue,
    /// Total of data consumed.
    pub(super) consumed: u64,
    /// `consumed` at the start of the running probe.
    pub(super) consumed_at_probe: u64,
    /// Asks for a probe when so much was consumed; not again while it has asked.
    pub(super) next_probe: u64,
    /// How much is consumed between two probes.
    pub(super) probe_distance: u64,
    /// A writer waits for credit, and how often one had to.
    pub(super) stalled: bool,
    pub(super) stalls: u64,
    /// Our open is not answered yet.
    pub(super) opening: bool,
    pub(super) we_closed: bool,
    pub(super) peer_eof: bool,
    pub(super) peer_closed: bool,
    /// The consumer is gone.
    pub(super) released: bool,
}

impl Slot {
    pub(super) fn new(peer: u32, send_window: u32, max_data: u32, window: u32) -> Self {
        Self {
            peer,
            send_window,
            max_data,
            granted: window,
            uncredited: 0,
            target: window,
            queue: Queue::default(),
            consumed: 0,
            consumed_at_probe: 0,
            next_probe: u64::from(window / 2),
            probe_distance: u64::from(window / 2),
            stalled: false,
            stalls: 0,
            opening: false,
            we_closed: false,
            peer_eof: false,
            peer_closed: false,
            released: false,
        }
    }

    /// A channel whose open the server has not answered.
    pub(super) fn opening(window: u32) -> Self {
        Self {
            opening: true,
            ..Self::new(0, 0, 0, window)
        }
    }

    /// Whether the window, and not the consumer, held the sender up in the round trip that the running probe took.
    pub(super) fn is_limited(&self) -> bool {
        let consumed = self.consumed.saturating_sub(self.consumed_at_probe);
        let keeps_up = self.queue.len() < self.target as usize / 8;
        let over = self.we_closed || self.peer_closed || self.peer_eof;
        consumed >= u64::from(self.target) / 3 * 2 && keeps_up && !over
    }

    /// Moves bytes from the queue to `out`.
    pub(super) fn take(&mut self, out: &mut [u8]) -> usize {
        let mut taken = 0;
        while let Some(room) = out.get_mut(taken..).filter(|room| !room.is_empty()) {
            let front = self.queue.front();
            let n = room.len().min(front.len());
            if let (Some(room), Some(front)) = (room.get_mut(..n), front.get(..n)) {
                room.copy_from_slice(front);
            }
            if n == 0 {
                break;
            }
            taken += self.drop_front(n);
        }
        taken
    }

    /// The first `n` bytes of the queue were consumed.
    pub(super) fn drop_front(&mut self, n: usize) -> usize {
        let n = n.min(self.queue.front().len());
        self.queue.consume(n);
        self.consumed += n as u64;
        n
    }
}
