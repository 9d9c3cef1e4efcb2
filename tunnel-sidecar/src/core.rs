//! The two streams with agent-core: desired state comes down, observed state goes up. How they live is
//! [`runtime::local::streams`]; what they carry is here.

use std::time::Duration;

use proto::v1::{ReportAck, TunnelReport, TunnelSpec, WatchSpecRequest, siblings_client::SiblingsClient};
use runtime::local::{
    LocalChannel,
    streams::{Desired, Observed},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    link::LinkHandle,
    never::Never,
    reach::is_ours,
    report::{Changes, Reporter},
    spec,
    targets::Places,
};

/// Receives the desired state.
#[derive(Debug)]
pub struct Specs {
    /// Calls agent-core.
    pub client: SiblingsClient<LocalChannel>,
    /// Names this run of the process.
    pub instance: String,
    /// Where named targets are.
    pub places: Places,
    /// What is never dialled.
    pub never: Never,
    /// Who acts on it.
    pub link: LinkHandle,
}

impl Desired for Specs {
    type Spec = TunnelSpec;

    async fn open(&mut self) -> Result<Streaming<TunnelSpec>, Status> {
        let request = WatchSpecRequest {
            instance_id: self.instance.clone(),
        };
        Ok(self.client.watch_tunnel_spec(request).await?.into_inner())
    }

    fn mark(spec: &TunnelSpec) -> (&str, u64, &str) {
        (&spec.epoch, spec.revision, &spec.reason)
    }

    async fn apply(&mut self, spec: TunnelSpec) {
        let desired = spec::read(&spec, &self.places, &self.never, is_ours);
        self.link.apply(desired).await;
    }
}

/// Sends the observed state.
#[derive(Debug)]
pub struct Reports {
    client: SiblingsClient<LocalChannel>,
    reporter: Reporter,
    changes: Changes,
    /// Changes within this time make one report.
    coalesce: Duration,
}

impl Reports {
    /// What `reporter` says goes to agent-core.
    pub fn new(client: SiblingsClient<LocalChannel>, reporter: Reporter, coalesce: Duration) -> Self {
        Self {
            client,
            changes: reporter.changes(),
            reporter,
            coalesce,
        }
    }
}

impl Observed for Reports {
    type Report = TunnelReport;
    type Ack = ReportAck;

    fn open(
        &mut self,
        reports: ReceiverStream<TunnelReport>,
    ) -> impl Future<Output = Result<Streaming<ReportAck>, Status>> + Send + use<> {
        let mut client = self.client.clone();
        async move { Ok(client.report_tunnel(reports).await?.into_inner()) }
    }

    fn report(&mut self) -> TunnelReport {
        self.reporter.report()
    }

    async fn changed(&mut self) {
        self.changes.next(self.coalesce).await;
    }
}
