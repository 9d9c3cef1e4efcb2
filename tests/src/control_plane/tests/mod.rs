//! The reference control plane against plain clients: reqwest for HTTP, tungstenite for a scripted proxy.

mod agents;
mod chisel;
mod conformance;
mod faults;
mod front;
mod kubectl;
mod links;
mod people;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use super::*;
use crate::wait::patience;

const TOKEN: &str = "agents-token";

/// A control plane without chisel.
async fn plain() -> ControlPlane {
    start(|_| {}).await
}

async fn start(change: impl FnOnce(&mut ControlPlaneConfig)) -> ControlPlane {
    let mut config = ControlPlaneConfig::new(TOKEN).without_chisel();
    change(&mut config);
    ControlPlane::start(config).await.unwrap()
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().timeout(patience()).build().unwrap()
}

/// A client that trusts the control plane's authority only.
fn trusting(control_plane: &ControlPlane) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(control_plane.ca_pem().as_bytes()).unwrap();
    reqwest::Client::builder().tls_certs_only([ca]).build().unwrap()
}

async fn post(control_plane: &ControlPlane, path: &str, body: Value) -> (u16, Value) {
    let url = format!("{}{path}", control_plane.api_url());
    let response = client()
        .post(url)
        .bearer_auth(control_plane.token())
        .json(&body)
        .send()
        .await
        .unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn get(control_plane: &ControlPlane, path: &str) -> (u16, Value) {
    let url = format!("{}{path}", control_plane.api_url());
    let response = client()
        .get(url)
        .bearer_auth(control_plane.token())
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

async fn register(control_plane: &ControlPlane, body: Value) -> (u16, Value) {
    post(control_plane, "/api/v1/clusters/agent/register", body).await
}

async fn beat(control_plane: &ControlPlane, cluster: &str) -> (u16, Value) {
    let path = format!("/api/v1/clusters/agent/{cluster}/heartbeat");
    post(
        control_plane,
        &path,
        json!({ "cluster_id": cluster, "status": "healthy" }),
    )
    .await
}

/// A registered cluster: its id, and what the proxy needs to dial.
async fn registered(control_plane: &ControlPlane) -> (String, String, String) {
    let (_, answer) = register(control_plane, json!({ "agent_id": "a", "name": "lab" })).await;
    let text = |key: &str| answer[key].as_str().unwrap().to_owned();
    (text("cluster_id"), text("proxy_url"), text("proxy_token"))
}

/// The proxy's side of a link, scripted.
struct Peer {
    socket: WebSocketStream<TcpStream>,
}

impl Peer {
    async fn dial(url: &str, token: &str) -> Result<Self, tokio_tungstenite::tungstenite::Error> {
        let mut request = url.into_client_request()?;
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let authority = request.uri().authority().unwrap().to_string();
        let tcp = TcpStream::connect(authority).await?;
        let (socket, _) = client_async(request, tcp).await?;
        Ok(Self { socket })
    }

    /// A link that is open on both sides.
    async fn linked(control_plane: &ControlPlane) -> (String, Self, Arc<ProxyLink>) {
        let (cluster, url, token) = registered(control_plane).await;
        let peer = Self::dial(&url, &token).await.unwrap();
        let link = control_plane.wait_link(&cluster).await;
        (cluster, peer, link)
    }

    /// The next frame, `None` when the link has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(patience(), self.socket.next())
                .await
                .expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn answer(&mut self, request: &Value, status: u16, body: &str) {
        self.send(json!({
            "id": request["id"], "status_code": status, "headers": { "Content-Type": "application/json" },
            "body": base64(body), "done": true,
        }))
        .await;
    }

    /// The first frame of a stream.
    async fn begin(&mut self, request: &Value) {
        self.send(json!({
            "id": request["id"], "status_code": 200, "headers": { "Content-Type": "application/json" },
            "stream": true, "stream_id": format!("{}-stream", request["id"].as_str().unwrap()),
        }))
        .await;
    }

    async fn chunk(&mut self, request: &Value, body: &str) {
        self.send(json!({ "id": request["id"], "stream": true, "chunk": true, "body": base64(body) }))
            .await;
    }

    async fn done(&mut self, request: &Value, error: &str) {
        self.send(json!({ "id": request["id"], "stream": true, "done": true, "error": error }))
            .await;
    }
}

fn base64(text: &str) -> String {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

fn event(kind: &str, name: &str, version: u32) -> String {
    let metadata = json!({ "name": name, "resourceVersion": version.to_string() });
    format!(
        "{}\n",
        json!({ "type": kind, "object": { "kind": "Pod", "metadata": metadata } })
    )
}

/// Within this, what must not happen would have happened.
const SOON: Duration = Duration::from_millis(300);
