//! From an HTTP request to an answer: record, identify, route, authorise, faults, then the verb.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    auth::{Identity, Question},
    bench::{Flood, Paced},
    body::{self, Outlet},
    cluster::Cluster,
    connection::Connection,
    control, discovery,
    faults::{Asked, FaultKind},
    list,
    log_stream::LogStream,
    mutate,
    negotiate::{self, Form},
    openapi,
    requests::{self, Request},
    resources::RESOURCES,
    review,
    route::{self, Query, Route, Target},
    server::Server,
    status::Status,
    store::Key,
    table,
    watch::Watch,
};

/// Largest body that is read, as in the real API.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// What is known of one request.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    pub(super) body: Bytes,
}

/// A whole answer, or one that goes on.
pub(super) enum Answer {
    /// A status and an object.
    Object(u16, Value),
    /// A status and rendered JSON.
    Json(u16, Bytes),
    /// Text.
    Text(Bytes),
    /// A path that the API machinery does not know at all: plain text, no `Status`.
    NotFound,
    /// Events.
    Watch(Box<Watch>),
    /// Made-up events.
    Paced(Paced),
    /// Lines of a log that is followed.
    Log(LogStream),
    /// Text without end.
    Flood,
}

/// Answers one request.
pub(super) async fn handle(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: http::Request<Incoming>,
) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let route = route::route(&path);
    let cluster = server.cluster.clone();
    if let Route::Control(path) = &route {
        if path == "flood" {
            return flood(&cluster, &connection);
        }
        let body = read(incoming).await;
        let answer = body.and_then(|body| control::answer(&server, &parts.method, path, &query, &body));
        return answer.unwrap_or_else(|status| status.to_response());
    }
    let guard = cluster.requests.begin(Request {
        method: parts.method.to_string(),
        path: path.clone(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        version: requests::version(parts.version),
        connection: connection.id,
        headers: requests::headers(&parts.headers),
        ..Request::default()
    });
    let audit_id = format!("00000000-0000-4000-8000-{:012x}", guard.sequence());
    let mut outlet = Outlet {
        cluster: cluster.clone(),
        connection,
        guard,
        path,
        verb: "",
        user: String::new(),
    };
    let address = server.address.to_string();
    // What follows may wait for long: it must not keep the server alive.
    drop(server);
    let mut call = Call {
        method: parts.method,
        headers: parts.headers,
        query,
        body: Bytes::new(),
    };
    let result = answer(&cluster, &address, &mut outlet, &mut call, route, incoming).await;
    let (mut response, streams) = match result {
        Ok(answer) => (Response::new(Body::empty()), Some(answer)),
        Err(status) => (status.to_response(), None),
    };
    let asked = OwnedAsked::of(&outlet);
    if let Some(answer) = streams {
        respond(outlet, &call, answer, &mut response);
    } else {
        outlet.guard.status(response.status().as_u16());
    }
    let slow = |kind: &FaultKind| match kind {
        FaultKind::Slow { bytes_per_second } => Some(*bytes_per_second),
        _ => None,
    };
    if let Some(rate) = cluster.faults.take(asked.borrow(), slow) {
        response = response.map(|inner| body::slow(inner, rate));
    }
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    if let Ok(value) = HeaderValue::from_str(&audit_id) {
        headers.insert("audit-id", value);
    }
    response
}

struct OwnedAsked {
    path: String,
    verb: &'static str,
    user: String,
}

impl OwnedAsked {
    fn of(outlet: &Outlet) -> Self {
        Self {
            path: outlet.path.clone(),
            verb: outlet.verb,
            user: outlet.user.clone(),
        }
    }

    fn borrow(&self) -> Asked<'_> {
        Asked {
            path: &self.path,
            verb: self.verb,
            user: &self.user,
        }
    }
}

async fn read(incoming: Incoming) -> Result<Bytes, Status> {
    match Limited::new(incoming, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Status::too_large_body(BODY_LIMIT))
        }
        Err(error) => Err(Status::bad_request(format!(
            "the body could not be read: {error}"
        ))),
    }
}

