//! How a call is ended from outside, and why.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Why a call was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// Its caller asked for it.
    Caller,
    /// The caller's connection is gone.
    ConnectionLost,
    /// A person asked for it over gRPC.
    Operator,
    /// The process stops.
    Draining,
    /// The credential it came with is not accepted any more.
    Withdrawn,
    /// Its own deadline.
    Deadline,
    /// Its reader took nothing while too many other readers did not either.
    Stalled,
    /// The policy changed, and does not allow it any more.
    Policy,
    /// Its reader takes nothing, and the memory for bytes that wait is used up.
    Memory,
}

impl CancelReason {
    /// One sentence for the caller.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Caller => "cancelled by the caller",
            Self::ConnectionLost => "the connection of the caller is gone",
            Self::Operator => "cancelled by an operator of the cluster",
            Self::Draining => "k8s-proxy is stopping: open the call again",
            Self::Withdrawn => "the credential of this connection is not accepted any more",
            Self::Deadline => "the call's own deadline is over",
            Self::Stalled => "the reader took nothing, and too many others do not either",
            Self::Policy => "the owner of the cluster does not allow this any more",
            Self::Memory => "the reader took nothing while the agent's memory for waiting bytes was used up",
        }
    }

    /// A word for audit.
    pub fn word(self) -> &'static str {
        match self {
            Self::Caller => "cancelled",
            Self::ConnectionLost => "connection_lost",
            Self::Operator => "cancelled_by_operator",
            Self::Draining => "draining",
            Self::Withdrawn => "withdrawn",
            Self::Deadline => "deadline",
            Self::Stalled => "stalled",
            Self::Policy => "policy_changed",
            Self::Memory => "memory",
        }
    }
}

/// Ends one call; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl Cancel {
    /// Ends the call; the first reason stands.
    pub fn cancel(&self, reason: CancelReason) {
        self.reason.set(reason).ok();
        self.token.cancel();
    }

    /// Why it was ended, if it was.
    pub fn reason(&self) -> Option<CancelReason> {
        self.token
            .is_cancelled()
            .then(|| self.reason.get().copied().unwrap_or(CancelReason::Caller))
    }

    /// Resolves when it is ended.
    pub fn cancelled(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }
}
