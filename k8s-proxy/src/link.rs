//! The two streams to agent-core: desired state down, observed state up. How they live is
//! [`runtime::local::streams`]; what they carry is here.

use std::time::Duration;

use proto::v1::{ProxyReport, ProxySpec, ReportAck, WatchSpecRequest, siblings_client::SiblingsClient};
use runtime::local::{
    LocalChannel,
    streams::{Desired, Observed},
};
use tokio::{sync::watch, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::{
    doors::dial::Dialler, identity::Accepted, limits::Limits, report::Reporter, shared::Shared,
    streams::Counts,
};

/// How often figures that are no condition are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Puts specs into force.
#[derive(Debug)]
pub struct Specs {
    /// Calls agent-core.
    pub client: SiblingsClient<LocalChannel>,
    /// Names this run of the process.
    pub instance: String,
    /// Who may knock, scope, conditions.
    pub shared: Shared,
    /// The dialled doors.
    pub dialler: Dialler,
}

impl Desired for Specs {
    type Spec = ProxySpec;

    async fn open(&mut self) -> Result<Streaming<ProxySpec>, Status> {
        let request = WatchSpecRequest {
            instance_id: self.instance.clone(),
        };
        Ok(self.client.watch_proxy_spec(request).await?.into_inner())
    }

    fn mark(spec: &ProxySpec) -> (&str, u64, &str) {
        (&spec.epoch, spec.revision, &spec.reason)
    }

    async fn apply(&mut self, spec: ProxySpec) {
        let (accepted, unusable) = Accepted::from_spec(&spec.accept);
        if !unusable.is_empty() {
            warn!(
                names = unusable.join(", "),
                "accepted tokens without a mode or a SHA-256 digest open nothing"
            );
        }
        debug!(accept = accepted.len(), dial = spec.dial.len(), "doors of a spec");
        self.shared.set_scope(&spec);
        self.shared.set_accepted(accepted);
        let asked = Limits::from_proto(spec.asked_limits.as_ref());
        self.shared
            .limits()
            .set(Limits::from_proto(spec.limits.as_ref()).lowered_by(asked));
        self.dialler.apply(&spec.dial);
    }
}

/// Sends the observed state.
#[derive(Debug)]
pub struct Reports {
    client: SiblingsClient<LocalChannel>,
    reporter: Reporter,
    changes: watch::Receiver<u64>,
    /// Figures of the last report.
    told: Counts,
}

impl Reports {
    /// What `reporter` says goes to agent-core.
    pub fn new(client: SiblingsClient<LocalChannel>, reporter: Reporter) -> Self {
        Self {
            client,
            changes: reporter.changes(),
            told: reporter.figures(),
            reporter,
        }
    }
}

impl Observed for Reports {
    type Report = ProxyReport;
    type Ack = ReportAck;

    fn open(
        &mut self,
        reports: ReceiverStream<ProxyReport>,
    ) -> impl Future<Output = Result<Streaming<ReportAck>, Status>> + Send + use<> {
        let mut client = self.client.clone();
        async move { Ok(client.report_proxy(reports).await?.into_inner()) }
    }

    fn report(&mut self) -> ProxyReport {
        self.told = self.reporter.figures();
        self.reporter.report()
    }

    async fn changed(&mut self) {
        let figures = async {
            while self.told == self.reporter.figures() {
                sleep(LOOK_INTERVAL).await;
            }
        };
        // The sender lives in the process's own state, so it never fails while somebody waits.
        tokio::select! {
            _ = self.changes.changed() => {}
            () = figures => {}
        }
    }
}
