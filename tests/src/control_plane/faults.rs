//! Faults on demand: which requests of agents are refused or left without an answer, and how often. Pure but for the wait.

use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What an agent asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// `POST …/register`.
    Register,
    /// `POST …/heartbeat`.
    Heartbeat,
    /// Both paths of the tunnel's status.
    TunnelStatus,
    /// The WebSocket that a proxy dials.
    ProxyDial,
    /// Any of them.
    Any,
}

/// How a refused request is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Text of `error` in the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Answer {
    /// An answer with a status and nothing else.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            retry_after: None,
            error: None,
        }
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Sets the text of the error.
    #[must_use]
    pub fn error(mut self, text: impl Into<String>) -> Self {
        self.error = Some(text.into());
        self
    }
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// So many times.
    Count(u32),
    /// Until it is cleared.
    Always,
}

impl From<Option<u32>> for Times {
    fn from(count: Option<u32>) -> Self {
        count.map_or(Self::Always, Self::Count)
    }
}

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Effect {
    Refuse(Answer),
    Hang,
}

#[derive(Clone, Debug, Serialize)]
struct Rule {
    route: Route,
    #[serde(flatten)]
    effect: Effect,
    /// `None` for ever.
    left: Option<u32>,
}

/// All faults that wait to strike, in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
    /// Counts the times of clearing, which lets the hung go on.
    cleared: watch::Sender<u64>,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self {
            rules: Mutex::default(),
            cleared: watch::Sender::new(0),
        }
    }

    pub(super) fn add(&self, route: Route, effect: Effect, times: Times) {
        let left = match times {
            Times::Count(count) => Some(count),
            Times::Always => None,
        };
        self.lock().push(Rule { route, effect, left });
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
        self.cleared.send_modify(|count| *count += 1);
    }

    /// The fault for this request, counted as struck.
    pub(super) fn strike(&self, route: Route) -> Option<Effect> {
        let mut rules = self.lock();
        let index = rules
            .iter()
            .position(|rule| rule.route == route || rule.route == Route::Any)?;
        let rule = rules.get_mut(index)?;
        let effect = rule.effect.clone();
        if let Some(left) = &mut rule.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                rules.remove(index);
            }
        }
        Some(effect)
    }

    /// What a hung request waits for; taken before the fault strikes, so that no clearing is missed.
    pub(super) fn clearing(&self) -> watch::Receiver<u64> {
        self.cleared.subscribe()
    }

    pub(super) fn view(&self) -> serde_json::Value {
        serde_json::to_value(&*self.lock()).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromStr for Route {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(text.into())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Register => "register",
            Self::Heartbeat => "heartbeat",
            Self::TunnelStatus => "tunnel-status",
            Self::ProxyDial => "proxy-dial",
            Self::Any => "any",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_route_as_often_as_asked() {
        let faults = Faults::new();
        faults.add(
            Route::Register,
            Effect::Refuse(Answer::status(503)),
            Times::Count(2),
        );
        faults.add(Route::Any, Effect::Hang, Times::Always);
        let refuse = Some(Effect::Refuse(Answer::status(503)));
        assert_eq!(
            (faults.strike(Route::Register), faults.strike(Route::Register)),
            (refuse.clone(), refuse)
        );
        assert_eq!(
            (faults.strike(Route::Register), faults.strike(Route::Heartbeat)),
            (Some(Effect::Hang), Some(Effect::Hang))
        );
        faults.clear();
        assert_eq!(faults.strike(Route::Register), None);
    }
}