async fn answer(
    cluster: &Arc<Cluster>,
    address: &str,
    outlet: &mut Outlet,
    call: &mut Call,
    route: Route,
    incoming: Incoming,
) -> Result<Answer, Status> {
    // Like the real one: these answer everybody.
    match &route {
        Route::Health => return Ok(Answer::Text(Bytes::from_static(b"ok"))),
        Route::Version => return Ok(Answer::Object(200, discovery::version())),
        _ => {}
    }
    let identity = cluster.auth.identify(&call.headers)?;
    outlet.guard.identified(&identity);
    outlet.user.clone_from(&identity.user);
    let target = match route {
        Route::Target(target) => target,
        Route::Discovery(parts) => {
            wait_for_faults(outlet).await?;
            let found = discovery::answer(&parts, address);
            return match found {
                Some(value) => Ok(Answer::Object(200, value)),
                None if parts.len() == 2 => Ok(Answer::NotFound),
                None => Err(Status::no_such_resource()),
            };
        }
        Route::OpenApi(parts) => {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            return Ok(openapi::answer(&parts).map_or(Answer::NotFound, |value| Answer::Object(200, value)));
        }
        Route::Review(name) => {
            call.body = read(incoming).await?;
            let posted = negotiate::decode(&negotiate::content_type(&call.headers), &call.body)?;
            return Ok(Answer::Object(
                201,
                review::answer(&cluster.auth, &identity, &name, posted)?,
            ));
        }
        Route::Unknown if !outlet.path.starts_with("/api/") && !outlet.path.starts_with("/apis/") => {
            return Ok(Answer::NotFound);
        }
        Route::Health | Route::Version | Route::Control(_) | Route::Unknown => {
            return Err(Status::no_such_resource());
        }
    };
    let verb = route::verb(&call.method, &target, &call.query).ok_or_else(Status::method_not_allowed)?;
    outlet.verb = verb;
    outlet.guard.verb(verb);
    authorize(cluster, &identity, verb, &target)?;
    wait_for_faults(outlet).await?;
    if !matches!(verb, "get" | "list" | "watch") {
        call.body = read(incoming).await?;
    }
    serve(cluster, outlet, call, verb, target)
}

fn authorize(cluster: &Cluster, identity: &Identity, verb: &str, target: &Target) -> Result<(), Status> {
    let question = Question {
        verb,
        resource: &RESOURCES[target.resource],
        subresource: &target.subresource,
        namespace: &target.namespace,
        name: &target.name,
    };
    cluster.auth.authorize(identity, question)
}

async fn wait_for_faults(outlet: &Outlet) -> Result<(), Status> {
    let faults = &outlet.cluster.faults;
    faults.wait_while(outlet.asked(), &FaultKind::StallRequests).await;
    let delay = |kind: &FaultKind| match kind {
        FaultKind::Delay { millis } => Some(Duration::from_millis(*millis)),
        _ => None,
    };
    if let Some(delay) = faults.take(outlet.asked(), delay) {
        tokio::time::sleep(delay).await;
    }
    let fail = |kind: &FaultKind| match kind {
        FaultKind::Fail { status, retry_after } => Some(Status::injected(*status, *retry_after)),
        _ => None,
    };
    match faults.take(outlet.asked(), fail) {
        Some(status) => Err(status),
        None => Ok(()),
    }
}

