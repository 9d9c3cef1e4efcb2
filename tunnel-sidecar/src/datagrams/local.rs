//! Our own peers: what they send goes to the server, and what it answers to the one it names.

use std::{collections::HashMap, io, net::SocketAddr};

use chisel_ssh::Channel;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UdpSocket,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use super::{
    IDLE, LARGEST, MAX_PEERS,
    gob::{BadStream, Datagram, Decoder, Encoder},
};
use crate::{
    carrier::Carrier,
    metrics::{Counters, Opened},
    plan::LaneId,
    remotes::Listen,
};

/// How soon a channel that the server closed is opened again. It closes one when its target refuses a datagram.
const REOPEN: std::time::Duration = std::time::Duration::from_millis(50);

/// One UDP listener of ours.
pub(crate) struct Local {
    pub(crate) carrier: Carrier,
    pub(crate) listen: Listen,
    pub(crate) counters: Counters,
}

impl Local {
    /// Carries datagrams of `socket` until the process ends or the forward is taken back.
    pub(crate) async fn run(&self, socket: &UdpSocket) {
        let target = self.listen.channel_target();
        loop {
            let (lane, session) = self.carrier.sessions().wait(&self.listen.name).await;
            match session.open(&target).await {
                Ok(channel) => {
                    self.counters.opened(Opened::Accepted);
                    if let Err(bad) = self.exchange(socket, channel).await {
                        self.broken(lane, &bad);
                    }
                }
                Err(error) => {
                    self.counters.opened(Opened::TargetFailed);
                    debug!(forward = self.listen.name, "no channel for datagrams: {error}");
                }
            }
            sleep(REOPEN).await;
        }
    }

    fn broken(&self, lane: LaneId, bad: &BadStream) {
        warn!(
            forward = self.listen.name,
            "the server's datagrams cannot be read, so its session ends: {bad}"
        );
        self.carrier
            .sessions()
            .disconnect(lane, "the datagram stream is broken");
    }

    async fn exchange(&self, socket: &UdpSocket, channel: Channel) -> Result<(), BadStream> {
        let (mut from_server, mut to_server) = tokio::io::split(channel);
        // Only who asked is answered: the server may name any address.
        let peers = std::sync::Mutex::new(HashMap::<SocketAddr, Instant>::new());
        let known = |peer: SocketAddr| {
            let mut peers = peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            peers.get_mut(&peer).is_some_and(|used| {
                let fresh = used.elapsed() < IDLE;
                *used = Instant::now();
                fresh
            })
        };
        let outward = async {
            let mut encoder = Encoder::default();
            let mut piece = vec![0; LARGEST];
            loop {
                let (size, peer) = match socket.recv_from(&mut piece).await {
                    Ok(received) => received,
                    // An earlier answer was refused; the socket itself is well.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(error) => {
                        debug!(forward = self.listen.name, "cannot receive: {error}");
                        sleep(REOPEN).await;
                        continue;
                    }
                };
                note(
                    &mut peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
                    peer,
                );
                let bytes = encoder.encode(&peer.to_string(), piece.get(..size).unwrap_or_default());
                if to_server.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
                self.counters
                    .bytes_out
                    .inc_by(u64::try_from(size).unwrap_or_default());
                self.carrier.connections().active();
            }
        };
        let inward = async {
            let mut decoder = Decoder::default();
            let mut piece = vec![0; 32 * 1024];
            loop {
                let size = from_server.read(&mut piece).await.unwrap_or_default();
                if size == 0 {
                    return Ok(());
                }
                decoder.push(piece.get(..size).unwrap_or_default());
                while let Some(Datagram { peer, payload }) = decoder.next_datagram()? {
                    let Some(peer) = peer.parse().ok().filter(|peer| known(*peer)) else {
                        debug!(
                            forward = self.listen.name,
                            peer, "an answer for somebody who did not ask is dropped"
                        );
                        continue;
                    };
                    if socket.try_send_to(&payload, peer).is_ok() {
                        self.counters
                            .bytes_in
                            .inc_by(u64::try_from(payload.len()).unwrap_or_default());
                        self.carrier.connections().active();
                    }
                }
            }
        };
        tokio::select! {
            ended = outward => ended,
            ended = inward => ended,
        }
    }
}

/// Remembers who asked; the one that was silent for the longest time makes room.
fn note(peers: &mut HashMap<SocketAddr, Instant>, peer: SocketAddr) {
    if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
        peers.retain(|_, used| used.elapsed() < IDLE);
        if peers.len() >= MAX_PEERS
            && let Some(quietest) = peers.iter().min_by_key(|(_, used)| **used).map(|(peer, _)| *peer)
        {
            peers.remove(&quietest);
        }
    }
    peers.insert(peer, Instant::now());
}
