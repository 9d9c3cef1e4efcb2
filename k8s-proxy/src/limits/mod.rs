//! What one caller may have: open calls, calls that end by themselves, calls a second, bytes a second.
//!
//! ```text
//!  owner's setting ─┐
//!                   ├─ the smaller of each ─► Book ─► Account of a caller ─► Permit of a call
//!  control plane ───┘                                  429 with Retry-After      pays for bytes
//! ```
//!
//! A caller is the identity of a door, so two tokens of one name share an account, and the persons a control plane
//! speaks for share its account. agent-core has none: its own rules leave it little to do, and a busy caller must not
//! keep it from its state.

mod account;
mod paced;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use http::StatusCode;
use proto::v1::ProxyLimits;
use tokio::time::Instant;

pub(crate) use paced::{Pace, Paced};

use crate::{identity::Caller, status::Failure, streams::lock};
use account::{Account, Refusal};

/// Accounts without an open call are kept this long in number: their buckets remember what was spent. Names come from
/// the owner's settings, so there are seldom more than a handful.
const MAX_IDLE_ACCOUNTS: usize = 64;

/// What each caller may have. Zero in any of them means no bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open calls, watches and followed logs included.
    pub streams: u32,
    /// Open calls that end by themselves.
    pub in_flight: u32,
    /// Calls a second; as many may come at once after a quiet second.
    pub requests_per_second: u32,
    /// Bytes a second, bodies of both directions together.
    pub bytes_per_second: u64,
}

impl Limits {
    /// The stricter of both in each.
    #[must_use]
    pub fn lowered_by(self, other: Self) -> Self {
        Self {
            streams: stricter(self.streams, other.streams),
            in_flight: stricter(self.in_flight, other.in_flight),
            requests_per_second: stricter(self.requests_per_second, other.requests_per_second),
            bytes_per_second: stricter(self.bytes_per_second, other.bytes_per_second),
        }
    }

    /// Reads the wire form; what is absent bounds nothing.
    pub fn from_proto(limits: Option<&ProxyLimits>) -> Self {
        limits.map_or_else(Self::default, |limits| Self {
            streams: limits.streams,
            in_flight: limits.in_flight,
            requests_per_second: limits.requests_per_second,
            bytes_per_second: limits.bytes_per_second,
        })
    }

    /// The wire form.
    pub fn to_proto(self) -> ProxyLimits {
        ProxyLimits {
            streams: self.streams,
            in_flight: self.in_flight,
            requests_per_second: self.requests_per_second,
            bytes_per_second: self.bytes_per_second,
        }
    }
}

fn stricter<T: Copy + Ord + Default>(one: T, other: T) -> T {
    match (one == T::default(), other == T::default()) {
        (true, _) => other,
        (_, true) => one,
        (false, false) => one.min(other),
    }
}

#[derive(Debug, Default)]
struct Inner {
    limits: Limits,
    accounts: BTreeMap<String, Arc<Mutex<Account>>>,
}

/// The accounts of all callers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Book {
    inner: Arc<Mutex<Inner>>,
}

impl Book {
    /// The limits in force.
    pub fn limits(&self) -> Limits {
        lock(&self.inner).limits
    }

    /// Puts limits in force. What is open stays open; a lower bound holds for what comes.
    pub fn set(&self, limits: Limits) {
        lock(&self.inner).limits = limits;
    }

    /// A place for one call of `caller`.
    ///
    /// # Errors
    /// 429 with the bound that is reached and when to come back.
    pub fn admit(&self, caller: &Caller, endless: bool) -> Result<Permit, Failure> {
        if caller.agent_core {
            return Ok(Permit::free());
        }
        let (limits, account) = {
            let mut inner = lock(&self.inner);
            inner.forget_idle();
            let account = match inner.accounts.get(&caller.name) {
                Some(account) => Arc::clone(account),
                None => Arc::clone(inner.accounts.entry(caller.name.clone()).or_default()),
            };
            (inner.limits, account)
        };
        lock(&account)
            .admit(&limits, Instant::now(), endless)
            .map_err(|refusal| refused(refusal, &limits))?;
        Ok(Permit {
            pace: Pace::new(self.clone(), Arc::clone(&account)),
            _place: Some(Place { account, endless }),
        })
    }
}

impl Inner {
    fn forget_idle(&mut self) {
        if self.accounts.len() > MAX_IDLE_ACCOUNTS {
            self.accounts.retain(|_, account| lock(account).is_open());
        }
    }
}

fn refused(refusal: Refusal, limits: &Limits) -> Failure {
    let (cause, what, retry_after) = match refusal {
        Refusal::Streams => ("limit_streams", format!("{} open calls", limits.streams), 1),
        Refusal::InFlight => (
            "limit_in_flight",
            format!("{} calls in flight", limits.in_flight),
            1,
        ),
        Refusal::Requests(wait) => (
            "limit_requests",
            format!("{} calls a second", limits.requests_per_second),
            whole_seconds(wait),
        ),
        Refusal::Bytes(wait) => (
            "limit_bytes",
            format!("{} bytes a second", limits.bytes_per_second),
            whole_seconds(wait),
        ),
    };
    let sentence = format!("this caller may have {what} on this agent: come back later");
    Failure::new(StatusCode::TOO_MANY_REQUESTS, cause, sentence).retry_after(retry_after)
}

fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[derive(Debug)]
struct Place {
    account: Arc<Mutex<Account>>,
    endless: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.account).leave(self.endless);
    }
}

/// The place of one call; dropping it gives it back.
#[derive(Debug, Default)]
pub struct Permit {
    _place: Option<Place>,
    pace: Pace,
}

impl Permit {
    /// A place outside of all accounts.
    pub fn free() -> Self {
        Self::default()
    }

    /// What pays for the bytes of this call in its other direction.
    pub(crate) fn pace(&self) -> Pace {
        self.pace.another()
    }

    /// Pays for bytes that were moved.
    pub fn pay(&self, bytes: usize) {
        self.pace.pay(bytes);
    }

    /// Ready while the caller's bytes are not used up.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pace.poll_ready(cx)
    }
}

#[cfg(test)]
mod tests;
