//! The full status as one message, for agent-core and for people.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prost_types::Timestamp;
use proto::v1::{self, ConditionStatus, TunnelReport};
use runtime::{
    build::BuildInfo,
    conditions::{Condition, Conditions, Status},
    local::streams::Applied,
    supervise::Supervisor,
};
use tokio::{sync::watch, time::sleep};

use crate::status::Board;

/// Makes reports; clones share the sequence.
#[derive(Clone, Debug)]
pub struct Reporter {
    build: BuildInfo,
    instance: Arc<str>,
    conditions: Conditions,
    board: Board,
    applied: Applied,
    supervisor: Supervisor,
    sequence: Arc<AtomicU64>,
}

impl Reporter {
    /// `instance` names this run of the process.
    pub fn new(
        build: BuildInfo,
        instance: &str,
        conditions: Conditions,
        board: Board,
        applied: Applied,
        supervisor: Supervisor,
    ) -> Self {
        Self {
            build,
            instance: instance.into(),
            conditions,
            board,
            applied,
            supervisor,
            sequence: Arc::default(),
        }
    }

    /// The status of this moment.
    pub fn report(&self) -> TunnelReport {
        let (applied_epoch, applied_revision) = self.applied.get();
        TunnelReport {
            instance_id: self.instance.to_string(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            build: Some(build(self.build)),
            ready: self.conditions.ready(),
            conditions: self.conditions.snapshot().into_iter().map(condition).collect(),
            status: Some(self.board.status()),
            applied_epoch,
            applied_revision,
            draining: self.supervisor.is_draining(),
        }
    }

    /// Resolves when something of the report changes after this call.
    pub fn changes(&self) -> Changes {
        Changes {
            conditions: self.conditions.subscribe(),
            board: self.board.subscribe(),
            applied: self.applied.subscribe(),
        }
    }
}

/// What a report is made of, watched.
#[derive(Debug)]
pub struct Changes {
    conditions: watch::Receiver<u64>,
    board: watch::Receiver<u64>,
    applied: watch::Receiver<(String, u64)>,
}

impl Changes {
    /// Waits for the next change of any part, and a little longer, so that changes of one moment are one.
    pub async fn next(&mut self, coalesce: Duration) {
        // The senders live in the process's own state, so none of these fails while somebody waits.
        tokio::select! {
            _ = self.conditions.changed() => {}
            _ = self.board.changed() => {}
            _ = self.applied.changed() => {}
        }
        sleep(coalesce).await;
        self.conditions.mark_unchanged();
        self.board.mark_unchanged();
        self.applied.mark_unchanged();
    }
}

/// The build as it goes over the wire.
pub fn build(build: BuildInfo) -> v1::Build {
    v1::Build {
        name: build.name.to_owned(),
        version: build.version.to_owned(),
        git_commit: build.git_commit.to_owned(),
        rustc: build.rustc.to_owned(),
    }
}

fn condition(condition: Condition) -> v1::Condition {
    let status = match condition.status {
        Status::True => ConditionStatus::True,
        Status::False => ConditionStatus::False,
        Status::NotApplicable => ConditionStatus::NotApplicable,
    };
    v1::Condition {
        name: condition.name.to_owned(),
        status: status.into(),
        reason: condition.reason,
        since: Some(Timestamp::from(condition.since)),
    }
}
