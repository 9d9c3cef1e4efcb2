//! Desired state for the siblings: made from configuration, stored identity and the control plane's wishes.
//!
//! A [`Publisher`] numbers what is published: the epoch is new at each start of agent-core, the revision rises only
//! when the content changes. Before anything is known there is nothing to send, and the streams stay silent.

use tokio::sync::watch;

pub(crate) mod proxy;
pub(crate) mod tunnel;

/// A message with an epoch and a revision.
pub(crate) trait Spec: Clone + PartialEq + Send + Sync + 'static {
    fn stamp(&mut self, epoch: &str, revision: u64);
    fn revision(&self) -> u64;
}

impl Spec for proto::v1::TunnelSpec {
    fn stamp(&mut self, epoch: &str, revision: u64) {
        epoch.clone_into(&mut self.epoch);
        self.revision = revision;
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}

impl Spec for proto::v1::ProxySpec {
    fn stamp(&mut self, epoch: &str, revision: u64) {
        epoch.clone_into(&mut self.epoch);
        self.revision = revision;
    }

    fn revision(&self) -> u64 {
        self.revision
    }
}

/// Publishes one kind of specification; clones share it.
#[derive(Clone)]
pub(crate) struct Publisher<S> {
    epoch: String,
    current: watch::Sender<Option<S>>,
}

impl<S> std::fmt::Debug for Publisher<S> {
    // Specifications carry credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl<S: Spec> Publisher<S> {
    pub(crate) fn new(epoch: String) -> Self {
        Self {
            epoch,
            current: watch::Sender::new(None),
        }
    }

    /// Publishes the content of `spec`, if it differs from the last one; says whether it did.
    pub(crate) fn publish(&self, mut spec: S) -> bool {
        self.current.send_if_modified(|current| {
            let revision = current.as_ref().map_or(0, Spec::revision);
            spec.stamp(&self.epoch, revision);
            if current.as_ref() == Some(&spec) {
                return false;
            }
            spec.stamp(&self.epoch, revision + 1);
            *current = Some(spec.clone());
            true
        })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<S>> {
        self.current.subscribe()
    }

    pub(crate) fn current(&self) -> Option<S> {
        self.current.borrow().clone()
    }
}
