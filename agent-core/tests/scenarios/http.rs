//! HTTP on the pod's address: what everybody may read, what needs a token, and the relay.

use futures_util::{SinkExt as _, StreamExt as _};
use runtime::secret::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    agent::{Agent, client},
    control_plane::ControlPlane,
    door::{Cluster, Door},
};

#[tokio::test]
async fn probes_and_metrics_are_open_and_true() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(Cluster::default()).await);
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_KUBERNETES_DOOR", &door.url())]).await;
    agent.readyz(&["ready\n"]).await;
    cp.beat_with("counts", |beat| beat["metadata"]["k8s_nodes"] == 3)
        .await;
    let (status, text) = agent.get("/health").await;
    let health: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &health["status"], &health["connection_state"]),
        (200, &json!("healthy"), &json!("connected"))
    );
    let (status, text) = agent.get("/ready").await;
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &ready["healthy"], &ready["consecutive_failures"]),
        (200, &json!(true), &json!(0))
    );
    let (_, metrics) = agent.get("/metrics").await;
    for line in [
        "pipeops_agent_status 1",
        "pipeops_tunnel_status 0",
        "pipeops_registration_attempts_total 1",
        "pipeops_cluster_nodes_total 3",
        "pipeops_cluster_pods_total 42",
        "pipeops_agent_connection_state 2",
        "pipeops_heartbeat_errors_total 0",
        "pipeops_http_requests_total{endpoint=\"/health\",status=\"200\"} 1",
        "pipeops_kubernetes_api_calls_total{call=\"list pods\",result=\"ok\"}",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let value = |name: &str| -> f64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("pipeops_heartbeat_total") >= 1.0);
    assert!((value("pipeops_agent_heartbeat_success_total") - value("pipeops_heartbeat_total")).abs() < 0.5);
    agent.stop().await;
}

#[tokio::test]
async fn not_ready_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), "http://127.0.0.1:9", &[]).await;
    agent.readyz(&["not ready"]).await;
    let (status, text) = agent.get("/ready").await;
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &ready["status"], &ready["connected"]),
        (503, &json!("not_ready"), &json!(false))
    );
    assert!(ready["reason"].as_str().unwrap().contains(':'));
    assert_eq!(
        agent.get("/health").await.0,
        200,
        "the old liveness path never restarts a pod for an outage"
    );
    agent.stop().await;
}

