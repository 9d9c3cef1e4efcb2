//! A scripted control plane.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::agent::eventually;

/// One answer.
#[derive(Clone)]
pub(crate) enum Say {
    Ok(Value),
    Status(u16, Value),
    /// 200 with another body than JSON.
    Page(&'static str),
    /// No body at all.
    Bare(u16),
    Hang,
}

#[derive(Default)]
pub(crate) struct Script {
    /// Answers to registrations, then the last one again and again.
    pub(crate) register: VecDeque<Say>,
    pub(crate) beat: VecDeque<Say>,
    /// Answer on the path of the seeds, and on the older one; none is 404.
    pub(crate) tunnel: Option<Value>,
    pub(crate) older_tunnel: Option<Value>,
    /// A page instead, on the path of the seeds.
    pub(crate) tunnel_page: Option<&'static str>,
    pub(crate) token: String,
    pub(crate) registrations: Vec<Value>,
    pub(crate) beats: Vec<(String, Value)>,
    pub(crate) polls: Vec<String>,
    /// Looks at the world when a registration arrives.
    pub(crate) witness: Option<Box<dyn Fn() -> Value + Send>>,
    pub(crate) witnessed: Vec<Value>,
}

#[derive(Clone)]
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    task: Arc<JoinHandle<()>>,
}

impl ControlPlane {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let script = Script {
            register: VecDeque::from([Say::Ok(json!({ "cluster_id": "uuid-1", "name": "lab" }))]),
            beat: VecDeque::from([Say::Ok(json!({ "status": "ok" }))]),
            token: "cp-token".to_owned(),
            ..Script::default()
        };
        let script = Arc::new(Mutex::new(script));
        let app = Router::new()
            .route("/api/v1/clusters/agent/register", post(register))
            .route("/api/v1/clusters/agent/{cluster}/heartbeat", post(beat))
            .route("/api/v1/tunnel/status", get(tunnel))
            .route("/api/agents/{agent}/tunnel/status", get(older_tunnel))
            .with_state(Arc::clone(&script));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            script,
            task: Arc::new(task),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn say_register(&self, answers: impl IntoIterator<Item = Say>) {
        self.script().register = answers.into_iter().collect();
    }

    pub(crate) fn say_beat(&self, answers: impl IntoIterator<Item = Say>) {
        self.script().beat = answers.into_iter().collect();
    }

    /// Waits for the `count`-th registration.
    pub(crate) async fn registration(&self, count: usize) -> Value {
        eventually("a registration", async || {
            self.script().registrations.get(count - 1).cloned()
        })
        .await
    }

    /// Waits until `count` more beats have come in and returns the last.
    pub(crate) async fn beats(&self, count: usize) -> (String, Value) {
        let before = self.script().beats.len();
        eventually("heartbeats", async || {
            let script = self.script();
            (script.beats.len() >= before + count)
                .then(|| script.beats.last().cloned())
                .flatten()
        })
        .await
    }

    /// Waits for a beat that `is` says yes to.
    pub(crate) async fn beat_with(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let before = self.script().beats.len();
        eventually(what, async || {
            let script = self.script();
            script.beats[before.min(script.beats.len())..]
                .iter()
                .map(|(_, beat)| beat)
                .find(|beat| is(beat))
                .cloned()
        })
        .await
    }

    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

type Shared = State<Arc<Mutex<Script>>>;

fn next(answers: &mut VecDeque<Say>) -> Say {
    if answers.len() > 1 {
        answers.pop_front().unwrap()
    } else {
        answers[0].clone()
    }
}

async fn say(answer: Say) -> Response {
    match answer {
        Say::Ok(body) => Json(body).into_response(),
        Say::Status(status, body) => (StatusCode::from_u16(status).unwrap(), Json(body)).into_response(),
        Say::Page(text) => Html(text).into_response(),
        Say::Bare(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Say::Hang => std::future::pending().await,
    }
}

fn known(script: &Script, headers: &HeaderMap) -> bool {
    headers
        .get("authorization")
        .is_some_and(|value| *value == format!("Bearer {}", script.token))
}

fn stranger() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        Json(json!({ "error": "invalid token" })),
    )
        .into_response()
}

async fn register(State(script): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let answer = {
        let mut script = script.lock().unwrap();
        let seen = script.witness.as_ref().map(|witness| witness());
        script.witnessed.extend(seen);
        script.registrations.push(body);
        if !known(&script, &headers) {
            return stranger();
        }
        next(&mut script.register)
    };
    say(answer).await
}

async fn beat(
    State(script): Shared,
    Path(cluster): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let answer = {
        let mut script = script.lock().unwrap();
        script.beats.push((cluster, body));
        if !known(&script, &headers) {
            return stranger();
        }
        next(&mut script.beat)
    };
    say(answer).await
}

async fn tunnel(State(script): Shared, uri: http::Uri) -> Response {
    let mut script = script.lock().unwrap();
    script.polls.push(uri.to_string());
    if let Some(page) = script.tunnel_page {
        return Html(page).into_response();
    }
    script.tunnel.clone().map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |body| Json(body).into_response(),
    )
}

async fn older_tunnel(State(script): Shared, uri: http::Uri) -> Response {
    let mut script = script.lock().unwrap();
    script.polls.push(uri.to_string());
    let body = script.older_tunnel.clone();
    body.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |body| Json(body).into_response(),
    )
}
