//! The routes and what each one demands before it answers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Json, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::events::{self, Envelope};
use crate::page::Page;
use crate::{Line, assets, has_csrf_header};

/// A token is 64 characters; this leaves room for JSON around it.
const SIGN_IN_LIMIT: usize = 4096;

/// Shorter than the idle timeouts of common proxies (60 s).
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Only our own files, no inline code, no frames, nowhere else to send a form or a request.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// All routes under `/dashboard`.
pub fn router(page: Page) -> Router {
    let page = Arc::new(page);
    let api = Router::new()
        .route("/dashboard/api/snapshot", get(snapshot))
        .route("/dashboard/api/events", get(stream))
        .route("/dashboard/api/actions/{name}", post(act))
        .route_layer(from_fn_with_state(Arc::clone(&page), signed_in));
    Router::new()
        .route("/dashboard", get(index))
        .route(
            "/dashboard/",
            get(|| async { Redirect::permanent("../dashboard") }),
        )
        .route("/dashboard/assets/{name}", get(asset))
        .route("/dashboard/session", get(session).post(sign_in).delete(sign_out))
        .route_layer(DefaultBodyLimit::max(SIGN_IN_LIMIT))
        .merge(api)
        .route_layer(from_fn_with_state(Arc::clone(&page), guarded))
        .with_state(page)
}

/// `Host` and `Origin` before anything else, and the headers that every answer carries.
async fn guarded(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let mut response = match page.guard.check(request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    let headers = response.headers_mut();
    let always: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in always {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A session cookie, with the CSRF header when something is to change, or the operator token as bearer.
async fn signed_in(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if page.sessions.check(headers) {
        if !request.method().is_safe() && !has_csrf_header(headers) {
            return refuse(StatusCode::FORBIDDEN, "the x-pipeops-csrf header is missing");
        }
    } else if !page.has_bearer(headers) {
        return refuse(StatusCode::UNAUTHORIZED, "sign in with the operator token");
    }
    next.run(request).await
}

async fn index() -> Response {
    document("text/html; charset=utf-8", assets::INDEX)
}

async fn asset(Path(name): Path<String>) -> Response {
    match assets::find(&name) {
        Some((kind, text)) => document(kind, text),
        None => refuse(StatusCode::NOT_FOUND, "no such asset"),
    }
}

/// Files may be kept but are asked for again, so that an upgraded agent shows its own page.
fn document(kind: &'static str, text: &'static str) -> Response {
    (
        [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")],
        text,
    )
        .into_response()
}

#[derive(Serialize)]
struct Known {
    signed_in: bool,
}

/// Asked before the stream is opened: an `EventSource` cannot tell a refusal from a broken line.
async fn session(State(page): State<Arc<Page>>, headers: HeaderMap) -> Json<Known> {
    Json(Known {
        signed_in: page.sessions.check(&headers),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    token: String,
}

async fn sign_in(State(page): State<Arc<Page>>, Json(form): Json<SignIn>) -> Response {
    if let Err(wait) = page.sessions.may_guess() {
        let seconds = wait.as_secs().saturating_add(1);
        let mut response = refuse(
            StatusCode::TOO_MANY_REQUESTS,
            "too many wrong tokens, wait a moment",
        );
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    if !page.is_operator(form.token.trim()) {
        page.sessions.guessed_wrong();
        return refuse(StatusCode::UNAUTHORIZED, "this is not the operator token");
    }
    (
        StatusCode::NO_CONTENT,
        [(header::SET_COOKIE, page.sessions.open())],
    )
        .into_response()
}

async fn sign_out(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    if !has_csrf_header(&headers) {
        return refuse(StatusCode::FORBIDDEN, "the x-pipeops-csrf header is missing");
    }
    (
        StatusCode::NO_CONTENT,
        [(header::SET_COOKIE, page.sessions.close(&headers))],
    )
        .into_response()
}

async fn snapshot(State(page): State<Arc<Page>>) -> Response {
    let latest = page.snapshots.latest();
    Json(Envelope::new(&page, &latest)).into_response()
}

async fn stream(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    let Ok(permit) = Arc::clone(&page.streams).try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open");
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events::stream(page, headers, permit))
        .keep_alive(keep_alive)
        .into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Buffering proxies would hold events back.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

#[derive(Serialize)]
struct Done {
    message: Line,
}

async fn act(State(page): State<Arc<Page>>, Path(name): Path<String>) -> Response {
    let Some(hook) = page.hook(&name) else {
        return refuse(StatusCode::NOT_FOUND, "no such action here");
    };
    let Ok(_running) = Arc::clone(&hook.permit).try_acquire_owned() else {
        return refuse(StatusCode::CONFLICT, "this action is running already");
    };
    match (hook.run)().await {
        Ok(message) => Json(Done { message }).into_response(),
        Err(reason) => refuse(StatusCode::BAD_GATEWAY, reason.as_str()),
    }
}

#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a str,
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(Refusal { error })).into_response()
}
