//! What this process says about itself.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use proto::v1::{Build, Condition, ConditionStatus, ProxyReport, ProxyStatus};
use runtime::{
    build::BuildInfo,
    conditions::{self, Status},
    local::streams::Applied,
    supervise::Supervisor,
};
use tokio::sync::watch;

use crate::{doors::board::Board, engine::Engine, shared::Shared, streams::Counts};

/// Makes reports; clones share their numbering.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// What was built.
    pub build: BuildInfo,
    /// This run of the process.
    pub instance_id: String,
    /// Open calls.
    pub engine: Engine,
    /// Conditions and counters.
    pub shared: Shared,
    /// Doors.
    pub board: Board,
    /// Spec in force.
    pub applied: Applied,
    /// Digest of the HTTPS door's certificate.
    pub certificate_sha256: String,
    /// The apiserver.
    pub upstream: String,
    /// Says whether the process is on its way out.
    pub supervisor: Supervisor,
    /// Reports so far.
    pub sequence: Arc<AtomicU64>,
}

impl Reporter {
    /// The full status.
    pub fn report(&self) -> ProxyReport {
        let (applied_epoch, applied_revision) = self.applied.get();
        ProxyReport {
            instance_id: self.instance_id.clone(),
            sequence: self.sequence.fetch_add(1, Relaxed) + 1,
            build: Some(build(self.build)),
            ready: self.shared.conditions().ready(),
            conditions: self
                .shared
                .conditions()
                .snapshot()
                .into_iter()
                .map(condition)
                .collect(),
            status: Some(self.status()),
            applied_epoch,
            applied_revision,
            draining: self.supervisor.is_draining(),
        }
    }

    fn status(&self) -> ProxyStatus {
        let (counts, totals) = (self.figures(), self.shared.totals());
        let budget = self.engine.streams().budget();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        ProxyStatus {
            doors: self.board.list(),
            streams_open: small(counts.open),
            watches_open: small(counts.watches),
            requests_total: totals.requests,
            refused_total: totals.refused,
            certificate_sha256: self.certificate_sha256.clone(),
            read_only: self.shared.policy().read_only,
            upstream: self.upstream.clone(),
            rewatched_total: totals.rewatched,
            limits: Some(self.shared.limits().limits().to_proto()),
            waiting_bytes: budget.used() as u64,
            max_waiting_bytes: budget.limit() as u64,
        }
    }

    /// Figures whose change is worth a report.
    pub fn figures(&self) -> Counts {
        self.engine.streams().counts()
    }

    /// Rises with each change of a condition.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.conditions().subscribe()
    }
}

/// Build information in its wire form.
pub fn build(build: BuildInfo) -> Build {
    Build {
        name: build.name.to_owned(),
        version: build.version.to_owned(),
        git_commit: build.git_commit.to_owned(),
        rustc: build.rustc.to_owned(),
    }
}

fn condition(condition: conditions::Condition) -> Condition {
    let status = match condition.status {
        Status::True => ConditionStatus::True,
        Status::False => ConditionStatus::False,
        Status::NotApplicable => ConditionStatus::NotApplicable,
    };
    Condition {
        name: condition.name.to_owned(),
        status: status.into(),
        reason: condition.reason,
        since: Some(condition.since.into()),
    }
}
