//! One connection from its admission to its end: room, the target, and what is told when there is none.

use std::sync::Arc;

use chisel_ssh::RejectReason;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, debug, field, info_span};

use super::{Arrival, Carrier, Leads, Route};
use crate::{
    address::HostPort,
    connections::Guard,
    metrics::Opened,
    plan::LaneId,
    reach::{Unreached, reach},
    socks::{self, NotServed, rules::Rules},
};

impl Carrier {
    /// Gives a connection its place, or refuses it.
    pub(super) fn admit(&self, lane: LaneId, arrival: Arrival, route: Arc<Route>) {
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
                    let (forward, id) = (&route.forward, guard.connection().id);
                    // Not `target`: that is the module's attribute in every exported span.
                    info_span!(parent: None, "connection", forward, %dials, id, session = lane,
                        result = field::Empty, bytes_in = field::Empty, bytes_out = field::Empty)
                });
                let carried = async move {
                    carrier.carry(arrival, &route, &dials, &guard).await;
                    drop((room, seat));
                };
                let supervisor = &self.inner.supervisor;
                if span.is_none() {
                    supervisor.spawn_apart("connection", carried);
                } else {
                    supervisor.spawn_apart("connection", carried.instrument(span));
                }
            }
            Leads::Socks(rules) => {
                self.inner.supervisor.spawn_apart("socks connection", async move {
                    carrier.carry_socks(lane, arrival, &route, &rules).await;
                    drop((room, seat));
                });
            }
        }
    }

    /// The user says where to only after the channel is accepted, so refusals are told in SOCKS.
    async fn carry_socks(&self, lane: LaneId, arrival: Arrival, route: &Route, rules: &Rules) {
        let (mut channel, first) = arrival.accept();
        let counters = &route.counters;
        let asked = tokio::select! {
            asked = socks::hear(&mut channel, first) => asked,
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
}
