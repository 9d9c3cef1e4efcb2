//! The two streams to agent-core: desired state down, observed state up.
//!
//! A lost agent-core changes nothing here: the last spec stays in force for ever, and both streams are opened again
//! with full jitter.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::v1::{ProxyReport, ProxySpec, WatchSpecRequest, siblings_client::SiblingsClient};
use runtime::{
    backoff::{Backoff, Policy},
    conditions::Status,
    local::LocalChannel,
    supervise::Supervisor,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use crate::{
    doors::dial::Dialler,
    identity::Accepted,
    limits::Limits,
    report::Reporter,
    shared::{SPEC, Shared},
    streams::lock,
};

/// agent-core is in the same pod: it is back soon or not there at all.
const BACKOFF: Policy = Policy {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
    stable: Duration::from_secs(5),
};
/// A full report goes up at least so often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// How often figures that are no condition are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Which specs of a stream are applied. Pure.
#[derive(Clone, Debug, Default)]
pub struct SpecGate {
    /// Epoch and revision last applied on this stream; none before its first message.
    last: Option<(String, u64)>,
}

impl SpecGate {
    /// Whether this message is to be applied: the first of a stream always, then rising revisions. A new epoch
    /// within a stream is another agent-core behind the same address.
    pub fn admits(&mut self, spec: &ProxySpec) -> bool {
        let admitted = match &self.last {
            None => true,
            Some((epoch, revision)) => *epoch != spec.epoch || spec.revision > *revision,
        };
        if admitted {
            self.last = Some((spec.epoch.clone(), spec.revision));
        }
        admitted
    }
}

/// What was last applied, for reports.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    inner: Arc<Mutex<(String, u64)>>,
}

impl Applied {
    /// Epoch and revision.
    pub fn get(&self) -> (String, u64) {
        lock(&self.inner).clone()
    }
}

/// Puts specs into force.
#[derive(Debug)]
pub struct Applier {
    /// Who may knock, scope, conditions.
    pub shared: Shared,
    /// The dialled doors.
    pub dialler: Dialler,
    /// What was applied.
    pub applied: Applied,
}

impl Applier {
    /// Puts a spec into force. Equal content touches no connection.
    pub fn apply(&mut self, spec: &ProxySpec) {
        let (accepted, unusable) = Accepted::from_spec(&spec.accept);
        if !unusable.is_empty() {
            warn!(
                names = unusable.join(", "),
                "accepted tokens without a mode or a SHA-256 digest open nothing"
            );
        }
        info!(
            epoch = spec.epoch,
            revision = spec.revision,
            reason = spec.reason,
            accept = accepted.len(),
            dial = spec.dial.len(),
            "spec in force"
        );
        self.shared.set_scope(spec);
        self.shared.set_accepted(accepted);
        let asked = Limits::from_proto(spec.asked_limits.as_ref());
        self.shared
            .limits()
            .set(Limits::from_proto(spec.limits.as_ref()).lowered_by(asked));
        self.dialler.apply(&spec.dial);
        *lock(&self.applied.inner) = (spec.epoch.clone(), spec.revision);
        let reason = if spec.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", spec.reason)
        };
        self.shared
            .conditions()
            .set(SPEC, Status::True, format!("revision {}{reason}", spec.revision));
    }

    fn lost(&self, why: &str) {
        let (_, revision) = self.applied.get();
        let conditions = self.shared.conditions();
        if self.applied.get().0.is_empty() {
            conditions.set(SPEC, Status::False, format!("waiting for agent-core: {why}"));
        } else {
            conditions.set(
                SPEC,
                Status::True,
                format!("revision {revision}; agent-core is away: {why}"),
            );
        }
    }
}

/// Follows the desired state until the drain.
pub async fn follow_spec(
    channel: LocalChannel,
    instance_id: String,
    mut applier: Applier,
    supervisor: Supervisor,
) {
    let work = async {
        let mut backoff = Backoff::new(BACKOFF);
        loop {
            let started = Instant::now();
            let why = one_spec_stream(channel.clone(), instance_id.clone(), &mut applier).await;
            debug!(why, "the spec stream ended");
            applier.lost(&why);
            backoff.session_lasted(started.elapsed());
            sleep(backoff.next(None)).await;
        }
    };
    tokio::select! { () = work => {}, () = supervisor.draining() => {} }
}

async fn one_spec_stream(channel: LocalChannel, instance_id: String, applier: &mut Applier) -> String {
    let mut client = SiblingsClient::new(channel);
    let mut stream = match client.watch_proxy_spec(WatchSpecRequest { instance_id }).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    let mut gate = SpecGate::default();
    loop {
        match stream.message().await {
            Ok(Some(spec)) if gate.admits(&spec) => applier.apply(&spec),
            Ok(Some(spec)) => debug!(revision = spec.revision, "an older spec is left out"),
            Ok(None) => return "agent-core ended the stream".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

/// Reports until the drain; agent-core knows of that by itself.
pub async fn report(channel: LocalChannel, reporter: Reporter, supervisor: Supervisor) {
    let work = async {
        let mut backoff = Backoff::new(BACKOFF);
        loop {
            let started = Instant::now();
            let why = one_report_stream(channel.clone(), &reporter).await;
            debug!(why, "the report stream ended");
            backoff.session_lasted(started.elapsed());
            sleep(backoff.next(None)).await;
        }
    };
    tokio::select! { () = work => {}, () = supervisor.draining() => {} }
}

async fn one_report_stream(channel: LocalChannel, reporter: &Reporter) -> String {
    let mut client = SiblingsClient::new(channel);
    let (reports, queue) = mpsc::channel(1);
    // The first report is there before the call begins: servers answer with headers only once they read one.
    reports.send(reporter.report()).await.ok();
    let acks = async {
        let mut acks = match client.report_proxy(ReceiverStream::new(queue)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status.message().to_owned(),
        };
        loop {
            match acks.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "agent-core ended the stream".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    };
    tokio::select! {
        why = acks => why,
        () = feed(&reports, reporter) => "agent-core takes no more reports".to_owned(),
    }
}

async fn feed(reports: &mpsc::Sender<ProxyReport>, reporter: &Reporter) {
    let mut changes: watch::Receiver<u64> = reporter.changes();
    let mut looks = interval(LOOK_INTERVAL);
    let (mut sent, mut figures) = (Instant::now(), reporter.figures());
    loop {
        let due = tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            _ = looks.tick() => sent.elapsed() >= REPORT_INTERVAL || figures != reporter.figures(),
        };
        if due {
            (sent, figures) = (Instant::now(), reporter.figures());
            if reports.send(reporter.report()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(epoch: &str, revision: u64) -> ProxySpec {
        ProxySpec {
            epoch: epoch.to_owned(),
            revision,
            ..ProxySpec::default()
        }
    }

    #[test]
    fn the_first_message_of_a_stream_counts_and_then_rising_revisions() {
        let mut gate = SpecGate::default();
        let admitted: Vec<bool> = [
            spec("a", 7),
            spec("a", 7),
            spec("a", 6),
            spec("a", 8),
            spec("b", 1),
            spec("b", 1),
            spec("b", 2),
        ]
        .iter()
        .map(|spec| gate.admits(spec))
        .collect();
        assert_eq!(admitted, [true, false, false, true, true, false, true]);
        assert!(
            SpecGate::default().admits(&spec("a", 1)),
            "a new stream starts anew"
        );
    }
}
