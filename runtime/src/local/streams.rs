//! The two streams of a process with the one that hands out desired state: that comes down, observed state goes up.
//!
//! ```text
//!   WatchSpec ──► Gate ──► Desired::apply          first message of a stream, then rising revisions
//!   Report    ◄── Observed::report                 at once, on each change, when the drain begins, and at a pace
//! ```
//!
//! A lost peer changes nothing: what was applied last is kept for ever, and both streams are opened again with full
//! jitter. What the messages are is the caller's.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use crate::{
    backoff::{Backoff, Policy},
    conditions::{Conditions, Status as Known},
    supervise::Supervisor,
};

/// One report under way at a time: an older one is worth nothing once there is a newer one.
const REPORTS: usize = 1;
/// The peer answers each report at once; what takes longer is stuck, and a new stream is better.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);

/// How often things happen.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two streams.
    pub retry: Policy,
    /// A full report at least so often.
    pub report: Duration,
}

impl Default for Pace {
    /// Retries from 100 ms to 5 s with full jitter. Reports every 8 s: the peer is promised one in 10 s and calls us
    /// unknown after 25 s.
    fn default() -> Self {
        Self {
            retry: Policy {
                min: Duration::from_millis(100),
                max: Duration::from_secs(5),
                stable: Duration::from_secs(5),
            },
            report: Duration::from_secs(8),
        }
    }
}

/// Which specs of a stream are applied. Pure.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    last: Option<(String, u64)>,
}

impl Gate {
    /// Whether this message is to be applied: the first of a stream always, then rising revisions. A new epoch within
    /// a stream is another peer behind the same address, and its newest word.
    pub fn admits(&mut self, epoch: &str, revision: u64) -> bool {
        let admitted = match &self.last {
            None => true,
            Some((last, before)) => last != epoch || revision > *before,
        };
        if admitted {
            self.last = Some((epoch.to_owned(), revision));
        }
        admitted
    }
}

/// Epoch and revision that were applied last; clones share them.
#[derive(Clone, Debug)]
pub struct Applied {
    last: Arc<watch::Sender<(String, u64)>>,
}

impl Default for Applied {
    fn default() -> Self {
        let (last, _) = watch::channel((String::new(), 0));
        Self { last: Arc::new(last) }
    }
}

impl Applied {
    /// Epoch and revision; an empty epoch means that nothing was applied yet.
    pub fn get(&self) -> (String, u64) {
        self.last.borrow().clone()
    }

    /// Notes what was applied.
    pub fn set(&self, epoch: &str, revision: u64) {
        self.last.send_replace((epoch.to_owned(), revision));
    }

    /// Its changes.
    pub fn subscribe(&self) -> watch::Receiver<(String, u64)> {
        self.last.subscribe()
    }
}

/// Desired state as one kind of process knows it.
pub trait Desired: Send {
    /// The message.
    type Spec: Send;

    /// Opens the stream.
    fn open(&mut self) -> impl Future<Output = Result<Streaming<Self::Spec>, Status>> + Send;
    /// Epoch, revision and reason of a message.
    fn mark(spec: &Self::Spec) -> (&str, u64, &str);
    /// Puts a message into force. Equal content must touch nothing that is open.
    fn apply(&mut self, spec: Self::Spec) -> impl Future<Output = ()> + Send;
}

/// Follows the desired state.
#[derive(Debug)]
pub struct Follow<D> {
    /// Opens, reads and applies.
    pub desired: D,
    /// The peer's name and address, for people.
    pub peer: String,
    /// What was applied.
    pub applied: Applied,
    /// Where `Spec` says whether the desired state is known.
    pub conditions: Conditions,
    /// Ends it with the process.
    pub supervisor: Supervisor,
    /// How often it is tried.
    pub pace: Pace,
}

/// The condition that the desired state is known.
pub const SPEC: &str = "Spec";

impl<D: Desired> Follow<D> {
    /// Follows until the drain.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), Infallible> {
        self.conditions
            .set(SPEC, Known::False, format!("waiting for {}", self.peer));
        let supervisor = self.supervisor.clone();
        tokio::select! {
            never = self.for_ever() => match never {},
            () = supervisor.draining() => Ok(()),
        }
    }

    async fn for_ever(&mut self) -> Infallible {
        let mut backoff = Backoff::new(self.pace.retry);
        loop {
            let start = Instant::now();
            let why = match self.desired.open().await {
                Ok(stream) => self.receive(stream).await,
                Err(status) => said(&status),
            };
            debug!(why, "the spec stream ended");
            self.away(&why);
            backoff.session_lasted(start.elapsed());
            sleep(backoff.next(None)).await;
        }
    }

    async fn receive(&mut self, mut stream: Streaming<D::Spec>) -> String {
        let mut gate = Gate::default();
        loop {
            let spec = match stream.message().await {
                Ok(Some(spec)) => spec,
                Ok(None) => return "it ended the stream".to_owned(),
                Err(status) => return said(&status),
            };
            let (epoch, revision, reason) = D::mark(&spec);
            if !gate.admits(epoch, revision) {
                debug!(revision, "an older spec is left out");
                continue;
            }
            let epoch = epoch.to_owned();
            let mut text = format!("revision {revision} of epoch {epoch}");
            if !reason.is_empty() {
                text.push_str(": ");
                text.push_str(reason);
            }
            self.desired.apply(spec).await;
            self.applied.set(&epoch, revision);
            info!("spec in force: {text}");
            self.conditions.set(SPEC, Known::True, text);
        }
    }

    fn away(&self, why: &str) {
        let (epoch, revision) = self.applied.get();
        let (known, text) = if epoch.is_empty() {
            (Known::False, format!("waiting for {}: {why}", self.peer))
        } else {
            let text = format!(
                "revision {revision} of epoch {epoch} is kept; {} is away: {why}",
                self.peer
            );
            (Known::True, text)
        };
        self.conditions.set(SPEC, known, text);
    }
}

