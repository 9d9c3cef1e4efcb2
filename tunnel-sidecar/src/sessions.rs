//! The sessions that are open at this moment, for what begins at our side.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chisel_ssh::Session;
use tokio::sync::watch;

use crate::{plan::LaneId, remotes::Listen};

/// The open sessions; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: Mutex<Table>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sessions: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    lane: LaneId,
    session: Session,
    /// Names of the forwards it was opened for.
    forwards: BTreeSet<String>,
}

impl Sessions {
    /// Enters a session; it is found until the returned guard is dropped.
    pub fn enter(&self, lane: LaneId, session: Session, listens: &[Listen]) -> Entered {
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        let forwards = listens.iter().map(|listen| listen.name.clone()).collect();
        table.sessions.insert(
            id,
            Open {
                lane,
                session,
                forwards,
            },
        );
        drop(table);
        self.inner.changes.send_modify(|count| *count += 1);
        Entered {
            all: self.clone(),
            id,
        }
    }

    /// The session with the fewest channels. Those of other forwards count as well: a channel to the server belongs to no
    /// listener, so any session of the same user carries it, once one was opened for the forward and the server found
    /// nothing wrong with it.
    pub fn pick(&self, forward: &str) -> Option<(LaneId, Session)> {
        let table = self.lock();
        let open = || table.sessions.values().filter(|open| !open.session.is_closed());
        if !open().any(|open| open.forwards.contains(forward)) {
            return None;
        }
        open()
            .min_by_key(|open| open.session.stats().channels_open)
            .map(|open| (open.lane, open.session.clone()))
    }

    /// The same, as soon as there is one.
    pub async fn wait(&self, forward: &str) -> (LaneId, Session) {
        let mut changes = self.inner.changes.subscribe();
        loop {
            if let Some(found) = self.pick(forward) {
                return found;
            }
            // The sender lives in `self`, so waiting cannot fail.
            changes.changed().await.ok();
        }
    }

    /// Ends the sessions of a lane, whose server has broken what was agreed on.
    pub fn disconnect(&self, lane: LaneId, reason: &str) {
        for open in self.lock().sessions.values().filter(|open| open.lane == lane) {
            open.session.disconnect(reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a session among the open ones.
#[derive(Debug)]
pub struct Entered {
    all: Sessions,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.lock().sessions.remove(&self.id);
        self.all.inner.changes.send_modify(|count| *count += 1);
    }
}
