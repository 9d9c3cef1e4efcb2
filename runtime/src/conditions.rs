//! Named statements about a process, which together say whether it is ready.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    True,
    /// Not as it should be: the process is not ready.
    False,
    /// Off or idle on purpose.
    NotApplicable,
}

impl Status {
    /// The word that `/readyz` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::NotApplicable => "NotApplicable",
        }
    }
}

/// One condition with the reason for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// CamelCase name.
    pub name: &'static str,
    /// What it says.
    pub status: Status,
    /// One sentence for the operator.
    pub reason: String,
    /// When the status last changed.
    pub since: SystemTime,
}

/// The conditions of one process; clones share them.
#[derive(Clone, Debug)]
pub struct Conditions {
    list: Arc<Mutex<Vec<Condition>>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self::new()
    }
}

impl Conditions {
    /// None yet: ready.
    pub fn new() -> Self {
        Self {
            list: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Sets one condition; `since` moves only when the status does.
    pub fn set(&self, name: &'static str, status: Status, reason: impl Into<String>) {
        let reason = reason.into();
        let mut list = self.lock();
        match list.iter_mut().find(|condition| condition.name == name) {
            Some(known) if known.status == status && known.reason == reason => return,
            Some(known) => {
                if known.status != status {
                    known.since = SystemTime::now();
                    known.status = status;
                }
                known.reason = reason;
            }
            None => list.push(Condition {
                name,
                status,
                reason,
                since: SystemTime::now(),
            }),
        }
        drop(list);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether no condition is false.
    pub fn ready(&self) -> bool {
        self.lock()
            .iter()
            .all(|condition| condition.status != Status::False)
    }

    /// All conditions in the order in which they were first set.
    pub fn snapshot(&self) -> Vec<Condition> {
        self.lock().clone()
    }

    /// A counter that rises with each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Condition>> {
        // A panic elsewhere must not silence the probes.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_is_false() {
        let conditions = Conditions::new();
        let mut changes = conditions.subscribe();
        conditions.set("Link", Status::False, "connecting");
        conditions.set("Tunnel", Status::NotApplicable, "off");
        assert!(!conditions.ready());
        let since = conditions.snapshot()[0].since;
        conditions.set("Link", Status::False, "still connecting");
        assert_eq!(
            conditions.snapshot()[0].since,
            since,
            "a new reason is not a new status"
        );
        conditions.set("Link", Status::True, "connected");
        assert!(conditions.ready() && changes.has_changed().unwrap());
        changes.mark_unchanged();
        conditions.set("Link", Status::True, "connected");
        assert!(
            !changes.has_changed().unwrap(),
            "saying the same again is no change"
        );
    }
}
