//! The identity and where it is kept.
//!
//! ```text
//!               ┌─ Secret (through k8s-proxy's door, compare-and-set) ─┐
//!   Keeper ─────┤                                                      ├─ Stored
//!               └─ copy, 0600 in the private folder ───────────────────┘
//!   outside a cluster: one file, 0600, replaced atomically
//! ```
//!
//! Two rules carry all of it: a value that is known is never replaced by nothing, and only a definite "there is
//! none" counts as a fresh install.

use std::{collections::BTreeMap, fmt};

use runtime::secret::SecretString;

pub(crate) mod file;
pub(crate) mod identity;
pub(crate) mod keeper;
pub(crate) mod migrate;
mod secret;
#[cfg(test)]
mod tests;

pub(crate) const AGENT_ID: &str = "agent_id";
pub(crate) const CLUSTER_ID: &str = "cluster_id";
/// A token for the cluster that earlier agents kept; carried along, not used.
pub(crate) const CLUSTER_TOKEN: &str = "cluster_token";
/// Digest of what was registered, to tell the control plane when something of it changes.
pub(crate) const REGISTRATION: &str = "registration";
/// The control plane that gave out the values below.
pub(crate) const API_URL: &str = "api_url";
pub(crate) const PROXY_URL: &str = "proxy_url";
pub(crate) const PROXY_TOKEN: &str = "proxy_token";
/// Only in the copy: it holds something that the Secret does not hold yet.
const UNSAVED: &str = "unsaved";

/// What is kept: a few texts by name. Names that this version does not know are carried along.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored(BTreeMap<String, String>);

impl fmt::Debug for Stored {
    // Some of the values are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("agent_id", &self.get(AGENT_ID))
            .field("cluster_id", &self.get(CLUSTER_ID))
            .field("names", &self.0.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl Stored {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn secret(&self, name: &str) -> Option<SecretString> {
        self.get(name).map(SecretString::from)
    }

    /// Sets a value; an empty one changes nothing.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let value = value.trim();
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Whether it says who the agent is.
    pub(crate) fn has_identity(&self) -> bool {
        self.get(AGENT_ID).is_some() || self.get(CLUSTER_ID).is_some()
    }

    /// Takes every value of `newer`, and keeps those that it lacks.
    pub(crate) fn merge(&mut self, newer: &Self) {
        for (name, value) in &newer.0 {
            self.set(name, value);
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Stored {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut stored = Self::default();
        for (name, value) in pairs {
            stored.set(name.as_ref(), value.as_ref());
        }
        stored
    }
}
