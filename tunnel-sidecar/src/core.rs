//! The two streams with agent-core: desired state comes down, observed state goes up.
//!
//! A lost agent-core changes nothing here: the last spec is kept for ever, and both streams come back by themselves
//! with full jitter.

use std::{convert::Infallible, sync::Arc, time::Duration};

use proto::v1::{TunnelSpec, WatchSpecRequest, siblings_client::SiblingsClient};
use runtime::{
    backoff::Backoff,
    conditions::{Conditions, Status},
    local::LocalChannel,
    supervise::Supervisor,
};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

use crate::{
    link::LinkHandle,
    never::Never,
    reach::is_ours,
    report::{Applied, Reporter},
    spec,
    targets::Places,
    timing::Timing,
};

/// Whether the desired state is known.
const SPEC: &str = "Spec";
/// One report under way at a time: an older one is worth nothing once there is a newer one.
const REPORTS: usize = 1;
/// agent-core answers each report at once; what takes longer is stuck, and a new stream is better.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);

/// Receives the desired state.
#[derive(Debug)]
pub struct SpecStream {
    /// Calls agent-core.
    pub client: SiblingsClient<LocalChannel>,
    /// Where agent-core is, for texts.
    pub address: String,
    /// Names this run of the process.
    pub instance: String,
    /// Where named targets are.
    pub places: Places,
    /// What is never dialled.
    pub never: Never,
    /// Who acts on it.
    pub link: LinkHandle,
    /// What was applied last.
    pub applied: Arc<Applied>,
    /// Whether we are ready.
    pub conditions: Conditions,
    /// Ends the stream with the process.
    pub supervisor: Supervisor,
    /// Durations.
    pub timing: Timing,
}

impl SpecStream {
    /// Receives until the process drains.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), Infallible> {
        self.conditions.set(
            SPEC,
            Status::False,
            format!("waiting for agent-core at {}", self.address),
        );
        let supervisor = self.supervisor.clone();
        tokio::select! {
            never = self.receive_for_ever() => match never {},
            () = supervisor.draining() => Ok(()),
        }
    }

    async fn receive_for_ever(&mut self) -> Infallible {
        let mut backoff = Backoff::new(self.timing.core);
        loop {
            let start = Instant::now();
            let request = WatchSpecRequest {
                instance_id: self.instance.clone(),
            };
            let why = match self.client.watch_tunnel_spec(request).await {
                Ok(stream) => self.receive(stream.into_inner()).await,
                Err(status) => said(&status),
            };
            self.away(&why);
            backoff.session_lasted(start.elapsed());
            sleep(backoff.next(None)).await;
        }
    }

    /// Applies the first message of the stream whatever it is, then rising revisions of its epoch.
    async fn receive(&mut self, mut stream: Streaming<TunnelSpec>) -> String {
        let mut last: Option<(String, u64)> = None;
        loop {
            match stream.message().await {
                Ok(Some(spec)) => {
                    if is_news(last.as_ref(), &spec) {
                        last = Some((spec.epoch.clone(), spec.revision));
                        self.apply(&spec).await;
                    }
                }
                Ok(None) => return "it ended the stream".to_owned(),
                Err(status) => return said(&status),
            }
        }
    }

    async fn apply(&self, spec: &TunnelSpec) {
        let desired = spec::read(spec, &self.places, &self.never, is_ours);
        self.link.apply(desired).await;
        self.applied.send_replace((spec.epoch.clone(), spec.revision));
        let text = format!("revision {} of agent-core's epoch {}", spec.revision, spec.epoch);
        info!("applied {text}");
        self.conditions.set(SPEC, Status::True, text);
    }

    fn away(&self, why: &str) {
        let (epoch, revision) = self.applied.borrow().clone();
        if epoch.is_empty() {
            self.conditions.set(
                SPEC,
                Status::False,
                format!("waiting for agent-core at {}: {why}", self.address),
            );
        } else {
            let text = format!("revision {revision} of epoch {epoch} is kept; agent-core is away: {why}");
            self.conditions.set(SPEC, Status::True, text);
        }
    }
}

/// Whether a message of a stream is to be applied after `last`.
fn is_news(last: Option<&(String, u64)>, spec: &TunnelSpec) -> bool {
    match last {
        None => true,
        // A new epoch within a stream cannot be; if it is, it is agent-core's newest word.
        Some((epoch, _)) if *epoch != spec.epoch => true,
        Some((_, revision)) => spec.revision > *revision,
    }
}

fn said(status: &tonic::Status) -> String {
    if status.code() == Code::Unavailable && status.message().is_empty() {
        return "it is not reachable".to_owned();
    }
    format!("{} ({:?})", status.message(), status.code())
}

/// Sends the observed state.
#[derive(Debug)]
pub struct ReportStream {
    /// Calls agent-core.
    pub client: SiblingsClient<LocalChannel>,
    /// Makes the reports.
    pub reporter: Reporter,
    /// Cancelled when the last report was worth sending.
    pub done: CancellationToken,
    /// Durations.
    pub timing: Timing,
}

impl ReportStream {
    /// Reports until `done`.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let done = self.done.clone();
        let mut last = String::new();
        let mut backoff = Backoff::new(self.timing.core);
        loop {
            let start = Instant::now();
            let why = tokio::select! {
                why = self.stream() => why,
                () = done.cancelled() => return Ok(()),
            };
            backoff.session_lasted(start.elapsed());
            let wait = backoff.next(None);
            // Once is news; agent-core may be away for hours.
            if why == last {
                debug!(retry_in = ?wait, "agent-core still does not take reports");
            } else {
                warn!(retry_in = ?wait, "agent-core does not take reports: {why}");
                last = why;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = done.cancelled() => return Ok(()),
            }
        }
    }

    /// One stream: a full report at once, on each change, and at the interval.
    async fn stream(&mut self) -> String {
        let (sender, receiver) = mpsc::channel(REPORTS);
        let (reporter, timing) = (&self.reporter, self.timing);
        let acknowledged = async {
            let mut acks = match self.client.report_tunnel(ReceiverStream::new(receiver)).await {
                Ok(acks) => acks.into_inner(),
                Err(status) => return said(&status),
            };
            loop {
                match tokio::time::timeout(ACK_TIMEOUT, acks.message()).await {
                    Ok(Ok(Some(_))) => {}
                    Ok(Ok(None)) => return "it ended the stream".to_owned(),
                    Ok(Err(status)) => return said(&status),
                    Err(_) => return format!("no acknowledgement for {ACK_TIMEOUT:?}"),
                }
            }
        };
        let sent = async {
            let mut changes = reporter.changes();
            let mut tick = interval(timing.report);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            tick.tick().await;
            while sender.send(reporter.report()).await.is_ok() {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = changes.next(timing.coalesce) => {}
                }
            }
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
    fn the_first_message_counts_and_then_only_rising_revisions() {
        let spec = |epoch: &str, revision| TunnelSpec {
            epoch: epoch.to_owned(),
            revision,
            ..TunnelSpec::default()
        };
        let last = ("e".to_owned(), 5);
        assert!(is_news(None, &spec("e", 0)));
        assert!(is_news(Some(&last), &spec("e", 6)));
        assert!(!is_news(Some(&last), &spec("e", 5)));
        assert!(!is_news(Some(&last), &spec("e", 4)));
        assert!(is_news(Some(&last), &spec("f", 1)));
    }
}
