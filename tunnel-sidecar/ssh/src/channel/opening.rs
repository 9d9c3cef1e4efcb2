//! How channels come and go: opens of either side, the answers to them, CLOSE.

use super::{ChannelEvent, MAX_DATA, MAX_TARGET, Open, Refusal, RejectReason, Table, numbered, slot::Slot};
use crate::{
    error::ProtocolError,
    fault::printable,
    msg,
    wire::{Put, Reader},
};

/// The only channel type chisel has.
const CHANNEL_TYPE: &[u8] = b"chisel";

impl Table {
    pub(super) fn on_open(&mut self, mut reader: Reader<'_>) -> Result<(), ProtocolError> {
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
    pub(super) fn on_answer(
        &mut self,
        id: u32,
        number: u8,
        mut reader: Reader<'_>,
    ) -> Result<(), ProtocolError> {
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

    pub(super) fn send_close(&mut self, id: u32) {
        let Some(slot) = self.slot(id) else { return };
        // A channel that is not open yet is closed when the server has named its own number for it.
        if !slot.we_closed && !slot.opening {
            slot.we_closed = true;
            let message = numbered(msg::CHANNEL_CLOSE, slot.peer);
            self.outgoing.push_back(message);
        }
    }

    pub(super) fn free_if_done(&mut self, id: u32) {
        let done = |slot: &&mut Slot| slot.we_closed && slot.peer_closed && slot.released;
        let Some(window) = self.slot(id).filter(done).map(|slot| slot.target) else {
            return;
        };
        if let Some(place) = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id)) {
            *place = None;
        }
        self.growth.forget(id);
        self.open = self.open.saturating_sub(1);
        self.committed = self.committed.saturating_sub(window as usize);
    }
}
