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
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use chisel_ssh::{Channel, IncomingChannel, RejectReason, Sink};
use prometheus::IntCounter;
use runtime::supervise::Supervisor;
use tokio::{
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tracing::debug;

use crate::{
    address::HostPort,
    connections::{Connections, Direction, Guard, Meter},
    datagrams::{Reverse, hold},
    local::{Locals, shown},
    metrics::{Counters, Opened},
    never::Never,
    plan::LaneId,
    reach::{Unreached, reach},
    remotes::Listen,
    sessions::Sessions,
    socks::{
        self, NotServed,
        rules::{Rules, Verdict},
    },
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
    connections: Connections,
    room: Arc<Semaphore>,
    limit: usize,
    never: Never,
    timing: Timing,
    supervisor: Supervisor,
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
            connections,
            room: Arc::new(Semaphore::new(limit)),
            limit,
            never,
            timing,
            supervisor,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Replaces what channel targets lead to and what is listened for here, and closes connections that lead
    /// elsewhere than their forward does.
    pub fn set_routes(&self, routes: HashMap<String, Route>, locals: Vec<(Listen, Counters)>) {
        let leads: HashMap<String, Leads> = routes
            .values()
            .map(|route| (route.forward.clone(), route.leads.clone()))
            .collect();
        let ours: HashMap<String, HostPort> = locals
            .iter()
            .filter_map(|(listen, _)| Some((listen.name.clone(), shown(listen)?)))
            .collect();
        *self.inner.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes;
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
        let routes = self.inner.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.get(channel_target).cloned()
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
            // The server may name any address; only what we asked for is ever dialled.
            tracing::warn!(
                asked = open.target(),
                "the server opened a channel to what is no forward of ours"
            );
            open.reject(RejectReason::Prohibited, "not a forward of this client");
            return;
        };
        if self.inner.supervisor.is_draining() {
            route.counters.opened(Opened::Draining);
            open.reject(RejectReason::ConnectFailed, "tunnel-sidecar is shutting down");
            return;
        }
        let Some(room) = self.room() else {
            route.counters.opened(Opened::Limit);
            let limit = self.inner.limit;
            open.reject(
                RejectReason::ResourceShortage,
                &format!("{limit} connections are open, which is the limit"),
            );
            return;
        };
        let carrier = self.clone();
        match route.leads.clone() {
            Leads::Target(dials) => {
                // Entered here and not in the task: a connection that is being made counts, and is closed when its
                // route goes, like one that is open.
                let guard = self.inner.connections.enter(lane, &route.forward, &dials);
                self.inner.supervisor.spawn("connection", async move {
                    carrier.carry(open, &route, &dials, &guard).await;
                    drop(room);
                });
            }
            Leads::Socks(rules) => {
                self.inner.supervisor.spawn("socks connection", async move {
                    carrier.carry_socks(lane, open, &route, &rules).await;
                    drop(room);
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
    async fn carry_socks(&self, lane: LaneId, open: IncomingChannel, route: &Route, rules: &Rules) {
        let mut channel = open.accept();
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
                self.copy(channel, tcp, &guard, counters).await;
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

    async fn carry(&self, open: IncomingChannel, route: &Route, dials: &HostPort, guard: &Guard) {
        let inner = &self.inner;
        let start = Instant::now();
        let reached = tokio::select! {
            reached = reach(dials, &inner.never, inner.timing.target) => reached,
            () = guard.connection().close.cancelled() => {
                open.reject(RejectReason::ConnectFailed, "the forward was taken back");
                return;
            }
        };
        match reached {
            Ok(tcp) => {
                route.counters.dial.observe(start.elapsed().as_secs_f64());
                route.counters.opened(Opened::Accepted);
                route.counters.open.inc();
                self.copy(open.accept(), tcp, guard, &route.counters).await;
                route.counters.open.dec();
                let ((bytes_in, bytes_out), forward) = (guard.connection().bytes(), &route.forward);
                debug!(forward, bytes_in, bytes_out, "connection ended");
            }
            Err(unreached) => {
                let result = match unreached {
                    Unreached::Forbidden(_) | Unreached::NotAllowed(..) => Opened::Forbidden,
                    Unreached::Resolve { .. } | Unreached::Connect { .. } | Unreached::Timeout { .. } => {
                        Opened::TargetFailed
                    }
                };
                route.counters.opened(result);
                debug!(forward = route.forward, "target not reached: {unreached}");
                open.reject(RejectReason::ConnectFailed, &unreached.to_string());
            }
        }
    }

    /// Copies both ways until either side ends.
    pub(crate) async fn copy(&self, channel: Channel, tcp: TcpStream, guard: &Guard, counters: &Counters) {
        let (mut from_target, to_target) = tcp.into_split();
        let target = Arc::new(Target {
            socket: to_target,
            meter: guard.meter(),
            bytes_in: counters.bytes_in.clone(),
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
            tokio::pin!(inward, outward);
            tokio::select! {
                ended = &mut inward => ended.is_ok(),
                ended = &mut outward => {
                    if ended.is_ok() {
                        tokio::time::timeout(self.inner.timing.linger, inward).await.ok();
                    }
                    false
                }
                () = guard.connection().close.cancelled() => false,
                () = self.inner.supervisor.cut() => false,
            }
        };
        // The last owner of the writing half ends it towards the target.
        channel.detach();
        drop(target);
        if server_ended {
            // The server has forgotten the channel, so there is nobody to send to. But a socket closed with unread
            // bytes in it is reset, and a reset takes from the target what it has not read yet.
            let mut sink = tokio::io::sink();
            let rest = tokio::io::copy(&mut from_target, &mut sink);
            tokio::time::timeout(self.inner.timing.linger, rest).await.ok();
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
}

impl Sink for Target {
    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        let n = self.socket.try_write(data)?;
        let bytes = u64::try_from(n).unwrap_or_default();
        self.bytes_in.inc_by(bytes);
        self.meter.count(Direction::In, bytes);
        Ok(n)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_ref().poll_write_ready(cx)
    }
}
