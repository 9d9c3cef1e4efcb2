//! The table of channels: numbers, windows, queues, and who has closed what. Pure: messages in, messages and events out.
//!
//! What a chisel server punishes with the end of the session is impossible by construction here: nothing is sent for a channel after our CLOSE, CLOSE is
//! sent once, and a number is free again only when both sides have closed and the consumer is gone.

mod opening;
mod queue;
mod slot;
mod window;

use crate::{
    error::ProtocolError,
    msg,
    wire::{Put, Reader},
};
use slot::Slot;
use std::collections::VecDeque;
use window::Growth;

/// The largest data message in either direction; the server aborts the session above it.
pub(crate) const MAX_DATA: u32 = 32 * 1024;
/// A target is `host:port`; names end at 255 bytes, so this is generous.
pub(crate) const MAX_TARGET: usize = 1024;

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
    growth: Growth,
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
            growth: Growth::default(),
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
            slot.queue.push(data);
            self.queued += data.len();
            if was_empty {
                self.events.push_back(ChannelEvent::Readable(id));
            }
        }
        Ok(())
    }

    // ----- what the consumers do

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
            match take(slot.queue.front()) {
                Ok(0) => break Ok(Drained::Blocked),
                Ok(n) => total += slot.drop_front(n),
                Err(error) => break Err(error),
            }
        };
        self.queued = self.queued.saturating_sub(total);
        self.consumed(id, u32::try_from(total).unwrap_or(u32::MAX));
        outcome
    }

    // ----- growing windows
}

/// A message for a channel of the peer.
fn numbered(number: u8, peer: u32) -> Vec<u8> {
    let mut message = vec![number];
    message.put_u32(peer);
    message
}

#[cfg(test)]
mod tests;
