//! A connection whose bytes have to wait: for the rate of its forward, or because some were read to find out whose it
//! is. Everything else goes directly, see [`crate::carrier`].

use std::{future::pending, io, time::Duration};

use chisel_ssh::Channel;
use prometheus::Histogram;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tracing::debug;

use crate::{
    connections::{Direction, Guard},
    limits::Limiter,
    metrics::Counters,
    spans::timed,
};

/// The largest data message of the server.
const SIZE: usize = 32 * 1024;

/// What a connection pays into.
#[derive(Debug)]
pub(crate) struct Shaped<'a> {
    pub(crate) guard: &'a Guard,
    pub(crate) counters: &'a Counters,
    pub(crate) limiter: &'a Limiter,
}

impl Shaped<'_> {
    /// Copies both ways until either side ends.
    pub(crate) async fn copy(&self, channel: Channel, first: &[u8], mut tcp: TcpStream, linger: Duration) {
        let (mut from_server, mut to_server) = tokio::io::split(channel);
        let (mut from_target, mut to_target) = tcp.split();
        let server_ended = {
            let inward = async {
                if !first.is_empty() {
                    to_target.write_all(first).await?;
                    self.passed(Direction::In, first.len()).await;
                }
                self.pump(&mut from_server, &mut to_target, Direction::In).await
            };
            let outward = async {
                self.pump(&mut from_target, &mut to_server, Direction::Out)
                    .await?;
                to_server.shutdown().await
            };
            self.until_ended(inward, outward, linger).await
        };
        if server_ended {
            // As in the direct way: a socket closed with unread bytes in it is reset.
            to_target.shutdown().await.ok();
            let mut sink = tokio::io::sink();
            timeout(linger, tokio::io::copy(&mut from_target, &mut sink))
                .await
                .ok();
        }
    }

    /// Lives both halves of a connection until it is over; returns whether the server ended it.
    pub(crate) async fn until_ended(
        &self,
        inward: impl Future<Output = io::Result<()>>,
        outward: impl Future<Output = io::Result<()>>,
        linger: Duration,
    ) -> bool {
        let outward = async {
            match outward.await {
                // The server has closed. What it sent before is still on its way to the target, and `inward` says when
                // it is there.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => pending().await,
                ended => ended,
            }
        };
        tokio::pin!(inward, outward);
        tokio::select! {
            // In the order of how often they are why this is looked at.
            biased;
            ended = &mut inward => ended.is_ok(),
            ended = &mut outward => {
                if ended.is_ok() {
                    timeout(linger, inward).await.ok();
                }
                false
            }
            () = self.guard.connection().close.cancelled() => false,
            idle = self.limiter.silent_for_too_long(|| self.guard.connection().idle()) => {
                let forward = &self.guard.connection().forward;
                debug!(forward, ?idle, "connection closed because nothing moved on it");
                self.counters.idle_closed.inc();
                false
            }
        }
    }

    async fn pump(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        direction: Direction,
    ) -> io::Result<()> {
        let mut space = vec![0; SIZE];
        loop {
            let length = from.read(&mut space).await?;
            if length == 0 {
                return to.flush().await;
            }
            let bytes = space.get(..length).unwrap_or_default();
            timed(to.write_all(bytes), self.stalls(direction)).await?;
            self.passed(direction, length).await;
        }
    }

    fn stalls(&self, direction: Direction) -> &Histogram {
        match direction {
            Direction::In => &self.counters.stalls_in,
            Direction::Out => &self.counters.stalls_out,
        }
    }

    async fn passed(&self, direction: Direction, length: usize) {
        let bytes = u64::try_from(length).unwrap_or_default();
        match direction {
            Direction::In => self.counters.bytes_in.inc_by(bytes),
            Direction::Out => self.counters.bytes_out.inc_by(bytes),
        }
        self.guard.count(direction, bytes);
        self.limiter.pay(direction, bytes).await;
    }
}
