//! HTTP/2 over the WebSocket: calls, watches, windows, drain, storms.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, future::join_all};
use http::{HeaderValue, Method};
use http_body_util::BodyExt as _;
use runtime::supervise::Outcome;
use serde_json::Value;
use tokio::{net::TcpListener, time::Instant};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};

use crate::support::{
    Api, Link, Setup, dialled, event, eventually,
    link::{WINDOWS, get},
    soon, spec,
};

const WATCH: &str = "/api/v1/pods?watch=true&resourceVersion=5";
const LOG: &str = "/api/v1/namespaces/a/pods/x/log?follow=true";

/// Ten times what the contract promises for a caller that goes away.
const CANCEL: Duration = Duration::from_secs(10);
/// Ten times what is promised for a link that is dead and idle.
const SILENCE: Duration = Duration::from_secs(100);

#[tokio::test]
async fn every_served_socket_speaks_it_with_the_callers_identity() {
    let setup = Setup::start().await;
    for (path, door) in [
        ("/ws/k8s", "ws:k8s"),
        ("/ws/control-plane", "ws:control-plane"),
        ("/ws/runner", "ws:runner"),
    ] {
        let link = Link::connect(setup.proxy.addresses.door_http, path, "door-token").await;
        let (status, body) = link.get("/api/v1/pods?limit=5").await;
        assert_eq!(status, 200, "{body}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&seen["path"], &seen["query"]),
            (&"/api/v1/pods".into(), &"limit=5".into())
        );
        assert_eq!(seen["headers"]["authorization"], "Bearer own-token");
        let response = link.send(get(LOG)).await;
        let stream = setup.api.stream().await;
        let open = crate::grpc::streams(&setup).await;
        assert_eq!((open.len(), open[0].door.as_str()), (1, door));
        drop(response);
        stream.closed().await;
    }
}

#[tokio::test]
async fn credentials_and_refusals_are_those_of_the_other_doors() {
    let setup = Setup::start().await;
    let address = setup.proxy.addresses.door_http;
    let caller = Link::connect(address, "/ws/k8s", "caller-token").await;
    assert_eq!(caller.get("/api/v1/pods").await.0, 401);
    let mut own = get("/api/v1/pods");
    own.headers_mut()
        .insert("authorization", HeaderValue::from_static("Bearer USER"));
    let (_, body) = crate::support::text(caller.send(own).await).await;
    assert!(body.contains("Bearer USER"), "{body}");
    let link = Link::connect(address, "/ws/k8s", "door-token").await;
    let mut smuggled = get("/api/v1/pods");
    for (name, value) in [
        ("authorization", "Bearer USER"),
        ("impersonate-user", "root"),
        ("te", "trailers"),
    ] {
        smuggled
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let (status, body) = crate::support::text(link.send(smuggled).await).await;
    assert_eq!(status.as_u16(), 200);
    assert!(!body.contains("USER") && !body.contains("root"), "{body}");
    let (status, body) = link.get("/api/v1/namespaces/a/secrets/x").await;
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("\"kind\":\"Status\""), "{body}");
    assert_eq!(link.get("/api/v1/%2e%2e/x").await.0, 400);
    let mut brew = get("/api/v1/pods");
    *brew.method_mut() = Method::TRACE;
    assert_eq!(link.send(brew).await.status().as_u16(), 405);
    let mut late = get("/api/v1/pods?hang=true");
    late.headers_mut()
        .insert("pipeops-deadline-ms", HeaderValue::from_static("50"));
    let (status, body) = crate::support::text(link.send(late).await).await;
    assert_eq!(status.as_u16(), 504, "{body}");
    assert!(body.contains("deadline"), "{body}");
    let mut wrong = get("/api/v1/pods");
    wrong
        .headers_mut()
        .insert("pipeops-deadline-ms", HeaderValue::from_static("soon"));
    assert_eq!(link.send(wrong).await.status().as_u16(), 400);
}

#[tokio::test]
async fn a_watch_passes_whole_events_and_its_end_closes_the_apiservers_side() {
    let setup = Setup::with(Api::start_tls().await, &[]).await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let mut response = link.send(get(WATCH)).await;
    let stream = setup.api.stream().await;
    for version in ["6", "7"] {
        stream.event("ADDED", version).await;
        let piece = soon("an event", response.body_mut().frame())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(piece.into_data().unwrap(), event("ADDED", version));
    }
    let gone = Instant::now();
    drop(response);
    stream.closed().await;
    println!("caller gone, upstream closed after {:?}", gone.elapsed());
    assert!(gone.elapsed() < CANCEL);
    // The other way round: a log whose apiserver breaks off is broken off here at once.
    let mut log = link.send(get(LOG)).await;
    let stream = setup.api.stream().await;
    stream.send("line\n").await;
    soon("a line", log.body_mut().frame()).await.unwrap().unwrap();
    let cut = Instant::now();
    stream.cut().await;
    let end = soon("the end", log.body_mut().frame()).await;
    println!("apiserver gone, caller told after {:?}", cut.elapsed());
    assert!(end.is_some_and(|end| end.is_err()), "it must look broken off");
    assert!(cut.elapsed() < CANCEL);
}

