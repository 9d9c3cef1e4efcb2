//! The whole client as a state machine: bytes in, bytes and events out. No socket, no clock, no task.
//!
//! ```text
//!   bytes → [inbuf: frames off] → [transport: packets open] → auth | requests | channels → events
//!   bytes ← [websocket: frames on] ← [transport: packets sealed] ←──────┘
//! ```

use crate::{
    auth::{self, Password},
    channel::{Allowance, ChannelEvent, Deliver, Drained, Open, Read, RejectReason, Table, TableLimits},
    config::{ClientConfig, Limits},
    error::{BadRequest, ProtocolError, Step},
    exchange::Method,
    fault::{Fault, printable},
    http::{Response, UpgradeRequest},
    inbuf::{Control, InBuf},
    msg,
    requests::{Asked, Requests},
    transport::{Input, Offer, RekeyLimits, Transport, disconnect_message},
    websocket::{self, Opcode},
};
use std::collections::VecDeque;

/// Channel data stops being sealed while this much waits to be written; more gains nothing measurable.
const WRITE_AHEAD: usize = 128 * 1024;
/// More than headers, padding and tag of a packet of channel data take.
const PACKET_OVERHEAD: usize = 128;
/// While more than this waits to be written, nothing is read: the peer takes nothing, so it gets no answers either.
const MAX_UNWRITTEN: usize = 1024 * 1024;
/// RFC 6455 section 7.4.1: normal closure.
const CLOSE_NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// What the outside should know of.
#[derive(Debug)]
pub(crate) enum Event {
    Channel(ChannelEvent),
    Pong(u64),
}

#[derive(Debug)]
pub(crate) struct Client {
    phase: Phase,
    key: [u8; 16],
    user: String,
    password: Password,
    config_json: Vec<u8>,
    transport: Transport,
    requests: Requests,
    channels: Table,
    events: VecDeque<Event>,
    /// To be written to the connection, framed.
    out: Vec<u8>,
    /// A ping is under way that tells how much flows in one round trip.
    probing: bool,
    /// Our DISCONNECT was sent: nothing more may follow.
    closing: bool,
}

/// What is under way, or everything is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    SettingUp(Step),
    Open,
}

