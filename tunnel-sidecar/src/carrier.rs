//! From a channel the server opens to a target, and back.
//!
//! ```text
//!   open "name:port" ─► one of our forwards? ─► room? ─► reach the target ─► accept ─► copy both ways
//!                          no: prohibited       no: resource shortage   no: connect failed, with the reason
//! ```
//!
//! The target is reached *before* the channel is accepted, so that a user behind the server sees a refused
//! connection where there is one. Each connection is a task of its own with the transport's flow control behind it: a
//! target that does not read stops nobody else. What arrives is written to the target from where it was decrypted, and
//! what the target sends is read to where it will be encrypted; only what a target does not take at once is queued.
//!
//! chisel has no half-close: when either side ends, both do. What can be kept is kept: everything a target sent
//! before it closed reaches the user, and everything the server had sent by then reaches a target that still reads.

mod carry;
mod direct;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chisel_ssh::{Channel, IncomingChannel, RejectReason};
use runtime::supervise::Supervisor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    address::HostPort,
    connections::Connections,
    datagrams::{Reverse, hold},
    echo::{Proofs, Told},
    limits::Limiter,
    local::{Locals, shown},
    metrics::Counters,
    never::Never,
    plan::LaneId,
    remotes::Listen,
    sessions::Sessions,
    socks::rules::{Rules, Verdict},
    spans::Spans,
    timing::Timing,
};

/// Connections at a time: each costs two sockets' worth of kernel memory and, when stalled, a window of ours.
pub const MAX_CONNECTIONS: usize = 4096;

/// What a channel target of ours leads to.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name of the forward.
    pub forward: String,
    /// What is dialled.
    pub leads: Leads,
    /// Its counters.
    pub counters: Counters,
    /// What it may take.
    pub limiter: Limiter,
}

/// A channel of a user.
#[derive(Debug)]
enum Arrival {
    /// Not answered yet.
    Offered(IncomingChannel),
    /// Accepted to find out whose it is, with what was read of it.
    Accepted(Channel, Vec<u8>),
}

impl Arrival {
    fn refuse(self, reason: RejectReason, text: &str) {
        match self {
            Self::Offered(open) => open.reject(reason, text),
            // Dropping it closes it; there is no word left for why.
            Self::Accepted(..) => {}
        }
    }

    fn accept(self) -> (Channel, Vec<u8>) {
        match self {
            Self::Offered(open) => (open.accept(), Vec::new()),
            Self::Accepted(channel, first) => (channel, first),
        }
    }
}

/// What is dialled for a connection.
#[derive(Clone, Debug)]
pub enum Leads {
    /// This address.
    Target(HostPort),
    /// What the user asks a SOCKS5 server for, as far as the rules go.
    Socks(Rules),
}

impl Leads {
    /// Whether a connection to `target` may stay.
    fn still_leads_to(&self, target: &HostPort) -> bool {
        match self {
            Self::Target(dials) => dials == target,
            Self::Socks(rules) => rules.judge(target) != Verdict::Denied,
        }
    }
}

/// How a channel for datagrams ends its target (chisel `share/settings`).
const DATAGRAMS: &str = "/udp";

fn is_for_datagrams(target: &str) -> bool {
    let place = target.len().saturating_sub(DATAGRAMS.len());
    let end = target.get(place..);
    end.is_some_and(|end| end.eq_ignore_ascii_case(DATAGRAMS))
}

/// Carries the connections of all sessions; clones share it.
#[derive(Clone, Debug)]
pub struct Carrier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    routes: Mutex<HashMap<String, Arc<Route>>>,
    locals: Locals,
    sessions: Sessions,
    /// What the server names when it opens a channel to the echo door; empty when there is none.
    echo_target: Mutex<String>,
    proofs: Proofs,
    connections: Connections,
    room: Arc<Semaphore>,
    limit: usize,
    never: Never,
    spans: Spans,
    timing: Timing,
    supervisor: Supervisor,
}

