//! Bytes that wait for their consumer.

use std::collections::VecDeque;

/// Bytes lie in pieces no larger than one data message. One block that grows would be copied as it does, and allocators keep what a large block took: after
/// a burst the process would hold it for good.
const PIECE: usize = 32 * 1024;

/// A queue whose memory is given back as it is consumed.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: VecDeque<Vec<u8>>,
    /// Consumed of the first piece.
    start: usize,
    length: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        self.length += data.len();
        match self.pieces.back_mut() {
            // Small messages share a piece, so that each does not cost more than its bytes.
            Some(last) if last.len() + data.len() <= PIECE => last.extend_from_slice(data),
            _ => self.pieces.push_back(data.to_vec()),
        }
    }

    /// The bytes that come next, as far as they lie together; none when there are none.
    pub(super) fn front(&self) -> &[u8] {
        let first = self.pieces.front().and_then(|first| first.get(self.start..));
        first.unwrap_or_default()
    }

    /// The next `n` bytes are done with, `n` being no more than there are at the front.
    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.front().len());
        self.start += n;
        self.length -= n;
        if self.front().is_empty() {
            self.pieces.pop_front();
            self.start = 0;
        }
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order_and_nothing_is_kept(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 0..40),
            steps in proptest::collection::vec(1_usize..40_000, 1..8),
        ) {
            let mut queue = Queue::default();
            let mut out = Vec::new();
            for (message, step) in messages.iter().zip(steps.iter().cycle()) {
                queue.push(message);
                if step % 3 == 0 {
                    let n = queue.front().len().min(*step);
                    out.extend_from_slice(&queue.front()[..n]);
                    queue.consume(n);
                }
            }
            prop_assert!(queue.pieces.iter().all(|piece| piece.len() <= PIECE));
            while !queue.is_empty() {
                let n = queue.front().len();
                prop_assert!(n > 0);
                out.extend_from_slice(queue.front());
                queue.consume(n);
            }
            prop_assert_eq!(out, messages.concat());
            prop_assert_eq!((queue.len(), queue.pieces.capacity()), (0, 0));
        }
    }
}
