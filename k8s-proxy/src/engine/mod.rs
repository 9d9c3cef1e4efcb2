//! One engine behind all doors.
//!
//! ```text
//!  door ─► Ask ─► path ─► stream table ─► credential mode ─► policy ─► upstream ─► answer ─► back through the door
//!                 400/404   429             401/403            403       502/504     │
//!                                                              audit record ◄────────┘ when the answer is over
//! ```
//!
//! A refusal is an answer too: a Kubernetes `Status`. Bodies are pulled by the door and come straight from the
//! apiserver's connection; dropping one cancels the call.

pub mod body;
pub mod credential;
mod stalls;
mod ticket;
mod tunnel;
mod watch;

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{self, AUTHORIZATION},
    uri::PathAndQuery,
};
use runtime::{
    supervise::{Supervisor, chain},
    trace,
};
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, Level, Span, enabled, field, info_span};

pub use body::{AnswerEnd, EngineBody};
use ticket::Ticket;
pub use tunnel::Tunnel;

use crate::{
    audit::Audit,
    headers,
    identity::{Caller, Who},
    limits::Paced,
    metrics::ProxyMetrics,
    policy::{Decision, Policy, Subject},
    shared::Shared,
    status::Failure,
    stop,
    streams::{Cancel, CancelReason, NewStream, Share, StreamTable},
    target::Target,
    upstream::{AnswerBody, Class, RequestBody, Upstream, UpstreamError},
};

/// One call as a door hands it in.
#[derive(Debug)]
pub struct Ask {
    /// The door, for audit and metrics: one of few names.
    pub door: Arc<str>,
    /// Who was let in.
    pub caller: Arc<Caller>,
    /// The caller's id of the call, where the protocol has one.
    pub request_id: String,
    /// HTTP method.
    pub method: Method,
    /// Checked path and query of the Kubernetes API.
    pub uri: PathAndQuery,
    /// The caller's headers, not cleaned yet.
    pub headers: HeaderMap,
    /// The caller's own Kubernetes credential, where the door lets one through.
    pub authorization: Option<HeaderValue>,
    /// The body.
    pub body: RequestBody,
    /// Whether a watch that the apiserver ends by itself is opened again.
    pub rewatch_clean_end: bool,
    /// Ends the call from outside.
    pub cancel: Cancel,
}

/// Marks an answer that is ours and not the apiserver's.
#[derive(Clone, Debug)]
pub struct Ours(pub Failure);

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// How long the head of an ordinary answer may take.
    pub head_timeout: Duration,
    /// Whether spans go anywhere. If not, only what may last for hours has one, for its log lines: a span costs an
    /// ordinary call a tenth of its processor time (measured).
    pub spans: bool,
}

fn too_many(cause: &'static str, sentence: &str) -> Failure {
    Failure::new(StatusCode::TOO_MANY_REQUESTS, cause, sentence).retry_after(1)
}

/// The engine; clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) streams: StreamTable,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) audit: Audit,
    pub(crate) shared: Shared,
    /// The rule of calls that ended before one decided.
    no_rule: Arc<str>,
    settings: EngineSettings,
}

/// How to send a call: its cleaned headers and whose credential it carries.
#[derive(Clone, Debug)]
pub(crate) struct Sendable {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    /// Whether our own token goes with it.
    pub(crate) own_token: bool,
}

