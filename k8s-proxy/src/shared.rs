//! What the parts of this process know in common: policy, who may knock, conditions, counters.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use proto::v1::ProxySpec;
use runtime::{
    conditions::{Conditions, Status},
    local::streams::SPEC,
};
use tokio::sync::{Notify, watch};

use crate::{
    identity::Accepted,
    limits::Book,
    policy::{Policy, Scope},
    streams::lock,
};

/// Condition: the apiserver answers.
pub const UPSTREAM: &str = "Upstream";
/// Condition: the doors that should be open are.
pub const DOORS: &str = "Doors";
/// Condition: the control planes' HTTP/2 connection windows take our answers. Said only once one of them did not.
pub const PEER_WINDOW: &str = "PeerWindow";
/// Condition: the policy in force is the one the owner wrote.
pub const POLICY: &str = "Policy";

/// Shared state; clones share it.
#[derive(Clone, Debug)]
pub struct Shared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conditions: Conditions,
    policy: Mutex<Arc<Policy>>,
    accepted: watch::Sender<Arc<Accepted>>,
    /// Names that the settings gave; they win over the spec's.
    own_scope: Scope,
    scope: Mutex<Scope>,
    policy_changed: Notify,
    limits: Book,
    upstream_up: AtomicBool,
    upstream_lost: Notify,
    requests: AtomicU64,
    refused: AtomicU64,
    rewatched: AtomicU64,
}

/// Counters for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Finished calls.
    pub requests: u64,
    /// Of them refused by us.
    pub refused: u64,
    /// Watches opened again.
    pub rewatched: u64,
}

impl Shared {
    /// Before the first spec: nobody may knock, and everything is awaited.
    pub fn new(conditions: Conditions, policy: Policy, own_scope: Scope) -> Self {
        conditions.set(SPEC, Status::False, "waiting for agent-core");
        conditions.set(UPSTREAM, Status::False, "the apiserver has not answered yet");
        conditions.set(DOORS, Status::True, "listening");
        let inner = Inner {
            conditions,
            policy: Mutex::new(Arc::new(policy)),
            accepted: watch::Sender::new(Arc::default()),
            scope: Mutex::new(own_scope.or(&Scope::default())),
            own_scope,
            policy_changed: Notify::new(),
            limits: Book::default(),
            upstream_up: AtomicBool::new(false),
            upstream_lost: Notify::new(),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            rewatched: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The conditions of the process.
    pub fn conditions(&self) -> &Conditions {
        &self.inner.conditions
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&lock(&self.inner.policy))
    }

    /// Puts another policy in force.
    pub fn set_policy(&self, policy: Policy) {
        *lock(&self.inner.policy) = Arc::new(policy);
        self.inner.policy_changed.notify_one();
    }

    /// Resolves when another policy is in force than at the last call.
    pub async fn policy_changed(&self) {
        self.inner.policy_changed.notified().await;
    }

    /// What each caller may have.
    pub fn limits(&self) -> &Book {
        &self.inner.limits
    }

    /// The tokens that may knock, and their changes.
    pub fn accepted(&self) -> watch::Receiver<Arc<Accepted>> {
        self.inner.accepted.subscribe()
    }

    /// Changes who may knock; an equal list touches nothing.
    pub fn set_accepted(&self, accepted: Accepted) {
        self.inner.accepted.send_if_modified(|current| {
            let changed = **current != accepted;
            if changed {
                *current = Arc::new(accepted);
            }
            changed
        });
    }

    /// The objects that identity `agent-core` may touch.
    pub fn scope(&self) -> Scope {
        lock(&self.inner.scope).clone()
    }

    /// Takes the names of a spec where the settings gave none.
    pub fn set_scope(&self, spec: &ProxySpec) {
        *lock(&self.inner.scope) = self.inner.own_scope.or(&Scope {
            namespace: spec.namespace.clone(),
            state_secret: spec.state_secret.clone(),
            lease: spec.lease.clone(),
            pod_name: spec.pod_name.clone(),
        });
    }

    /// The apiserver answered, whatever it said.
    pub fn upstream_answered(&self) {
        if !self.inner.upstream_up.swap(true, Relaxed) {
            self.inner
                .conditions
                .set(UPSTREAM, Status::True, "the apiserver answers");
        }
    }

    /// The apiserver could not be reached.
    pub fn upstream_failed(&self, why: &str) {
        if self.inner.upstream_up.swap(false, Relaxed) {
            self.inner.upstream_lost.notify_one();
        }
        self.inner.conditions.set(UPSTREAM, Status::False, why);
    }

    /// Resolves when the apiserver, which answered before, could not be reached.
    pub async fn upstream_lost(&self) {
        self.inner.upstream_lost.notified().await;
    }

    pub(crate) fn count_request(&self) {
        self.inner.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.inner.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_rewatch(&self) {
        self.inner.rewatched.fetch_add(1, Relaxed);
    }

    /// The counters.
    pub fn totals(&self) -> Totals {
        Totals {
            requests: self.inner.requests.load(Relaxed),
            refused: self.inner.refused.load(Relaxed),
            rewatched: self.inner.rewatched.load(Relaxed),
        }
    }
}
