//! What one caller may have, and what stalled readers may keep waiting.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use proto::v1::{ProxyLimits, ProxySpec};
use serde_json::json;
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Api, Setup, eventually, request, soon, spec};

const WATCH: &str = "/api/v1/pods?watch=true&resourceVersion=5";
const LOG: &str = "/api/v1/namespaces/a/pods/x/log?follow=true";

impl Setup {
    /// Puts limits in force: the owner's, and what the control plane asks for.
    async fn limit(&self, revision: u64, limits: ProxyLimits, asked: ProxyLimits) {
        self.core.give(ProxySpec {
            limits: Some(limits),
            asked_limits: Some(asked),
            ..spec(revision)
        });
        eventually("the limits are in force", || {
            self.core
                .last_report()
                .is_some_and(|report| report.applied_revision == revision)
        })
        .await;
    }

    async fn open(&self, path: &str, token: &str) -> Response<Incoming> {
        self.proxy.send(request(Method::GET, path, token)).await
    }

    async fn metrics(&self) -> String {
        let tcp = TcpStream::connect(self.proxy.addresses.http).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .unwrap();
        tokio::spawn(connection);
        let answer = sender.send_request(request(Method::GET, "/metrics", "")).await;
        crate::support::text(answer.unwrap()).await.1
    }

