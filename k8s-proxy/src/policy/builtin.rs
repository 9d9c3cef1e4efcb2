//! What the fixed identity `agent-core` may do: only what it needs to know itself.

use super::{Decision, what};
use crate::target::Target;

/// The objects of the pod we run in. Empty where not known yet: then nothing with that name is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespace of the pod.
    pub namespace: String,
    /// The Secret that holds agent-core's state.
    pub state_secret: String,
    /// The Lease of agent-core.
    pub lease: String,
    /// The pod itself.
    pub pod_name: String,
}

/// The Secret that agent-core keeps its state in, unless it is named otherwise.
const STATE_SECRET: &str = "pipeops-agent-state";

impl Scope {
    /// These names, filled up with those of `other`, and with the usual name of the state Secret.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let pick = |own: &String, other: &String| {
            if own.is_empty() {
                other.clone()
            } else {
                own.clone()
            }
        };
        let mut scope = Self {
            namespace: pick(&self.namespace, &other.namespace),
            state_secret: pick(&self.state_secret, &other.state_secret),
            lease: pick(&self.lease, &other.lease),
            pod_name: pick(&self.pod_name, &other.pod_name),
        };
        if scope.state_secret.is_empty() {
            STATE_SECRET.clone_into(&mut scope.state_secret);
        }
        scope
    }
}

const RULE: &str = "agent-core";

pub(super) fn decide(scope: &Scope, target: &Target) -> Decision {
    let own = !scope.namespace.is_empty() && target.namespace == scope.namespace;
    let named = |name: &str| own && !name.is_empty() && target.name == name && target.subresource.is_empty();
    let allowed = match (target.group.as_str(), target.resource.as_str()) {
        ("", "secrets") => named(&scope.state_secret) && matches!(target.verb, "get" | "update" | "patch"),
        ("coordination.k8s.io", "leases") => {
            named(&scope.lease) && matches!(target.verb, "get" | "update" | "patch")
        }
        // A list counts them by `remainingItemCount`; without `continue` it cannot be walked to the end.
        ("", "pods" | "nodes") if target.verb == "list" => {
            target.limit.as_deref() == Some("1") && !target.continues && target.subresource.is_empty()
        }
        ("", "pods") => named(&scope.pod_name) && target.verb == "get",
        ("" | "events.k8s.io", "events") => {
            own && target.name.is_empty() && target.verb == "create" && target.subresource.is_empty()
        }
        ("", "") => target.path == "/version" && target.verb == "get",
        _ => false,
    };
    if allowed {
        return Decision::allow(RULE, "agent-core may read and keep its own objects");
    }
    let reason = format!(
        "agent-core may only touch its own objects; {} is none of them",
        what(target)
    );
    Decision::deny(RULE, reason)
}