impl Client {
    /// A client whose upgrade request waits to be written.
    pub(crate) fn new(config: ClientConfig) -> Result<Self, BadRequest> {
        let Limits {
            initial_window,
            max_window,
            receive_budget,
            max_channels,
            backlog,
            rekey_bytes,
            rekey_packets,
        } = config.limits;
        let key = rand::random();
        let request = UpgradeRequest {
            host: &config.host_header,
            path_and_query: &config.path_and_query,
            headers: &config.headers,
            key,
        };
        Ok(Self {
            phase: Phase::SettingUp(Step::Upgrade),
            key,
            out: request.encode()?,
            user: config.user,
            password: config.password,
            config_json: config.config_json,
            transport: Transport::new(
                Offer {
                    methods: Method::ALL
                        .into_iter()
                        .filter(|method| config.kex.is_none_or(|only| method.is(only)))
                        .collect(),
                    ciphers: config.ciphers,
                    guess: config.guess_kex,
                },
                config.trust,
                RekeyLimits {
                    bytes: rekey_bytes,
                    packets: rekey_packets,
                },
            ),
            requests: Requests::default(),
            channels: Table::new(TableLimits {
                initial_window,
                max_window,
                budget: receive_budget,
                max_channels,
                backlog,
            }),
            events: VecDeque::new(),
            probing: false,
            closing: false,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) fn channels(&self) -> &Table {
        &self.channels
    }

    pub(crate) fn channels_mut(&mut self) -> &mut Table {
        &mut self.channels
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Swaps what waits to be written with an empty buffer.
    pub(crate) fn take_output(&mut self, empty: &mut Vec<u8>) {
        std::mem::swap(&mut self.out, empty);
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether channel data can be sealed now.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < WRITE_AHEAD && !self.transport.is_holding()
    }

    /// Whether received bytes may be worked on.
    pub(crate) fn takes_input(&self) -> bool {
        self.out.len() < MAX_UNWRITTEN
    }

    // ----- input

    /// Works on everything in the buffer.
    ///
    /// Channel data is offered to `deliver`, which says how much it took; the rest is queued.
    pub(crate) fn receive(&mut self, input: &mut InBuf, deliver: Deliver<'_>) -> Result<(), Fault> {
        if self.phase == Phase::SettingUp(Step::Upgrade) && !self.receive_upgrade(input)? {
            return Ok(());
        }
        loop {
            let control = input.deframe()?;
            self.receive_packets(input, deliver)?;
            match control {
                None => break,
                Some(Control::Ping(payload)) => {
                    websocket::append_control(&mut self.out, Opcode::Pong, &payload)
                }
                Some(Control::Close { .. }) => {
                    websocket::append_control(&mut self.out, Opcode::Close, &CLOSE_NORMAL);
                    return Err(Fault::WebSocketClosed);
                }
            }
        }
        self.probe_if_due()?;
        self.transport.rekey_if_due(&mut self.out)?;
        Ok(())
    }

    /// Returns whether the upgrade is done.
    fn receive_upgrade(&mut self, input: &mut InBuf) -> Result<bool, Fault> {
        let Some((response, used)) = Response::parse(input.raw())? else {
            return Ok(false);
        };
        if response.status != 101 {
            return Err(Fault::Http {
                status: response.status,
                after: response.retry_after(),
            });
        }
        response.check_upgrade(self.key)?;
        input.consume_raw(used);
        self.phase = Phase::SettingUp(Step::Version);
        self.transport.start(&mut self.out)?;
        Ok(true)
    }

    fn receive_packets(&mut self, input: &mut InBuf, deliver: Deliver<'_>) -> Result<(), Fault> {
        loop {
            let consumed = match self.transport.receive(input.plain(), &mut self.out)? {
                Input::NeedMore => return Ok(()),
                Input::Handled { consumed } => consumed,
                Input::Secured { consumed } => {
                    self.log_in()?;
                    consumed
                }
                Input::Message { consumed, payload } => {
                    self.on_message(input.plain().get(payload).unwrap_or_default(), deliver)?;
                    self.flush_channels()?;
                    consumed
                }
            };
            input.consume(consumed);
            if self.phase == Phase::SettingUp(Step::Version) && self.transport.has_version() {
                self.phase = Phase::SettingUp(Step::KeyExchange);
            }
        }
    }

    /// Everything up to the config request goes out in one flight with NEWKEYS; the server answers in order.
    fn log_in(&mut self) -> Result<(), ProtocolError> {
        self.phase = Phase::SettingUp(Step::Auth);
        let password = std::mem::take(&mut self.password);
        for request in auth::requests(&self.user, &password) {
            self.transport.send(&mut self.out, &[&request])?;
        }
        let json = std::mem::take(&mut self.config_json);
        self.ask(Asked::Config, &json)
    }

    fn on_message(&mut self, payload: &[u8], deliver: Deliver<'_>) -> Result<(), Fault> {
        let number = payload.first().copied().unwrap_or_default();
        match (self.phase, number) {
            (Phase::SettingUp(Step::Auth), _) => {
                if auth::receive(payload)? == auth::Progress::Done {
                    self.phase = Phase::SettingUp(Step::Config);
                }
                Ok(())
            }
            (_, msg::GLOBAL_REQUEST) => {
                if let Some(answer) = Requests::answer(payload)? {
                    self.transport.send(&mut self.out, &[&answer])?;
                }
                Ok(())
            }
            (_, msg::REQUEST_SUCCESS | msg::REQUEST_FAILURE) => self.on_answer(payload),
            (Phase::Open, msg::CHANNEL_OPEN..=msg::CHANNEL_FAILURE) => {
                self.channels.receive(payload, deliver).map_err(Fault::from)
            }
            (Phase::SettingUp(_), number) => Err(ProtocolError::Unexpected {
                number,
                during: "the chisel configuration",
            }
            .into()),
            (Phase::Open, number) => Err(ProtocolError::Unexpected {
                number,
                during: "the session",
            }
            .into()),
        }
    }

    fn on_answer(&mut self, payload: &[u8]) -> Result<(), Fault> {
        match self.requests.answered()? {
            Asked::Config => {
                let (number, text) = payload.split_first().ok_or(ProtocolError::ShortMessage)?;
                // Chisel takes any text as the error, whatever the message number.
                if *number == msg::REQUEST_SUCCESS && text.is_empty() {
                    self.phase = Phase::Open;
                    return Ok(());
                }
                return Err(Fault::Refused {
                    text: printable(text),
                });
            }
            Asked::Ping(id) => self.events.push_back(Event::Pong(id)),
            Asked::Probe => {
                self.probing = false;
                self.channels.probe_done();
            }
        }
        Ok(())
    }

    fn ask(&mut self, asked: Asked, payload: &[u8]) -> Result<(), ProtocolError> {
        let request = self.requests.ask(asked, payload)?;
        self.transport.send(&mut self.out, &[&request])
    }

    /// Asks how much flows in one round trip when a channel wants to know, see [`Table::probe_done`].
    fn probe_if_due(&mut self) -> Result<(), ProtocolError> {
        if self.probing || self.closing || self.phase != Phase::Open || !self.channels.wants_probe() {
            return Ok(());
        }
        self.probing = true;
        self.channels.probe_start();
        self.ask(Asked::Probe, b"")
    }

    /// Moves what the channel table has to say into the output and the events.
    fn flush_channels(&mut self) -> Result<(), ProtocolError> {
        while let Some(message) = self.channels.next_outgoing() {
            if !self.closing {
                self.transport.send(&mut self.out, &[&message])?;
            }
        }
        while let Some(event) = self.channels.next_event() {
            self.events.push_back(Event::Channel(event));
        }
        Ok(())
    }

    // ----- what the users of the session do

    pub(crate) fn ping(&mut self, id: u64) -> Result<(), ProtocolError> {
        self.ask(Asked::Ping(id), b"")
    }

    pub(crate) fn accept(&mut self, open: &Open) -> Result<u32, ProtocolError> {
        let id = self.channels.accept(open);
        self.flush_channels()?;
        Ok(id)
    }

    pub(crate) fn reject(
        &mut self,
        open: &Open,
        reason: RejectReason,
        text: &str,
    ) -> Result<(), ProtocolError> {
        self.channels.reject(open, reason, text);
        self.flush_channels()
    }

    /// Asks the server for a channel to `target`; `None` when there are too many.
    pub(crate) fn open(&mut self, target: &str) -> Result<Option<u32>, ProtocolError> {
        let id = self.channels.open(target);
        self.flush_channels()?;
        Ok(id)
    }

    pub(crate) fn read(&mut self, id: u32, out: &mut [u8]) -> Result<Read, ProtocolError> {
        let read = self.channels.read(id, out);
        self.flush_channels()?;
        Ok(read)
    }

    /// Seals up to one message of `data`.
    pub(crate) fn write(&mut self, id: u32, data: &[u8]) -> Result<Written, WriteError> {
        let written = self.fill(id, |out, limit| {
            out.extend_from_slice(data.get(..data.len().min(limit)).unwrap_or_default());
        })?;
        Ok(match written {
            Filled::Bytes(n, ()) => Written::Bytes(n),
            Filled::NoWindow => Written::NoWindow,
            Filled::NoRoom => Written::NoRoom,
        })
    }

    /// Seals one message of what `fill` appends, which is at most as much as it is told, and for which there is room.
    pub(crate) fn fill<R>(
        &mut self,
        id: u32,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> R,
    ) -> Result<Filled<R>, WriteError> {
        if self.closing {
            return Err(WriteError::Closed);
        }
        let (peer, limit) = match self.channels.allowance(id) {
            Allowance::Closed => return Err(WriteError::Closed),
            Allowance::Wait => return Ok(Filled::NoWindow),
            Allowance::Bytes { peer, limit } => (peer, limit),
        };
        if !self.has_room() {
            return Ok(Filled::NoRoom);
        }
        self.out.reserve(limit + PACKET_OVERHEAD);
        let (filled, n) = self
            .transport
            .send_data(&mut self.out, peer, |out| fill(out, limit))?;
        self.channels.sent(id, n);
        self.transport.rekey_if_due(&mut self.out)?;
        Ok(Filled::Bytes(n, filled))
    }

    /// Moves queued bytes of a channel to `take`, which says how many it took.
    pub(crate) fn drain<E>(
        &mut self,
        id: u32,
        take: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<Result<Drained, E>, ProtocolError> {
        let drained = self.channels.drain(id, take);
        self.flush_channels()?;
        Ok(drained)
    }

    pub(crate) fn close(&mut self, id: u32) -> Result<(), ProtocolError> {
        self.channels.close(id);
        self.flush_channels()
    }

    pub(crate) fn release(&mut self, id: u32) -> Result<(), ProtocolError> {
        self.channels.release(id);
        self.flush_channels()
    }

    /// Says good-bye: DISCONNECT if the keys are in use, then the WebSocket's close frame.
    pub(crate) fn disconnect(&mut self, code: u32, reason: &str) {
        if std::mem::replace(&mut self.closing, true) || self.phase == Phase::SettingUp(Step::Upgrade) {
            return;
        }
        if self.transport.is_secured() {
            // Failing to say good-bye changes nothing: the connection ends anyway.
            let _ = self
                .transport
                .send(&mut self.out, &[&disconnect_message(code, reason)]);
        }
        websocket::append_control(&mut self.out, Opcode::Close, &CLOSE_NORMAL);
    }
}

/// How a write of unknown size went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled<R> {
    /// So much was taken, and what the source said.
    Bytes(usize, R),
    /// The source was not asked: as [`Written::NoWindow`].
    NoWindow,
    /// The source was not asked: as [`Written::NoRoom`].
    NoRoom,
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// So much was taken.
    Bytes(usize),
    /// Nothing, until the peer credits more: a writable event tells.
    NoWindow,
    /// Nothing, until output was taken or a key exchange is over.
    NoRoom,
}

/// Why a write is not possible.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The channel takes no more data.
    Closed,
    Protocol(ProtocolError),
}

impl From<ProtocolError> for WriteError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}
