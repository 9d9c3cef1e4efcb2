//! WebSockets that others open to us: `/ws/k8s`, `/ws/control-plane`, `/ws/runner`. The same frames on each; the
//! door's name tells them apart in policy and audit.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use runtime::websocket;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tracing::info;

use super::http::Door;
use crate::{
    frames::{codec::MAX_FRAME, session},
    identity::Caller,
    status::Failure,
};

/// Paths and the names of their doors.
const PATHS: [(&str, &str); 3] = [
    ("/ws/k8s", "ws:k8s"),
    ("/ws/control-plane", "ws:control-plane"),
    ("/ws/runner", "ws:runner"),
];

/// The door behind a path, if it is one of ours.
pub(super) fn door_name(path: &str) -> Option<&'static str> {
    PATHS
        .iter()
        .find(|(known, _)| *known == path)
        .map(|(_, name)| *name)
}

/// Checks the handshake (RFC 6455 section 4.2.1) and answers its key.
pub(super) fn accept_key(request: &Request<Incoming>) -> Result<String, Failure> {
    let headers = request.headers();
    let is = |name, expected: &str| {
        let value = headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .unwrap_or_default();
        value
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case(expected))
    };
    let wrong = |sentence: &str| Failure::new(StatusCode::BAD_REQUEST, "websocket", sentence);
    if !is(header::UPGRADE, "websocket") || !is(header::CONNECTION, "upgrade") {
        return Err(wrong(
            "this path is a WebSocket: connect with a WebSocket client over HTTP/1.1",
        ));
    }
    if !is(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(wrong("only version 13 of WebSocket is spoken here"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| wrong("Sec-WebSocket-Key is missing"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

pub(super) fn switching<B>(accept: &str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

pub(super) fn context(door: &Door, name: &str, caller: Arc<Caller>) -> session::Context {
    let (engine, supervisor, shared) = (door.engine.clone(), door.supervisor.clone(), door.shared.clone());
    session::Context::new(engine, supervisor, shared, name.into(), caller)
}

/// Serves one WebSocket until it ends.
pub(super) async fn run<S>(stream: S, context: session::Context)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket =
        WebSocketStream::from_raw_socket(stream, Role::Server, Some(websocket::config(MAX_FRAME))).await;
    let (door, caller) = (Arc::clone(&context.door), context.caller.name.clone());
    info!(%door, caller, "a frame connection opened");
    let end = session::run(socket, context).await;
    info!(%door, caller, end = end.sentence(), "a frame connection ended");
}
