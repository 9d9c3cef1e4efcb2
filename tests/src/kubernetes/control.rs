//! `/_sim/…`: looking inside and making trouble by hand, without a token.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{bench, faults::Fault, route::Query, server::Server, status::Status};

/// How long `down` lasts when nobody says.
const DOWN: Duration = Duration::from_secs(5);
/// Requests that `GET /_sim/requests` shows when nobody says.
const SHOWN: u64 = 100;

/// What happens once and at once.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum OneShot {
    Compact,
    EndWatches,
    Bookmark,
    CutConnections,
    Down { millis: Option<u64> },
}

/// Answers a control path.
///
/// # Errors
/// 404 and 400 in the shape of the rest of the API.
pub(super) fn answer(
    server: &Arc<Server>,
    method: &Method,
    path: &str,
    query: &Query,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let cluster = &server.cluster;
    let value = match (method.as_str(), path) {
        ("GET", "state") => state(server),
        ("GET", "requests") => {
            let count = usize::try_from(query.number("last").unwrap_or(SHOWN)).unwrap_or(usize::MAX);
            let mut all = cluster.requests.all();
            let mut last = all.split_off(all.len().saturating_sub(count));
            for (name, value) in last.iter_mut().flat_map(|request| &mut request.headers) {
                if name == "authorization" {
                    "(hidden)".clone_into(value);
                }
            }
            json!(last)
        }
        ("DELETE", "requests") => {
            cluster.requests.clear();
            json!({})
        }
        ("GET", "faults") => json!(cluster.faults.list()),
        ("POST", "faults") => add_fault(server, body)?,
        ("DELETE", "faults") => {
            cluster.faults.clear();
            json!([])
        }
        ("DELETE", path) if path.starts_with("faults/") => {
            let id = path.trim_start_matches("faults/").parse();
            cluster
                .faults
                .remove(id.map_err(|_| Status::bad_request("the number of a fault is expected"))?);
            json!(cluster.faults.list())
        }
        ("POST", "step") => {
            for _ in 0..query.number("n").unwrap_or(1) {
                cluster.tick();
            }
            state(server)
        }
        ("POST", "pause") => {
            cluster.pace.pause(true);
            state(server)
        }
        ("POST", "resume") => {
            cluster.pace.pause(false);
            state(server)
        }
        ("POST", "fill") => {
            let number =
                |name: &str| usize::try_from(query.number(name).unwrap_or_default()).unwrap_or_default();
            bench::fill(cluster, query.get("namespace"), number("count"), number("bytes"))?;
            state(server)
        }
        _ => return Err(Status::no_such_resource()),
    };
    let text = format!("{value:#}\n");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

fn state(server: &Server) -> Value {
    let cluster = &server.cluster;
    json!({
        "revision": cluster.store.revision(), "remembered_changes": cluster.store.remembered(),
        "requests": cluster.requests.total(), "open_watches": cluster.requests.open_watches(),
        "connections": server.connections(), "faults": cluster.faults.list(),
        "ticks": cluster.pace.ticks(), "paused": cluster.pace.paused()
    })
}

fn add_fault(server: &Arc<Server>, body: &[u8]) -> Result<Value, Status> {
    if let Ok(once) = serde_json::from_slice::<OneShot>(body) {
        match once {
            OneShot::Compact => drop(server.cluster.store.compact()),
            OneShot::EndWatches => server.cluster.end_watches.send_modify(|count| *count += 1),
            OneShot::Bookmark => server.cluster.bookmark.send_modify(|count| *count += 1),
            OneShot::CutConnections => server.cut_connections(),
            OneShot::Down { millis } => {
                let time = millis.map_or(DOWN, Duration::from_millis);
                let server = server.clone();
                tokio::spawn(async move {
                    server.down().await;
                    tokio::time::sleep(time).await;
                    let _ = server.up().await;
                });
            }
        }
        return Ok(json!({}));
    }
    let fault: Fault =
        serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("no fault: {error}")))?;
    Ok(json!({"id": server.cluster.faults.add(fault)}))
}
