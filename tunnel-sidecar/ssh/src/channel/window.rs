//! Windows: what the server may send, what we may send, and how much is given back.

use super::{Allowance, Table, numbered};
use crate::{msg, wire::Put};

/// A new channel gets at least this window, however little is left of the budget.
const LEAST_WINDOW: u32 = 64 * 1024;
/// A new channel takes at most this part of what is left for new ones, which is half of the budget: the other half is for windows that limit.
const BUDGET_SHARE: usize = 8;
/// A window that limits grows by this factor. An answer tells no more than that all of the window flows in a round trip, and the next one is two round trips
/// away, so doubling would take a long link ten of them to get from 2 to 16 MiB.
const STEP: u32 = 4;
/// A probe that let a window not grow doubles the channel's distance to the next one, up to this.
const LARGEST_PROBE_DISTANCE: u64 = 64 * 1024 * 1024;

/// Who takes part in finding out how much flows in a round trip. Each channel stands here once at most.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// In the next probe.
    pub(super) curious: Vec<u32>,
    /// In the running one.
    pub(super) probing: Vec<u32>,
}

impl Growth {
    /// A channel is gone.
    pub(super) fn forget(&mut self, id: u32) {
        self.curious.retain(|other| *other != id);
        self.probing.retain(|other| *other != id);
    }
}

impl Table {
    /// The receive window of a new channel.
    pub(super) fn new_window(&self) -> u32 {
        let left = (self.limits.budget / 2).saturating_sub(self.committed) / BUDGET_SHARE;
        let share = u32::try_from(left).unwrap_or(u32::MAX);
        self.limits.initial_window.min(share.max(LEAST_WINDOW))
    }

    /// Gives window back, in steps of an eighth: often enough for long round trips, rare enough to cost nothing. Above the budget nothing is given back:
    /// the window shrinks instead, down to the least.
    pub(super) fn consumed(&mut self, id: u32, n: u32) {
        if n == 0 {
            return;
        }
        let over = u32::try_from(self.committed.saturating_sub(self.limits.budget)).unwrap_or(u32::MAX);
        let max = self.limits.max_window;
        let Some(slot) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        if slot.consumed >= slot.next_probe && slot.target < max {
            slot.next_probe = u64::MAX;
            self.growth.curious.push(id);
        }
        slot.uncredited = slot.uncredited.saturating_add(n);
        if slot.uncredited < slot.target / 8 || slot.we_closed || slot.peer_closed || slot.peer_eof {
            return;
        }
        let kept = over
            .min(slot.uncredited)
            .min(slot.target.saturating_sub(LEAST_WINDOW));
        slot.target = slot.target.saturating_sub(kept);
        let credit = std::mem::take(&mut slot.uncredited).saturating_sub(kept);
        slot.granted = slot.granted.saturating_add(credit);
        let peer = slot.peer;
        self.committed = self.committed.saturating_sub(kept as usize);
        if credit > 0 {
            let mut message = numbered(msg::CHANNEL_WINDOW_ADJUST, peer);
            message.put_u32(credit);
            self.outgoing.push_back(message);
        }
    }

    /// How much may be sent in one data message.
    pub(crate) fn allowance(&mut self, id: u32) -> Allowance {
        match self.slot(id) {
            None => Allowance::Closed,
            Some(slot) if slot.peer_closed || slot.we_closed => Allowance::Closed,
            Some(slot) if slot.opening => Allowance::Wait,
            Some(slot) if slot.send_window == 0 => {
                let stalls = u64::from(!std::mem::replace(&mut slot.stalled, true));
                slot.stalls += stalls;
                self.stalls += stalls;
                Allowance::Wait
            }
            Some(slot) => Allowance::Bytes {
                peer: slot.peer,
                limit: slot.send_window.min(slot.max_data) as usize,
            },
        }
    }

    /// `n` bytes of the allowance were sent.
    pub(crate) fn sent(&mut self, id: u32, n: usize) {
        if let Some(slot) = self.slot(id) {
            slot.send_window = slot
                .send_window
                .saturating_sub(u32::try_from(n).unwrap_or(u32::MAX));
        }
    }

    // ----- growing windows
    //
    // A ping tells how much flows in one round trip, without a clock: a channel that took most of its window between question and answer is held up by that
    // window.

    /// Whether a channel has taken enough since its last probe for another one to tell something.
    pub(crate) fn wants_probe(&self) -> bool {
        !self.growth.curious.is_empty()
    }

    /// The question goes out: from here on counts what these channels take, for [`Table::probe_done`].
    pub(crate) fn probe_start(&mut self) {
        self.growth.probing = std::mem::take(&mut self.growth.curious);
        for place in 0..self.growth.probing.len() {
            let id = self.growth.probing.get(place).copied().unwrap_or_default();
            if let Some(slot) = self.slot(id) {
                slot.consumed_at_probe = slot.consumed;
            }
        }
    }

    /// A round trip has passed since [`Table::probe_start`]: windows that limit grow.
    pub(crate) fn probe_done(&mut self) {
        for id in std::mem::take(&mut self.growth.probing) {
            let (max, least) = (self.limits.max_window, LEAST_WINDOW as usize);
            let spare = self.limits.budget.saturating_sub(self.committed) / 2;
            let Some(slot) = self.slot(id) else { continue };
            let growth = if slot.is_limited() && spare >= least {
                let wanted = slot.target.saturating_mul(STEP - 1);
                let spare = u32::try_from(spare).unwrap_or(u32::MAX);
                wanted.min(max.saturating_sub(slot.target)).min(spare)
            } else {
                0
            };
            if growth == 0 {
                slot.probe_distance = (slot.probe_distance * 2).min(LARGEST_PROBE_DISTANCE);
                slot.next_probe = slot.consumed + slot.probe_distance;
                continue;
            }
            // What the old window let through comes first, and says nothing about the new one.
            slot.probe_distance = u64::from(slot.target);
            slot.next_probe = slot.consumed + slot.probe_distance;
            slot.target += growth;
            let credit = growth + std::mem::take(&mut slot.uncredited);
            slot.granted = slot.granted.saturating_add(credit);
            let mut message = numbered(msg::CHANNEL_WINDOW_ADJUST, slot.peer);
            message.put_u32(credit);
            self.outgoing.push_back(message);
            self.committed += growth as usize;
        }
    }
}
