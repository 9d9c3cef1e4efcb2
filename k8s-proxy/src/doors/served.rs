//! WebSockets that others open to us: `/ws/k8s`, `/ws/control-plane`, `/ws/runner`. The same protocols on each: frames,
//! or HTTP/2 when the peer offers it; the door's name tells them apart in policy and audit.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use runtime::{carrier, websocket};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{http::Door, v2};
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

/// What is spoken over a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// JSON frames, one per text message.
    Frames,
    /// HTTP/2, of which we are the server.
    Http2,
}

/// What a peer offers: HTTP/2 when it names it, else frames.
pub(super) fn protocol(headers: &HeaderMap) -> Protocol {
    let mut offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if offered.any(|offered| offered.trim() == v2::SUBPROTOCOL) {
        Protocol::Http2
    } else {
        Protocol::Frames
    }
}

pub(super) fn switching<B>(accept: &str, protocol: Protocol, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    if protocol == Protocol::Http2 {
        let picked = HeaderValue::from_static(v2::SUBPROTOCOL);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, picked);
    }
    response
}

/// Serves one WebSocket until it ends.
pub(super) async fn run<S>(
    stream: S,
    door: &Door,
    name: &'static str,
    caller: Arc<Caller>,
    protocol: Protocol,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (engine, supervisor, shared) = (door.engine.clone(), door.supervisor.clone(), door.shared.clone());
    let who = caller.name.clone();
    info!(door = name, caller = who, ?protocol, "a WebSocket opened");
    let socket = async |max_message| {
        let config = Some(websocket::config(max_message));
        WebSocketStream::from_raw_socket(stream, Role::Server, config).await
    };
    let end = match protocol {
        Protocol::Frames => {
            let context = session::Context::new(engine, supervisor, shared, name.into(), caller);
            session::run(socket(MAX_FRAME).await, context).await
        }
        Protocol::Http2 => {
            let session = v2::Session {
                engine,
                supervisor,
                shared,
                board: door.board.clone(),
                door: name.into(),
                caller,
                stop: CancellationToken::new(),
            };
            v2::run(socket(carrier::MAX_MESSAGE).await, session).await
        }
    };
    info!(
        door = name,
        caller = who,
        end = end.sentence(),
        "a WebSocket ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_is_spoken_with_whoever_offers_it() {
        let of = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap());
            }
            protocol(&headers)
        };
        assert_eq!(of(&[]), Protocol::Frames);
        assert_eq!(of(&["something"]), Protocol::Frames);
        assert_eq!(of(&["something, pipeops.k8s.h2"]), Protocol::Http2);
        assert_eq!(of(&["something", "pipeops.k8s.h2"]), Protocol::Http2);
    }
}