fn serve(
    cluster: &Arc<Cluster>,
    outlet: &mut Outlet,
    call: &Call,
    verb: &str,
    target: Target,
) -> Result<Answer, Status> {
    let kind = &RESOURCES[target.resource];
    let positioned = |name: &str| !matches!(call.query.get(name), "" | "0");
    let gone = || {
        outlet
            .cluster
            .faults
            .take(outlet.asked(), |kind| (*kind == FaultKind::Gone).then_some(()))
            .is_some()
    };
    match (verb, target.subresource.as_str()) {
        ("get", "log") if kind.kind == "Pod" => {
            if call.query.flag("sim_flood") {
                return Ok(Answer::Flood);
            }
            let log = LogStream::open(cluster, &target.namespace, &target.name, &call.query)?;
            Ok(if call.query.flag("follow") {
                Answer::Log(log)
            } else {
                Answer::Text(log.whole())
            })
        }
        ("get", "scale") if kind.kind == "Deployment" => {
            mutate::scale(cluster, &target).map(|v| Answer::Object(200, v))
        }
        ("get", subresource) if !subresource.is_empty() && (subresource != "status" || !kind.status) => {
            Err(Status::no_such_resource())
        }
        ("get", _) => {
            let key = Key::new(target.resource, &target.namespace, &target.name);
            let stored = cluster
                .store
                .get(&key)
                .ok_or_else(|| Status::not_found(kind, &target.name))?;
            Ok(match negotiate::form(&call.headers)? {
                Form::Json => Answer::Json(200, stored.json()),
                Form::Table => Answer::Object(200, table::of_one(kind, &stored, cluster.clock.now())),
                Form::Metadata => Answer::Object(200, negotiate::metadata_only(&stored.json())),
                Form::Protobuf => return Err(Status::not_acceptable()),
            })
        }
        ("list", _) => {
            let form = negotiate::form(&call.headers)?;
            let selector = list::selector(&target, &call.query)?;
            if (positioned("resourceVersion") || positioned("continue")) && gone() {
                return Err(Status::too_old(
                    list::revision(&call.query)?.unwrap_or_default(),
                    cluster.store.revision(),
                ));
            }
            let page = list::page(&cluster.store, &target, &selector, &call.query)?;
            Ok(match form {
                Form::Json => Answer::Json(200, list::render(kind, &page)),
                Form::Table => Answer::Object(200, table::of_page(kind, &page, cluster.clock.now())),
                Form::Metadata => Answer::Object(200, negotiate::metadata_only(&list::render(kind, &page))),
                Form::Protobuf => return Err(Status::not_acceptable()),
            })
        }
        ("watch", _) => {
            let form = negotiate::watch_form(&call.headers, kind.kind)?;
            if let Some(paced) = Paced::from_query(kind, &target.namespace, &call.query) {
                return Ok(Answer::Paced(paced));
            }
            let gone = positioned("resourceVersion") && gone();
            Watch::open(cluster, target, &call.query, form, gone).map(|watch| Answer::Watch(Box::new(watch)))
        }
        _ => mutate::write(cluster, call, verb, &target),
    }
}

fn respond(mut outlet: Outlet, call: &Call, answer: Answer, response: &mut Response<Body>) {
    let (code, bytes, media) = match answer {
        Answer::Object(code, value) => (code, Bytes::from(value.to_string()), "application/json"),
        Answer::Json(code, bytes) => (code, bytes, "application/json"),
        Answer::Text(bytes) => (200, bytes, "text/plain; charset=utf-8"),
        Answer::NotFound => (
            404,
            Bytes::from_static(b"404 page not found\n"),
            "text/plain; charset=utf-8",
        ),
        streamed => {
            outlet.guard.status(200);
            let media = match &streamed {
                Answer::Watch(watch) => watch.media(),
                Answer::Paced(_) => "application/json",
                _ => "text/plain",
            };
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
            *response.body_mut() = match streamed {
                Answer::Watch(watch) => {
                    outlet.guard.is_watch();
                    outlet.stream(*watch)
                }
                Answer::Paced(paced) => {
                    outlet.guard.is_watch();
                    outlet.stream(paced)
                }
                Answer::Log(log) => outlet.stream(log),
                _ => outlet.stream(Flood::new()),
            };
            return;
        }
    };
    outlet.guard.status(code);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    let bytes = match negotiate::gzip(&call.headers, &bytes) {
        Some(small) => {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            small
        }
        None => bytes,
    };
    *response.body_mut() = outlet.whole(bytes);
}

fn flood(cluster: &Arc<Cluster>, connection: &Arc<Connection>) -> Response<Body> {
    let guard = cluster.requests.begin(Request {
        path: "/_sim/flood".to_owned(),
        status: 200,
        ..Request::default()
    });
    let outlet = Outlet {
        cluster: cluster.clone(),
        connection: connection.clone(),
        guard,
        path: "/_sim/flood".to_owned(),
        verb: "get",
        user: String::new(),
    };
    Response::new(outlet.stream(Flood::new()))
}

/// The success of a deletion.
pub(super) fn deleted(kind: &str, group: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": kind, "uid": uid});
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
