//! Who may do what through this proxy. Pure.
//!
//! ```text
//!  who is asking + Target ─► system names? ─► agent-core? ─► read-only? ─► rules in order ─► default: deny
//!                              refused         builtin.rs     writes refused   the first match decides
//! ```
//!
//! The policy can only take away: what it allows, the apiserver's RBAC still has to allow as well.

mod builtin;
pub mod file;
pub mod reload;

use std::{borrow::Cow, sync::Arc};

pub use builtin::Scope;
use file::{Impersonate, Rule};

use crate::{identity::Caller, target::Target};

/// A decision, with the rule that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the call may go on.
    pub allowed: bool,
    /// Name of the rule that decided, or `default`.
    pub rule: Arc<str>,
    /// One sentence why.
    pub reason: Cow<'static, str>,
}

impl Decision {
    fn deny(rule: impl Into<Arc<str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            allowed: false,
            rule: rule.into(),
            reason: reason.into(),
        }
    }

    fn allow(rule: impl Into<Arc<str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            allowed: true,
            rule: rule.into(),
            reason: reason.into(),
        }
    }
}

/// Who is asking, as rules see it: the door's identity, or the person it speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// User name.
    pub user: &'a str,
    /// Groups.
    pub groups: &'a [String],
}

/// The owner's rules.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Every write is refused.
    pub read_only: bool,
    impersonate: Impersonate,
    rules: Vec<Rule>,
    /// Where it comes from, for people.
    pub source: String,
}

impl Policy {
    /// The rules in force when the owner wrote none.
    ///
    /// # Errors
    /// Never for the rules we ship: a test reads them.
    pub fn builtin() -> Result<Self, file::PolicyError> {
        file::parse("rules: []", "built-in rules")
    }

    pub(crate) fn from_parts(
        read_only: bool,
        impersonate: Impersonate,
        rules: Vec<Rule>,
        source: String,
    ) -> Self {
        Self {
            read_only,
            impersonate,
            rules,
            source,
        }
    }

    /// Decides about a call of an ordinary caller.
    pub fn decide(&self, subject: &Subject<'_>, target: &Target) -> Decision {
        if let Some(denied) = refuse_system(subject) {
            return denied;
        }
        if self.read_only && !target.reads() && !asks_about_itself(target) {
            return Decision::deny(
                "readOnly",
                "the owner of the cluster has switched every write off",
            );
        }
        for rule in &self.rules {
            if rule.matches(subject, target) {
                let name = Arc::clone(&rule.name);
                if rule.allows() {
                    return Decision::allow(name, "the rule allows it");
                }
                let reason = format!("rule {name:?} of {} denies {}", self.source, what(target));
                return Decision::deny(name, reason);
            }
        }
        Decision::deny(
            "default",
            format!("no rule of {} allows {}", self.source, what(target)),
        )
    }

    /// Decides about a call of the fixed identity `agent-core`.
    pub fn decide_agent_core(scope: &Scope, target: &Target) -> Decision {
        builtin::decide(scope, target)
    }

    /// Whether a caller may speak for this person.
    pub fn may_impersonate(&self, caller: &Caller, subject: &Subject<'_>) -> Decision {
        if let Some(denied) = refuse_system(subject) {
            return denied;
        }
        let refused = |what: &str| {
            Decision::deny(
                "impersonate",
                format!(
                    "{} may not speak for {what}: add it to impersonate in the policy file",
                    caller.name
                ),
            )
        };
        if !self
            .impersonate
            .users
            .iter()
            .any(|pattern| file::matches(pattern, subject.user))
        {
            return refused(&format!("user {:?}", subject.user));
        }
        for group in subject.groups.iter().filter(|group| *group != AUTHENTICATED) {
            if !self
                .impersonate
                .groups
                .iter()
                .any(|pattern| file::matches(pattern, group))
            {
                return refused(&format!("group {group:?}"));
            }
        }
        Decision::allow("impersonate", "the owner allows it")
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none, so that everything is refused.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// How names of the cluster's own parts begin.
const SYSTEM: &str = "system:";
/// The one group of the system that everybody is in.
const AUTHENTICATED: &str = "system:authenticated";

/// Names that begin with `system:` belong to the cluster's own parts; nobody outside is one of them.
pub fn refuse_system(subject: &Subject<'_>) -> Option<Decision> {
    let system = |name: &str| {
        let start = name.trim_start().as_bytes().get(..SYSTEM.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(SYSTEM.as_bytes()))
    };
    if system(subject.user) {
        let reason = format!("user {:?} belongs to the cluster's own parts", subject.user);
        return Some(Decision::deny("system", reason));
    }
    let group = subject
        .groups
        .iter()
        .find(|group| system(group) && *group != AUTHENTICATED)?;
    Some(Decision::deny(
        "system",
        format!("group {group:?} belongs to the cluster's own parts"),
    ))
}

/// Reviews of one's own rights are created, but nothing is written by it.
fn asks_about_itself(target: &Target) -> bool {
    target.verb == "create"
        && matches!(
            (target.group.as_str(), target.resource.as_str()),
            (
                "authorization.k8s.io",
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
            ) | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

/// The call in words.
pub fn what(target: &Target) -> String {
    let mut text = format!("{} ", target.verb);
    if !target.is_resource() {
        return text + &target.path;
    }
    text.push_str(&target.resource_path());
    if !target.group.is_empty() {
        text = format!("{text}.{}", target.group);
    }
    if !target.name.is_empty() {
        text = format!("{text} {:?}", target.name);
    }
    if !target.namespace.is_empty() {
        text = format!("{text} in namespace {:?}", target.namespace);
    }
    text
}

#[cfg(test)]
mod tests;
