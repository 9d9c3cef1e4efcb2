//! Frames v1 on a served WebSocket.

use proto::v1::CredentialMode;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Api, Setup, Socket, accepted, event, eventually, spec};

#[tokio::test]
async fn every_method_is_one_question_and_one_answer() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let frame = json!({
            "id": method, "method": method, "path": "/api/v1/namespaces/a/configmaps/x", "query": {"dryRun": "All"},
            "headers": {"Content-Type": "application/json"}, "body": "eyJhIjoxfQ==",
        });
        socket.send(frame).await;
        let answer = socket.next().await;
        assert_eq!(
            (answer.id(), answer.status(), answer.error(), answer.done()),
            (method, 200, "", true)
        );
        let seen = answer.json();
        assert_eq!(
            (seen["method"].as_str(), seen["query"].as_str()),
            (Some(method), Some("dryRun=All"))
        );
        assert_eq!(seen["body"], "{\"a\":1}");
        assert_eq!(seen["headers"]["authorization"], "Bearer own-token");
    }
    socket
        .send(json!({"id": "head", "method": "HEAD", "path": "/api/v1/pods"}))
        .await;
    let answer = socket.next().await;
    assert_eq!((answer.status(), answer.body().as_str()), (200, ""));
    assert_eq!(answer.0["headers"]["Content-Type"], "application/json");
}

