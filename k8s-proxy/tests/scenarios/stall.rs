//! A reader that takes nothing, and what the audit says. The engine is put together by hand here, so that the limits
//! are short and the audit lines are at hand.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_proxy::{
    audit::Audit,
    engine::{Engine, EngineSettings},
    frames::session::{self, Context},
    identity::{Caller, Mode},
    metrics::ProxyMetrics,
    policy::{Policy, Scope},
    shared::Shared,
    streams::{Budget, StreamTable},
    upstream::{Parts, Settings, TokenSource, Upstream},
};
use runtime::{conditions::Conditions, metrics::Metrics, secret::SecretString, supervise::Supervisor};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use crate::support::{Api, Socket, eventually};

struct Bench {
    api: Api,
    metrics: Metrics,
    lines: Arc<Mutex<Vec<String>>>,
    context: Context,
}

impl Bench {
    async fn start(stall: Duration) -> Self {
        runtime::tls::install_provider();
        let api = Api::start().await;
        let parts = Parts {
            url: api.url().parse().unwrap(),
            ca: None,
            insecure: false,
            server_name: None,
            certificate: None,
            token: TokenSource::Static(SecretString::from("own-token")),
        };
        let (supervisor, metrics) = (
            Supervisor::new(Duration::from_secs(1)),
            Metrics::new(k8s_proxy::BUILD),
        );
        let figures = ProxyMetrics::new(&metrics);
        let settings = Settings::new(parts).unwrap();
        let upstream =
            Upstream::new(settings, supervisor.clone(), figures.upstream_connections.clone()).unwrap();
        let shared = Shared::new(Conditions::new(), Policy::builtin().unwrap(), Scope::default());
        let (audit, lines) = Audit::memory();
        let limits = EngineSettings {
            head_timeout: Duration::from_secs(30),
            spans: false,
        };
        let engine = Engine::new(
            StreamTable::new(10, Budget::new(64 * 1024 * 1024, figures.queue_bytes.clone())),
            upstream,
            figures,
            audit,
            shared.clone(),
            limits,
        );
        let caller = Arc::new(Caller::new("control-plane", vec![], Mode::Agent));
        let context = Context {
            stall,
            ..Context::new(engine, supervisor, shared, "ws:k8s".into(), caller)
        };
        Self {
            api,
            metrics,
            lines,
            context,
        }
    }

    /// A connection whose other end is ours.
    async fn socket(&self) -> Socket {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        tokio::spawn(session::run(server, self.context.clone()));
        Socket::over(WebSocketStream::from_raw_socket(client, Role::Client, None).await)
    }

    fn audit(&self) -> Vec<Value> {
        self.lines
            .lock()
            .unwrap()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn a_call_whose_reader_takes_nothing_is_ended_and_its_memory_given_back() {
    let bench = Bench::start(Duration::from_millis(300)).await;
    let mut socket = bench.socket().await;
    let path = "/api/v1/namespaces/a/pods/x/log";
    socket
        .send(json!({"id": "f", "method": "GET", "path": path, "query": {"follow": "true"}, "stream": true}))
        .await;
    let stream = bench.api.stream().await;
    stream.flood(vec![b'x'; 64 * 1024].into()).await;
    stream.closed().await;
    eventually("its queue is empty", || {
        let text = bench.metrics.text();
        let bytes = text
            .lines()
            .find_map(|line| line.strip_prefix("pipeops_proxy_queue_bytes "))
            .unwrap();
        bytes.parse::<usize>().unwrap() < 1024 && text.contains("pipeops_proxy_stalled_total 1")
    })
    .await;
    // The connection itself is sound: once it is read again it says what happened, and carries the next call.
    socket.get("g", "/api/v1/nodes").await;
    let mut last = socket.next_of("f").await;
    while !last.done() {
        last = socket.next_of("f").await;
    }
    assert!(last.error().contains("took nothing"), "{}", last.error());
    assert_eq!(socket.next_of("g").await.status(), 200);
}

#[tokio::test]
async fn a_connection_that_is_not_read_keeps_nobody_else_waiting() {
    const CALLS: usize = 100;
    let bench = Bench::start(Duration::from_secs(20)).await;
    let (mut stalled, mut good) = (bench.socket().await, bench.socket().await);
    for number in 0..8 {
        let path = "/api/v1/namespaces/a/pods/x/log";
        stalled
            .send(json!({"id": format!("f{number}"), "method": "GET", "path": path, "query": {"follow": "true"}, "stream": true}))
            .await;
        bench.api.stream().await.flood_quickly().await;
    }
    let mut took = Vec::new();
    for number in 0..CALLS {
        let started = tokio::time::Instant::now();
        good.get(&number.to_string(), "/api/v1/nodes").await;
        assert_eq!(good.next().await.status(), 200);
        took.push(started.elapsed());
    }
    took.sort();
    println!(
        "p99 of a small GET beside a frame connection that is not read: {:?}",
        took[CALLS - 2]
    );
    assert!(took[CALLS - 2] < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn every_call_leaves_one_line_and_no_secret_in_it() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let bench = Bench::start(Duration::from_secs(30)).await;
    let mut socket = bench.socket().await;
    let headers = json!({"Authorization": "Bearer canary", "traceparent": PARENT});
    let body = "Y2FuYXJ5";
    let path = "/apis/apps/v1/namespaces/shop/deployments/web/scale";
    socket
        .send(json!({"id": "a", "method": "PATCH", "path": path, "headers": headers, "body": body}))
        .await;
    let bytes = socket.next().await.bytes().len();
    socket.get("b", "/api/v1/namespaces/shop/secrets/x").await;
    socket.next().await;
    socket.watch("c", json!({"resourceVersion": "5"})).await;
    let stream = bench.api.stream().await;
    socket.next().await;
    socket.send(json!({"id": "c", "method": "CANCEL"})).await;
    socket.next().await;
    stream.closed().await;
    eventually("three lines", || bench.audit().len() == 3).await;
    let all = bench.audit();
    let text = |index: usize, name: &str| all[index][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        [
            text(0, "verb"),
            text(0, "resource"),
            text(0, "group"),
            text(0, "namespace"),
            text(0, "name"),
            text(0, "rule")
        ],
        ["patch", "deployments/scale", "apps", "shop", "web", "workloads"]
    );
    assert_eq!(
        (text(0, "decision"), text(0, "end"), text(0, "door")),
        ("allow".into(), "complete".into(), "ws:k8s".into())
    );
    assert_eq!(
        (all[0]["status"].as_u64(), all[0]["bytes"].as_u64()),
        (Some(200), Some(bytes as u64))
    );
    assert_eq!(text(0, "trace_id"), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        (text(1, "decision"), text(1, "rule"), text(1, "end")),
        ("deny".into(), "no-secrets".into(), "policy".into())
    );
    assert_eq!(
        (text(2, "verb"), text(2, "end")),
        ("watch".into(), "cancelled".into())
    );
    assert!(!bench.lines.lock().unwrap().concat().contains("canary"));
}
