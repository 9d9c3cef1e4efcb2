//! The server's peers, each with a socket of its own towards the target.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use chisel_ssh::Channel;
use runtime::supervise::TaskHandle;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    ANSWERS, IDLE, IDLE_DRAINING, LARGEST, MAX_PEERS, WAITING,
    gob::{BadStream, Datagram, Decoder, Encoder, MAX_PAYLOAD},
};
use crate::{
    carrier::{Carrier, Leads, Route},
    connections::{Direction, Guard},
    echo::{HalfWay, Heard, NONCE},
    metrics::Opened,
    plan::LaneId,
    reach::{Unreached, reach_datagrams},
};

/// One channel of a reversed UDP forward.
pub(crate) struct Reverse {
    pub(crate) carrier: Carrier,
    pub(crate) lane: LaneId,
    /// What the server called it.
    pub(crate) key: String,
}

/// Keeps a channel open and throws away what comes: closing it while the session lives makes the server spin, and
/// refusing it ends the session (measured with chisel 1.11.3).
pub(crate) async fn hold(mut channel: Channel) {
    tokio::io::copy(&mut channel, &mut tokio::io::sink()).await.ok();
}

impl Reverse {
    /// Carries datagrams until the session ends.
    pub(crate) async fn run(self, channel: Channel) {
        let (mut from_server, mut to_server) = tokio::io::split(channel);
        let (answers, mut queue) = mpsc::channel::<Datagram>(ANSWERS);
        let inward = async {
            let mut peers = Peers {
                reverse: &self,
                answers,
                scratch: Arc::new(Mutex::new(Vec::new())),
                open: HashMap::new(),
                half: None,
            };
            let mut decoder = Decoder::default();
            let mut piece = vec![0; 32 * 1024];
            loop {
                let size = from_server.read(&mut piece).await.unwrap_or_default();
                if size == 0 {
                    return Ok(());
                }
                decoder.push(piece.get(..size).unwrap_or_default());
                while let Some(datagram) = decoder.next_datagram()? {
                    peers.pass(datagram);
                }
            }
        };
        let outward = async {
            let mut encoder = Encoder::default();
            while let Some(answer) = queue.recv().await {
                let bytes = encoder.encode(&answer.peer, &answer.payload);
                if to_server.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // The end of the session ends the other direction too.
            std::future::pending::<Result<(), BadStream>>().await
        };
        let ended = tokio::select! {
            ended = inward => ended,
            ended = outward => ended,
            () = self.carrier.supervisor().cut() => Ok(()),
        };
        if let Err(bad) = ended {
            warn!(
                channel = self.key,
                "the server's datagrams cannot be read, so its session ends: {bad}"
            );
            self.carrier
                .sessions()
                .disconnect(self.lane, "the datagram stream is broken");
        }
    }
}

struct Peers<'a> {
    reverse: &'a Reverse,
    answers: mpsc::Sender<Datagram>,
    /// Shared by the sockets of this channel; used between two awaits only.
    scratch: Arc<Mutex<Vec<u8>>>,
    open: HashMap<String, Peer>,
    /// A probe of the server side that was answered.
    half: Option<HalfWay>,
}

struct Peer {
    datagrams: mpsc::Sender<Vec<u8>>,
    used: Instant,
    /// It ends by itself when `datagrams` is dropped, so that it is counted out.
    task: TaskHandle,
}

impl Peers<'_> {
    fn pass(&mut self, datagram: Datagram) {
        let Datagram { peer, payload } = datagram;
        if peer.is_empty() || payload.len() > MAX_PAYLOAD {
            debug!(
                peer,
                bytes = payload.len(),
                "a datagram that no socket can carry is dropped"
            );
            return;
        }
        if payload.len() == NONCE && self.is_probe(&peer, &payload) {
            return;
        }
        let payload = match self.open.get_mut(&peer) {
            Some(known) => {
                known.used = Instant::now();
                match known.datagrams.try_send(payload) {
                    Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => return,
                    // It fell silent and was forgotten.
                    Err(mpsc::error::TrySendError::Closed(payload)) => payload,
                }
            }
            None => payload,
        };
        let Some(route) = self.reverse.carrier.route(&self.reverse.key) else {
            // The forward was taken back while its session lives on for others.
            return;
        };
        if let Some(opened) = self.open(route, &peer) {
            opened.datagrams.try_send(payload).ok();
            self.open.insert(peer, opened);
        }
    }

    /// Answers a datagram that is a probe's; it reaches no target and is no connection.
    fn is_probe(&mut self, peer: &str, payload: &[u8]) -> bool {
        let carrier = &self.reverse.carrier;
        let Some(route) = carrier.route(&self.reverse.key) else {
            return false;
        };
        match carrier
            .proofs()
            .hear(&route.forward, peer, payload, &mut self.half)
        {
            Heard::User => false,
            Heard::Answer(payload) => {
                let peer = peer.to_owned();
                // No room is one more datagram that is lost.
                self.answers.try_send(Datagram { peer, payload }).ok();
                true
            }
            Heard::Proven(round_trip) => {
                route.counters.proof_trip.observe(round_trip.as_secs_f64());
                true
            }
        }
    }

    fn open(&mut self, route: Arc<Route>, peer: &str) -> Option<Peer> {
        let carrier = &self.reverse.carrier;
        if carrier.supervisor().is_draining() {
            route.counters.opened(Opened::Draining);
            return None;
        }
        self.make_room();
        let Some(room) = carrier.room() else {
            route.counters.opened(Opened::Limit);
            return None;
        };
        let (datagrams, receiver) = mpsc::channel(WAITING);
        let flow = Flow {
            carrier: carrier.clone(),
            lane: self.reverse.lane,
            route,
            peer: peer.to_owned(),
            datagrams: receiver,
            answers: self.answers.clone(),
            scratch: Arc::clone(&self.scratch),
            _room: room,
        };
        let task = carrier.supervisor().spawn("datagrams of a peer", flow.run());
        Some(Peer {
            datagrams,
            used: Instant::now(),
            task,
        })
    }

    fn make_room(&mut self) {
        if self.open.len() < MAX_PEERS {
            return;
        }
        self.open.retain(|_, peer| !peer.task.is_finished());
        if self.open.len() < MAX_PEERS {
            return;
        }
        let quietest = self.open.iter().min_by_key(|(_, peer)| peer.used);
        if let Some(peer) = quietest.map(|(peer, _)| peer.clone()) {
            self.open.remove(&peer);
        }
    }
}

