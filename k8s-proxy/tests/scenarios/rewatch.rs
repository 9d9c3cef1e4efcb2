//! Watches that outlive their connection to the apiserver.

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::support::{Api, Setup, Stream, event, eventually, request, soon, text};

/// `key=value` pairs of the query a watch was opened again with.
fn asks(stream: &Stream, pair: &str) -> bool {
    stream.request.query.split('&').any(|given| given == pair)
}

#[tokio::test]
async fn a_broken_watch_goes_on_from_its_last_event() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket
        .watch("w", json!({"resourceVersion": "5", "labelSelector": "a=b,c"}))
        .await;
    let stream = setup.api.stream().await;
    assert!(!socket.next().await.chunk());
    stream.event("ADDED", "6").await;
    assert_eq!(socket.next().await.version(), "6");
    stream.event("BOOKMARK", "9").await;
    stream
        .send(event("MODIFIED", "10").as_bytes()[..15].to_vec())
        .await;
    stream.cut().await;
    let stream = setup.api.stream().await;
    assert!(
        asks(&stream, "resourceVersion=9") && asks(&stream, "labelSelector=a%3Db%2Cc"),
        "{}",
        stream.request.query
    );
    stream.event("MODIFIED", "10").await;
    assert_eq!(
        socket.next().await.version(),
        "10",
        "no half event, nothing twice"
    );
    eventually("it is counted", || {
        setup
            .core
            .last_report()
            .is_some_and(|report| report.status.unwrap().rewatched_total == 1)
    })
    .await;
}

#[tokio::test]
async fn an_apiserver_that_restarts_is_waited_for() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    setup.api.stream().await;
    socket.next().await;
    setup.api.set_up(false);
    socket.get("g", "/api/v1/nodes").await;
    let answer = socket.next().await;
    assert_eq!((answer.id(), answer.status()), ("g", 502));
    setup.api.script("watch=true", 503, &[], "{}");
    setup.api.set_up(true);
    let stream = setup.api.stream().await;
    assert!(asks(&stream, "resourceVersion=5"));
    stream.event("ADDED", "6").await;
    assert_eq!(socket.next().await.version(), "6");
}

#[tokio::test]
async fn what_cannot_go_on_ends_with_one_410_event() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    // The versions are forgotten.
    socket.watch("gone", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    let status = r#"{"kind":"Status","message":"too old resource version","code":410}"#;
    setup.api.script("resourceVersion=5", 410, &[], status);
    stream.cut().await;
    let last = socket.next().await;
    let (kind, object) = (last.json()["type"].clone(), last.json()["object"].clone());
    assert_eq!(
        (kind.as_str(), object["code"].as_u64()),
        (Some("ERROR"), Some(410))
    );
    assert_eq!(object["message"], "too old resource version");
    assert!(socket.next().await.done());
    // The existing objects were not all sent.
    socket.watch("list", json!({})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.event("ADDED", "50").await;
    assert_eq!(socket.next().await.version(), "50");
    stream.cut().await;
    assert_eq!(socket.next().await.json()["object"]["code"], 410);
    assert!(socket.next().await.done());
    assert!(!setup.api.has_stream().await);
}

#[tokio::test]
async fn initial_events_are_never_asked_for_twice() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let query = json!({"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"});
    socket.watch("w", query).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.cut().await;
    let stream = setup.api.stream().await;
    assert!(
        asks(&stream, "sendInitialEvents=true"),
        "nothing was passed on yet: just the same again"
    );
    stream.event("ADDED", "40").await;
    let end = json!({"type": "BOOKMARK", "object": {"metadata": {
        "resourceVersion": "60", "annotations": {"k8s.io/initial-events-end": "true"}}}});
    stream.send(format!("{end}\n")).await;
    assert_eq!(socket.next().await.version(), "40");
    assert_eq!(socket.next().await.version(), "60");
    stream.cut().await;
    let stream = setup.api.stream().await;
    assert!(asks(&stream, "resourceVersion=60"));
    assert!(!stream.request.query.contains("sendInitialEvents") && !stream.request.query.contains("Match"));
}

