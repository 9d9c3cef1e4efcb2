//! Bytes between a channel and a socket without a copy of ours in between.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use chisel_ssh::{Channel, Sink};
use prometheus::{Histogram, IntCounter};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, timeout},
};

use super::{Arrival, Carrier};
use crate::{
    connections::{Direction, Guard, Meter},
    limits::Limiter,
    metrics::Counters,
    shaped::Shaped,
};

impl Carrier {
    /// Copies a connection of a listener of ours, which has no limits.
    pub(crate) async fn copy_local(
        &self,
        channel: Channel,
        tcp: TcpStream,
        guard: &Guard,
        counters: &Counters,
    ) {
        let flow = Shaped {
            guard,
            counters,
            limiter: &Limiter::default(),
        };
        self.copy_direct(channel, tcp, &flow).await;
    }

    /// Copies both ways until either side ends: directly, unless bytes have to wait for a rate or were read already.
    pub(super) async fn copy(
        &self,
        arrival: Arrival,
        tcp: TcpStream,
        guard: &Guard,
        counters: &Counters,
        limiter: &Limiter,
    ) {
        let (channel, first) = arrival.accept();
        let flow = Shaped {
            guard,
            counters,
            limiter,
        };
        if first.is_empty() && !limiter.has_rates() {
            self.copy_direct(channel, tcp, &flow).await;
            return;
        }
        let inner = &self.inner;
        flow.copy(channel, &first, tcp, inner.timing.linger).await;
    }

    async fn copy_direct(&self, channel: Channel, tcp: TcpStream, flow: &Shaped<'_>) {
        let (inner, guard, counters) = (&self.inner, flow.guard, flow.counters);
        let (mut from_target, to_target) = tcp.into_split();
        let target = Arc::new(Target {
            socket: to_target,
            meter: guard.meter(),
            bytes_in: counters.bytes_in.clone(),
            stalls: counters.stalls_in.clone(),
            since: Mutex::default(),
        });
        channel.attach(target.clone());
        let server_ended = {
            let inward = poll_fn(|cx| channel.poll_drain(cx, &*target));
            let outward = async {
                loop {
                    match poll_fn(|cx| channel.poll_send_from(cx, Pin::new(&mut from_target))).await {
                        Ok(0) => {
                            channel.close();
                            return Ok(());
                        }
                        Ok(n) => {
                            let bytes = u64::try_from(n).unwrap_or_default();
                            counters.bytes_out.inc_by(bytes);
                            guard.count(Direction::Out, bytes);
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            flow.until_ended(inward, outward, inner.timing.linger).await
        };
        // The last owner of the writing half ends it towards the target.
        channel.detach();
        drop(target);
        if server_ended {
            // The server has forgotten the channel, so there is nobody to send to. But a socket closed with unread
            // bytes in it is reset, and a reset takes from the target what it has not read yet.
            read_out(&mut from_target, inner.timing.linger).await;
        }
        // Dropping both ends closes the channel once and the socket.
    }
}

/// Reads what still comes, for nobody, until there is no more or `patience` is over.
async fn read_out(from: &mut OwnedReadHalf, patience: Duration) {
    let all = poll_fn(|cx| {
        loop {
            let mut space = [0; 1024];
            let mut scrap = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut *from).poll_read(cx, &mut scrap)) {
                Ok(()) if !scrap.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    });
    timeout(patience, all).await.ok();
}

/// The writing half of a target: what the server sends goes there without a copy of ours in between.
#[derive(Debug)]
struct Target {
    socket: OwnedWriteHalf,
    meter: Meter,
    bytes_in: IntCounter,
    stalls: Histogram,
    /// Since when it does not read.
    since: Mutex<Option<Instant>>,
}

impl Sink for Target {
    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        let written = self.socket.try_write(data);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_err() {
            since.get_or_insert_with(Instant::now);
        } else if let Some(since) = since.take() {
            self.stalls.observe(since.elapsed().as_secs_f64());
        }
        drop(since);
        let n = written?;
        let bytes = u64::try_from(n).unwrap_or_default();
        self.bytes_in.inc_by(bytes);
        self.meter.count(Direction::In, bytes);
        Ok(n)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_ref().poll_write_ready(cx)
    }
}
