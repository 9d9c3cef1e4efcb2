//! The table of channels: numbers, windows, queues, and who has closed what. Pure: messages in, messages and events out.
//!
//! What a chisel server punishes with the end of the session is impossible by construction here: nothing is sent for a channel after our CLOSE, CLOSE is
//! sent once, and a number is free again only when both sides have closed and the consumer is gone.

mod slot;

use crate::{
    error::ProtocolError,
    fault::printable,
    msg,
    wire::{Put, Reader},
};
use slot::Slot;
use std::collections::VecDeque;

/// The largest data message in either direction; the server aborts the session above it.
pub(crate) const MAX_DATA: u32 = 32 * 1024;
/// The only channel type chisel has.
const CHANNEL_TYPE: &[u8] = b"chisel";
/// A target is `host:port`; names end at 255 bytes, so this is generous.
pub(crate) const MAX_TARGET: usize = 1024;
/// A new channel gets at least this window, however little is left of the budget.
const LEAST_WINDOW: u32 = 64 * 1024;
/// A new channel takes at most this part of what is left for new ones, which is half of the budget: the other half is for windows that limit.
const BUDGET_SHARE: usize = 8;

/// Sizes a table keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableLimits {
    pub(crate) initial_window: u32,
    pub(crate) max_window: u32,
    /// For the windows of all channels together.
    pub(crate) budget: usize,
    pub(crate) max_channels: usize,
    /// Opens nobody has decided on.
    pub(crate) backlog: usize,
}

/// Why an open is refused (RFC 4254 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// Not allowed.
    Prohibited,
    /// The target could not be reached.
    ConnectFailed,
    /// Not a channel type we know.
    UnknownType,
    /// Too many at once.
    ResourceShortage,
}

impl RejectReason {
    fn code(self) -> u32 {
        match self {
            Self::Prohibited => 1,
            Self::ConnectFailed => 2,
            Self::UnknownType => 3,
            Self::ResourceShortage => 4,
        }
    }
}

/// An open of the server, to be accepted or rejected once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Open {
    peer: u32,
    window: u32,
    max_data: u32,
    pub(crate) target: String,
}

/// What a consumer should look at again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ChannelEvent {
    Opened(Open),
    Readable(u32),
    Writable(u32),
    /// The server closed: reads end after what is queued, writes fail.
    Closed(u32),
    /// The answer to an open of ours. A refused channel stays numbered until its consumer releases it.
    Answered(u32, Result<(), Refusal>),
}

/// Why the server refused an open of ours (RFC 4254 section 5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u32,
    pub(crate) text: String,
}

/// What a read finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Data(usize),
    Pending,
    End,
}

/// Takes data of a channel as it arrives and says how much of it it took.
pub(crate) type Deliver<'a> = &'a mut dyn FnMut(u32, &[u8]) -> usize;

/// What became of the queue when it was offered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// It is empty, and more may come.
    Empty,
    /// Not everything was taken.
    Blocked,
    /// It is empty, and nothing will come.
    End,
}

/// What a writer may send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// This many bytes, to this channel of the peer.
    Bytes { peer: u32, limit: usize },
    /// Nothing until the peer credits more.
    Wait,
    /// Nothing ever again.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Table {
    limits: TableLimits,
    slots: Vec<Option<Slot>>,
    open: usize,
    undecided: usize,
    /// Sum of the windows given to channels: nothing can make us hold more than this.
    committed: usize,
    queued: usize,
    /// How often a writer found no window, of all channels that there were.
    stalls: u64,
    /// Messages to send, in order.
    outgoing: VecDeque<Vec<u8>>,
    events: VecDeque<ChannelEvent>,
}

