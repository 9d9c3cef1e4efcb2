//! The newest snapshot, from agent-core to every open page.

use std::sync::Arc;

use tokio::sync::watch;

use crate::Snapshot;

/// Makes a feed that starts with `first`.
pub fn feed(first: Snapshot) -> (Feed, Snapshots) {
    let (sender, receiver) = watch::channel(Arc::new(first.bounded()));
    (Feed(Arc::new(sender)), Snapshots(receiver))
}

/// Where agent-core puts snapshots.
#[derive(Clone, Debug)]
pub struct Feed(Arc<watch::Sender<Arc<Snapshot>>>);

impl Feed {
    /// Replaces the snapshot; pages hear of it only when it differs from the last one.
    pub fn publish(&self, snapshot: Snapshot) {
        let snapshot = snapshot.bounded();
        self.0.send_if_modified(|current| {
            let changed = **current != snapshot;
            if changed {
                *current = Arc::new(snapshot);
            }
            changed
        });
    }
}

/// Where pages take snapshots from.
#[derive(Clone, Debug)]
pub struct Snapshots(watch::Receiver<Arc<Snapshot>>);

impl Snapshots {
    /// The newest one.
    pub(crate) fn latest(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    /// The newest one, marked as seen.
    pub(crate) fn take(&mut self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow_and_update())
    }

    /// Resolves to `true` when there is a newer one than the last taken, to `false` when the feed is gone.
    pub(crate) async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Heartbeat, Snapshot, feed};

    #[tokio::test]
    async fn only_a_different_snapshot_is_announced() {
        let (feed, mut snapshots) = feed(Snapshot::default());
        feed.publish(Snapshot::default());
        assert!(!snapshots.0.has_changed().unwrap());
        let mut next = Snapshot::default();
        next.agent.reason = "something".into();
        feed.publish(next);
        assert!(snapshots.changed().await);
        assert_eq!(snapshots.take().agent.reason.as_str(), "something");
        drop(feed);
        assert!(!snapshots.changed().await);
    }

    #[test]
    fn a_snapshot_has_a_bounded_size() {
        let beat = |ms| Heartbeat {
            ms,
            ..Heartbeat::default()
        };
        let (_feed, snapshots) = feed(Snapshot {
            heartbeats: (0..100).map(beat).collect(),
            ..Snapshot::default()
        });
        let kept = snapshots.latest();
        assert_eq!(kept.heartbeats.len(), 60);
        assert_eq!(kept.heartbeats.last().unwrap().ms, 99);
    }
}