#[tokio::test]
async fn everything_else_needs_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(Cluster::default()).await);
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_KUBERNETES_DOOR", &door.url())]).await;
    agent.readyz(&["ready\n"]).await;
    let http = client();
    let operator = agent.operator_token();
    let status = async |method: &str, path: &str, token: Option<&str>, body: &str| {
        let url = format!("http://{}{path}", agent.http);
        let mut request = http.request(method.parse().unwrap(), url).body(body.to_owned());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let reads = [
        "/api/health/detailed",
        "/api/status/features",
        "/api/metrics/runtime",
        "/api/status/connectivity",
    ];
    for path in reads {
        assert_eq!(status("GET", path, None, "").await, 401, "{path}");
        assert_eq!(status("GET", path, Some("cp-token"), "").await, 401, "{path}");
        assert_eq!(status("GET", path, Some(&operator), "").await, 200, "{path}");
    }
    for path in ["/api/realtime/events", "/ws"] {
        assert_eq!(status("GET", path, None, "").await, 401, "{path}");
    }
    assert_eq!(
        status("GET", "/api/realtime/logs", Some(&operator), "").await,
        501
    );
    let asks = [
        ("GET", "/api/agent/status", "", 200),
        ("POST", "/api/agent/heartbeat", "{}", 200),
        ("POST", "/api/control-plane/message", r#"{"type":"ping"}"#, 200),
        ("POST", "/api/control-plane/message", r#"{"type":"deploy"}"#, 501),
        ("POST", "/api/control-plane/message", "no json", 400),
        ("POST", "/api/runners/r1/command", "{}", 501),
    ];
    for (method, path, body, expected) in asks {
        assert_eq!(status(method, path, None, body).await, 401, "{path}");
        assert_eq!(status(method, path, Some("wrong"), body).await, 401, "{path}");
        for token in ["cp-token", &operator] {
            assert_eq!(
                status(method, path, Some(token), body).await,
                expected,
                "{path} {body}"
            );
        }
    }
    let large = "x".repeat(100_000);
    assert_eq!(
        status("POST", "/api/control-plane/message", Some("cp-token"), &large).await,
        413
    );
    let connectivity = agent.json("/api/status/connectivity").await;
    assert_eq!(connectivity["tests"]["control_plane"]["status"], true);
    assert_eq!(connectivity["tests"]["kubernetes_api"]["note"], "v1.34.3");
    door.stop();
    cp.stop();
    let connectivity = agent.json("/api/status/connectivity").await;
    assert_eq!(connectivity["overall_status"], "degraded", "{connectivity}");
    agent.stop().await;
}

#[tokio::test]
async fn a_session_cookie_needs_our_own_page() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let base = format!("http://{}", agent.http);
    let http = client();
    assert_eq!(agent.get("/dashboard").await.0, 200);
    let signed = http
        .post(format!("{base}/dashboard/session"))
        .header("x-pipeops-csrf", "1")
        .json(&json!({ "token": agent.operator_token() }))
        .send()
        .await
        .unwrap();
    assert_eq!(signed.status().as_u16(), 204);
    let cookie = signed.headers()["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let get = async |name: &'static str, value: &str| {
        let request = http
            .get(format!("{base}/api/status/features"))
            .header("cookie", &cookie);
        request
            .header(name, value)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(get("x-nothing", "1").await, 200);
    assert_eq!(get("origin", &base).await, 200);
    assert_eq!(get("origin", "https://evil.example").await, 403);
    assert!(get("host", "evil.example").await >= 400, "DNS rebinding");
    let post = http
        .post(format!("{base}/api/agent/heartbeat"))
        .header("cookie", &cookie);
    assert_eq!(
        post.try_clone().unwrap().send().await.unwrap().status().as_u16(),
        401,
        "no CSRF header"
    );
    assert_eq!(
        post.header("x-pipeops-csrf", "1")
            .send()
            .await
            .unwrap()
            .status()
            .as_u16(),
        200
    );
    agent.stop().await;
}

#[tokio::test]
async fn the_websocket_tells_the_status_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(
        dir.path(),
        &cp.url(),
        &[("PIPEOPS_REALTIME_MAX_CONNECTIONS", "1")],
    )
    .await;
    cp.beats(1).await;
    let url = url::Url::parse(&format!("ws://{}/ws", agent.http)).unwrap();
    let token = SecretString::from(agent.operator_token());
    let connect = || runtime::websocket::Connect {
        url: &url,
        bearer: Some(&token),
        subprotocol: None,
        tls: runtime::tls::client_config(None, &[]).unwrap(),
        timeout: std::time::Duration::from_secs(10),
        max_message: 1 << 20,
    };
    runtime::tls::install_provider();
    let mut socket = runtime::websocket::connect(connect()).await.unwrap();
    let mut ask = async |text: Option<&str>| -> Value {
        if let Some(text) = text {
            socket.send(Message::text(text)).await.unwrap();
        }
        serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap()
    };
    assert_eq!(ask(None).await["type"], "status");
    assert_eq!(ask(Some(r#"{"type":"ping"}"#)).await["type"], "pong");
    let status = ask(Some(r#"{"type":"get_status"}"#)).await;
    assert_eq!(
        (&status["type"], &status["data"]["agent"]["cluster_id"]),
        (&json!("status_response"), &json!("uuid-1"))
    );
    assert_eq!(
        ask(Some(r#"{"type":"get_metrics"}"#)).await["type"],
        "metrics_response"
    );
    assert_eq!(ask(Some("rubbish")).await["type"], "error");
    assert!(
        runtime::websocket::connect(connect()).await.is_err(),
        "all seats are taken"
    );
    let (_, metrics) = agent.get("/metrics").await;
    assert!(metrics.contains("pipeops_websocket_connections 1"));
    agent.stop().await;
}

#[tokio::test]
async fn events_begin_with_the_state_and_tell_of_changes() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(1).await;
    let request = client().get(format!("http://{}/api/realtime/events", agent.http));
    let mut response = request.bearer_auth(agent.operator_token()).send().await.unwrap();
    assert!(
        response.headers().get("access-control-allow-origin").is_none(),
        "no other origin may read"
    );
    let mut text = String::new();
    while !text.contains("event: health_update") {
        let chunk = response.chunk().await.unwrap().expect("an open stream");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(
        text.starts_with("event: connected") && text.contains("\"connected\":true"),
        "{text}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn requests_for_the_proxy_pass_unread() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(Cluster::default()).await);
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_KUBERNETES_DOOR", &door.url())]).await;
    let url = format!("http://{}/api/k8s/api/v1/pods?limit=5&x=%2F", agent.http);
    let request = client()
        .post(&url)
        .header("authorization", "Bearer the-callers")
        .body("12345");
    let response = request.send().await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()["x-from"].to_str().unwrap()
        ),
        (202, "the door")
    );
    assert_eq!(
        response.text().await.unwrap(),
        "/api/k8s/api/v1/pods?limit=5&x=%2F 5"
    );
    let (_, headers) = door.cluster().relayed[0].clone();
    assert_eq!(headers["authorization"], "Bearer the-callers");
    assert_eq!(headers["host"].to_str().unwrap(), agent.http.to_string());
    // Without a credential none is added: the door decides.
    client().get(&url).send().await.unwrap();
    assert!(door.cluster().relayed[1].1.get("authorization").is_none());

    let mut stream = BufReader::new(tokio::net::TcpStream::connect(agent.http).await.unwrap());
    let head = "GET /ws/k8s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    let mut echoed = [0; 5];
    stream.write_all(b"bytes").await.unwrap();
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"bytes");

    door.stop();
    agent.stop().await;
    assert_eq!(
        stream.read(&mut echoed).await.unwrap_or(0),
        0,
        "relayed streams end with agent-core"
    );
}

#[tokio::test]
async fn without_the_proxy_the_relay_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let (status, text) = agent.get("/api/k8s/api/v1/pods").await;
    assert!(
        status == 503 && text.contains("k8s-proxy does not answer"),
        "{status} {text}"
    );
    agent.stop().await;
}
