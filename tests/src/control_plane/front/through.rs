//! Calls over a link that speaks HTTP/2: requests and bodies as they are, and two-way connections.
//!
//! ```text
//!  kubectl exec ─► HTTP/1.1 upgrade ─► extended CONNECT ─► k8s-proxy ─► HTTP/1.1 upgrade at the apiserver
//! ```

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header, request::Parts};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional,
    time::{timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    call::{self, Kind},
    failed,
    status::refusal,
    watched,
};
use crate::control_plane::{
    frames::Call,
    link::{LinkBody, LinkError, ProxyLink, Unanswered},
    state::State,
};

/// How long a request that was certainly not sent waits for another link.
const ANOTHER_LINK: Duration = Duration::from_secs(5);

/// Carries one request of a caller to `path` of a cluster.
pub(super) async fn serve(
    state: &Arc<State>,
    cluster: &str,
    link: Arc<ProxyLink>,
    path: &str,
    parts: Parts,
    body: Body,
) -> Response {
    if upgrade(&parts.headers).is_some() {
        return switch(state, cluster, link, path, parts).await;
    }
    let (asked, kind) = call::from_http(&parts, path, bytes::Bytes::new());
    if kind == Kind::Watch {
        return watched(state, cluster, &link, &with_own_wish(asked, &parts)).await;
    }
    let method = parts.method.clone();
    let request = Request::from_parts(onward(&parts, path), body);
    let sent = send(state, cluster, link, request);
    // The first line of a followed log may be hours away.
    let limit = (kind == Kind::Plain).then_some(state.config.link.call_timeout);
    let answer = match limit {
        None => sent.await,
        Some(limit) => timeout(limit, sent).await.unwrap_or(Err(LinkError::Timeout)),
    };
    match answer {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            drop_hop_by_hop(&mut parts.headers);
            Response::from_parts(parts, Body::new(body))
        }
        Err(error) => failed(&Call::new(method.as_str(), path), &error),
    }
}

/// What a watch asks for. Its pieces go through as they are, so nothing is lost by passing the caller's own wish on.
fn with_own_wish(mut asked: Call, parts: &Parts) -> Call {
    asked.headers.retain(|(name, _)| name != header::ACCEPT.as_str());
    for accept in parts.headers.get_all(header::ACCEPT) {
        asked.headers.push((
            header::ACCEPT.to_string(),
            String::from_utf8_lossy(accept.as_bytes()).into_owned(),
        ));
    }
    asked
}

/// Sends a request, over the next link if this one went away before it left.
async fn send(
    state: &State,
    cluster: &str,
    link: Arc<ProxyLink>,
    request: Request<Body>,
) -> Result<http::Response<LinkBody>, LinkError> {
    let until = tokio::time::Instant::now() + ANOTHER_LINK;
    let (mut link, mut request) = (link, request);
    loop {
        let Unanswered { error, unsent } = match link.http(request).await {
            Ok(answer) => return Ok(answer),
            Err(unanswered) => unanswered,
        };
        let Some(again) = unsent else { return Err(error) };
        let Ok(next) = timeout_at(until, state.links.wait(cluster, link.id())).await else {
            return Err(error);
        };
        if !next.is_http2() {
            return Err(error);
        }
        tracing::debug!(cluster, link = next.id(), "sent again over another link");
        (link, request) = (next, again);
    }
}

/// The request as it goes on: Kubernetes' own path, without what concerns this connection or opens this door.
fn onward(parts: &Parts, path: &str) -> Parts {
    let (mut onward, ()) = Request::new(()).into_parts();
    onward.method = parts.method.clone();
    let uri = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    onward.uri = uri.parse().unwrap_or_else(|_| Uri::from_static("/"));
    onward.headers = parts.headers.clone();
    drop_hop_by_hop(&mut onward.headers);
    // `Expect` is answered here: HTTP/2 servers never say 100 in the middle.
    for own in [header::AUTHORIZATION, header::HOST, header::EXPECT] {
        onward.headers.remove(own);
    }
    onward
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let drop: Vec<HeaderName> = headers
        .keys()
        .filter(|name| call::hop_by_hop(name))
        .cloned()
        .collect();
    for name in drop {
        headers.remove(&name);
    }
}

/// The protocol a caller wants to go on in; the offer of h2c is none.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<&str> {
    let protocol = headers.get(header::UPGRADE)?.to_str().ok()?;
    (!protocol.eq_ignore_ascii_case("h2c")).then_some(protocol)
}

async fn switch(
    state: &Arc<State>,
    cluster: &str,
    link: Arc<ProxyLink>,
    path: &str,
    mut parts: Parts,
) -> Response {
    let protocol = upgrade(&parts.headers).unwrap_or_default().to_owned();
    let Some(caller) = parts.extensions.remove::<OnUpgrade>() else {
        return refusal(StatusCode::BAD_REQUEST, "this connection cannot be upgraded");
    };
    if !link.carries_upgrades().await {
        return refusal(StatusCode::BAD_GATEWAY, "the proxy carries no upgrades");
    }
    let accept = parts
        .headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()));
    let mut connect = onward(&parts, path);
    connect.method = Method::CONNECT;
    connect.extensions.insert(Protocol::from(protocol.as_str()));
    // A CONNECT with a length ends the whole HTTP/2 connection; key and answer belong to this handshake alone.
    for own in [
        header::CONTENT_LENGTH,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::SEC_WEBSOCKET_VERSION,
    ] {
        connect.headers.remove(own);
    }
    let sent = send(state, cluster, link, Request::from_parts(connect, Body::empty()));
    let answer = match timeout(state.config.link.call_timeout, sent).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return failed(&Call::new(parts.method.as_str(), path), &error),
        Err(_) => return failed(&Call::new(parts.method.as_str(), path), &LinkError::Timeout),
    };
    if answer.status() != StatusCode::OK {
        let (mut parts, body) = answer.into_parts();
        drop_hop_by_hop(&mut parts.headers);
        return Response::from_parts(parts, Body::new(body));
    }
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().extend(answer.headers().clone());
    drop_hop_by_hop(response.headers_mut());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    for (name, value) in [
        (header::UPGRADE, Some(protocol)),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ] {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    tokio::spawn(async move {
        let both = tokio::try_join!(caller, hyper::upgrade::on(answer));
        match both {
            Ok((caller, proxy)) => {
                let (mut caller, mut proxy) = (TokioIo::new(caller), TokioIo::new(proxy));
                if let Err(error) = copy_bidirectional(&mut caller, &mut proxy).await {
                    tracing::debug!(%error, "a two-way connection broke");
                }
            }
            Err(error) => tracing::debug!(%error, "an upgrade did not come about"),
        }
    });
    response
}
