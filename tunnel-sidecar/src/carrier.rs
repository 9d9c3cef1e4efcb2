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

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use chisel_ssh::{Channel, IncomingChannel, RejectReason, Sink};
use prometheus::{Histogram, IntCounter};
use runtime::supervise::Supervisor;
use tokio::{
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tracing::{Instrument as _, Span, debug, field, info_span};

use crate::{
    address::HostPort,
    connections::{Connections, Direction, Guard, Meter},
    datagrams::{Reverse, hold},
    echo::{Proofs, Told},
    limits::Limiter,
    local::{Locals, shown},
    metrics::{Counters, Opened},
    never::Never,
    plan::LaneId,
    reach::{Unreached, reach},
    remotes::Listen,
    sessions::Sessions,
    shaped::Shaped,
    socks::{
        self, NotServed,
        rules::{Rules, Verdict},
    },
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

/// Carries the connections of all sessions; clones share it.
#[derive(Clone, Debug)]
pub struct Carrier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    routes: Mutex<HashMap<String, Route>>,
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
    fn routes(&self) -> MutexGuard<'_, HashMap<String, Route>> {
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
        Self {
            inner: Arc::new(inner),
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
        *self.inner.routes() = routes;
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
    pub(crate) fn route(&self, channel_target: &str) -> Option<Route> {
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
        if open.target().to_ascii_lowercase().ends_with(DATAGRAMS) {
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
        let expected = match route.leads {
            Leads::Target(_) => self.inner.proofs.expected(&route.forward),
            Leads::Socks(_) => None,
        };
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
            let provable = |(key, route): (&String, &Route), name: &str| {
                route.forward == name
                    && matches!(route.leads, Leads::Target(_))
                    && !key.to_ascii_lowercase().ends_with(DATAGRAMS)
            };
            let known = |name: &str| inner.routes().iter().any(|entry| provable(entry, name));
            tokio::select! {
                () = inner.proofs.serve(open.accept(), known) => {}
                () = inner.supervisor.draining() => {}
            }
        });
    }

    /// Gives a connection its place, or refuses it.
    fn admit(&self, lane: LaneId, arrival: Arrival, route: Route) {
        if self.inner.supervisor.is_draining() {
            route.counters.opened(Opened::Draining);
            arrival.refuse(RejectReason::ConnectFailed, "tunnel-sidecar is shutting down");
            return;
        }
        let Some(room) = self.room() else {
            route.counters.opened(Opened::Limit);
            let limit = self.inner.limit;
            let text = format!("{limit} connections are open, which is the limit");
            arrival.refuse(RejectReason::ResourceShortage, &text);
            return;
        };
        let seat = match route.limiter.seat() {
            Ok(seat) => seat,
            Err(limit) => {
                route.counters.opened(Opened::Limit);
                let text = format!("{limit} connections of this forward are open, which is its limit");
                arrival.refuse(RejectReason::ResourceShortage, &text);
                return;
            }
        };
        let carrier = self.clone();
        match route.leads.clone() {
            Leads::Target(dials) => {
                // Entered here and not in the task: a connection that is being made counts, and is closed when its
                // route goes, like one that is open.
                let guard = self.inner.connections.enter(lane, &route.forward, &dials);
                let span = self.inner.spans.next(|| {
                    let (forward, target, id) = (&route.forward, &dials, guard.connection().id);
                    info_span!(parent: None, "connection", forward, %target, id, session = lane,
                        result = field::Empty, bytes_in = field::Empty, bytes_out = field::Empty)
                });
                let carried = async move {
                    carrier.carry(arrival, &route, &dials, &guard).await;
                    drop((room, seat));
                };
                self.inner
                    .supervisor
                    .spawn("connection", carried.instrument(span));
            }
            Leads::Socks(rules) => {
                self.inner.supervisor.spawn("socks connection", async move {
                    carrier.carry_socks(lane, arrival, &route, &rules).await;
                    drop((room, seat));
                });
            }
        }
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

    /// The user says where to only after the channel is accepted, so refusals are told in SOCKS.
    async fn carry_socks(&self, lane: LaneId, arrival: Arrival, route: &Route, rules: &Rules) {
        // No probe is expected on these, so nothing was read.
        let (mut channel, _) = arrival.accept();
        let counters = &route.counters;
        let asked = tokio::select! {
            asked = socks::hear(&mut channel) => asked,
            () = self.inner.supervisor.draining() => return,
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(why) => {
                counters.opened(Opened::TargetFailed);
                debug!(forward = route.forward, "a user of SOCKS {why}");
                return;
            }
        };
        let guard = self.inner.connections.enter(lane, &route.forward, &asked.target);
        let start = Instant::now();
        let (never, patience) = (&self.inner.never, self.inner.timing.target);
        let served = tokio::select! {
            served = socks::serve(&mut channel, &asked, rules, never, patience) => served,
            () = guard.connection().close.cancelled() => return,
        };
        match served {
            Ok(tcp) => {
                counters.dial.observe(start.elapsed().as_secs_f64());
                counters.opened(Opened::Accepted);
                counters.open.inc();
                self.copy(
                    Arrival::Accepted(channel, Vec::new()),
                    tcp,
                    &guard,
                    counters,
                    &route.limiter,
                )
                .await;
                counters.open.dec();
            }
            Err(why) => {
                counters.opened(match &why {
                    NotServed::NotAllowed(_)
                    | NotServed::Unreached(Unreached::Forbidden(_) | Unreached::NotAllowed(..)) => {
                        Opened::Forbidden
                    }
                    NotServed::Unreached(_) | NotServed::Incomplete | NotServed::Client(_) => {
                        Opened::TargetFailed
                    }
                });
                debug!(forward = route.forward, "a user of SOCKS is not connected: {why}");
            }
        }
    }

    async fn carry(&self, arrival: Arrival, route: &Route, dials: &HostPort, guard: &Guard) {
        let inner = &self.inner;
        let start = Instant::now();
        let reached = tokio::select! {
            reached = reach(dials, &inner.never, inner.timing.target) => reached,
            () = guard.connection().close.cancelled() => {
                arrival.refuse(RejectReason::ConnectFailed, "the forward was taken back");
                return;
            }
        };
        match reached {
            Ok(tcp) => {
                route.counters.dial.observe(start.elapsed().as_secs_f64());
                route.counters.opened(Opened::Accepted);
                route.counters.open.inc();
                self.copy(arrival, tcp, guard, &route.counters, &route.limiter)
                    .await;
                route.counters.open.dec();
                let ((bytes_in, bytes_out), forward) = (guard.connection().bytes(), &route.forward);
                let span = Span::current();
                span.record("result", Opened::Accepted.label());
                span.record("bytes_in", bytes_in).record("bytes_out", bytes_out);
                debug!(forward, bytes_in, bytes_out, "connection ended");
            }
            Err(unreached) => {
                let result = match unreached {
                    Unreached::Forbidden(_) | Unreached::NotAllowed(..) => Opened::Forbidden,
                    Unreached::Exhausted { .. } => Opened::Exhausted,
                    Unreached::Resolve { .. } | Unreached::Connect { .. } | Unreached::Timeout { .. } => {
                        Opened::TargetFailed
                    }
                };
                route.counters.opened(result);
                Span::current().record("result", result.label());
                debug!(forward = route.forward, "target not reached: {unreached}");
                let reason = if result == Opened::Exhausted {
                    RejectReason::ResourceShortage
                } else {
                    RejectReason::ConnectFailed
                };
                arrival.refuse(reason, &unreached.to_string());
            }
        }
    }

    /// Copies a connection of a listener of ours, which has no limits.
    pub(crate) async fn copy_local(
        &self,
        channel: Channel,
        tcp: TcpStream,
        guard: &Guard,
        counters: &Counters,
    ) {
        let flow = Shaped {
            guard,
            counters,
            limiter: &Limiter::default(),
        };
        self.copy_direct(channel, tcp, &flow).await;
    }

    /// Copies both ways until either side ends: directly, unless bytes have to wait for a rate or were read already.
    async fn copy(
        &self,
        arrival: Arrival,
        tcp: TcpStream,
        guard: &Guard,
        counters: &Counters,
        limiter: &Limiter,
    ) {
        let (channel, first) = arrival.accept();
        let flow = Shaped {
            guard,
            counters,
            limiter,
        };
        if first.is_empty() && !limiter.has_rates() {
            self.copy_direct(channel, tcp, &flow).await;
            return;
        }
        let inner = &self.inner;
        flow.copy(channel, &first, tcp, inner.supervisor.cut(), inner.timing.linger)
            .await;
    }

    async fn copy_direct(&self, channel: Channel, tcp: TcpStream, flow: &Shaped<'_>) {
        let (inner, guard, counters) = (&self.inner, flow.guard, flow.counters);
        let (mut from_target, to_target) = tcp.into_split();
        let target = Arc::new(Target {
            socket: to_target,
            meter: guard.meter(),
            bytes_in: counters.bytes_in.clone(),
            stalls: counters.stalls_in.clone(),
            since: Mutex::default(),
        });
        channel.attach(target.clone());
        let server_ended = {
            let inward = poll_fn(|cx| channel.poll_drain(cx, &*target));
            let outward = async {
                loop {
                    match poll_fn(|cx| channel.poll_send_from(cx, Pin::new(&mut from_target))).await {
                        Ok(0) => {
                            channel.close();
                            return Ok(());
                        }
                        Ok(n) => {
                            let bytes = u64::try_from(n).unwrap_or_default();
                            counters.bytes_out.inc_by(bytes);
                            guard.count(Direction::Out, bytes);
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            flow.until_ended(inward, outward, inner.supervisor.cut(), inner.timing.linger)
                .await
        };
        // The last owner of the writing half ends it towards the target.
        channel.detach();
        drop(target);
        if server_ended {
            // The server has forgotten the channel, so there is nobody to send to. But a socket closed with unread
            // bytes in it is reset, and a reset takes from the target what it has not read yet.
            let mut sink = tokio::io::sink();
            let rest = tokio::io::copy(&mut from_target, &mut sink);
            tokio::time::timeout(inner.timing.linger, rest).await.ok();
        }
        // Dropping both ends closes the channel once and the socket.
    }
}

/// The writing half of a target: what the server sends goes there without a copy of ours in between.
#[derive(Debug)]
struct Target {
    socket: OwnedWriteHalf,
    meter: Meter,
    bytes_in: IntCounter,
    stalls: Histogram,
    /// Since when it does not read.
    since: Mutex<Option<Instant>>,
}

impl Sink for Target {
    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        let written = self.socket.try_write(data);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_err() {
            since.get_or_insert_with(Instant::now);
        } else if let Some(since) = since.take() {
            self.stalls.observe(since.elapsed().as_secs_f64());
        }
        drop(since);
        let n = written?;
        let bytes = u64::try_from(n).unwrap_or_default();
        self.bytes_in.inc_by(bytes);
        self.meter.count(Direction::In, bytes);
        Ok(n)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_ref().poll_write_ready(cx)
    }
}