fn said(status: &Status) -> String {
    if status.code() == Code::Unavailable && status.message().is_empty() {
        return "it is not reachable".to_owned();
    }
    format!("{} ({:?})", status.message(), status.code())
}

/// Observed state as one kind of process tells it.
pub trait Observed: Send {
    /// The message.
    type Report: Send + 'static;
    /// What the peer answers to each.
    type Ack: Send;

    /// Opens the stream.
    fn open(
        &mut self,
        reports: ReceiverStream<Self::Report>,
    ) -> impl Future<Output = Result<Streaming<Self::Ack>, Status>> + Send + use<Self>;
    /// The full status of this moment.
    fn report(&mut self) -> Self::Report;
    /// Resolves when something has changed since the last report. It is dropped and called again at will.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Tells the observed state.
#[derive(Debug)]
pub struct Tell<O> {
    /// Makes the reports.
    pub observed: O,
    /// The peer's name, for people.
    pub peer: String,
    /// Cancelled when nothing is left to be told; until then reports go on through the drain, so that the peer knows
    /// how far it is and can leave last.
    pub done: CancellationToken,
    /// Says when the drain begins, which is worth a report.
    pub supervisor: Supervisor,
    /// How often it is told and tried.
    pub pace: Pace,
}

impl<O: Observed> Tell<O> {
    /// Reports until `done`, or the cut.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let (done, supervisor) = (self.done.clone(), self.supervisor.clone());
        tokio::select! {
            never = self.for_ever() => match never {},
            () = done.cancelled() => Ok(()),
            () = supervisor.cut() => Ok(()),
        }
    }

    async fn for_ever(&mut self) -> Infallible {
        let mut last = String::new();
        let mut backoff = Backoff::new(self.pace.retry);
        loop {
            let start = Instant::now();
            let why = self.stream().await;
            backoff.session_lasted(start.elapsed());
            let wait = backoff.next(None);
            // Once is news; the peer may be away for hours.
            if why == last {
                debug!(retry_in = ?wait, "{} still does not take reports", self.peer);
            } else {
                warn!(retry_in = ?wait, "{} does not take reports: {why}", self.peer);
                last = why;
            }
            sleep(wait).await;
        }
    }

    /// One stream.
    async fn stream(&mut self) -> String {
        let (sender, receiver) = mpsc::channel(REPORTS);
        // The first report is there before the call begins: servers answer with headers only once they read one.
        sender.send(self.observed.report()).await.ok();
        let open = self.observed.open(ReceiverStream::new(receiver));
        let acknowledged = async {
            let mut acks = match open.await {
                Ok(acks) => acks,
                Err(status) => return said(&status),
            };
            loop {
                match timeout(ACK_TIMEOUT, acks.message()).await {
                    Ok(Ok(Some(_))) => {}
                    Ok(Ok(None)) => return "it ended the stream".to_owned(),
                    Ok(Err(status)) => return said(&status),
                    Err(_) => return format!("no acknowledgement for {ACK_TIMEOUT:?}"),
                }
            }
        };
        let (observed, supervisor) = (&mut self.observed, &self.supervisor);
        let pace = self.pace.report;
        let sent = async {
            let mut told_drain = supervisor.is_draining();
            let mut tick = interval(pace);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            tick.tick().await;
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = observed.changed() => {}
                    () = supervisor.draining(), if !told_drain => told_drain = true,
                }
                if sender.send(observed.report()).await.is_err() {
                    return;
                }
            }
        };
        let sent = async {
            sent.await;
            // The call has ended; its own end says why.
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            why = acknowledged => why,
            never = sent => match never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_of_a_stream_counts_and_then_rising_revisions() {
        let mut gate = Gate::default();
        let admitted: Vec<bool> = [
            ("a", 7),
            ("a", 7),
            ("a", 6),
            ("a", 8),
            ("b", 1),
            ("b", 1),
            ("b", 2),
        ]
        .iter()
        .map(|(epoch, revision)| gate.admits(epoch, *revision))
        .collect();
        assert_eq!(admitted, [true, false, false, true, true, false, true]);
        assert!(Gate::default().admits("a", 1), "a new stream starts anew");
    }

    #[test]
    fn what_a_peer_said_is_never_empty() {
        assert_eq!(said(&Status::unavailable("")), "it is not reachable");
        assert_eq!(
            said(&Status::aborted("a newer stream")),
            "a newer stream (Aborted)"
        );
    }
}
