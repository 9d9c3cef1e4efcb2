//! One lane, once: wait, open a session, serve it until it ends.
//!
//! ```text
//!   wait ─► open ─► serve: channels to the carrier, pings with a deadline ─► why it ended
//! ```
//!
//! What happens next is the manager's decision; a lane has no loop around itself.

use std::{future::pending, sync::Arc, time::Duration};

use chisel_ssh::{Algorithms, Fingerprint, Session, SessionEnd};
use runtime::supervise::{Supervisor, chain};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use super::open::{Endpoint, Failure, Opened, Rejected};
use crate::{
    carrier::Carrier, metrics::TunnelMetrics, plan::LaneId, remotes::Listen, spec::Liveness, timing::Timing,
};

/// An answer that is late while bytes arrive is waited for so many deadlines in all.
const MOST_DEADLINES: u32 = 6;
/// Bytes count as arriving when some came within this part of a deadline.
const SLICES: u32 = 4;

/// What a lane tells the manager while it lives.
#[derive(Debug)]
pub(super) enum Event {
    /// The wait is over.
    Opening(LaneId),
    /// The session is open.
    Up(LaneId, Box<Up>),
    /// A ping was answered.
    Pong(LaneId, Pong),
}

/// An answered ping, and what the session has done by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pong {
    pub(super) round_trip: Duration,
    pub(super) rekeys: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

/// An open session as the status shows it.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) listens: Vec<Listen>,
    pub(super) rejected: Vec<Rejected>,
    pub(super) fingerprint: Fingerprint,
    pub(super) algorithms: Algorithms,
    pub(super) key_changed: Option<String>,
    pub(super) handshake: Duration,
}

/// How a lane ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to, or the process drains.
    Stopped,
    /// No session came about.
    Failed(Failure),
    /// The session was lost.
    Lost {
        /// Why, for the operator.
        text: String,
        /// The label of the metric.
        cause: &'static str,
        /// How long it had lived.
        after: Duration,
    },
}

/// What a lane needs.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: LaneId,
    pub(super) listens: Vec<Listen>,
    pub(super) wait: Duration,
    pub(super) stop: CancellationToken,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) liveness: watch::Receiver<Liveness>,
    pub(super) carrier: Carrier,
    pub(super) metrics: TunnelMetrics,
    pub(super) supervisor: Supervisor,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) timing: Timing,
}

impl Run {
    /// Lives the lane to its end.
    pub(super) async fn run(mut self) -> (LaneId, End) {
        let (id, listens) = (self.id, std::mem::take(&mut self.listens));
        let (stop, supervisor) = (self.stop.clone(), self.supervisor.clone());
        let opened = tokio::select! {
            opened = self.open(listens) => opened,
            () = stop.cancelled() => return (id, End::Stopped),
            () = supervisor.draining() => return (id, End::Stopped),
        };
        let end = match opened {
            Ok((opened, took)) => self.serve(opened, took).await,
            Err(failure) => End::Failed(failure),
        };
        (id, end)
    }

    async fn open(&self, listens: Vec<Listen>) -> Result<(Opened, Duration), Failure> {
        sleep(self.wait).await;
        self.tell(Event::Opening(self.id)).await;
        let start = Instant::now();
        let span = info_span!("connect", server = %self.endpoint.link.server, lane = self.id);
        let opened = self.endpoint.open(listens).instrument(span).await?;
        let took = start.elapsed();
        self.metrics.handshake.observe(took.as_secs_f64());
        self.metrics
            .session(self.id)
            .handshake
            .observe(took.as_secs_f64());
        self.metrics.connects.inc();
        Ok((opened, took))
    }