#[tokio::test]
async fn a_lost_link_closes_every_call_of_it() {
    let setup = Setup::start().await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let _watch = link.send(get(WATCH)).await;
    let _log = link.send(get(LOG)).await;
    let (watch, log) = (setup.api.stream().await, setup.api.stream().await);
    let cut = Instant::now();
    link.cut();
    watch.closed().await;
    log.closed().await;
    println!("link gone, upstream closed after {:?}", cut.elapsed());
    assert!(cut.elapsed() < CANCEL);
}

#[tokio::test]
async fn stalled_readers_hold_up_nobody() {
    let setup = Setup::start().await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(link.send(get(LOG)).await);
        let stream = setup.api.stream().await;
        tokio::spawn(async move { stream.flood(Bytes::from(vec![b'x'; 64 * 1024])).await });
    }
    let mut times = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(link.get("/api/v1/pods").await.0, 200);
        times.push(started.elapsed());
    }
    times.sort();
    println!("20 stalled logs beside 50 small calls: p99 {:?}", times[49]);
    let report = setup.core.last_report().unwrap();
    assert!(
        report
            .conditions
            .iter()
            .all(|condition| condition.name != "PeerWindow")
    );
}

#[tokio::test]
async fn a_peer_whose_window_is_too_small_is_told_of() {
    let setup = Setup::start().await;
    let windows = (64 * 1024 - 1, 64 * 1024 - 1);
    let link = Link::with_windows(setup.proxy.addresses.door_http, "/ws/k8s", "door-token", windows).await;
    let stalled = link.send(get(LOG)).await;
    let stream = setup.api.stream().await;
    stream.flood(Bytes::from(vec![b'x'; 64 * 1024])).await;
    let hung = link.send(get("/api/v1/pods")).await;
    let told = |ready: bool| {
        let report = setup.core.last_report().unwrap();
        let condition = report
            .conditions
            .into_iter()
            .find(|condition| condition.name == "PeerWindow");
        condition.is_some() && report.ready == ready
    };
    eventually("the full window is reported", || told(false)).await;
    drop((stalled, hung));
    stream.closed().await;
    eventually("and its end", || told(true)).await;
}

#[tokio::test]
async fn a_storm_of_cancelled_calls_does_not_end_the_link() {
    let setup = Setup::start().await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    for _ in 0..4 {
        let calls = (0..1000).map(|_| {
            let mut sender = link.sender.clone();
            async move {
                let call = sender.send_request(get("/api/v1/pods?hang=true"));
                tokio::time::timeout(Duration::from_millis(1), call).await.ok();
            }
        });
        join_all(calls).await;
    }
    let started = Instant::now();
    assert_eq!(link.get("/api/v1/pods").await.0, 200);
    println!(
        "a call after 4 × 1000 cancelled ones took {:?}",
        started.elapsed()
    );
    assert!(!link.connection.is_finished());
}

#[tokio::test]
async fn a_drain_says_goaway_and_lets_calls_finish() {
    let setup = Setup::start().await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let mut finite = link
        .send(get("/api/v1/namespaces/a/pods/x/log?follow=true&tail=1"))
        .await;
    let stream = setup.api.stream().await;
    let mut watch = link.send(get(WATCH)).await;
    let events = setup.api.stream().await;
    events.event("ADDED", "6").await;
    soon("an event", watch.body_mut().frame()).await.unwrap().unwrap();
    let slow = link.sender.clone().send_request(get("/api/v1/pods?size=3000000"));
    let slow = tokio::spawn(slow);
    eventually("it is in flight", || {
        setup.api.seen().iter().any(|seen| seen.query.contains("size="))
    })
    .await;
    setup.proxy.supervisor.drain("test");
    let answer = soon("the call in flight", slow).await.unwrap();
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => panic!("a call that was sent before the drain is lost: {error}"),
    };
    let whole = soon("its body", answer.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(whole.len(), 3_000_000);
    let refused = soon("a refusal", link.sender.clone().send_request(get("/api/v1/pods"))).await;
    assert!(refused.is_err(), "after GOAWAY nothing new is taken");
    let end = soon("the end of the watch", watch.body_mut().frame()).await;
    assert!(
        end.is_some_and(|end| end.is_err()),
        "opened again elsewhere, so it must not look over"
    );
    soon("the end of the log", finite.body_mut().frame()).await;
    events.closed().await;
    stream.closed().await;
    assert_eq!(
        soon("the proxy ends", setup.proxy.supervisor.finish()).await,
        Outcome::Clean
    );
    soon("the connection ends", link.connection).await.unwrap().ok();
}