#[tokio::test]
async fn a_clean_end_is_opened_again_for_frames_and_passed_on_over_http() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.event("ADDED", "6").await;
    drop(stream);
    assert_eq!(socket.next().await.version(), "6");
    let stream = setup.api.stream().await;
    assert!(asks(&stream, "resourceVersion=6"));
    // Who asked for an end by time gets it.
    socket
        .watch("t", json!({"resourceVersion": "5", "timeoutSeconds": "3600"}))
        .await;
    drop(setup.api.stream().await);
    while !socket.next_of("t").await.done() {}

    let path = "/api/v1/pods?watch=true&resourceVersion=5";
    let answer = setup.proxy.send(request(Method::GET, path, "door-token")).await;
    let stream = setup.api.stream().await;
    stream.event("ADDED", "6").await;
    drop(stream);
    assert_eq!(text(answer).await.1, event("ADDED", "6"));
    assert!(!setup.api.has_stream().await);
}

#[tokio::test]
async fn over_http_a_broken_watch_goes_on_unseen_too() {
    let setup = Setup::with(Api::start_tls().await, &[]).await;
    let path = "/api/v1/pods?watch=true&resourceVersion=5";
    let mut answer = setup.proxy.send(request(Method::GET, path, "door-token")).await;
    let stream = setup.api.stream().await;
    stream.event("ADDED", "6").await;
    let first = soon("an event", answer.frame())
        .await
        .unwrap()
        .unwrap()
        .into_data()
        .unwrap();
    assert_eq!(first, event("ADDED", "6"));
    setup.api.cut_all();
    let stream = setup.api.stream().await;
    assert!(asks(&stream, "resourceVersion=6"));
    stream.event("DELETED", "7").await;
    let second = soon("an event", answer.frame())
        .await
        .unwrap()
        .unwrap()
        .into_data()
        .unwrap();
    assert_eq!(second, event("DELETED", "7"));
    drop(answer);
    stream.closed().await;
}

#[tokio::test]
async fn an_error_event_of_the_apiserver_is_the_end() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream
        .send("{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"metadata\":{},\"code\":410}}\n")
        .await;
    drop(stream);
    assert_eq!(socket.next().await.json()["object"]["code"], 410);
    assert!(socket.next().await.done());
    assert!(!setup.api.has_stream().await);
}

#[tokio::test]
async fn protobuf_watches_go_on_as_well() {
    /// `WatchEvent` around an object with a resourceVersion of one digit.
    fn frame(kind: &str, version: u8) -> Vec<u8> {
        let field = |number: u8, value: &[u8]| {
            [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
        };
        let object = field(1, &field(6, &[b'0' + version]));
        let raw = [b"k8s\0".as_slice(), &field(2, &object)].concat();
        let event = [field(1, kind.as_bytes()), field(2, &field(1, &raw))].concat();
        [
            u32::try_from(event.len()).unwrap().to_be_bytes().as_slice(),
            &event,
        ]
        .concat()
    }
    let setup = Setup::start().await;
    setup
        .api
        .set_content_type("application/vnd.kubernetes.protobuf;stream=watch");
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "1"})).await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream
        .send(
            [
                frame("ADDED", 2),
                frame("BOOKMARK", 3),
                frame("MODIFIED", 4)[..9].to_vec(),
            ]
            .concat(),
        )
        .await;
    assert_eq!(socket.next().await.bytes(), frame("ADDED", 2));
    stream.cut().await;
    let stream = setup.api.stream().await;
    assert!(asks(&stream, "resourceVersion=3"));
    stream.send(frame("MODIFIED", 4)).await;
    assert_eq!(socket.next().await.bytes(), frame("MODIFIED", 4));
}

#[tokio::test]
async fn a_followed_log_that_breaks_says_so() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let path = "/api/v1/namespaces/a/pods/x/log";
    socket
        .send(
            json!({"id": "l", "method": "GET", "path": path, "query": {"follow": ["true"]}, "stream": true}),
        )
        .await;
    let stream = setup.api.stream().await;
    socket.next().await;
    stream.send("one\n").await;
    assert_eq!(socket.next().await.body(), "one\n");
    stream.cut().await;
    let last = socket.next().await;
    assert_eq!((last.done(), last.status()), (true, 502));
    assert!(last.error().contains("broke"), "{}", last.error());
}
