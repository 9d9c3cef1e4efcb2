//! `/ws`: a WebSocket for people and tools. It tells the status first, then answers `ping`, `get_status` and
//! `get_metrics`, one message at a time.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tracing::debug;

use super::{App, realtime::Seat, seeds, status};
use crate::wire::one_line;

/// Requests are a few bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// A reader that takes nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn upgrade(State(app): State<App>, mut request: Request) -> Response {
    // A page of another origin could open a WebSocket here with the visitor's cookie.
    if let Err(error) = app.guard.check(request.headers(), request.uri())
        && request.headers().contains_key(header::ORIGIN)
    {
        return error.into_response();
    }
    let Some(accept) = accept_key(request.headers()) else {
        let error = "this is a WebSocket: connect with a WebSocket client (version 13)";
        return (
            StatusCode::UPGRADE_REQUIRED,
            [(header::UPGRADE, "websocket")],
            Json(json!({ "error": error })),
        )
            .into_response();
    };
    let seat = match Seat::take(&app, &app.web.hub.metrics().websockets) {
        Ok(seat) => seat,
        Err(full) => return *full,
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let supervisor = app.web.supervisor.clone();
    supervisor.spawn("ws", async move {
        let _seat = seat;
        serve(app, upgraded).await;
    });
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

fn accept_key(headers: &HeaderMap) -> Option<String> {
    let has = |name: header::HeaderName, word: &str| {
        let text = headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let version = headers.get(header::SEC_WEBSOCKET_VERSION)?.as_bytes() == b"13";
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes();
    (has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket") && version)
        .then(|| derive_accept_key(key))
}

async fn serve(app: App, upgraded: OnUpgrade) {
    let io = match upgraded.await {
        Ok(io) => TokioIo::new(io),
        Err(error) => {
            debug!(%error, "a WebSocket did not open");
            return;
        }
    };
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
    let first = message("status", &status::health_value(&app.web.hub));
    if !send(&mut socket, &first).await {
        return;
    }
    loop {
        let received = tokio::select! {
            received = timeout(app.web.config.idle, socket.next()) => received,
            () = app.web.supervisor.draining() => {
                let close = CloseFrame { code: CloseCode::Away, reason: "agent-core stops".into() };
                timeout(SEND_TIMEOUT, socket.close(Some(close))).await.ok();
                return;
            }
        };
        let answer = match received {
            Ok(Some(Ok(Message::Text(text)))) => answer(&app, text.as_bytes()),
            Ok(Some(Ok(Message::Binary(bytes)))) => answer(&app, &bytes),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => continue,
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
            Err(_) => {
                let close = CloseFrame {
                    code: CloseCode::Normal,
                    reason: "nothing was asked for too long".into(),
                };
                timeout(SEND_TIMEOUT, socket.close(Some(close))).await.ok();
                return;
            }
        };
        if !send(&mut socket, &answer).await {
            return;
        }
    }
}

fn answer(app: &App, text: &[u8]) -> Value {
    let request: Value = serde_json::from_slice(text).unwrap_or_default();
    let kind = request.get("type").and_then(Value::as_str).unwrap_or_default();
    seeds::answer(app, kind).unwrap_or_else(|| {
        let error = format!("messages of type {:?} are not supported", one_line(kind));
        message("error", &json!({ "error": error }))
    })
}

fn message(kind: &str, data: &Value) -> Value {
    json!({ "type": kind, "timestamp": status::now(), "data": data })
}

async fn send<S>(socket: &mut WebSocketStream<S>, message: &Value) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let sent = timeout(SEND_TIMEOUT, socket.send(Message::text(message.to_string()))).await;
    matches!(sent, Ok(Ok(())))
}
