//! What is known about a call while it is open, and what is told about it once it is over.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tracing::Span;

use super::{Ask, Inner};
use crate::{
    audit::Record,
    identity::Caller,
    limits::Permit,
    policy::Decision,
    status::Failure,
    streams::{Cancel, Hold, OpenStream, Share, Stream},
    target::Target,
};

/// Shorter waits are the time a write takes, and no reader that lets us wait.
const BLOCKED: Duration = Duration::from_millis(1);

/// Follows one call from its door to its end. Dropping it is the end.
pub(super) struct Ticket {
    engine: Arc<Inner>,
    open: Option<OpenStream>,
    pub(super) permit: Permit,
    /// Room for a body that came whole, until the apiserver has it.
    pub(super) request: Option<Share>,
    hold: Option<Hold>,
    span: Span,
    started: Instant,
    door: Arc<str>,
    caller: Arc<Caller>,
    target: Arc<Target>,
    request_id: String,
    trace_id: String,
    allowed: bool,
    rule: Arc<str>,
    /// The person the caller speaks for, once that is known.
    pub(super) user: Option<String>,
    pub(super) status: StatusCode,
    pub(super) bytes: u64,
    /// How it ended; until anything else is known, by its caller going away.
    pub(super) end: &'static str,
    refused: bool,
}

impl Ticket {
    pub(super) fn new(engine: Arc<Inner>, ask: &Ask, target: Arc<Target>, span: Span) -> Self {
        Self {
            open: None,
            permit: Permit::free(),
            request: None,
            hold: None,
            span,
            started: Instant::now(),
            door: Arc::clone(&ask.door),
            caller: Arc::clone(&ask.caller),
            target,
            request_id: ask.request_id.clone(),
            trace_id: trace_id(&ask.headers),
            allowed: false,
            rule: Arc::clone(&engine.no_rule),
            engine,
            user: None,
            status: StatusCode::OK,
            bytes: 0,
            end: "caller_gone",
            refused: false,
        }
    }

    pub(super) fn admitted(&mut self, open: OpenStream, permit: Permit) {
        let metrics = &self.engine.metrics;
        metrics.streams.with_label_values(&[&*self.door]).inc();
        if self.target.watch {
            metrics.watches.inc();
        }
        self.permit = permit;
        self.hold = Some(open.hold());
        self.open = Some(open);
    }

    pub(super) fn decided(&mut self, decision: &Decision) {
        self.allowed = decision.allowed;
        self.rule = Arc::clone(&decision.rule);
        self.span.record("user.name", self.user());
    }

    pub(super) fn refused(&mut self, failure: &Failure) {
        self.status = failure.code;
        self.refused = true;
        self.end = failure.cause;
        self.span.record("error.type", failure.cause);
        self.engine
            .metrics
            .refused
            .with_label_values(&[failure.cause])
            .inc();
        self.engine.shared.count_refused();
    }

    fn user(&self) -> &str {
        self.user.as_deref().unwrap_or(&self.caller.name)
    }

    /// The word for an answer that came to its end: a refusal keeps its cause.
    pub(super) fn end_if_complete(&self) -> &'static str {
        if self.refused { self.end } else { "complete" }
    }

    pub(super) fn cancel(&self) -> Option<&Cancel> {
        self.open.as_ref().map(|open| &open.stream.cancel)
    }

    pub(super) fn stream(&self) -> Option<&Arc<Stream>> {
        self.open.as_ref().map(|open| &open.stream)
    }

    /// The door has so many bytes for the reader, and cannot be asked whether they are gone.
    pub(super) fn handed(&mut self, bytes: usize) {
        if let Some(open) = &self.open {
            open.stream.hand(open.now());
        }
        if let Some(hold) = &mut self.hold {
            hold.set(bytes);
        }
    }

    /// The door wants more: whatever it had is on its way.
    pub(super) fn taken(&self) {
        let Some(open) = &self.open else { return };
        let blocked = open.stream.take(open.now());
        if blocked >= BLOCKED {
            let metrics = &self.engine.metrics;
            metrics
                .blocked_seconds
                .with_label_values(&[&*self.door])
                .observe(blocked.as_secs_f64());
        }
    }

    /// The reader has all there is; `partial` bytes of what comes next are here.
    pub(super) fn idle(&mut self, partial: usize) {
        if let Some(hold) = &mut self.hold {
            hold.set(partial);
        }
    }

    /// Bytes were passed on.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.permit.pay(bytes);
        if let Some(open) = &self.open {
            open.stream.bytes.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// The door counts what waits by itself.
    pub(super) fn hand_over_hold(&mut self) -> Option<Hold> {
        self.hold.take()
    }

    /// What went wrong, in a word; `None` for what went well, and for what is the caller's own doing.
    fn error(&self) -> Option<&'static str> {
        match self.end {
            word if self.refused => Some(word),
            "upstream_lost" | "memory" | "upstream" | "event" | "expired" => Some(self.end),
            _ if self.status.is_server_error() => Some("apiserver_5xx"),
            _ => None,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.taken();
        let metrics = &self.engine.metrics;
        if let Some(open) = self.open.take() {
            metrics.streams.with_label_values(&[&*self.door]).dec();
            if self.target.watch {
                metrics.watches.dec();
            }
            // Ended from outside while nobody pulled at the body.
            if self.end == "caller_gone"
                && let Some(reason) = open.stream.cancel.reason()
            {
                self.end = reason.word();
            }
            self.bytes = self.bytes.max(open.stream.bytes.load(Relaxed));
        }
        let (target, took) = (&self.target, self.started.elapsed());
        let labels = [&*self.door, target.verb, target.class()];
        let [door, verb, class] = labels;
        metrics
            .requests
            .with_label_values(&[door, verb, class, self.status.as_str()])
            .inc();
        if !target.endless() {
            metrics
                .seconds
                .with_label_values(&labels)
                .observe(took.as_secs_f64());
        }
        if let Some(error) = self.error() {
            metrics
                .errors
                .with_label_values(&[door, verb, class, error])
                .inc();
        }
        self.engine.shared.count_request();
        if !self.engine.audit.is_on() {
            return;
        }
        let resource = if target.is_resource() {
            target.resource_path()
        } else {
            Cow::Borrowed(target.path.as_str())
        };
        self.engine.audit.write(&Record {
            request_id: &self.request_id,
            trace_id: &self.trace_id,
            door: &self.door,
            caller: &self.caller.name,
            user: self.user(),
            verb: target.verb,
            resource: &resource,
            group: &target.group,
            namespace: &target.namespace,
            name: &target.name,
            decision: if self.allowed { "allow" } else { "deny" },
            rule: &self.rule,
            status: self.status.as_u16(),
            bytes: self.bytes,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            end: self.end,
            ..Record::default()
        });
    }
}

/// The trace id of `traceparent`, if it looks like one.
fn trace_id(headers: &HeaderMap) -> String {
    let text = headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let id = text.split('-').nth(1).unwrap_or_default();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        id.to_owned()
    } else {
        String::new()
    }
}
