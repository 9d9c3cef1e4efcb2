//! What is known about a call while it is open, and what is told about it once it is over.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tracing::Span;

use super::{Ask, Inner};
use crate::{
    audit::Record,
    policy::Decision,
    status::Failure,
    streams::{Cancel, OpenStream, Stream},
    target::Target,
};

/// Follows one call from its door to its end. Dropping it is the end.
pub(super) struct Ticket {
    engine: Arc<Inner>,
    open: Option<OpenStream>,
    span: Span,
    started: Instant,
    record: Record,
    class: &'static str,
    watch: bool,
    pub(super) user: String,
    pub(super) status: StatusCode,
    pub(super) bytes: u64,
    /// How it ended; until anything else is known, by its caller going away.
    pub(super) end: &'static str,
    refused: bool,
}

impl Ticket {
    pub(super) fn new(engine: Arc<Inner>, ask: &Ask, target: &Target, span: Span) -> Self {
        let resource = if target.is_resource() {
            target.resource_path().into_owned()
        } else {
            target.path.clone()
        };
        let record = Record {
            request_id: ask.request_id.clone(),
            trace_id: trace_id(&ask.headers),
            door: Arc::clone(&ask.door),
            caller: ask.caller.name.clone(),
            verb: target.verb,
            resource,
            group: target.group.clone(),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            decision: "deny",
            rule: "none".into(),
            ..Record::default()
        };
        Self {
            engine,
            open: None,
            span,
            started: Instant::now(),
            record,
            class: target.class(),
            watch: target.watch,
            user: ask.caller.name.clone(),
            status: StatusCode::OK,
            bytes: 0,
            end: "caller_gone",
            refused: false,
        }
    }

    pub(super) fn admitted(&mut self, open: OpenStream) {
        self.engine
            .metrics
            .streams
            .with_label_values(&[&*self.record.door])
            .inc();
        if self.watch {
            self.engine.metrics.watches.inc();
        }
        self.open = Some(open);
    }

    pub(super) fn decided(&mut self, decision: &Decision) {
        self.record.decision = if decision.allowed { "allow" } else { "deny" };
        self.record.rule = Arc::clone(&decision.rule);
        self.span.record("enduser.id", self.user.as_str());
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
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let metrics = &self.engine.metrics;
        if let Some(open) = self.open.take() {
            metrics.streams.with_label_values(&[&*self.record.door]).dec();
            if self.watch {
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
        let (record, code) = (&self.record, self.status.as_str());
        metrics
            .requests
            .with_label_values(&[&*record.door, record.verb, self.class, code])
            .inc();
        self.engine.shared.count_request();
        self.engine.audit.write(Record {
            user: std::mem::take(&mut self.user),
            status: self.status.as_u16(),
            bytes: self.bytes,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            end: self.end.to_owned(),
            ..std::mem::take(&mut self.record)
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
