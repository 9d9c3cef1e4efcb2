//! Requests for k8s-proxy, passed to its local door as they came: the caller's headers and none of ours, bodies and
//! upgrades as byte streams. Who may do what is decided there.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{io::copy_bidirectional, net::TcpStream, time::timeout};
use tracing::debug;

use super::App;

/// The door is on this host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Headers of one hop (RFC 9110, 7.6.1) beside those that `Connection` names.
const HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub(super) async fn relay(State(app): State<App>, mut request: Request) -> Response {
    let Ok(permit) = app.relayed.clone().try_acquire_owned() else {
        return unavailable("too many relayed requests at once");
    };
    let io = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&*app.door_address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return unavailable(&format!("k8s-proxy does not answer: {error}")),
        Err(_) => return unavailable("k8s-proxy does not answer in time"),
    };
    io.set_nodelay(true).ok();
    let (mut sender, connection) = match http1::handshake(TokioIo::new(io)).await {
        Ok(pair) => pair,
        Err(error) => return unavailable(&format!("k8s-proxy does not answer: {error}")),
    };
    let leaving = app.web.leaving.clone();
    app.web.supervisor.spawn("relay", async move {
        let _permit = permit;
        tokio::select! {
            result = connection.with_upgrades() => {
                if let Err(error) = result {
                    debug!(%error, "a relayed connection broke");
                }
            }
            () = leaving.cancelled() => {}
        }
    });

    let upgrade = request.headers().contains_key(header::UPGRADE);
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    if !upgrade {
        strip_hop(request.headers_mut());
    }
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let Ok(uri) = target.parse() else {
        return unavailable("the path cannot be relayed");
    };
    // HTTP/2 names the host in the URI, HTTP/1.1 in a header.
    if let (Some(authority), false) = (parts.uri.authority(), parts.headers.contains_key(header::HOST))
        && let Ok(host) = authority.as_str().parse()
    {
        parts.headers.insert(header::HOST, host);
    }
    parts.uri = uri;
    parts.version = http::Version::HTTP_11;
    let mut response = match sender.send_request(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(error) => return unavailable(&format!("k8s-proxy broke off: {error}")),
    };
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) = (response.status(), client) {
        let upstream = hyper::upgrade::on(&mut response);
        let leaving = app.web.leaving.clone();
        app.web.supervisor.spawn("relay-upgrade", async move {
            let both = async {
                let (client, upstream) = tokio::try_join!(client, upstream)?;
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                copy_bidirectional(&mut client, &mut upstream).await.ok();
                Ok::<_, hyper::Error>(())
            };
            tokio::select! {
                result = both => if let Err(error) = result { debug!(%error, "a relayed upgrade broke") },
                () = leaving.cancelled() => {}
            }
        });
    } else {
        strip_hop(response.headers_mut());
    }
    response.map(Body::new)
}

fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn unavailable(error: &str) -> Response {
    let retry = [(header::RETRY_AFTER, "1")];
    (
        StatusCode::SERVICE_UNAVAILABLE,
        retry,
        Json(json!({ "error": error })),
    )
        .into_response()
}