/// What one peer and the target say to each other.
struct Flow {
    carrier: Carrier,
    lane: LaneId,
    route: Arc<Route>,
    peer: String,
    datagrams: mpsc::Receiver<Vec<u8>>,
    answers: mpsc::Sender<Datagram>,
    scratch: Arc<Mutex<Vec<u8>>>,
    _room: OwnedSemaphorePermit,
}

impl Flow {
    async fn run(mut self) {
        let Leads::Target(target) = self.route.leads.clone() else {
            return;
        };
        let carrier = self.carrier.clone();
        let guard = carrier
            .connections()
            .enter(self.lane, &self.route.forward, &target);
        let start = Instant::now();
        let reached = tokio::select! {
            reached = reach_datagrams(&target, carrier.never(), carrier.timing().target) => reached,
            () = guard.connection().close.cancelled() => return,
        };
        let counters = self.route.counters.clone();
        let socket = match reached {
            Ok(socket) => socket,
            Err(unreached) => {
                counters.opened(match unreached {
                    Unreached::Forbidden(_) | Unreached::NotAllowed(..) => Opened::Forbidden,
                    Unreached::Exhausted { .. } => Opened::Exhausted,
                    Unreached::Resolve { .. } | Unreached::Connect { .. } | Unreached::Timeout { .. } => {
                        Opened::TargetFailed
                    }
                });
                debug!(forward = self.route.forward, "target not reached: {unreached}");
                return;
            }
        };
        counters.dial.observe(start.elapsed().as_secs_f64());
        counters.opened(Opened::Accepted);
        counters.open.inc();
        self.exchange(&socket, &guard).await;
        counters.open.dec();
    }

    async fn exchange(&mut self, socket: &UdpSocket, guard: &Guard) {
        let supervisor = self.carrier.supervisor().clone();
        let mut last = Instant::now();
        loop {
            let draining = supervisor.is_draining();
            let idle = if draining { IDLE_DRAINING } else { IDLE };
            tokio::select! {
                received = self.datagrams.recv() => {
                    let Some(payload) = received else { return };
                    // A target that refused the last datagram says so here; the next one may find it up again.
                    if socket.send(&payload).await.is_ok() {
                        let bytes = u64::try_from(payload.len()).unwrap_or_default();
                        self.route.counters.bytes_in.inc_by(bytes);
                        guard.count(Direction::In, bytes);
                    }
                    last = Instant::now();
                }
                readable = socket.readable() => {
                    if readable.is_err() {
                        return;
                    }
                    if self.answer(socket, guard) {
                        last = Instant::now();
                    }
                }
                () = sleep_until(last + idle) => return,
                () = supervisor.draining(), if !draining => {}
                () = guard.connection().close.cancelled() => return,
                () = supervisor.cut() => return,
            }
        }
    }

    /// Sends on what the target answered; returns whether there was something.
    fn answer(&self, socket: &UdpSocket, guard: &Guard) -> bool {
        let payload = {
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            scratch.resize(LARGEST, 0);
            match socket.try_recv(&mut scratch) {
                Ok(size) => scratch.get(..size).unwrap_or_default().to_vec(),
                // Nothing yet, or the target refuses: both are silence to a peer.
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        debug!(
                            forward = self.route.forward,
                            "the target takes no datagrams: {error}"
                        );
                    }
                    return false;
                }
            }
        };
        let bytes = u64::try_from(payload.len()).unwrap_or_default();
        let answer = Datagram {
            peer: self.peer.clone(),
            payload,
        };
        if self.answers.try_send(answer).is_ok() {
            self.route.counters.bytes_out.inc_by(bytes);
            guard.count(Direction::Out, bytes);
        }
        true
    }
}