impl Engine {
    /// Over a stream table and a way to the apiserver.
    pub fn new(
        streams: StreamTable,
        upstream: Upstream,
        metrics: ProxyMetrics,
        audit: Audit,
        shared: Shared,
        settings: EngineSettings,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                streams,
                upstream,
                metrics,
                audit,
                shared,
                no_rule: "none".into(),
                settings,
            }),
        }
    }

    /// The open calls.
    pub fn streams(&self) -> &StreamTable {
        &self.inner.streams
    }

    /// The audit.
    pub fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    /// The figures.
    pub fn metrics(&self) -> &ProxyMetrics {
        &self.inner.metrics
    }

    /// Carries out a call. Every outcome is an answer.
    pub async fn call(&self, ask: Ask) -> Response<EngineBody> {
        let upgrade = headers::wants_upgrade(&ask.headers);
        let (target, span, mut ticket) = self.begin(&ask, upgrade);
        let outcome = self
            .carry(ask, target, upgrade, &mut ticket)
            .instrument(span.clone())
            .await;
        Self::finish(outcome, ticket, &span)
    }

    /// Reads what is asked, and opens its span and its ticket.
    fn begin(&self, ask: &Ask, upgrade: bool) -> (Arc<Target>, Span, Ticket) {
        let target = Arc::new(Target::read(&ask.method, &ask.uri, upgrade));
        let told = self.inner.settings.spans || target.endless() || upgrade || enabled!(Level::DEBUG);
        let span = if told {
            self.span(ask, &target)
        } else {
            Span::none()
        };
        let ticket = Ticket::new(Arc::clone(&self.inner), ask, Arc::clone(&target), span.clone());
        (target, span, ticket)
    }

    fn span(&self, ask: &Ask, target: &Target) -> Span {
        let span = info_span!(
            "kubernetes.request",
            otel.kind = "server",
            otel.name = field::Empty,
            http.request.method = %ask.method,
            http.route = field::Empty,
            http.response.status_code = field::Empty,
            url.path = field::Empty,
            user.name = field::Empty,
            error.type = field::Empty,
            k8s.namespace.name = field::Empty,
            pipeops.door = %ask.door,
            pipeops.verb = target.verb,
        );
        if !span.is_disabled() {
            let route = target.route();
            span.record("otel.name", format!("{} {route}", ask.method))
                .record("http.route", route)
                .record("url.path", target.path.as_str());
            if !target.namespace.is_empty() {
                span.record("k8s.namespace.name", target.namespace.as_str());
            }
            trace::set_parent(&span, &ask.headers);
        }
        span
    }

    fn finish(
        outcome: Result<Response<body::Inner>, Failure>,
        mut ticket: Ticket,
        span: &Span,
    ) -> Response<EngineBody> {
        let response = match outcome {
            Ok(response) => {
                ticket.status = response.status();
                response.map(|inner| EngineBody::new(inner, ticket))
            }
            Err(failure) => {
                ticket.refused(&failure);
                let mut response = failure
                    .response(())
                    .map(|()| EngineBody::new(body::Inner::full(failure.json()), ticket));
                response.extensions_mut().insert(Ours(failure));
                response
            }
        };
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    /// Everything that may refuse a call before the apiserver hears of it; returns its clean headers and whether
    /// our own token goes with it. `endless` calls are not among the caller's calls in flight.
    fn admit(
        &self,
        ask: &Ask,
        target: &Arc<Target>,
        endless: bool,
        ticket: &mut Ticket,
    ) -> Result<(HeaderMap, bool), Failure> {
        let (headers, own_token, subject) = credential::prepare(ask)?;
        ticket.user = subject.impersonated.then(|| subject.user.clone());
        let permit = self.inner.shared.limits().admit(&ask.caller, endless)?;
        ticket.request = self.room(ask)?;
        let new = NewStream {
            door: Arc::clone(&ask.door),
            request_id: ask.request_id.clone(),
            caller: Arc::clone(&ask.caller),
            who: Arc::clone(&subject),
            method: ask.method.clone(),
            target: Arc::clone(target),
            // A two-way connection may finish until the deadline of a drain.
            endless: target.endless(),
            cancel: ask.cancel.clone(),
            stop: stop::current(),
        };
        let full = || too_many("table_full", "too many open calls on this agent");
        let open = self.inner.streams.open(new).ok_or_else(full)?;
        ticket.admitted(open, permit);
        let decision = self.decide(&ask.caller, &subject, target);
        ticket.decided(&decision);
        if !decision.allowed {
            let sentence = decision.reason.into_owned();
            return Err(Failure::new(StatusCode::FORBIDDEN, "policy", sentence));
        }
        Ok((headers, own_token))
    }

    async fn carry(
        &self,
        ask: Ask,
        target: Arc<Target>,
        upgrade: bool,
        ticket: &mut Ticket,
    ) -> Result<Response<body::Inner>, Failure> {
        let endless = target.endless() || upgrade;
        let (headers, own_token) = self.admit(&ask, &target, endless, ticket)?;
        if upgrade {
            let sentence = "this door carries no exec, attach and port-forward: use the HTTPS door, or HTTP/2 over the WebSocket";
            return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "upgrade", sentence));
        }
        let mut sendable = Sendable {
            method: ask.method,
            headers,
            own_token,
        };
        trace::inject(&Span::current(), &mut sendable.headers);
        let cancelled = ask.cancel.cancelled();
        let work = async {
            if target.watch {
                self.open_watch(sendable, &ask.uri, ask.rewatch_clean_end, ticket)
                    .await
            } else {
                let class = if target.endless() {
                    Class::Endless
                } else {
                    Class::Ordinary
                };
                let body = Paced::wrap(ask.body, ticket.permit.pace());
                let response = self.send(&sendable, &ask.uri, body, class).await?;
                Ok(response.map(|body| body::Inner::Plain(Box::new(body))))
            }
        };
        tokio::select! {
            biased;
            () = cancelled => Err(ended(&ask.cancel)),
            result = work => result,
        }
    }

    /// Room for a body that is all here. agent-core's bodies are small, and it is not kept from its state.
    fn room(&self, ask: &Ask) -> Result<Option<Share>, Failure> {
        let budget = self.inner.streams.budget();
        let bytes = match &ask.body {
            RequestBody::Full(bytes) => bytes.len(),
            RequestBody::Stream(_) => 0,
        };
        if ask.caller.agent_core {
            return Ok(None);
        }
        let full = || too_many("memory", "too many bytes wait on this agent");
        if bytes > 0 {
            return budget.try_share(bytes).map(Some).ok_or_else(full);
        }
        if budget.excess() > 0 {
            Err(full())
        } else {
            Ok(None)
        }
    }

    /// Ends what is open and would not be allowed any more. Returns how many calls that were.
    pub fn recheck(&self) -> usize {
        self.inner.streams.cancel_where(CancelReason::Policy, |stream| {
            !self.decide(&stream.caller, &stream.who, &stream.target).allowed
        })
    }

    /// What the policy says about a call.
    pub fn decide(&self, caller: &Caller, subject: &Who, target: &Target) -> Decision {
        let who = Subject {
            user: &subject.user,
            groups: &subject.groups,
        };
        if caller.agent_core {
            return Policy::decide_agent_core(&self.inner.shared.scope(), target);
        }
        let policy = self.inner.shared.policy();
        if subject.impersonated {
            let may = policy.may_impersonate(caller, &who);
            if !may.allowed {
                return may;
            }
        }
        policy.decide(&who, target)
    }

    /// Sends a call, once more if our token turned out to be an old one.
    pub(crate) async fn send(
        &self,
        call: &Sendable,
        uri: &PathAndQuery,
        body: RequestBody,
        class: Class,
    ) -> Result<Response<AnswerBody>, Failure> {
        let again = body.again();
        let own = self.own_token(call)?;
        let response = self.send_with(call, uri, body, class, own.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !call.own_token {
            return Ok(response);
        }
        let newer = self.inner.upstream.credential().after_refusal(own.as_ref());
        match (newer, again) {
            (Some(newer), Some(body)) => {
                drop(response);
                self.send_with(call, uri, body, class, Some(&newer)).await
            }
            _ => Ok(response),
        }
    }

    fn own_token(&self, call: &Sendable) -> Result<Option<HeaderValue>, Failure> {
        if !call.own_token {
            return Ok(None);
        }
        self.inner
            .upstream
            .credential()
            .value()
            .map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no_token", error).retry_after(1))
    }

    async fn send_with(
        &self,
        call: &Sendable,
        uri: &PathAndQuery,
        body: RequestBody,
        class: Class,
        own: Option<&HeaderValue>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = Uri::from(uri.clone());
        *request.headers_mut() = call.headers.clone();
        if let Some(own) = own {
            request.headers_mut().insert(AUTHORIZATION, own.clone());
        }
        let (inner, started) = (&self.inner, Instant::now());
        let sent = inner.upstream.send(request, class);
        let result = match class {
            // A followed log or a watch may be silent for hours before its first byte.
            Class::Endless => sent.await,
            Class::Ordinary => match timeout(inner.settings.head_timeout, sent).await {
                Ok(result) => {
                    inner
                        .metrics
                        .upstream_seconds
                        .observe(started.elapsed().as_secs_f64());
                    result
                }
                Err(_) => return Err(self.too_slow()),
            },
        };
        match result {
            Ok(mut response) => {
                inner.shared.upstream_answered();
                headers::clean_response(response.headers_mut());
                Ok(response)
            }
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    fn too_slow(&self) -> Failure {
        let limit = self.inner.settings.head_timeout;
        self.inner
            .metrics
            .upstream_errors
            .with_label_values(&["timeout"])
            .inc();
        let sentence = format!("the apiserver did not answer within {limit:?}");
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "timeout", sentence)
    }

    fn unreachable(&self, error: &UpstreamError) -> Failure {
        let (inner, text) = (&self.inner, chain(error));
        inner
            .metrics
            .upstream_errors
            .with_label_values(&[error.cause()])
            .inc();
        inner.shared.upstream_failed(&text);
        Failure::new(StatusCode::BAD_GATEWAY, "upstream", text)
    }

    /// Looks after readers that take nothing, until the drain.
    pub async fn watch_stalls(self, supervisor: Supervisor) {
        stalls::watch(&self, &supervisor).await;
    }

    /// Asks the apiserver for its version with our own credential: the proof that the way there is open.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn probe(&self) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let call = Sendable {
            method: Method::GET,
            headers,
            own_token: true,
        };
        let uri = PathAndQuery::from_static("/version");
        let body = RequestBody::Full(bytes::Bytes::new());
        match self.send(&call, &uri, body, Class::Ordinary).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.message),
        }
    }
}

/// What a caller hears of a call that was ended before its answer began.
fn ended(cancel: &Cancel) -> Failure {
    let reason = cancel.reason().unwrap_or(CancelReason::Caller);
    let (code, cause) = match reason {
        CancelReason::Deadline => (StatusCode::GATEWAY_TIMEOUT, "cancelled"),
        CancelReason::Policy => (StatusCode::FORBIDDEN, "policy_changed"),
        CancelReason::Caller
        | CancelReason::ConnectionLost
        | CancelReason::Operator
        | CancelReason::Draining
        | CancelReason::Withdrawn
        | CancelReason::Stalled
        | CancelReason::Memory => (StatusCode::SERVICE_UNAVAILABLE, "cancelled"),
    };
    Failure::new(code, cause, reason.sentence())
}
