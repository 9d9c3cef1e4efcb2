//! From what the hub holds to the messages of the local API and the heartbeat.

use proto::v1::{Build, Condition, ConditionStatus, Container, Phase as WirePhase};
use runtime::{
    build::BuildInfo,
    conditions::{self, Status},
};

use crate::{
    reports::{Report, Slot, timestamp},
    session::Phase,
    wire::heartbeat::ContainerState,
};

/// The build as the local API tells it.
pub(crate) fn build(build: BuildInfo) -> Build {
    Build {
        name: build.name.to_owned(),
        version: build.version.to_owned(),
        git_commit: build.git_commit.to_owned(),
        rustc: build.rustc.to_owned(),
    }
}

pub(super) fn condition(condition: &conditions::Condition) -> Condition {
    let status = match condition.status {
        Status::True => ConditionStatus::True,
        Status::False => ConditionStatus::False,
        Status::NotApplicable => ConditionStatus::NotApplicable,
    };
    Condition {
        name: condition.name.to_owned(),
        status: status.into(),
        reason: condition.reason.clone(),
        since: Some(condition.since.into()),
    }
}

pub(super) fn container<R: Report>(slot: &Slot<R>) -> Container {
    let (instance, instances_seen) = slot.instance();
    Container {
        name: slot.name.to_owned(),
        known: slot.known(),
        last_report: slot.last_report().map(Into::into),
        unknown_since: slot.unknown_since().map(Into::into),
        instance_id: instance.to_owned(),
        build: slot.report().and_then(Report::build).cloned(),
        ready: slot.ready(),
        conditions: slot
            .report()
            .map(|report| report.conditions().to_vec())
            .unwrap_or_default(),
        instances_seen,
    }
}

pub(super) fn container_state<R: Report>(slot: &Slot<R>) -> ContainerState {
    ContainerState {
        name: slot.name.to_owned(),
        ready: slot.ready(),
        known: slot.known(),
        unknown_since: slot.unknown_since().map(timestamp),
        reason: slot.reason(),
    }
}

pub(super) fn wire_phase(phase: Phase) -> WirePhase {
    match phase {
        Phase::Loading => WirePhase::Loading,
        Phase::Unregistered => WirePhase::Unregistered,
        Phase::Registering => WirePhase::Registering,
        Phase::Active => WirePhase::Active,
        Phase::Lapsed => WirePhase::Lapsed,
        Phase::Refused => WirePhase::Refused,
        Phase::Draining => WirePhase::Draining,
    }
}
