//! exec, attach and port-forward: upgrades through the HTTP doors and over HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::support::{Api, Link, Setup, Tunnel, request, soon, text};

const EXEC: &str = "/api/v1/namespaces/a/pods/x/exec?command=sh&stdin=true";
const CANCEL: Duration = Duration::from_secs(10);

/// A proxy whose owner allows exec.
async fn setup(api: Api) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    let rules = "rules: [{name: exec, effect: allow, resources: [pods/exec, pods/attach, pods/portforward]}]";
    std::fs::write(&policy, rules).unwrap();
    Setup::with(api, &["--policy-file", policy.to_str().unwrap()]).await
}

fn exec(protocol: &str) -> Request<Full<Bytes>> {
    let method = if protocol == "websocket" {
        Method::GET
    } else {
        Method::POST
    };
    let mut exec = request(method, &format!("/api/k8s{EXEC}"), "door-token");
    let mut set = |name: &'static str, value: &str| exec.headers_mut().insert(name, value.parse().unwrap());
    set("connection", "Upgrade");
    set("upgrade", protocol);
    if protocol == "websocket" {
        set("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        set("sec-websocket-version", "13");
        set(
            "sec-websocket-protocol",
            "v5.channel.k8s.io, v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
        );
    } else {
        set("x-stream-protocol-version", "v4.channel.k8s.io");
    }
    exec
}

async fn upgraded(setup: &Setup, request: Request<Full<Bytes>>) -> (http::HeaderMap, TokioIo<Upgraded>) {
    let tcp = TcpStream::connect(setup.proxy.addresses.door_http).await.unwrap();
    upgraded_over(tcp, request).await
}

/// The same through the HTTPS door, whose certificate is checked.
async fn upgraded_tls(setup: &Setup, request: Request<Full<Bytes>>) -> (http::HeaderMap, TokioIo<Upgraded>) {
    let config =
        runtime::tls::client_config(Some(setup.proxy.certificate.as_bytes()), &[b"http/1.1"]).unwrap();
    let tcp = TcpStream::connect(setup.proxy.addresses.door_https)
        .await
        .unwrap();
    let tls = runtime::tls::connect(tcp, "127.0.0.1", config, Duration::from_secs(30));
    upgraded_over(tls.await.unwrap(), request).await
}

async fn upgraded_over<S>(io: S, request: Request<Full<Bytes>>) -> (http::HeaderMap, TokioIo<Upgraded>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let response = soon("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status().as_u16(), 101);
    let headers = response.headers().clone();
    (headers, TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
}

/// The caller goes: the apiserver's side is closed in time. Returns after how long.
async fn hangs_up(io: impl Sized, tunnel: &mut Tunnel) -> Duration {
    let gone = Instant::now();
    drop(io);
    tunnel.closed().await;
    let took = gone.elapsed();
    assert!(took < CANCEL);
    took
}

async fn echoes(io: &mut TokioIo<Upgraded>, size: usize) {
    let sent: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
    let mut got = vec![0; size];
    let (mut read, mut write) = tokio::io::split(io);
    let both = async {
        let write = async {
            write.write_all(&sent).await.unwrap();
            write.flush().await.unwrap();
        };
        let read = async { read.read_exact(&mut got).await.unwrap() };
        tokio::join!(write, read)
    };
    soon("an echo", both).await;
    assert!(got == sent);
}

#[tokio::test]
async fn both_protocols_are_carried_over_http_with_the_pods_credential() {
    for (api, kind) in [(Api::start().await, "plain"), (Api::start_tls().await, "TLS")] {
        let setup = setup(api).await;
        for protocol in ["websocket", "SPDY/3.1"] {
            let (headers, mut io) = upgraded(&setup, exec(protocol)).await;
            let mut tunnel = setup.api.tunnel().await;
            let seen = &tunnel.request;
            assert_eq!(seen.headers["authorization"], "Bearer own-token", "{kind}");
            assert_eq!(seen.headers["upgrade"], protocol);
            assert_eq!(seen.path, "/api/v1/namespaces/a/pods/x/exec");
            if protocol == "websocket" {
                assert_eq!(headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
                assert_ne!(seen.headers["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
                assert_eq!(
                    seen.headers["sec-websocket-protocol"],
                    "v5.channel.k8s.io, v4.channel.k8s.io"
                );
            } else {
                assert_eq!(
                    (seen.method.as_str(), &seen.headers["x-stream-protocol-version"]),
                    ("POST", &"v4.channel.k8s.io".parse().unwrap())
                );
            }
            echoes(&mut io, 1_000_000).await;
            let open = crate::grpc::streams(&setup).await;
            assert!(
                open.iter()
                    .any(|stream| stream.path.ends_with("/exec") && stream.bytes >= 1_000_000)
            );
            let took = hangs_up(io, &mut tunnel).await;
            println!("{protocol}: caller gone, apiserver's side closed after {took:?}");
        }
    }
}

#[tokio::test]
async fn exec_and_port_forward_are_carried_through_the_https_door() {
    let setup = setup(Api::start_tls().await).await;
    for path in [
        "exec?command=sh&stdin=true",
        "portforward?ports=80",
        "attach?stdin=true",
    ] {
        for protocol in ["websocket", "SPDY/3.1"] {
            let mut asked = exec(protocol);
            *asked.uri_mut() = format!("/api/k8s/api/v1/namespaces/a/pods/x/{path}")
                .parse()
                .unwrap();
            let (headers, mut io) = upgraded_tls(&setup, asked).await;
            assert_eq!(headers["upgrade"], protocol, "{path}");
            let mut tunnel = setup.api.tunnel().await;
            assert_eq!(tunnel.request.headers["authorization"], "Bearer own-token");
            assert_eq!(
                format!("{}?{}", tunnel.request.path, tunnel.request.query),
                format!("/api/v1/namespaces/a/pods/x/{path}")
            );
            echoes(&mut io, 1_000_000).await;
            let took = hangs_up(io, &mut tunnel).await;
            println!("{path} over {protocol} and TLS: apiserver's side closed after {took:?}");
        }
    }
}

#[tokio::test]
async fn both_protocols_are_carried_over_http2_as_extended_connect() {
    let setup = setup(Api::start_tls().await).await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    for (protocol, method) in [("websocket", "GET"), ("SPDY/3.1", "POST"), ("spdy/3.1", "POST")] {
        let (headers, mut io) = link
            .upgrade(EXEC, protocol, "v5.channel.k8s.io, v4.channel.k8s.io")
            .await
            .unwrap();
        let mut tunnel = setup.api.tunnel().await;
        assert_eq!(tunnel.request.method, method);
        assert_eq!(tunnel.request.headers["authorization"], "Bearer own-token");
        if method == "GET" {
            assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
            assert!(!headers.contains_key("sec-websocket-accept"));
        }
        echoes(&mut io, 1_000_000).await;
        let took = hangs_up(io, &mut tunnel).await;
        println!("{protocol}: caller gone, apiserver's side closed after {took:?}");
    }
    assert_eq!(link.get("/api/v1/pods").await.0, 200, "and the link goes on");
}

#[tokio::test]
async fn an_end_at_the_apiserver_and_an_operators_cancel_reach_the_caller() {
    let setup = setup(Api::start().await).await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    for over_http2 in [false, true] {
        let open = async || {
            if over_http2 {
                link.upgrade(EXEC, "websocket", "").await.unwrap().1
            } else {
                upgraded(&setup, exec("websocket")).await.1
            }
        };
        let mut io = open().await;
        let tunnel = setup.api.tunnel().await;
        echoes(&mut io, 10).await;
        tunnel.end();
        let read = soon("the end", io.read(&mut [0; 10])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let mut io = open().await;
        let mut tunnel = setup.api.tunnel().await;
        echoes(&mut io, 10).await;
        let id = crate::grpc::streams(&setup).await.last().unwrap().id;
        crate::grpc::cancel(&setup, id).await;
        let read = soon("the end", io.read(&mut [0; 10])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        tunnel.closed().await;
    }
}

#[tokio::test]
async fn what_is_not_allowed_or_no_handshake_is_refused_in_a_sentence() {
    let closed = Setup::start().await;
    let (status, body) = text(closed.proxy.send(exec("websocket")).await).await;
    assert_eq!(status.as_u16(), 403, "exec is off unless the owner allows it");
    assert!(body.contains("\"kind\":\"Status\""), "{body}");
    let link = Link::connect(closed.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let (status, body) = link.upgrade(EXEC, "websocket", "").await.unwrap_err();
    assert_eq!(status, 403);
    assert!(body.contains("\"reason\":\"Forbidden\""), "{body}");
    assert!(closed.api.seen().is_empty());
    let setup = setup(Api::start().await).await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    assert_eq!(link.upgrade(EXEC, "connect-udp", "").await.unwrap_err().0, 400);
    let mut keyless = exec("websocket");
    keyless.headers_mut().remove("sec-websocket-key");
    assert_eq!(text(setup.proxy.send(keyless).await).await.0.as_u16(), 400);
    setup
        .api
        .script("/exec", 404, &[], r#"{"kind":"Status","message":"no such pod"}"#);
    let (status, body) = link.upgrade(EXEC, "websocket", "").await.unwrap_err();
    assert_eq!((status, body.contains("no such pod")), (404, true), "{body}");
    let mut socket = setup.socket().await;
    socket
        .send(serde_json::json!({"id": "x", "method": "GET", "path": "/api/v1/namespaces/a/pods/x/exec", "headers": {"Upgrade": "websocket"}}))
        .await;
    let frame = socket.next().await;
    assert_eq!(frame.status(), 501, "frames carry no upgrades");
}

#[tokio::test]
async fn a_drain_lets_an_open_shell_go_on_until_the_deadline() {
    let setup = setup(Api::start().await).await;
    let (_, mut io) = upgraded(&setup, exec("SPDY/3.1")).await;
    let mut tunnel = setup.api.tunnel().await;
    setup.proxy.supervisor.drain("test");
    echoes(&mut io, 100_000).await;
    soon("the proxy ends", setup.proxy.supervisor.finish()).await;
    let read = soon("the end", io.read(&mut [0; 10])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    tunnel.closed().await;
}