#[tokio::test]
async fn an_answer_of_the_apiserver_passes_as_it_is() {
    let setup = Setup::start().await;
    setup.api.script(
        "/pods/absent",
        404,
        &[("audit-id", "a-1"), ("connection", "x-hop"), ("x-hop", "1")],
        r#"{"kind":"Status"}"#,
    );
    let mut socket = setup.socket().await;
    socket.get("a", "/api/v1/namespaces/a/pods/absent").await;
    let answer = socket.next().await;
    assert_eq!(
        (answer.status(), answer.error(), answer.body().as_str()),
        (404, "", r#"{"kind":"Status"}"#)
    );
    assert_eq!(answer.0["headers"]["Audit-Id"], "a-1");
    assert!(answer.0["headers"].get("X-Hop").is_none());
}

#[tokio::test]
async fn bad_frames_are_answered_and_everything_else_lives_on() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    assert_eq!(socket.next().await.id(), "w");
    for (text, id) in [
        ("nonsense", ""),
        ("{}", ""),
        (r#"{"id":"a","method":"BREW","path":"/api"}"#, "a"),
        (r#"{"id":"b","method":"GET","path":"/api/%2e%2e/x"}"#, "b"),
        (r#"{"id":"c","method":"GET","path":"//evil/api"}"#, "c"),
        (r#"{"id":"d","method":"CANCEL","stream_id":"unknown"}"#, "d"),
        (r#"{"id":"w","method":"GET","path":"/api"}"#, "w"),
        (
            r#"{"id":"e","method":"GET","path":"/api/v1/pods","query":{"watch":"1"}}"#,
            "e",
        ),
    ] {
        socket.send_text(text).await;
        let answer = socket.next().await;
        assert_eq!(answer.id(), id, "{text}");
        assert!(
            answer.status() >= 400 && !answer.error().is_empty(),
            "{text}: {answer:?}"
        );
        let status = answer.json();
        assert_eq!(
            (status["kind"].as_str(), status["code"].as_u64()),
            (Some("Status"), Some(answer.status())),
            "{text}"
        );
    }
    stream.event("ADDED", "6").await;
    assert_eq!(socket.next().await.version(), "6");
    socket.get("after", "/api/v1/nodes").await;
    assert_eq!(socket.next().await.status(), 200);
    assert_eq!(setup.api.seen().len(), 2, "nothing bad reached the apiserver");
}

#[tokio::test]
async fn a_ping_in_json_and_json_in_a_binary_frame() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(socket.next().await.0, json!({"type": "pong"}));
    let mut raw = socket.into_inner();
    let frame = Message::binary(r#"{"id":"b","method":"GET","path":"/api/v1/nodes"}"#);
    futures_util::SinkExt::send(&mut raw, frame).await.unwrap();
    assert_eq!(Socket::over(raw).next().await.id(), "b");
}

#[tokio::test]
async fn a_frame_over_the_limit_closes_with_1009() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let body = "A".repeat(1024 * 1024);
    socket
        .send(json!({"id": "big", "method": "POST", "path": "/api/v1/namespaces/a/pods", "body": body}))
        .await;
    assert_eq!(socket.close_code().await, Some(1009));
}

#[tokio::test]
async fn a_body_over_eight_mebibytes_is_refused_and_streams() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let size = 8 * 1024 * 1024 + 1;
    socket.get("plain", &format!("/api/v1/pods?size={size}")).await;
    let answer = socket.next().await;
    assert_eq!(
        (answer.status(), answer.json()["reason"].as_str()),
        (413, Some("RequestEntityTooLarge"))
    );
    socket
        .send(
            json!({"id": "s", "method": "GET", "path": format!("/api/v1/pods?size={size}"), "stream": true}),
        )
        .await;
    let (mut total, mut frames) = (0, 0);
    loop {
        let frame = socket.next().await;
        if frame.done() {
            break;
        }
        assert_eq!(frame.chunk(), frames > 0);
        total += frame.bytes().len();
        frames += 1;
    }
    assert_eq!(total, size);
    socket
        .get("fits", &format!("/api/v1/pods?size={}", size - 1))
        .await;
    assert_eq!(socket.next().await.bytes().len(), size - 1);
}

#[tokio::test]
async fn compression_is_marked_and_only_where_it_is_welcome() {
    use std::io::Read as _;
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    for (size, packed) in [(5000, true), (300_000, true), (1000, false)] {
        let path = format!("/api/v1/pods?size={size}");
        socket
            .send(json!({"id": "z", "method": "GET", "path": path, "accept_encoding": ["gzip"]}))
            .await;
        let answer = socket.next().await;
        let mut bytes = answer.bytes();
        assert_eq!(answer.0.get("encoding").is_some(), packed);
        if packed {
            let (wrapped, mut plain) = (bytes, Vec::new());
            flate2::read::GzDecoder::new(wrapped.as_slice())
                .read_to_end(&mut plain)
                .unwrap();
            bytes = plain;
        }
        assert_eq!(bytes.len(), size);
    }
    socket.get("plain", "/api/v1/pods?size=5000").await;
    assert!(socket.next().await.0.get("encoding").is_none());
}

#[tokio::test]
async fn watch_events_arrive_whole_one_in_a_frame() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    assert_eq!(
        stream.request.query,
        "resourceVersion=5&watch=true&allowWatchBookmarks=true"
    );
    let head = socket.next().await;
    assert_eq!((head.status(), head.chunk(), head.done()), (200, false, false));
    assert!(!head.stream_id().is_empty() && head.0["stream"] == true);
    let both = format!("{}{}", event("ADDED", "6"), event("MODIFIED", "7"));
    stream.send(both.as_bytes()[..20].to_vec()).await;
    stream.send(both.as_bytes()[20..].to_vec()).await;
    for version in ["6", "7"] {
        let frame = socket.next().await;
        assert_eq!(
            (frame.version().as_str(), frame.chunk(), frame.stream_id()),
            (version, true, head.stream_id())
        );
        assert!(frame.body().ends_with('\n'));
    }
    stream.event("BOOKMARK", "8").await;
    stream.event("DELETED", "9").await;
    assert_eq!(
        socket.next().await.version(),
        "9",
        "a bookmark nobody asked for is left out"
    );
}

#[tokio::test]
async fn bookmarks_are_passed_to_who_asked_for_them() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket
        .watch(
            "w",
            json!({"resourceVersion": "5", "allowWatchBookmarks": "true"}),
        )
        .await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.event("BOOKMARK", "8").await;
    assert_eq!(socket.next().await.version(), "8");
}

#[tokio::test]
async fn cancel_closes_upstream_and_nothing_follows_its_answer() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    for by_stream_id in [true, false] {
        socket.watch("w", json!({"resourceVersion": "5"})).await;
        let stream = setup.api.stream().await;
        let head = socket.next().await;
        stream.event("ADDED", "6").await;
        assert_eq!(socket.next().await.version(), "6");
        let cancel = if by_stream_id {
            json!({"id": "c", "method": "CANCEL", "stream_id": head.stream_id()})
        } else {
            json!({"id": "w", "method": "CANCEL"})
        };
        socket.send(cancel).await;
        let last = socket.next().await;
        assert_eq!(
            (last.id(), last.done(), last.error(), last.stream_id()),
            ("w", true, "", head.stream_id())
        );
        stream.closed().await;
        socket
            .send(json!({"id": "w", "method": "CANCEL", "stream_id": head.stream_id()}))
            .await;
        // The id is free again, and the next frame of the socket is of the next call.
        socket.get("w", "/api/v1/nodes").await;
        let next = socket.next().await;
        assert_eq!((next.status(), next.chunk()), (200, false));
    }
    socket.get("slow", "/api/v1/pods?hang=true").await;
    eventually("the slow call is open", || {
        setup.api.seen().iter().any(|seen| seen.query == "hang=true")
    })
    .await;
    socket.send(json!({"id": "slow", "method": "CANCEL"})).await;
    let last = socket.next().await;
    assert_eq!((last.id(), last.status(), last.done()), ("slow", 499, true));
}

#[tokio::test]
async fn the_end_of_a_socket_ends_its_calls_and_no_others() {
    let setup = Setup::start().await;
    let (mut first, mut second) = (setup.socket().await, setup.socket().await);
    first.watch("w", json!({})).await;
    let stream = setup.api.stream().await;
    second.watch("w", json!({})).await;
    let other = setup.api.stream().await;
    drop(first);
    stream.closed().await;
    other.event("ADDED", "1").await;
    second.next().await;
    assert_eq!(second.next().await.version(), "1");
}

