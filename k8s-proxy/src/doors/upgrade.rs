//! Calls that ask for a two-way connection, through the doors that can carry one: an HTTP/1.1 upgrade, or an extended
//! CONNECT of HTTP/2 (RFC 8441).

use std::pin::pin;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use runtime::supervise::Supervisor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::body::DoorBody;
use crate::{
    engine::{Ask, Engine, Tunnel},
    headers,
    status::Failure,
    streams::CancelReason,
};

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    protocol: &'static str,
    /// Answer to the caller's `Sec-WebSocket-Key`, over HTTP/1.1.
    accept: Option<HeaderValue>,
    connect: bool,
}

impl Asked {
    /// Reads it; `None` when the request is an ordinary one.
    ///
    /// # Errors
    /// 405 for a CONNECT without a protocol, 400 for a handshake that is none.
    pub(super) fn read<B>(request: &Request<B>) -> Result<Option<Self>, Failure> {
        let wrong = |sentence: &str| Failure::new(StatusCode::BAD_REQUEST, "upgrade", sentence);
        let unknown = || wrong("only upgrades to websocket and SPDY/3.1 are carried");
        if request.method() == Method::CONNECT {
            let protocol = request.extensions().get::<Protocol>().ok_or_else(|| {
                let sentence = "CONNECT needs a :protocol: websocket or SPDY/3.1";
                Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", sentence)
            })?;
            let protocol = headers::connect_protocol(protocol.as_str()).ok_or_else(unknown)?;
            return Ok(Some(Self {
                protocol,
                accept: None,
                connect: true,
            }));
        }
        if !headers::wants_upgrade(request.headers()) {
            return Ok(None);
        }
        let protocol = headers::upgrade_protocol(request.headers()).ok_or_else(unknown)?;
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
        let accept = match key {
            None if protocol == "websocket" => return Err(wrong("Sec-WebSocket-Key is missing")),
            key => key
                .map(|key| HeaderValue::from_str(&derive_accept_key(key.as_bytes())))
                .transpose()
                .map_err(|_| wrong("Sec-WebSocket-Key does not read"))?,
        };
        Ok(Some(Self {
            protocol,
            accept,
            connect: false,
        }))
    }

    /// An extended CONNECT has lost its method and has no `Upgrade`; both have one value each that kubectl uses.
    pub(super) fn prepare(&self, ask: &mut Ask) {
        if self.connect {
            ask.method = if self.protocol == "websocket" {
                Method::GET
            } else {
                Method::POST
            };
            let headers = &mut ask.headers;
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(self.protocol));
        }
    }

    fn answer(&self, tunnel: &Tunnel) -> Response<DoorBody> {
        let mut response = Response::new(DoorBody::Full(Bytes::new()));
        response.headers_mut().clone_from(&tunnel.headers);
        if self.connect {
            return response;
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(self.protocol));
        if let Some(accept) = &self.accept {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
        }
        response
    }
}

/// The caller's side of the connection, once the request is answered.
pub(super) fn on(parts: &mut request::Parts) -> Option<OnUpgrade> {
    parts.extensions.remove::<OnUpgrade>()
}

/// Carries out the call; the two-way connection lives on as a task of its own.
pub(super) async fn carry(
    engine: &Engine,
    supervisor: &Supervisor,
    ask: Ask,
    asked: &Asked,
    on: Option<OnUpgrade>,
) -> Response<DoorBody> {
    let Some(on) = on else {
        let sentence = "this connection cannot be upgraded";
        let failure = Failure::new(StatusCode::BAD_REQUEST, "upgrade", sentence);
        return failure.response(DoorBody::Full(Bytes::from(failure.json())));
    };
    let tunnel = match engine.upgrade(ask).await {
        Ok(tunnel) => tunnel,
        Err(answer) => return answer.map(|body| DoorBody::Engine(Box::new(body))),
    };
    let response = asked.answer(&tunnel);
    let stopping = supervisor.clone();
    supervisor.spawn("tunnel", async move {
        let cancel = tunnel.cancel().clone();
        let mut joined = pin!(async {
            match on.await {
                Ok(caller) => tunnel.join(TokioIo::new(caller)).await,
                Err(error) => debug!(%error, "a caller went away before its upgrade"),
            }
        });
        tokio::select! {
            () = joined.as_mut() => {}
            // A drain lets it finish; what is left at its deadline is ended, and says so in the audit record.
            () = stopping.cut() => {
                cancel.cancel(CancelReason::Draining);
                joined.await;
            }
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: request::Builder) -> Result<Option<Asked>, u16> {
        Asked::read(&request.body(()).unwrap()).map_err(|failure| failure.code.as_u16())
    }

    #[test]
    fn upgrades_are_told_from_ordinary_calls() {
        let get = || Request::get("/x");
        assert_eq!(read(get()), Ok(None));
        assert_eq!(read(get().header("upgrade", "h2c")), Ok(None));
        assert_eq!(read(get().header("upgrade", "irc")), Err(400));
        assert_eq!(
            read(get().header("upgrade", "websocket")),
            Err(400),
            "without a key"
        );
        let websocket = get()
            .header("upgrade", "WebSocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let asked = read(websocket).unwrap().unwrap();
        // RFC 6455 section 1.3.
        assert_eq!(asked.accept.unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let spdy = read(Request::post("/x").header("upgrade", "SPDY/3.1"))
            .unwrap()
            .unwrap();
        assert_eq!(
            (spdy.protocol, spdy.accept, spdy.connect),
            ("SPDY/3.1", None, false)
        );
        assert_eq!(read(Request::connect("x:1")), Err(405));
        let connect =
            |protocol: &'static str| Request::connect("x:1").extension(Protocol::from_static(protocol));
        assert_eq!(read(connect("spdy/3.1")).unwrap().unwrap().protocol, "SPDY/3.1");
        assert_eq!(read(connect("connect-udp")), Err(400));
    }
}
