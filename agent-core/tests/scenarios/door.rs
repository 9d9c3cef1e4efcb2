//! k8s-proxy's local door with a tiny Kubernetes behind it: one Secret, counts, events.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

#[derive(Default)]
pub(crate) struct Cluster {
    /// Data of the state Secret; `None` when there is none.
    pub(crate) secret: Option<BTreeMap<String, String>>,
    pub(crate) version: u64,
    /// Answers that come instead of the Secret's.
    pub(crate) secret_status: Option<(u16, &'static str)>,
    /// So many writes are answered with a conflict first.
    pub(crate) conflicts: u32,
    pub(crate) events: Vec<Value>,
    pub(crate) tokens: Vec<String>,
    pub(crate) relayed: Vec<(String, HeaderMap)>,
    pub(crate) lists: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    task: Arc<JoinHandle<()>>,
}

impl Door {
    pub(crate) async fn start(cluster: Cluster) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), cluster).await
    }

    pub(crate) async fn start_at(address: SocketAddr, cluster: Cluster) -> Self {
        let cluster = Arc::new(Mutex::new(cluster));
        let secret = "/api/v1/namespaces/{ns}/secrets/{name}";
        let app = Router::new()
            .route(secret, get(read_secret).put(write_secret))
            .route("/api/v1/namespaces/{ns}/events", post(event))
            .route("/api/v1/nodes", get(list))
            .route("/api/v1/pods", get(list))
            .route("/version", get(version))
            .route("/ws/k8s", any(echo))
            .route("/api/k8s/{*path}", any(relayed))
            .fallback(|| async { failure(403, "Forbidden") })
            .with_state(Arc::clone(&cluster));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            cluster,
            task: Arc::new(task),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    pub(crate) fn secret(&self, name: &str) -> Option<String> {
        self.cluster().secret.as_ref()?.get(name).cloned()
    }

    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

type Shared = State<Arc<Mutex<Cluster>>>;

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": format!("the double says {reason}") });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

fn secret_value(cluster: &Cluster, namespace: &str, name: &str) -> Option<Value> {
    let data: BTreeMap<_, _> = cluster
        .secret
        .as_ref()?
        .iter()
        .map(|(name, value)| (name, STANDARD.encode(value)))
        .collect();
    Some(
        json!({ "kind": "Secret", "apiVersion": "v1", "type": "Opaque", "data": data, "metadata": {
        "name": name, "namespace": namespace, "resourceVersion": cluster.version.to_string() } }),
    )
}

async fn read_secret(
    State(cluster): Shared,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut cluster = cluster.lock().unwrap();
    let bearer = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned());
    cluster.tokens.extend(bearer);
    if let Some((code, reason)) = cluster.secret_status {
        return failure(code, reason);
    }
    match secret_value(&cluster, &namespace, &name) {
        Some(secret) => Json(secret).into_response(),
        None => failure(404, "NotFound"),
    }
}

async fn write_secret(
    State(cluster): Shared,
    Path((namespace, name)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Response {
    let mut cluster = cluster.lock().unwrap();
    if let Some((code, reason)) = cluster.secret_status {
        return failure(code, reason);
    }
    let sent = body["metadata"]["resourceVersion"].as_str();
    if cluster.conflicts > 0 || sent != Some(cluster.version.to_string().as_str()) {
        cluster.conflicts = cluster.conflicts.saturating_sub(1);
        return failure(409, "Conflict");
    }
    let data = body["data"].as_object().cloned().unwrap_or_default().into_iter();
    let data = data.map(|(name, value)| {
        (
            name,
            String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap(),
        )
    });
    cluster.secret = Some(data.collect());
    cluster.version += 1;
    Json(secret_value(&cluster, &namespace, &name).unwrap()).into_response()
}

async fn event(State(cluster): Shared, Json(body): Json<Value>) -> Response {
    cluster.lock().unwrap().events.push(body.clone());
    (StatusCode::CREATED, Json(body)).into_response()
}

async fn list(State(cluster): Shared, uri: http::Uri) -> Response {
    cluster.lock().unwrap().lists.push(uri.to_string());
    let (kind, rest) = if uri.path().ends_with("nodes") {
        ("NodeList", 2)
    } else {
        ("PodList", 41)
    };
    Json(
        json!({ "kind": kind, "apiVersion": "v1", "items": [{ "metadata": { "name": "first" } }],
        "metadata": { "resourceVersion": "7", "continue": "more", "remainingItemCount": rest } }),
    )
    .into_response()
}

async fn version() -> Response {
    Json(json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.3", "gitCommit": "c", "gitTreeState": "clean",
        "buildDate": "d", "goVersion": "g", "compiler": "c", "platform": "p" }))
    .into_response()
}

async fn relayed(State(cluster): Shared, request: Request) -> Response {
    let target = request.uri().to_string();
    cluster
        .lock()
        .unwrap()
        .relayed
        .push((target.clone(), request.headers().clone()));
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    (
        StatusCode::ACCEPTED,
        [("x-from", "the door")],
        format!("{target} {}", body.len()),
    )
        .into_response()
}

/// Upgrades to a line of our own and echoes bytes.
async fn echo(mut request: Request) -> Response {
    if request.headers().get(header::AUTHORIZATION).is_none() {
        return failure(401, "Unauthorized");
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(count) = io.read(&mut buffer).await {
            if count == 0 || io.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}