impl Inner {
    fn routes(&self) -> MutexGuard<'_, HashMap<String, Arc<Route>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn echo_target(&self) -> MutexGuard<'_, String> {
        self.echo_target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    /// Carries at most `limit` connections at a time.
    pub fn new(
        connections: Connections,
        limit: usize,
        never: Never,
        timing: Timing,
        supervisor: Supervisor,
    ) -> Self {
        let inner = Inner {
            routes: Mutex::default(),
            locals: Locals::default(),
            sessions: Sessions::default(),
            echo_target: Mutex::default(),
            proofs: Proofs::default(),
            connections,
            room: Arc::new(Semaphore::new(limit)),
            limit,
            never,
            spans: Spans::default(),
            timing,
            supervisor,
        };
        let carrier = Self {
            inner: Arc::new(inner),
        };
        let watched = carrier.clone();
        carrier.inner.supervisor.spawn("cut", async move {
            watched.close_all_at_the_cut().await;
        });
        carrier
    }

    /// One task waits for the cut and not each connection. It ends with the last connection of a drain.
    async fn close_all_at_the_cut(&self) {
        let inner = &self.inner;
        let drained = async {
            inner.supervisor.draining().await;
            inner.connections.none_open().await;
        };
        tokio::select! {
            () = inner.supervisor.cut() => inner.connections.close_where(|_| true),
            () = drained => {}
        }
    }

    /// Replaces what channel targets lead to and what is listened for here, and closes connections that lead
    /// elsewhere than their forward does.
    pub fn set_routes(
        &self,
        routes: HashMap<String, Route>,
        locals: Vec<(Listen, Counters)>,
        echo: Option<String>,
    ) {
        let leads: HashMap<String, Leads> = routes
            .values()
            .map(|route| (route.forward.clone(), route.leads.clone()))
            .collect();
        let ours: HashMap<String, HostPort> = locals
            .iter()
            .filter_map(|(listen, _)| Some((listen.name.clone(), shown(listen)?)))
            .collect();
        *self.inner.routes() = routes
            .into_iter()
            .map(|(key, route)| (key, Arc::new(route)))
            .collect();
        *self.inner.echo_target() = echo.unwrap_or_default();
        self.inner.locals.set(self, locals);
        self.inner.connections.close_where(|open| {
            let reversed = leads.get(&open.forward);
            !reversed.is_some_and(|leads| leads.still_leads_to(&open.target))
                && ours.get(&open.forward) != Some(&open.target)
        });
    }

    /// The listeners of ours.
    pub fn locals(&self) -> &Locals {
        &self.inner.locals
    }

    /// The open sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    /// What a channel target leads to at this moment.
    pub(crate) fn route(&self, channel_target: &str) -> Option<Arc<Route>> {
        self.inner.routes().get(channel_target).cloned()
    }

    /// A place among the connections that may be open; none when all are taken.
    pub(crate) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.room).try_acquire_owned().ok()
    }

    pub(crate) fn never(&self) -> &Never {
        &self.inner.never
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.inner.timing
    }

    pub(crate) fn supervisor(&self) -> &Supervisor {
        &self.inner.supervisor
    }

    /// What the server side has proven.
    pub fn proofs(&self) -> &Proofs {
        &self.inner.proofs
    }

    /// The open connections.
    pub fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    /// Takes a channel that the server opens on the session of `lane`. Returns at once.
    pub fn take(&self, lane: LaneId, open: IncomingChannel) {
        if is_for_datagrams(open.target()) {
            self.take_datagrams(lane, open);
            return;
        }
        let Some(route) = self.route(open.target()) else {
            if open.target() == self.inner.echo_target().as_str() {
                self.open_door(open);
                return;
            }
            // The server may name any address; only what we asked for is ever dialled.
            tracing::warn!(
                asked = open.target(),
                "the server opened a channel to what is no forward of ours"
            );
            open.reject(RejectReason::Prohibited, "not a forward of this client");
            return;
        };
        let expected = self.inner.proofs.expected(&route.forward);
        let Some(expected) = expected else {
            self.admit(lane, Arrival::Offered(open), route);
            return;
        };
        let carrier = self.clone();
        self.inner.supervisor.spawn("probe", async move {
            match carrier.inner.proofs.tell(expected, open.accept()).await {
                Told::Probe(Some(round_trip)) => {
                    route.counters.proof_trip.observe(round_trip.as_secs_f64());
                }
                Told::User(channel, first) => {
                    carrier.admit(lane, Arrival::Accepted(channel, first), route);
                }
                Told::Probe(None) | Told::Gone => {}
            }
        });
    }

    /// A channel of the server side that wants to send bytes through forwards.
    fn open_door(&self, open: IncomingChannel) {
        let carrier = self.clone();
        self.inner.supervisor.spawn("echo door", async move {
            let inner = &carrier.inner;
            let known = |name: &str| inner.routes().values().any(|route| route.forward == name);
            tokio::select! {
                () = inner.proofs.serve(open.accept(), known) => {}
                () = inner.supervisor.draining() => {}
            }
        });
    }

    /// A channel for datagrams is accepted whatever it is for, and kept: see [`hold`].
    fn take_datagrams(&self, lane: LaneId, open: IncomingChannel) {
        let key = open.target().to_owned();
        let known = self.route(&key).is_some();
        let channel = open.accept();
        if known {
            let reverse = Reverse {
                carrier: self.clone(),
                lane,
                key,
            };
            self.inner.supervisor.spawn("datagrams", reverse.run(channel));
        } else {
            tracing::warn!(
                asked = key,
                "datagrams for what is no forward of ours are thrown away"
            );
            self.inner.supervisor.spawn("datagrams of nobody", hold(channel));
        }
    }
}
