//! The HTTP and HTTPS doors.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{Setup, eventually, request, soon, text};

#[tokio::test]
async fn both_kinds_of_path_lead_to_kubernetes() {
    let setup = Setup::start().await;
    for (path, expected) in [
        ("/api/k8s/api/v1/pods?limit=5", "/api/v1/pods"),
        ("/api/v1/pods", "/api/v1/pods"),
        ("/apis/apps/v1/deployments", "/apis/apps/v1/deployments"),
        ("/openapi/v3", "/openapi/v3"),
        ("/healthz", "/healthz"),
    ] {
        let (status, body) = setup.proxy.get(path, "door-token").await;
        assert_eq!(status.as_u16(), 200, "{path}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(seen["path"], expected);
        assert_eq!(seen["headers"]["authorization"], "Bearer own-token");
    }
    assert_eq!(setup.proxy.get("/dashboard", "door-token").await.0.as_u16(), 404);
    let evil = setup.proxy.get("/api/k8s/api/v1/%2e%2e/x", "door-token").await;
    assert_eq!(evil.0.as_u16(), 400);
    assert!(evil.1.contains("\"kind\":\"Status\""));
}

#[tokio::test]
async fn without_a_credential_the_answer_is_401() {
    let setup = Setup::start().await;
    for path in ["/api/v1/pods", "/api/k8s/version", "/version", "/healthz"] {
        for token in ["", "wrong", "own-token"] {
            let (status, body) = setup.proxy.get(path, token).await;
            assert_eq!(status.as_u16(), 401, "{path} {token}");
            assert!(body.contains("\"reason\":\"Unauthorized\""), "{body}");
        }
    }
    assert!(setup.api.seen().is_empty());
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let setup = Setup::start().await;
    let big = "y".repeat(3_000_000);
    let mut upload = request(Method::POST, "/api/v1/namespaces/a/configmaps", "door-token");
    *upload.body_mut() = Full::new(Bytes::from(big.clone()));
    let (status, body) = text(setup.proxy.send(upload).await).await;
    assert_eq!(status.as_u16(), 200);
    let seen: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(seen["body"].as_str().unwrap().len(), big.len());
    let (status, body) = setup.proxy.get("/api/v1/pods?size=20000000", "door-token").await;
    assert_eq!((status.as_u16(), body.len()), (200, 20_000_000));
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_call() {
    let setup = Setup::start().await;
    let path = "/api/v1/namespaces/a/pods/x/log?follow=true";
    let mut answer = setup.proxy.send(request(Method::GET, path, "door-token")).await;
    let stream = setup.api.stream().await;
    stream.send("line\n").await;
    assert_eq!(
        soon("a line", answer.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "line\n"
    );
    drop(answer);
    stream.closed().await;
}

#[tokio::test]
async fn an_apiserver_that_does_not_answer_is_a_504_and_one_that_is_away_a_502() {
    let setup = Setup::with(crate::support::Api::start().await, &["--response-timeout", "1s"]).await;
    let (status, body) = setup.proxy.get("/api/v1/pods?hang=true", "door-token").await;
    assert_eq!(status.as_u16(), 504);
    assert!(body.contains("did not answer within 1s"), "{body}");
    setup.api.set_up(false);
    let (status, body) = setup.proxy.get("/api/v1/pods", "door-token").await;
    assert_eq!(status.as_u16(), 502, "{body}");
}

#[tokio::test]
async fn a_pooled_connection_that_died_is_replaced_unseen() {
    let setup = Setup::start().await;
    for round in 0..5 {
        assert_eq!(
            setup.proxy.get("/api/v1/pods", "door-token").await.0.as_u16(),
            200,
            "round {round}"
        );
        setup.api.cut_all();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_rotated_token_is_read_again_after_a_401() {
    let setup = Setup::start().await;
    setup.proxy.get("/api/v1/pods", "door-token").await;
    std::fs::write(setup.proxy.dir.path().join("kube-token"), "newer-token").unwrap();
    setup.api.script("/api/v1/nodes", 401, &[], "{}");
    let (status, body) = setup.proxy.get("/api/v1/nodes", "door-token").await;
    assert_eq!(status.as_u16(), 200);
    assert!(body.contains("Bearer newer-token"), "{body}");
    // The same token is not tried twice.
    setup.api.script("/api/v1/nodes", 401, &[], "{}");
    assert_eq!(
        setup.proxy.get("/api/v1/nodes", "door-token").await.0.as_u16(),
        401
    );
}

#[tokio::test]
async fn https_speaks_h2_and_http1_with_its_own_certificate() {
    let setup = Setup::start().await;
    for alpn in [b"h2".as_slice(), b"http/1.1"] {
        let pem = setup.proxy.certificate.as_bytes();
        let config = runtime::tls::client_config(Some(pem), &[alpn]).unwrap();
        let address = setup.proxy.addresses.door_https;
        let tcp = TcpStream::connect(address).await.unwrap();
        let tls = runtime::tls::connect(tcp, "127.0.0.1", config, std::time::Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        let uri = format!("https://{address}/api/v1/pods");
        let ask = |uri: &str| request(Method::GET, uri, "door-token");
        let answer = if alpn == b"h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut request: Request<Full<Bytes>> = ask(&uri);
            request.headers_mut().remove("host");
            soon("an answer", sender.send_request(request)).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
                .await
                .unwrap();
            tokio::spawn(connection);
            soon("an answer", sender.send_request(ask("/api/v1/pods")))
                .await
                .unwrap()
        };
        assert_eq!(answer.status().as_u16(), 200);
    }
    let report = setup.core.last_report().unwrap().status.unwrap();
    assert_eq!(report.certificate_sha256.len(), 64);
}

#[tokio::test]
async fn the_trace_of_the_caller_reaches_the_apiserver() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let setup = Setup::start().await;
    let mut ask = request(Method::GET, "/api/v1/pods", "door-token");
    ask.headers_mut().insert("traceparent", PARENT.parse().unwrap());
    setup.proxy.send(ask).await;
    let mut socket = setup.socket().await;
    socket
        .send(json!({"id": "a", "method": "GET", "path": "/api/v1/pods", "headers": {"traceparent": PARENT}}))
        .await;
    socket.next().await;
    let seen = setup.api.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| {
        seen.headers["traceparent"]
            .to_str()
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    }));
}

#[tokio::test]
async fn too_many_open_calls_are_a_429() {
    let setup = Setup::with(crate::support::Api::start().await, &["--max-streams", "2"]).await;
    let path = "/api/v1/pods?watch=true&resourceVersion=5";
    let open = [
        setup.proxy.send(request(Method::GET, path, "door-token")).await,
        setup.proxy.send(request(Method::GET, path, "door-token")).await,
    ];
    let refused = setup
        .proxy
        .send(request(Method::GET, "/api/v1/nodes", "door-token"))
        .await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    drop(open);
    let mut free = false;
    for _ in 0..200 {
        free = setup.proxy.get("/api/v1/nodes", "door-token").await.0.as_u16() == 200;
        if free {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(free, "places are given back");
}

#[tokio::test]
async fn the_policy_file_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, "readOnly: true").unwrap();
    let flags = ["--policy-file", policy.to_str().unwrap()];
    let setup = Setup::with(crate::support::Api::start().await, &flags).await;
    let ask = || request(Method::POST, "/api/v1/namespaces/a/configmaps", "door-token");
    let (status, body) = text(setup.proxy.send(ask()).await).await;
    assert_eq!(status.as_u16(), 403);
    assert!(body.contains("switched every write off"), "{body}");
    assert!(setup.core.last_report().unwrap().status.unwrap().read_only);
    std::fs::write(&policy, "readOnly: false").unwrap();
    eventually("writes are back", || {
        !setup.core.last_report().unwrap().status.unwrap().read_only
    })
    .await;
    assert_eq!(setup.proxy.send(ask()).await.status().as_u16(), 200);
    std::fs::write(&policy, "readOnly: nonsense").unwrap();
    eventually("the fault is told", || !setup.core.last_report().unwrap().ready).await;
    assert_eq!(
        setup.proxy.send(ask()).await.status().as_u16(),
        200,
        "the rules before it stay in force"
    );
}
