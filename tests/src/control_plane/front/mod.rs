//! The HTTPS front: `/clusters/<id>/<kubernetes path>` for kubectl and client-go, carried as HTTP/2 or as frames.
//!
//! ```text
//!  kubectl ─► front token ─► newest link ─┬─ HTTP/2 ─► request and bodies as they are, upgrades (`through`)
//!                                         └─ frames ─► call ─┬─ plain ──► one frame ──► response
//!                                                            └─ follow ─► pieces ─────► body
//!                                           both ─► watch (lives across links) ───────► body
//! ```

mod call;
mod events;
mod status;
mod through;
mod watch;

use std::{io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State as Shared},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

use self::{
    call::{Kind, Target},
    status::refusal,
};
use super::{
    frames::Call,
    link::{LinkError, ProxyLink, ResponseStream},
    secrets::{bearer, same},
    state::State,
};

/// Bodies of requests; the frame that carries one is bounded further by the link.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Pieces that wait for a caller of the front, beside what waits in the link's queue.
const BODY_QUEUE: usize = 16;

/// What a caller of the front reads from.
type BodySender = mpsc::Sender<io::Result<Bytes>>;

/// The front's only route: everything.
pub(super) fn router(state: &Arc<State>) -> Router {
    Router::new().fallback(serve).with_state(Arc::clone(state))
}

async fn serve(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    let token = bearer(request.headers());
    if !token.is_some_and(|token| same(token, &state.front_token)) {
        return refusal(StatusCode::UNAUTHORIZED, "the front needs its bearer token");
    }
    let Some(target) = Target::of(request.uri().path()) else {
        return refusal(
            StatusCode::NOT_FOUND,
            "paths of the front are /clusters/<id>/<kubernetes path>",
        );
    };
    if !state
        .book()
        .cluster(&target.cluster)
        .is_some_and(|cluster| cluster.known)
    {
        return refusal(
            StatusCode::NOT_FOUND,
            &format!("no cluster {} is registered", target.cluster),
        );
    }
    let (mut parts, body) = request.into_parts();
    let span =
        tracing::info_span!("front", method = %parts.method, path = target.path, cluster = target.cluster);
    runtime::trace::set_parent(&span, &parts.headers);
    runtime::trace::inject(&span, &mut parts.headers);
    if let Some(link) = state.links.newest(&target.cluster).filter(|link| link.is_http2()) {
        return through::serve(&state, &target.cluster, link, &target.path, parts, body)
            .instrument(span)
            .await;
    }
    if through::upgrade(&parts.headers).is_some() {
        return refusal(
            StatusCode::NOT_IMPLEMENTED,
            "frames v1 carry no upgrades: no exec, attach, port-forward",
        );
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 8 MiB");
        }
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &format!("reading the body: {error}")),
    };
    let (call, kind) = call::from_http(&parts, &target.path, body);
    carry(&state, &target.cluster, call, kind).instrument(span).await
}

async fn carry(state: &Arc<State>, cluster: &str, call: Call, kind: Kind) -> Response {
    let Some(link) = state.links.newest(cluster) else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("no link to cluster {cluster} is open"),
        );
    };
    match kind {
        Kind::Plain => match link.request(&call).await {
            // An answer that does not fit into one frame comes in pieces; asking twice changes nothing for a read.
            Ok(answer) if answer.status == StatusCode::PAYLOAD_TOO_LARGE && call.method == "GET" => {
                in_pieces(&link, &call).await
            }
            Ok(answer) => respond(answer.status, &answer.headers, Body::from(answer.body)),
            Err(error) => failed(&call, &error),
        },
        Kind::Follow => in_pieces(&link, &call).await,
        Kind::Watch => watched(state, cluster, &link, &call).await,
    }
}

/// A watch is opened again over the next link when this one is lost, if its events can be told apart.
async fn watched(state: &Arc<State>, cluster: &str, link: &Arc<ProxyLink>, call: &Call) -> Response {
    let watch = watch::Watch::new(Arc::clone(state), cluster, call);
    match link.stream(watch.call()).await {
        Ok(stream) => {
            let (status, headers) = (stream.status(), stream.headers().to_vec());
            let (sender, body) = mpsc::channel(BODY_QUEUE);
            tokio::spawn(watch.run(link.id(), stream, sender));
            respond(status, &headers, Body::from_stream(ReceiverStream::new(body)))
        }
        Err(error) => failed(call, &error),
    }
}

async fn in_pieces(link: &ProxyLink, call: &Call) -> Response {
    match link.stream(call).await {
        Ok(stream) => {
            let (status, headers) = (stream.status(), stream.headers().to_vec());
            let (sender, body) = mpsc::channel(BODY_QUEUE);
            tokio::spawn(follow(stream, sender));
            respond(status, &headers, Body::from_stream(ReceiverStream::new(body)))
        }
        Err(error) => failed(call, &error),
    }
}

/// Passes pieces on; an end that is not a good one breaks the body off, so that nobody takes it for whole.
async fn follow(mut stream: ResponseStream, body: BodySender) {
    loop {
        let piece = tokio::select! {
            piece = stream.next() => piece,
            () = body.closed() => return,
        };
        let Some(piece) = piece else { return };
        let broken = piece.is_err();
        if body.send(piece.map_err(io::Error::other)).await.is_err() || broken {
            return;
        }
    }
}

fn respond(status: u16, headers: &[(String, String)], body: Body) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in headers {
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            continue;
        };
        // The length is that of the body here; it may have been packed on its way.
        if !call::hop_by_hop(&name) && name != header::CONTENT_LENGTH {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn failed(call: &Call, error: &LinkError) -> Response {
    let status = match error {
        LinkError::Lost(_) | LinkError::Overflow | LinkError::Peer(_) => StatusCode::BAD_GATEWAY,
        LinkError::Busy => StatusCode::TOO_MANY_REQUESTS,
        LinkError::Timeout => StatusCode::GATEWAY_TIMEOUT,
        LinkError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
    };
    let mut response = refusal(status, &error.to_string());
    // client-go repeats whatever comes with Retry-After, so a write that may have happened must come without.
    if call.method != "GET" && call.method != "HEAD" && status != StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().remove(header::RETRY_AFTER);
    }
    response
}