#[tokio::test]
async fn two_hundred_watches_on_one_socket_keep_their_order() {
    const WATCHES: usize = 200;
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let mut streams = Vec::new();
    for index in 0..WATCHES {
        let query = json!({"resourceVersion": "5", "labelSelector": format!("n={index}")});
        socket.watch(&format!("w{index}"), query).await;
    }
    for _ in 0..WATCHES {
        streams.push(setup.api.stream().await);
    }
    for stream in &streams {
        for version in 10..20 {
            stream.event("MODIFIED", &version.to_string()).await;
        }
    }
    let mut seen = std::collections::HashMap::<String, Vec<String>>::new();
    for _ in 0..WATCHES * 11 {
        let frame = socket.next().await;
        if frame.chunk() {
            seen.entry(frame.id().to_owned())
                .or_default()
                .push(frame.version());
        }
    }
    assert_eq!(seen.len(), WATCHES);
    let expected: Vec<String> = (10..20).map(|version| version.to_string()).collect();
    assert!(seen.values().all(|versions| *versions == expected));
    // A tenth of them ends; the others go on.
    for index in 0..WATCHES / 10 {
        socket
            .send(json!({"id": format!("w{index}"), "method": "CANCEL"}))
            .await;
        assert!(socket.next().await.done());
    }
    eventually("the cancelled are closed", || {
        streams.iter().filter(|stream| stream.is_closed()).count() == WATCHES / 10
    })
    .await;
    for stream in streams.iter().filter(|stream| !stream.is_closed()) {
        stream.event("MODIFIED", "20").await;
    }
    for _ in WATCHES / 10..WATCHES {
        assert_eq!(socket.next().await.version(), "20");
    }
}

#[tokio::test]
async fn a_flood_that_nobody_reads_stays_bounded_and_stops_nobody_else() {
    let setup = Setup::start().await;
    let mut stalled = setup.socket().await;
    let log = "/api/v1/namespaces/a/pods/x/log";
    stalled
        .send(json!({"id": "f", "method": "GET", "path": log, "query": {"follow": "true"}, "stream": true}))
        .await;
    let stream = setup.api.stream().await;
    let taken = stream.flood(vec![b'x'; 64 * 1024].into()).await;
    // Queue, socket buffers on both sides and the buffers of two HTTP connections.
    assert!(
        taken < 32 * 1024 * 1024,
        "{taken} bytes were taken for a reader that reads nothing"
    );
    let mut other = setup.socket().await;
    other.get("g", "/api/v1/nodes").await;
    assert_eq!(other.next().await.status(), 200);
}

#[tokio::test]
async fn a_withdrawn_credential_ends_its_sockets() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let mut kept = Socket::connect(setup.proxy.addresses.door_http, "/ws/runner", "person-token").await;
    let mut changed = spec(2);
    changed
        .accept
        .retain(|token| token.name != "holder-of-door-token");
    setup.core.give(changed);
    assert_eq!(socket.close_code().await, Some(1008));
    kept.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(kept.next().await.0, json!({"type": "pong"}));
    let refused = Socket::try_connect(setup.proxy.addresses.door_http, "/ws/k8s", "door-token").await;
    assert_eq!(refused.err().unwrap().as_u16(), 401);
    let mut back = spec(3);
    back.accept.push(accepted("another", CredentialMode::Agent));
    setup.core.give(back);
    eventually("the token is accepted again", || {
        setup.core.last_report().unwrap().applied_revision == 3
    })
    .await;
    setup.socket().await;
}

#[tokio::test]
async fn a_watch_over_tls_and_h2_beside_two_hundred_others() {
    let setup = Setup::with(Api::start_tls().await, &[]).await;
    let mut socket = setup.socket().await;
    let mut streams = Vec::new();
    for index in 0..200 {
        socket
            .watch(&format!("w{index}"), json!({"resourceVersion": "5"}))
            .await;
        streams.push(setup.api.stream().await);
    }
    streams[199].event("ADDED", "6").await;
    loop {
        let frame = socket.next_of("w199").await;
        if frame.chunk() {
            assert_eq!(frame.version(), "6");
            break;
        }
    }
    socket.get("g", "/api/v1/nodes").await;
    assert_eq!(socket.next_of("g").await.status(), 200);
    socket.send(json!({"id": "w3", "method": "CANCEL"})).await;
    streams[3].closed().await;
    assert_eq!(streams.iter().filter(|stream| stream.is_closed()).count(), 1);
}

#[tokio::test]
async fn more_headers_than_the_apiserver_takes_are_answered_with_a_sentence() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let headers: serde_json::Map<_, _> = (0..150)
        .map(|number| (format!("X-Trace-{number}"), json!("x")))
        .collect();
    socket
        .send(json!({"id": "many", "method": "GET", "path": "/api/v1/pods", "headers": headers}))
        .await;
    let answer = socket.next().await;
    assert_eq!((answer.id(), answer.status(), answer.done()), ("many", 431, true));
    assert!(answer.error().contains("headers"), "{answer:?}");
    let status = answer.json();
    assert_eq!(
        (status["kind"].as_str(), status["code"].as_u64()),
        (Some("Status"), Some(431))
    );
    socket.get("few", "/api/v1/pods").await;
    assert_eq!(socket.next().await.status(), 200);
}
