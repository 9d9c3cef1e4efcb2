//! The policy file: YAML that the cluster's owner writes.
//!
//! ```yaml
//! readOnly: false          # true refuses every write
//! exec: false              # true lets everyone who is let in use exec, attach, port-forward and debug containers
//! defaults: true           # whether the rules we ship follow after these
//! impersonate:             # for doors in mode `impersonate`; nobody unless named
//!   users: ["alice", "ci-*"]
//!   groups: ["developers"]
//! rules:                   # in order; the first that matches decides
//!   - name: ops-may-exec
//!     effect: allow
//!     groups: ["ops"]
//!     verbs: ["create"]
//!     resources: ["pods/exec"]
//!     namespaces: ["staging"]
//! ```
//!
//! A list that is absent or empty matches everything of its kind. `*` matches anything, `x*` what begins with `x`.
//! `resources: ["pods"]` does not match `pods/log`; `pods/*` matches the subresources only. Verbs may be `read`
//! (get, list, watch) and `write` (all others). A rule with `paths` matches paths that are no resource, and a rule
//! without matches resources only.

use std::sync::Arc;

use serde::Deserialize;

use super::{Policy, Subject};
use crate::target::Target;

/// The rules we ship.
pub const DEFAULT: &str = include_str!("default.yaml");

/// The rules that `exec: true` puts between the owner's and ours. `create` is what a two-way connection asks for,
/// whatever its method; debug containers are a patch.
const EXEC: &str = "
rules:
  - name: exec
    effect: allow
    verbs: [create]
    apiGroups: ['']
    resources: [pods/exec, pods/attach, pods/portforward]
  - name: debug
    effect: allow
    verbs: [update, patch]
    apiGroups: ['']
    resources: [pods/ephemeralcontainers]
";

/// A policy file that is not in force because it is not readable.
#[derive(Debug, thiserror::Error)]
#[error("the policy is not readable: {0}")]
pub struct PolicyError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawPolicy {
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    exec: bool,
    #[serde(default = "yes")]
    defaults: bool,
    #[serde(default)]
    impersonate: Impersonate,
    #[serde(default)]
    rules: Vec<Rule>,
}

fn yes() -> bool {
    true
}

/// Each decision of the rule names it.
fn shared<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

/// Whom doors in mode `impersonate` may speak for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Impersonate {
    #[serde(default)]
    pub(super) users: Vec<String>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Effect {
    Allow,
    Deny,
}

/// One rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    #[serde(deserialize_with = "shared")]
    pub(super) name: Arc<str>,
    effect: Effect,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    api_groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
}

impl Rule {
    pub(super) fn allows(&self) -> bool {
        self.effect == Effect::Allow
    }

    pub(super) fn matches(&self, subject: &Subject<'_>, target: &Target) -> bool {
        let who = any(&self.users, |pattern| matches(pattern, subject.user))
            && any(&self.groups, |pattern| {
                subject.groups.iter().any(|group| matches(pattern, group))
            });
        if !who || !any(&self.verbs, |pattern| verb_matches(pattern, target)) {
            return false;
        }
        if !target.is_resource() {
            return self.paths.iter().any(|pattern| matches(pattern, &target.path));
        }
        self.paths.is_empty()
            && any(&self.api_groups, |pattern| matches(pattern, &target.group))
            && any(&self.resources, |pattern| resource_matches(pattern, target))
            && any(&self.namespaces, |pattern| matches(pattern, &target.namespace))
            && any(&self.names, |pattern| matches(pattern, &target.name))
    }
}

fn any(patterns: &[String], test: impl Fn(&str) -> bool) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| test(pattern))
}

/// `*`, `prefix*` or the very text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => pattern == text,
    }
}

fn verb_matches(pattern: &str, target: &Target) -> bool {
    match pattern {
        "*" => true,
        "read" => target.reads(),
        "write" => !target.reads(),
        verb => verb == target.verb,
    }
}

fn resource_matches(pattern: &str, target: &Target) -> bool {
    match pattern.split_once('/') {
        None => pattern == "*" || (target.subresource.is_empty() && pattern == target.resource),
        Some((resource, subresource)) => {
            !target.subresource.is_empty()
                && (resource == "*" || resource == target.resource)
                && (subresource == "*" || subresource == target.subresource)
        }
    }
}

/// Reads a policy file; `source` names it for people.
///
/// # Errors
/// When it is not a policy; the text says where.
pub fn parse(text: &str, source: &str) -> Result<Policy, PolicyError> {
    let raw = read(text)?;
    let mut rules = raw.rules;
    if raw.exec {
        rules.extend(read(EXEC)?.rules);
    }
    if raw.defaults {
        rules.extend(read(DEFAULT)?.rules);
    }
    Ok(Policy::from_parts(
        raw.read_only,
        raw.impersonate,
        rules,
        source.to_owned(),
    ))
}

fn read(text: &str) -> Result<RawPolicy, PolicyError> {
    // An empty file is an owner's slip, not a wish: `rules: []` says the same on purpose.
    if text.trim().is_empty() {
        return Err(PolicyError("the file is empty".to_owned()));
    }
    serde_saphyr::from_str(text).map_err(|error| PolicyError(error.to_string()))
}
