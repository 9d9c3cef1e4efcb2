//! The state that the driver, the session handles and the channels share, and who is to be woken when it changes.

use crate::{
    channel::{ChannelEvent, Open, Refusal, RejectReason},
    client::{Client, Event},
    error::ProtocolError,
    fault::Fault,
    inbuf::InBuf,
    stream::Sink,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// So many writers fill the output once, with a full message each.
const WRITERS_AT_ONCE: usize = 8;

/// Shared by everything that belongs to one session. The lock is held for computation only, never across a read or write of the connection.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    state: Arc<Mutex<State>>,
    ended: Arc<Notify>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) client: Client,
    /// Those who wait for a channel to become readable or writable.
    waiting: HashMap<u32, Waiting>,
    /// Where data of a channel goes as it arrives.
    sinks: HashMap<u32, Arc<dyn Sink>>,
    /// Those of them who wait for room in the output, in order.
    for_room: VecDeque<u32>,
    driver: Option<Waker>,
    /// Opens that nobody has taken yet. Bounded by the table's backlog.
    opens: VecDeque<Open>,
    opens_waker: Option<Waker>,
    pub(crate) takes_opens: bool,
    /// Those who wait for the answer to an open of ours. Bounded by the table's number of channels.
    asked: HashMap<u32, oneshot::Sender<Result<(), Refusal>>>,
    pings: HashMap<u64, (oneshot::Sender<()>, Instant)>,
    next_ping: u64,
    /// A fault that arose while a handle was used; the driver ends the session with it.
    fault: Option<ProtocolError>,
    ended: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) round_trip: Option<Duration>,
    pub(crate) handshake: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Stands in the row of those who wait for room.
    in_row: bool,
}

impl Shared {
    pub(crate) fn new(client: Client) -> Self {
        let state = State {
            client,
            waiting: HashMap::new(),
            sinks: HashMap::new(),
            for_room: VecDeque::new(),
            driver: None,
            opens: VecDeque::new(),
            opens_waker: None,
            takes_opens: true,
            asked: HashMap::new(),
            pings: HashMap::new(),
            next_ping: 0,
            fault: None,
            ended: false,
            bytes_in: 0,
            bytes_out: 0,
            round_trip: None,
            handshake: Duration::ZERO,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            ended: Arc::new(Notify::new()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another thread under this lock leaves at worst a session that ends with an error.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session for everybody.
    pub(crate) fn end(&self) {
        self.lock().end();
        self.ended.notify_waiters();
    }

    /// Resolves when the session has ended.
    pub(crate) async fn ended(&self) {
        let notified = self.ended.notified();
        tokio::pin!(notified);
        // Registered before looking, so that an end in between is not missed.
        notified.as_mut().enable();
        if !self.lock().ended {
            notified.await;
        }
    }
}

impl State {
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Nothing may be sent any more.
    pub(crate) fn is_over(&self) -> bool {
        self.ended || self.fault.is_some() || self.client.is_closing()
    }

    pub(crate) fn take_fault(&mut self) -> Option<ProtocolError> {
        self.fault.take()
    }

    /// Works on received bytes.
    pub(crate) fn receive(&mut self, input: &mut InBuf) -> Result<(), Fault> {
        let Self { client, sinks, .. } = self;
        let result = client.receive(input, &mut |id, data| {
            // What a sink refuses is queued, and its reader finds out why.
            sinks.get(&id).map_or(0, |sink| sink.try_write(data).unwrap_or(0))
        });
        self.dispatch();
        result
    }

    pub(crate) fn attach(&mut self, id: u32, sink: Arc<dyn Sink>) {
        self.sinks.insert(id, sink);
    }

    pub(crate) fn detach(&mut self, id: u32) {
        self.sinks.remove(&id);
    }

    /// Notes the result of something a handle did, and lets the driver write what came of it.
    pub(crate) fn settle<T>(&mut self, result: Result<T, ProtocolError>) -> Option<T> {
        let value = match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault.get_or_insert(error);
                None
            }
        };
        self.dispatch();
        if self.client.has_output() || self.fault.is_some() {
            self.wake_driver();
        }
        value
    }

    pub(crate) fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    pub(crate) fn set_driver(&mut self, waker: &Waker) {
        set_waker(&mut self.driver, waker);
    }

    pub(crate) fn set_reader(&mut self, id: u32, waker: &Waker) {
        set_waker(&mut self.waiting.entry(id).or_default().reader, waker);
    }

    pub(crate) fn set_writer(&mut self, id: u32, waker: &Waker, for_room: bool) {
        let waiting = self.waiting.entry(id).or_default();
        set_waker(&mut waiting.writer, waker);
        if for_room && !std::mem::replace(&mut waiting.in_row, true) {
            self.for_room.push_back(id);
        }
    }

    pub(crate) fn forget(&mut self, id: u32) {
        self.waiting.remove(&id);
        self.sinks.remove(&id);
        self.asked.remove(&id);
    }

    /// Wakes as many writers as the room in the output is good for. Returns whether others still wait for it.
    pub(crate) fn wake_for_room(&mut self) -> bool {
        if !self.client.has_room() {
            return false;
        }
        for id in self.for_room.drain(..self.for_room.len().min(WRITERS_AT_ONCE)) {
            if let Some(waiting) = self.waiting.get_mut(&id) {
                waiting.in_row = false;
                wake(&mut waiting.writer);
            }
        }
        !self.for_room.is_empty()
    }

    /// Hands the client's events to those who wait for them.
    pub(crate) fn dispatch(&mut self) {
        while let Some(event) = self.client.next_event() {
            match event {
                Event::Pong(id) => {
                    if let Some((waiting, asked)) = self.pings.remove(&id) {
                        self.round_trip = Some(asked.elapsed());
                        // Nobody waits when the asking future was dropped.
                        let _ = waiting.send(());
                    }
                }
                Event::Channel(ChannelEvent::Opened(open)) => self.on_open(open),
                Event::Channel(ChannelEvent::Readable(id)) => self.wake_channel(id, true, false),
                Event::Channel(ChannelEvent::Writable(id)) => self.wake_channel(id, false, true),
                Event::Channel(ChannelEvent::Closed(id)) => self.wake_channel(id, true, true),
                Event::Channel(ChannelEvent::Answered(id, answer)) => {
                    if let Some(asking) = self.asked.remove(&id) {
                        // Nobody waits when the asking future was dropped.
                        let _ = asking.send(answer);
                    }
                }
            }
        }
    }

    fn wake_channel(&mut self, id: u32, reader: bool, writer: bool) {
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return;
        };
        if reader {
            wake(&mut waiting.reader);
        }
        if writer {
            wake(&mut waiting.writer);
        }
    }