    async fn serve(&self, opened: Opened, handshake: Duration) -> End {
        let Opened {
            session,
            mut events,
            driver,
            listens,
            rejected,
            key_changed,
        } = opened;
        let start = Instant::now();
        let (ended, mut end) = oneshot::channel();
        // Dropping the guard cuts the session, whatever happens here.
        let _driver = self
            .supervisor
            .spawn("chisel session", async move {
                ended.send(driver.await).ok();
            })
            .abort_on_drop();
        let (fingerprint, algorithms) = (session.fingerprint(), session.algorithms());
        let _entered = self.carrier.sessions().enter(self.id, session.clone(), &listens);
        let up = Up {
            listens,
            rejected,
            fingerprint,
            algorithms,
            key_changed,
            handshake,
        };
        self.tell(Event::Up(self.id, Box::new(up))).await;
        let dead = self.watch_pings(&session);
        let drained = self.drained();
        tokio::pin!(dead, drained);
        let mut open = true;
        loop {
            tokio::select! {
                offered = events.next(), if open => match offered {
                    Some(channel) => self.carrier.take(self.id, channel),
                    // The driver says why in a moment.
                    None => open = false,
                },
                end = &mut end => return lost(end.ok(), start.elapsed()),
                silent = &mut dead => {
                    let text = format!("the server did not answer a ping within {silent:?}: the link is dead");
                    return End::Lost { text, cause: "ping_timeout", after: start.elapsed() };
                }
                () = self.stop.cancelled() => return self.goodbye(&session, "the forwards changed", end).await,
                () = &mut drained => return self.goodbye(&session, "tunnel-sidecar is shutting down", end).await,
            }
        }
    }

    /// Pings for ever; returns how long the server was silent when it was silent for too long.
    ///
    /// An answer may queue behind bulk data on a slow link. While bytes still arrive when the deadline is over, the
    /// link is alive, so an answer that is late then is waited for, up to a bound. Bytes that were under way when the
    /// link died have arrived long before.
    async fn watch_pings(&self, session: &Session) -> Duration {
        let figures = self.metrics.session(self.id);
        loop {
            let Liveness {
                interval,
                timeout: deadline,
            } = *self.liveness.borrow();
            let start = Instant::now();
            let ping = session.ping();
            tokio::pin!(ping);
            let mut arrived = session.stats().bytes_in;
            let answer = loop {
                if let Ok(answer) = timeout(deadline / SLICES, &mut ping).await {
                    break answer;
                }
                let so_far = session.stats().bytes_in;
                let quiet = so_far == arrived;
                if (quiet && start.elapsed() >= deadline) || start.elapsed() >= deadline * MOST_DEADLINES {
                    return start.elapsed();
                }
                arrived = so_far;
            };
            if answer.is_err() {
                // The session is gone; the driver says why.
                return pending().await;
            }
            let round_trip = start.elapsed();
            self.metrics.round_trip.observe(round_trip.as_secs_f64());
            figures.round_trip.observe(round_trip.as_secs_f64());
            let stats = session.stats();
            figures
                .rekeys
                .set(i64::try_from(stats.rekeys).unwrap_or(i64::MAX));
            let pong = Pong {
                round_trip,
                rekeys: stats.rekeys,
                bytes_in: stats.bytes_in,
                bytes_out: stats.bytes_out,
            };
            self.tell(Event::Pong(self.id, pong)).await;
            sleep(interval).await;
        }
    }

    /// Resolves when the process drains and this lane's connections have ended or have to.
    async fn drained(&self) {
        self.supervisor.draining().await;
        tokio::select! {
            () = self.carrier.connections().idle(self.id) => {}
            () = self.supervisor.cut() => {}
        }
    }

    async fn goodbye(&self, session: &Session, reason: &str, end: oneshot::Receiver<SessionEnd>) -> End {
        session.disconnect(reason);
        timeout(self.timing.goodbye, end).await.ok();
        End::Stopped
    }

    async fn tell(&self, event: Event) {
        // The manager outlives its lanes; when it is gone, nobody needs to know.
        self.events.send(event).await.ok();
    }
}

fn lost(end: Option<SessionEnd>, after: Duration) -> End {
    let Some(end) = end else {
        return End::Lost {
            text: "the session was cut".to_owned(),
            cause: "cut",
            after,
        };
    };
    let cause = match &end {
        SessionEnd::Local => "local",
        SessionEnd::Peer { .. } => "peer",
        SessionEnd::Closed => "closed",
        SessionEnd::Io(_) => "io",
        SessionEnd::Protocol(_) => "protocol",
        // The enum may grow.
        SessionEnd::RekeyTimeout | _ => "rekey",
    };
    let text = chain(&end);
    End::Lost { text, cause, after }
}
