//! What people and agent-core may ask over gRPC, and the streams to agent-core.

use std::path::Path;

use http::Method;
use proto::v1::{
    CancelStreamRequest, ExchangeHead, ExchangeHeader, ExchangeRequest, ExplainAccessRequest,
    GetProxyRequest, ListStreamsRequest, WatchStreamsRequest, gateway_client::GatewayClient,
    proxy_client::ProxyClient, stream_event::Kind,
};
use serde_json::json;
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::support::{Core, Setup, eventually, request, soon, spec};

/// Every open call, oldest first.
pub(crate) async fn streams(setup: &Setup) -> Vec<proto::v1::Stream> {
    let mut client = ProxyClient::new(setup.proxy.grpc(Path::new("private/operator-token")));
    let listed = client.list_streams(ListStreamsRequest {}).await.unwrap();
    listed.into_inner().streams
}

/// Ends a call as an operator.
pub(crate) async fn cancel(setup: &Setup, id: u64) {
    let mut client = ProxyClient::new(setup.proxy.grpc(Path::new("private/operator-token")));
    client.cancel_stream(CancelStreamRequest { id }).await.unwrap();
}

#[tokio::test]
async fn streams_are_listed_watched_and_cancelled() {
    let setup = Setup::start().await;
    let mut client = ProxyClient::new(setup.proxy.grpc(Path::new("private/operator-token")));
    let mut events = client
        .watch_streams(WatchStreamsRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.event("ADDED", "6").await;
    socket.next().await;
    let opened = soon("an event", events.next()).await.unwrap().unwrap();
    assert_eq!(opened.kind(), Kind::Opened);
    let listed = client
        .list_streams(ListStreamsRequest {})
        .await
        .unwrap()
        .into_inner()
        .streams;
    let [watch] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (
            watch.door.as_str(),
            watch.request_id.as_str(),
            watch.path.as_str()
        ),
        ("ws:k8s", "w", "/api/v1/pods")
    );
    assert_eq!(
        (watch.watch, watch.events, watch.resource_version.as_str()),
        (true, 1, "6")
    );
    client
        .cancel_stream(CancelStreamRequest { id: watch.id })
        .await
        .unwrap();
    let last = socket.next().await;
    assert!(
        last.done() && last.error().contains("operator"),
        "{}",
        last.error()
    );
    stream.closed().await;
    let closed = soon("an event", events.next()).await.unwrap().unwrap();
    assert_eq!(
        (closed.kind(), closed.stream.unwrap().id),
        (Kind::Closed, watch.id)
    );
    let unknown = client
        .cancel_stream(CancelStreamRequest { id: 999 })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn access_is_explained_by_the_rule_that_decides() {
    let setup = Setup::start().await;
    let mut client = ProxyClient::new(setup.proxy.grpc(Path::new("private/operator-token")));
    for (user, method, path, allowed, rule) in [
        ("control-plane", "GET", "/api/v1/pods?watch=true", true, "read"),
        (
            "control-plane",
            "GET",
            "/api/v1/namespaces/a/secrets/x",
            false,
            "no-secrets",
        ),
        ("system:admin", "GET", "/api/v1/pods", false, "system"),
        (
            "agent-core",
            "GET",
            "/api/v1/namespaces/pipeops/secrets/state",
            true,
            "agent-core",
        ),
        ("agent-core", "GET", "/api/v1/pods", false, "agent-core"),
        ("control-plane", "DELETE", "/api/v1/nodes/n", false, "default"),
    ] {
        let asked = ExplainAccessRequest {
            user: user.to_owned(),
            groups: vec![],
            method: method.to_owned(),
            path: path.to_owned(),
            upgrade: false,
            speaker: String::new(),
        };
        let answer = client.explain_access(asked).await.unwrap().into_inner();
        assert_eq!(
            (answer.allowed, answer.rule.as_str()),
            (allowed, rule),
            "{user} {method} {path}: {}",
            answer.reason
        );
        assert!(!answer.reason.is_empty());
    }
}

#[tokio::test]
async fn only_the_right_token_may_ask() {
    let setup = Setup::start().await;
    std::fs::write(setup.proxy.dir.path().join("wrong"), "wrong").unwrap();
    let ask = async |token: &str| {
        let mut client = ProxyClient::new(setup.proxy.grpc(Path::new(token)));
        client
            .get_proxy(GetProxyRequest {})
            .await
            .map(|answer| answer.into_inner().status.unwrap().upstream)
    };
    assert_eq!(ask("wrong").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(ask("token").await.unwrap(), format!("{}/", setup.api.url()));
    assert_eq!(
        ask("private/operator-token").await.unwrap(),
        format!("{}/", setup.api.url())
    );
    let mut gateway = GatewayClient::new(setup.proxy.grpc(Path::new("private/operator-token")));
    let refused = gateway
        .exchange(tokio_stream::iter([ExchangeRequest::default()]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_exchange_carries_the_callers_own_credential() {
    let setup = Setup::start().await;
    let mut client = GatewayClient::new(setup.proxy.grpc(Path::new("token")));
    let head = |headers: Vec<ExchangeHeader>| ExchangeHead {
        method: "POST".to_owned(),
        path_and_query: "/api/v1/namespaces/a/configmaps?dryRun=All".to_owned(),
        headers,
    };
    let user = ExchangeHeader {
        name: "Authorization".to_owned(),
        value: "Bearer USER".to_owned(),
    };
    for (headers, status) in [(vec![user], 200), (vec![], 401)] {
        let messages = [
            ExchangeRequest {
                head: Some(head(headers)),
                body: "hel".into(),
                end: false,
            },
            ExchangeRequest {
                head: None,
                body: "lo".into(),
                end: true,
            },
        ];
        let mut answer = client
            .exchange(tokio_stream::iter(messages))
            .await
            .unwrap()
            .into_inner();
        let first = soon("a head", answer.next()).await.unwrap().unwrap();
        assert_eq!(first.status, status);
        let mut body = Vec::new();
        while let Some(piece) = soon("a piece", answer.next()).await {
            body.extend_from_slice(&piece.unwrap().body);
        }
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if status == 200 {
            assert_eq!(
                (body["body"].as_str(), body["headers"]["authorization"].as_str()),
                (Some("hello"), Some("Bearer USER"))
            );
        }
    }
}

#[tokio::test]
async fn a_lost_agent_core_changes_nothing() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    let address = setup.core.address.to_string();
    setup.core.stop().await;
    stream.event("ADDED", "6").await;
    assert_eq!(socket.next().await.version(), "6");
    assert_eq!(
        setup.proxy.get("/api/v1/pods", "door-token").await.0.as_u16(),
        200,
        "the last spec stays in force"
    );
    // Another agent-core, silent at first: still the last spec.
    let core = Core::start_at(setup.proxy.dir.path(), &address).await;
    eventually("it reports again", || core.last_report().is_some()).await;
    let report = core.last_report().unwrap();
    assert_eq!(
        (
            report.applied_epoch.as_str(),
            report.applied_revision,
            report.ready
        ),
        ("epoch", 1, true)
    );
    let mut next = spec(1);
    next.epoch = "another".to_owned();
    core.give(next);
    eventually("the new epoch is in force", || {
        core.last_report().unwrap().applied_epoch == "another"
    })
    .await;
    stream.event("MODIFIED", "7").await;
    assert_eq!(
        socket.next().await.version(),
        "7",
        "equal content touched nothing"
    );
}

#[tokio::test]
async fn probes_speak_of_this_process_only() {
    let setup = Setup::start().await;
    let get = async |path: &str| {
        let uri = path.to_owned();
        let tcp = tokio::net::TcpStream::connect(setup.proxy.addresses.http)
            .await
            .unwrap();
        let io = hyper_util::rt::TokioIo::new(tcp);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        crate::support::text(sender.send_request(request(Method::GET, &uri, "")).await.unwrap()).await
    };
    eventually("the apiserver was asked", || {
        setup.core.last_report().is_some_and(|report| report.ready)
    })
    .await;
    assert_eq!(get("/readyz").await.0.as_u16(), 200);
    setup.proxy.get("/api/v1/pods", "door-token").await;
    setup.proxy.get("/api/v1/secrets", "door-token").await;
    let (_, metrics) = get("/metrics").await;
    for line in [
        r#"pipeops_proxy_requests_total{class="pods",code="200",door="http",verb="list"} 1"#,
        r#"pipeops_proxy_requests_total{class="secrets",code="403",door="http",verb="list"} 1"#,
        r#"pipeops_proxy_refused_total{cause="policy"} 1"#,
        "pipeops_proxy_watches_open 0",
        "pipeops_proxy_queue_bytes 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
    setup.api.set_up(false);
    setup.proxy.get("/api/v1/pods", "door-token").await;
    let (status, body) = get("/readyz").await;
    assert!(status.as_u16() == 503 && body.contains("Upstream"), "{body}");
    assert_eq!(
        get("/api/v1/pods").await.0.as_u16(),
        404,
        "the apiserver's paths are on the doors only"
    );
}