    fn on_open(&mut self, open: Open) {
        if self.takes_opens {
            self.opens.push_back(open);
            wake(&mut self.opens_waker);
            return;
        }
        if let Err(error) =
            self.client
                .reject(&open, RejectReason::Prohibited, "the client takes no connections")
        {
            self.fault.get_or_insert(error);
        }
    }

    pub(crate) fn next_open(&mut self) -> Option<Open> {
        self.opens.pop_front()
    }

    pub(crate) fn set_opens_waker(&mut self, waker: &Waker) {
        set_waker(&mut self.opens_waker, waker);
    }

    /// Asks for a channel: its number and who tells the answer, or `None` when there are too many. The receiver fails when the session ends first.
    pub(crate) fn open(&mut self, target: &str) -> Option<(u32, oneshot::Receiver<Result<(), Refusal>>)> {
        let result = self.client.open(target);
        let id = self.settle(result)??;
        let (sender, receiver) = oneshot::channel();
        self.asked.insert(id, sender);
        Some((id, receiver))
    }

    /// Sends a ping; the receiver fails when the session ends first.
    pub(crate) fn ping(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.is_over() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let id = self.next_ping;
        self.next_ping += 1;
        self.pings.insert(id, (sender, Instant::now()));
        let result = self.client.ping(id);
        self.settle(result)?;
        Some(receiver)
    }

    fn end(&mut self) {
        self.ended = true;
        self.pings.clear();
        self.asked.clear();
        self.opens.clear();
        wake(&mut self.opens_waker);
        for (_, mut waiting) in self.waiting.drain() {
            wake(&mut waiting.reader);
            wake(&mut waiting.writer);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn set_waker(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) if old.will_wake(waker) => {}
        other => *other = Some(waker.clone()),
    }
}