impl Table {
    pub(crate) fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            slots: Vec::new(),
            open: 0,
            undecided: 0,
            committed: 0,
            queued: 0,
            stalls: 0,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn next_outgoing(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    pub(crate) fn next_event(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }

    pub(crate) fn open_channels(&self) -> usize {
        self.open
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued
    }

    pub(crate) fn window_stalls(&self) -> u64 {
        self.stalls
    }

    /// How often the writer of this channel found no window.
    pub(crate) fn stalls_of(&mut self, id: u32) -> u64 {
        self.slot(id).map_or(0, |slot| slot.stalls)
    }

    fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(id).ok()?)?.as_mut()
    }

    // ----- what the server says

    /// Takes a channel message, number included.
    pub(crate) fn receive(&mut self, payload: &[u8], deliver: Deliver<'_>) -> Result<(), ProtocolError> {
        let mut reader = Reader::new(payload);
        let number = reader.u8()?;
        if number == msg::CHANNEL_OPEN {
            return self.on_open(reader);
        }
        let id = reader.u32()?;
        let slot = self.slot(id).ok_or(ProtocolError::NoSuchChannel(id))?;
        if slot.opening {
            return self.on_answer(id, number, reader);
        }
        if slot.peer_closed {
            return Err(ProtocolError::AfterClose(id));
        }
        match number {
            msg::CHANNEL_DATA => {
                let data = reader.string()?;
                reader.finish()?;
                self.on_data(id, data, Some(deliver))
            }
            msg::CHANNEL_EXTENDED_DATA => {
                reader.u32()?;
                let data = reader.string()?;
                reader.finish()?;
                self.on_data(id, data, None)
            }
            msg::CHANNEL_WINDOW_ADJUST => {
                let credit = reader.u32()?;
                reader.finish()?;
                let window = slot
                    .send_window
                    .checked_add(credit)
                    .ok_or(ProtocolError::WindowOverflow(id))?;
                slot.send_window = window;
                slot.stalled = false;
                self.events.push_back(ChannelEvent::Writable(id));
                Ok(())
            }
            msg::CHANNEL_EOF => {
                reader.finish()?;
                slot.peer_eof = true;
                self.events.push_back(ChannelEvent::Readable(id));
                Ok(())
            }
            msg::CHANNEL_CLOSE => {
                reader.finish()?;
                slot.peer_closed = true;
                self.send_close(id);
                self.events.push_back(ChannelEvent::Closed(id));
                self.free_if_done(id);
                Ok(())
            }
            msg::CHANNEL_REQUEST => {
                reader.string()?;
                let (want_reply, peer, closed) = (reader.bool()?, slot.peer, slot.we_closed);
                if want_reply && !closed {
                    self.outgoing.push_back(numbered(msg::CHANNEL_FAILURE, peer));
                }
                Ok(())
            }
            // Answers to opens that were answered, and to channel requests, of which we make none.
            number => Err(ProtocolError::Unexpected {
                number,
                during: "the session",
            }),
        }
    }

    fn on_open(&mut self, mut reader: Reader<'_>) -> Result<(), ProtocolError> {
        let kind = reader.string()?;
        let (peer, window, max_data) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let refuse = |reason, text| Self::rejection(peer, reason, text);
        let target = std::str::from_utf8(reader.rest())
            .ok()
            .filter(|text| text.len() <= MAX_TARGET);
        let refusal = if kind != CHANNEL_TYPE {
            Some(refuse(
                RejectReason::UnknownType,
                &format!("unknown channel type {}", printable(kind)),
            ))
        } else if self.undecided >= self.limits.backlog
            || self.open + self.undecided >= self.limits.max_channels
        {
            Some(refuse(RejectReason::ResourceShortage, "too many channels"))
        } else if max_data == 0 {
            Some(refuse(RejectReason::ConnectFailed, "a packet size of zero"))
        } else if target.is_none_or(|text| text.contains(char::is_control)) {
            Some(refuse(
                RejectReason::ConnectFailed,
                "the target is no host and port",
            ))
        } else {
            None
        };
        match (refusal, target) {
            (None, Some(target)) => {
                self.undecided += 1;
                let open = Open {
                    peer,
                    window,
                    max_data: max_data.min(MAX_DATA),
                    target: target.to_owned(),
                };
                self.events.push_back(ChannelEvent::Opened(open));
            }
            (refusal, _) => self.outgoing.extend(refusal),
        }
        Ok(())
    }

    /// The answer to an open of ours.
    fn on_answer(&mut self, id: u32, number: u8, mut reader: Reader<'_>) -> Result<(), ProtocolError> {
        let Some(slot) = self.slot(id) else {
            return Err(ProtocolError::NoSuchChannel(id));
        };
        match number {
            msg::CHANNEL_OPEN_CONFIRMATION => {
                let (peer, window, max_data) = (reader.u32()?, reader.u32()?, reader.u32()?);
                // What stands behind is specific to the channel type; chisel's has nothing there.
                if max_data == 0 {
                    return Err(ProtocolError::NoData(id));
                }
                slot.opening = false;
                slot.peer = peer;
                slot.send_window = window;
                slot.max_data = max_data.min(MAX_DATA);
                if slot.released {
                    self.send_close(id);
                } else {
                    self.events.push_back(ChannelEvent::Answered(id, Ok(())));
                }
                Ok(())
            }
            msg::CHANNEL_OPEN_FAILURE => {
                let code = reader.u32()?;
                let text = printable(reader.string()?);
                slot.opening = false;
                slot.we_closed = true;
                slot.peer_closed = true;
                if !slot.released {
                    let refusal = Refusal { code, text };
                    self.events.push_back(ChannelEvent::Answered(id, Err(refusal)));
                }
                self.free_if_done(id);
                Ok(())
            }
            number => Err(ProtocolError::Unexpected {
                number,
                during: "the opening of a channel",
            }),
        }
    }

    /// Data for the consumer, or, without one, for nobody.
    fn on_data(
        &mut self,
        id: u32,
        mut data: &[u8],
        deliver: Option<Deliver<'_>>,
    ) -> Result<(), ProtocolError> {
        let Some(slot) = self.slot(id) else {
            return Err(ProtocolError::NoSuchChannel(id));
        };
        if slot.peer_eof {
            return Err(ProtocolError::AfterClose(id));
        }
        let length = u32::try_from(data.len())
            .ok()
            .filter(|length| *length <= MAX_DATA);
        let length = length.ok_or(ProtocolError::DataTooLong(id))?;
        slot.granted = slot
            .granted
            .checked_sub(length)
            .ok_or(ProtocolError::WindowExceeded(id))?;
        if slot.released {
            return Ok(());
        }
        let Some(deliver) = deliver else {
            self.consumed(id, length);
            return Ok(());
        };
        let was_empty = slot.queue.is_empty();
        if was_empty {
            // What waits in the queue comes first.
            let n = deliver(id, data).min(data.len());
            slot.consumed += n as u64;
            data = data.get(n..).unwrap_or_default();
            self.consumed(id, u32::try_from(n).unwrap_or(u32::MAX));
        }
        if let Some(slot) = self.slot(id).filter(|_| !data.is_empty()) {
            slot.queue.extend_from_slice(data);
            self.queued += data.len();
            if was_empty {
                self.events.push_back(ChannelEvent::Readable(id));
            }
        }
        Ok(())
    }

    // ----- what the consumers do

    /// Confirms an open; returns our number for the channel.
    pub(crate) fn accept(&mut self, open: &Open) -> u32 {
        self.undecided = self.undecided.saturating_sub(1);
        let window = self.new_window();
        let id = self.enter(Slot::new(open.peer, open.window, open.max_data, window));
        let mut message = numbered(msg::CHANNEL_OPEN_CONFIRMATION, open.peer);
        message.put_u32(id);
        message.put_u32(window);
        message.put_u32(MAX_DATA);
        self.outgoing.push_back(message);
        id
    }

    /// Asks the server to open a channel to `target`; [`ChannelEvent::Answered`] tells what came of it. `None` when there are too many channels.
    pub(crate) fn open(&mut self, target: &str) -> Option<u32> {
        if self.open + self.undecided >= self.limits.max_channels {
            return None;
        }
        let window = self.new_window();
        let id = self.enter(Slot::opening(window));
        let mut message = vec![msg::CHANNEL_OPEN];
        message.put_string(CHANNEL_TYPE);
        message.put_u32(id);
        message.put_u32(window);
        message.put_u32(MAX_DATA);
        message.put_raw(target.as_bytes());
        self.outgoing.push_back(message);
        Some(id)
    }

    /// The receive window of a new channel.
    fn new_window(&self) -> u32 {
        let left = (self.limits.budget / 2).saturating_sub(self.committed) / BUDGET_SHARE;
        let share = u32::try_from(left).unwrap_or(u32::MAX);
        self.limits.initial_window.min(share.max(LEAST_WINDOW))
    }

    /// Gives a channel the lowest free number.
    fn enter(&mut self, slot: Slot) -> u32 {
        let window = slot.target;
        let free = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        match self.slots.get_mut(free) {
            Some(place) => *place = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        self.open += 1;
        self.committed += window as usize;
        // The count of channels is limited far below 2^32.
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Refuses an open.
    pub(crate) fn reject(&mut self, open: &Open, reason: RejectReason, text: &str) {
        self.undecided = self.undecided.saturating_sub(1);
        self.outgoing.push_back(Self::rejection(open.peer, reason, text));
    }

    fn rejection(peer: u32, reason: RejectReason, text: &str) -> Vec<u8> {
        let mut message = numbered(msg::CHANNEL_OPEN_FAILURE, peer);
        message.put_u32(reason.code());
        message.put_string(text.as_bytes());
        message.put_string(b"en");
        message
    }

    /// Takes queued bytes into `out` and credits them.
    pub(crate) fn read(&mut self, id: u32, out: &mut [u8]) -> Read {
        let Some(slot) = self.slot(id) else {
            return Read::End;
        };
        if slot.queue.is_empty() {
            return if slot.peer_closed || slot.peer_eof {
                Read::End
            } else {
                Read::Pending
            };
        }
        let n = slot.take(out);
        self.queued = self.queued.saturating_sub(n);
        self.consumed(id, u32::try_from(n).unwrap_or(u32::MAX));
        Read::Data(n)
    }

    /// Offers queued bytes to `take` until it takes nothing more, and credits what it took.
    pub(crate) fn drain<E>(
        &mut self,
        id: u32,
        mut take: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<Drained, E> {
        let Some(slot) = self.slot(id) else {
            return Ok(Drained::End);
        };
        let mut total = 0;
        let outcome = loop {
            if slot.queue.is_empty() {
                break Ok(if slot.peer_closed || slot.peer_eof {
                    Drained::End
                } else {
                    Drained::Empty
                });
            }
            match take(&slot.queue) {
                Ok(0) => break Ok(Drained::Blocked),
                Ok(n) => total += slot.drop_front(n),
                Err(error) => break Err(error),
            }
        };
        self.queued = self.queued.saturating_sub(total);
        self.consumed(id, u32::try_from(total).unwrap_or(u32::MAX));
        outcome
    }

    /// Gives window back, in steps of an eighth: often enough for long round trips, rare enough to cost nothing. Above the budget nothing is given back:
    /// the window shrinks instead, down to the least.
    fn consumed(&mut self, id: u32, n: u32) {
        if n == 0 {
            return;
        }
        let over = u32::try_from(self.committed.saturating_sub(self.limits.budget)).unwrap_or(u32::MAX);
        let Some(slot) = self.slot(id) else { return };
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

    /// Our side is done: CLOSE, once. What the server sent until its own CLOSE can still be read.
    pub(crate) fn close(&mut self, id: u32) {
        self.send_close(id);
        self.free_if_done(id);
    }

    /// The consumer is gone: CLOSE if not yet sent; what is queued or still comes is thrown away.
    pub(crate) fn release(&mut self, id: u32) {
        let Some(slot) = self.slot(id) else { return };
        slot.released = true;
        let dropped = slot.queue.len();
        slot.queue.clear();
        self.queued = self.queued.saturating_sub(dropped);
        self.close(id);
    }

    fn send_close(&mut self, id: u32) {
        let Some(slot) = self.slot(id) else { return };
        // A channel that is not open yet is closed when the server has named its own number for it.
        if !slot.we_closed && !slot.opening {
            slot.we_closed = true;
            let message = numbered(msg::CHANNEL_CLOSE, slot.peer);
            self.outgoing.push_back(message);
        }
    }

    fn free_if_done(&mut self, id: u32) {
        let done = |slot: &&mut Slot| slot.we_closed && slot.peer_closed && slot.released;
        let Some(window) = self.slot(id).filter(done).map(|slot| slot.target) else {
            return;
        };
        if let Some(place) = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id)) {
            *place = None;
        }
        self.open = self.open.saturating_sub(1);
        self.committed = self.committed.saturating_sub(window as usize);
    }

    // ----- growing windows

    /// Starts counting what each channel consumes, for [`Table::probe_done`].
    pub(crate) fn probe_start(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.consumed_at_probe = slot.consumed;
        }
    }

    /// A round trip has passed since [`Table::probe_start`]. A channel that consumed most of its window in it is limited by that window and not by its
    /// consumer, if nothing is queued: its window doubles. Returns whether one grew.
    pub(crate) fn probe_done(&mut self) -> bool {
        let mut spare = self.limits.budget.saturating_sub(self.committed) / 2;
        let max = self.limits.max_window;
        let mut grew = 0;
        for slot in self.slots.iter_mut().flatten() {
            let consumed = slot.consumed.saturating_sub(slot.consumed_at_probe);
            let limited = consumed >= u64::from(slot.target) / 3 * 2 && slot.queue.is_empty();
            if !limited || slot.we_closed || slot.peer_closed || slot.peer_eof {
                continue;
            }
            let growth = slot.target.min(max.saturating_sub(slot.target));
            if growth == 0 || growth as usize > spare {
                continue;
            }
            spare -= growth as usize;
            grew += growth as usize;
            slot.target += growth;
            let credit = growth + std::mem::take(&mut slot.uncredited);
            slot.granted = slot.granted.saturating_add(credit);
            let mut message = numbered(msg::CHANNEL_WINDOW_ADJUST, slot.peer);
            message.put_u32(credit);
            self.outgoing.push_back(message);
        }
        self.committed += grew;
        grew > 0
    }
}

/// A message for a channel of the peer.
fn numbered(number: u8, peer: u32) -> Vec<u8> {
    let mut message = vec![number];
    message.put_u32(peer);
    message
}

#[cfg(test)]
mod tests;
