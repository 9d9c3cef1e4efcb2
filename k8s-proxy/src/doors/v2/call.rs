//! One request of a link becomes a call.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until};

use super::{
    Session,
    calls::{CallBody, Calls},
    resets::Resets,
};
use crate::{
    doors::{
        body::{DoorBody, take_body},
        http::METHODS,
        upgrade::{self, Asked},
    },
    engine::Ask,
    path,
    status::Failure,
    streams::{Cancel, CancelReason},
};

/// Budget of a call that is no stream, in milliseconds.
const DEADLINE: HeaderName = HeaderName::from_static("pipeops-deadline-ms");

/// What every call of a link needs.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub(super) session: Session,
    pub(super) calls: Calls,
    pub(super) resets: Arc<Resets>,
}

/// Counts a call that goes away before it is answered.
struct Unanswered<'a>(Option<&'a Resets>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(resets) = self.0 {
            resets.note(Instant::now());
        }
    }
}

impl Door {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<CallBody> {
        let mut unanswered = Unanswered(Some(&self.resets));
        let response = match self.carry(request).await {
            Ok(response) => response,
            Err(failure) => {
                let refused = &self.session.engine.metrics().refused;
                refused.with_label_values(&[failure.cause]).inc();
                failure.response(CallBody::Full(Bytes::from(failure.json())))
            }
        };
        unanswered.0 = None;
        response
    }

    async fn carry(&self, request: Request<Incoming>) -> Result<Response<CallBody>, Failure> {
        if self.resets.spent(Instant::now()) {
            let sentence = "this link cancels too many calls before they are answered";
            return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "resets", sentence).retry_after(1));
        }
        let asked = Asked::read(&request)?;
        if asked.is_none() && !METHODS.contains(request.method()) {
            let sentence = "this method is not one of Kubernetes'";
            return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", sentence));
        }
        let uri = path::join(request.uri().path(), request.uri().query())
            .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, "path", error.to_string()))?;
        let deadline = deadline(request.headers())?;
        let (mut parts, body) = request.into_parts();
        let on = asked.as_ref().map(|_| upgrade::on(&mut parts));
        let cancel = Cancel::default();
        let slot = self.calls.open(cancel.clone(), deadline);
        let mut ask = Ask {
            door: Arc::clone(&self.session.door),
            caller: Arc::clone(&self.session.caller),
            request_id: String::new(),
            method: parts.method,
            uri,
            authorization: parts.headers.get(header::AUTHORIZATION).cloned(),
            headers: parts.headers,
            body: take_body(body).await?,
            rewatch_clean_end: false,
            cancel: cancel.clone(),
        };
        let (engine, supervisor) = (&self.session.engine, &self.session.supervisor);
        let response = if let (Some(asked), Some(on)) = (asked, on) {
            asked.prepare(&mut ask);
            upgrade::carry(engine, supervisor, ask, &asked, on).await
        } else {
            let called = within(deadline, &cancel, engine.call(ask)).await;
            called.map(|body| DoorBody::Engine(Box::new(body)))
        };
        Ok(response.map(|body| match body {
            DoorBody::Full(bytes) => CallBody::Full(bytes),
            DoorBody::Engine(body) => CallBody::new(slot, body),
        }))
    }
}

/// Cancels a call that is not answered in time; it still answers, with the reason.
async fn within<T>(deadline: Option<Instant>, cancel: &Cancel, call: impl Future<Output = T>) -> T {
    let Some(deadline) = deadline else {
        return call.await;
    };
    let mut call = std::pin::pin!(call);
    tokio::select! {
        answer = &mut call => answer,
        () = sleep_until(deadline) => {
            cancel.cancel(CancelReason::Deadline);
            call.await
        }
    }
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Failure> {
    let Some(value) = headers.get(&DEADLINE) else {
        return Ok(None);
    };
    let milliseconds = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    let milliseconds = milliseconds.ok_or_else(|| {
        let sentence = format!("{DEADLINE} is {value:?}: a whole number of milliseconds is expected");
        Failure::new(StatusCode::BAD_REQUEST, "deadline", sentence)
    })?;
    Ok(Some(Instant::now() + Duration::from_millis(milliseconds.into())))
}