    async fn waiting_bytes(&self) -> usize {
        let text = self.metrics().await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("pipeops_proxy_queue_bytes "));
        value.unwrap().parse().unwrap()
    }

    async fn eventually_waiting(&self, what: &str, bytes: usize) {
        soon(what, async {
            while self.waiting_bytes().await > bytes {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

fn streams(streams: u32) -> ProxyLimits {
    ProxyLimits {
        streams,
        ..ProxyLimits::default()
    }
}

#[tokio::test]
async fn each_caller_has_its_own_limits_and_refusals_are_counted() {
    let setup = Setup::start().await;
    setup.limit(2, streams(2), ProxyLimits::default()).await;
    let open = [
        setup.open(WATCH, "door-token").await,
        setup.open(WATCH, "door-token").await,
    ];
    let refused = setup.open("/api/v1/nodes", "door-token").await;
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let (_, body) = crate::support::text(refused).await;
    assert!(
        body.contains("TooManyRequests") && body.contains("2 open calls"),
        "{body}"
    );
    // A frame connection of the same caller has the same account; another caller has another.
    let mut socket = setup.socket().await;
    socket.get("g", "/api/v1/nodes").await;
    assert_eq!(socket.next().await.status(), 429);
    let mut ask = request(Method::GET, "/api/v1/nodes", "USER");
    ask.headers_mut()
        .insert("x-pipeops-token", "caller-token".parse().unwrap());
    assert_eq!(setup.proxy.send(ask).await.status().as_u16(), 200);
    let text = setup.metrics().await;
    for line in [
        r#"pipeops_proxy_refused_total{cause="limit_streams"} 2"#,
        r#"pipeops_proxy_request_errors_total{class="nodes",door="http",error="limit_streams",verb="list"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
    drop(open);
    soon("places are given back", async {
        while setup.open("/api/v1/nodes", "door-token").await.status().as_u16() != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_control_plane_may_lower_limits_and_never_raise_them() {
    let setup = Setup::start().await;
    let in_force = || setup.core.last_report().unwrap().status.unwrap().limits.unwrap();
    setup.limit(2, streams(2), streams(1)).await;
    assert_eq!(in_force().streams, 1);
    let first = setup.open(WATCH, "door-token").await;
    assert_eq!(setup.open(WATCH, "door-token").await.status().as_u16(), 429);
    setup.limit(3, streams(2), streams(1000)).await;
    assert_eq!(in_force().streams, 2);
    let second = setup.open(WATCH, "door-token").await;
    assert_eq!(second.status().as_u16(), 200);
    assert_eq!(setup.open(WATCH, "door-token").await.status().as_u16(), 429);
    drop((first, second));
}

#[tokio::test]
async fn requests_and_bytes_a_second_are_kept() {
    let setup = Setup::start().await;
    let rate = ProxyLimits {
        requests_per_second: 3,
        ..ProxyLimits::default()
    };
    setup.limit(2, rate, ProxyLimits::default()).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(setup.open("/api/v1/nodes", "door-token").await.status().as_u16());
    }
    assert!(
        statuses.starts_with(&[200, 200, 200]) && statuses.contains(&429),
        "{statuses:?}"
    );
    let bytes = ProxyLimits {
        bytes_per_second: 1024 * 1024,
        ..ProxyLimits::default()
    };
    setup.limit(3, bytes, ProxyLimits::default()).await;
    let started = Instant::now();
    let list = setup.open("/api/v1/pods?size=3145728", "door-token").await;
    let body = soon("the list", list.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    let took = started.elapsed();
    println!("3 MiB at 1 MiB a second, with a second's worth in hand: {took:?}");
    assert_eq!(body.len(), 3 * 1024 * 1024);
    assert!(took > Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn memory_short_the_stalled_are_ended_and_the_others_do_not_notice() {
    const STALLED: usize = 30;
    let flags = ["--max-waiting-bytes", "1Mi"];
    let setup = Setup::with(Api::start_tls().await, &flags).await;
    let mut readers = Vec::new();
    for _ in 0..STALLED {
        let answer = setup.open(LOG, "door-token").await;
        let stream = setup.api.stream().await;
        readers.push((answer, stream));
    }
    let mut floods = tokio::task::JoinSet::new();
    let mut answers = Vec::new();
    for (answer, stream) in readers {
        answers.push(answer);
        floods.spawn(async move { stream.flood(vec![b'x'; 64 * 1024].into()).await });
    }
    let mut good = setup.open(LOG, "door-token").await;
    let good_stream = setup.api.stream().await;
    while floods.join_next().await.is_some() {}
    setup
        .eventually_waiting("the stalled are ended until it fits", 1024 * 1024)
        .await;
    let text = setup.metrics().await;
    let ended = text
        .lines()
        .find_map(|line| line.strip_prefix("pipeops_proxy_stalled_total "))
        .unwrap();
    println!("{STALLED} stalled readers, 1 MiB may wait: {ended} were ended");
    assert!(ended.parse::<usize>().unwrap() >= 10, "{ended}");
    // A reader that takes what it gets was not touched, and a new call is carried.
    good_stream.send("line\n").await;
    let frame = soon("a line", good.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "line\n");
    assert_eq!(
        setup.open("/api/v1/nodes", "door-token").await.status().as_u16(),
        200
    );
    drop(answers);
    setup.eventually_waiting("all is given back", 64 * 1024).await;
}

/// The engine's part of the isolation promise, on the HTTP door: each call its own connection here, so what is shared
/// is the process itself.
#[tokio::test]
async fn small_calls_go_on_beside_floods_lists_uploads_and_logs() {
    let setup = Setup::with(Api::start_tls().await, &[]).await;
    let quiet = small_gets(&setup).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push((setup.open(LOG, "door-token").await, setup.api.stream().await));
    }
    for (_, stream) in &held {
        stream.flood_quickly().await;
    }
    let (upload, _) = slow_upload(&setup, "/api/v1/namespaces/a/configmaps").await;
    let list = async {
        let mut body = setup
            .open("/api/v1/pods?size=209715200", "door-token")
            .await
            .into_body();
        let mut bytes = 0;
        while let Some(frame) = soon("the list goes on", body.frame()).await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        bytes
    };
    let (bytes, busy) = tokio::join!(list, small_gets(&setup));
    println!(
        "p99 of a small GET: {quiet:?} alone, {busy:?} beside 40 stalled logs, a slow upload and a 200 MB list"
    );
    assert_eq!(bytes, 200 * 1024 * 1024);
    assert!(busy < Duration::from_secs(2), "{busy:?}");
    drop(upload);
}

/// p99 of a hundred small GETs, one after the other.
async fn small_gets(setup: &Setup) -> Duration {
    let mut took = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        assert_eq!(
            setup.proxy.get("/api/v1/nodes", "door-token").await.0.as_u16(),
            200
        );
        took.push(started.elapsed());
    }
    took.sort();
    took[98]
}

/// A POST whose body never ends by itself.
async fn slow_upload(
    setup: &Setup,
    path: &str,
) -> (
    mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    tokio::task::JoinHandle<Option<u16>>,
) {
    let (sender, receiver) = mpsc::channel(4);
    let (address, path) = (setup.proxy.addresses.door_http, path.to_owned());
    let answer = tokio::spawn(async move {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", "proxy")
            .header("authorization", "Bearer door-token")
            .body(StreamBody::new(ReceiverStream::new(receiver)))
            .unwrap();
        client
            .send_request(request)
            .await
            .ok()
            .map(|answer| answer.status().as_u16())
    });
    sender
        .send(Ok(Frame::data(Bytes::from(vec![b'{'; 70_000]))))
        .await
        .unwrap();
    (sender, answer)
}

#[tokio::test]
async fn read_only_stops_a_write_that_is_under_way_and_leaves_watches_alone() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, "readOnly: false").unwrap();
    let flags = ["--policy-file", policy.to_str().unwrap()];
    let setup = Setup::with(Api::start().await, &flags).await;
    let mut watch = setup.open(WATCH, "door-token").await;
    let stream = setup.api.stream().await;
    let (upload, answer) = slow_upload(&setup, "/api/v1/namespaces/a/configmaps").await;
    soon("both calls are open", async {
        while setup.core.last_report().unwrap().status.unwrap().streams_open < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let started = Instant::now();
    std::fs::write(&policy, "readOnly: true").unwrap();
    let status = soon("the upload is answered", answer).await.unwrap();
    println!(
        "a write under way was stopped {:?} after the switch",
        started.elapsed()
    );
    assert_eq!(status, Some(403));
    stream.event("ADDED", "6").await;
    assert!(
        soon("the watch lives", watch.body_mut().frame())
            .await
            .unwrap()
            .is_ok()
    );
    // Rules that take reading away end the watch too.
    let deny = json!({"rules": [{"name": "no-pods", "effect": "deny", "resources": ["pods"]}]});
    std::fs::write(&policy, deny.to_string()).unwrap();
    let end = soon("the watch is ended", watch.body_mut().frame()).await;
    assert!(end.is_none_or(|frame| frame.is_err()));
    drop(upload);
}