#[tokio::test]
async fn a_withdrawn_credential_ends_its_link() {
    let setup = Setup::start().await;
    let link = Link::connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    let watch = link.send(get(WATCH)).await;
    let stream = setup.api.stream().await;
    setup.core.give(proto::v1::ProxySpec {
        accept: vec![],
        ..spec(2)
    });
    stream.closed().await;
    soon("the connection ends", link.connection).await.unwrap().ok();
    drop(watch);
}

/// Where the proxy dials from now on.
async fn dialled_here(setup: &Setup) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/proxy", listener.local_addr().unwrap());
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![dialled(&url)],
        ..spec(2)
    });
    listener
}

/// Takes the offer of HTTP/2, or not.
async fn accept(listener: &TcpListener, take: bool) -> WebSocketStream<tokio::net::TcpStream> {
    let (tcp, _) = soon("the proxy dials", listener.accept()).await.unwrap();
    #[expect(clippy::result_large_err, reason = "the signature of the library's callback")]
    let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        assert_eq!(request.headers()["sec-websocket-protocol"], "pipeops.k8s.h2");
        if take {
            let picked = HeaderValue::from_static("pipeops.k8s.h2");
            response.headers_mut().insert("sec-websocket-protocol", picked);
        }
        Ok(response)
    };
    soon("the handshake", accept_hdr_async(tcp, check)).await.unwrap()
}

#[tokio::test]
async fn a_dialled_door_offers_it_and_falls_back_to_frames() {
    let setup = Setup::start().await;
    let listener = dialled_here(&setup).await;
    let mut frames = crate::support::Socket::over(accept(&listener, false).await);
    frames.get("a", "/api/v1/pods").await;
    assert_eq!(frames.next().await.status(), 200);
    drop(frames);
    let link = Link::over(accept(&listener, true).await, WINDOWS).await;
    assert_eq!(link.get("/api/v1/pods").await.0, 200);
}

#[tokio::test]
async fn a_link_that_died_in_silence_is_found() {
    let setup = Setup::start().await;
    let listener = dialled_here(&setup).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut silent = accept(&listener, true).await;
    for (when, before) in [("before a word", Vec::new()), ("after its SETTINGS", preface)] {
        if !before.is_empty() {
            silent.send(Message::binary(before)).await.unwrap();
        }
        // Held open and never read: no ping is answered.
        let started = Instant::now();
        let next = tokio::time::timeout(SILENCE, accept(&listener, true)).await;
        println!(
            "an HTTP/2 link that died {when} was found after {:?}",
            started.elapsed()
        );
        silent = next.expect("the proxy dials again");
    }
}

#[tokio::test]
async fn a_changed_door_is_open_anew_before_the_old_connection_is_given_up() {
    let setup = Setup::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = |bearer: &str| proto::v1::DialedDoor {
        bearer: bearer.to_owned(),
        ..dialled(&format!("ws://{}/proxy", listener.local_addr().unwrap()))
    };
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![door("one")],
        ..spec(2)
    });
    let old = Link::over(accept(&listener, true).await, WINDOWS).await;
    let mut watch = old.send(get(WATCH)).await;
    let stream = setup.api.stream().await;
    let slow = tokio::spawn(old.sender.clone().send_request(get("/api/v1/pods?hang=true")));
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![door("two")],
        ..spec(3)
    });
    let (tcp, _) = soon("the proxy dials", listener.accept()).await.unwrap();
    // Until the new link is there, the old one works.
    assert_eq!(old.get("/api/v1/pods").await.0, 200);
    #[expect(clippy::result_large_err, reason = "the signature of the library's callback")]
    let check = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let picked = HeaderValue::from_static("pipeops.k8s.h2");
        response.headers_mut().insert("sec-websocket-protocol", picked);
        Ok(response)
    };
    let socket = soon("the handshake", accept_hdr_async(tcp, check)).await.unwrap();
    let new = Link::over(socket, WINDOWS).await;
    assert_eq!(new.get("/api/v1/pods").await.0, 200);
    let end = soon("the watch moves on", watch.body_mut().frame()).await;
    assert!(end.is_some_and(|end| end.is_err()));
    stream.closed().await;
    soon("GOAWAY on the old link", async {
        while old.sender.clone().send_request(get("/api/v1/pods")).await.is_ok() {}
    })
    .await;
    assert!(!slow.is_finished(), "what is in flight may finish");
    slow.abort();
}
