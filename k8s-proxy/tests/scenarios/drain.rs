//! How the process ends.

use http::Method;
use http_body_util::BodyExt as _;
use runtime::supervise::Outcome;
use serde_json::json;

use crate::support::{Setup, event, eventually, request, soon, text};

#[tokio::test]
async fn a_drain_lets_ordinary_calls_finish_and_tells_watches() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let _stream = setup.api.stream().await;
    socket.next().await;
    let path = "/api/v1/pods?watch=true&resourceVersion=5";
    let mut http_watch = setup.proxy.send(request(Method::GET, path, "door-token")).await;
    let http_stream = setup.api.stream().await;
    http_stream.event("ADDED", "6").await;
    let first = soon("an event", http_watch.frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), event("ADDED", "6"));
    let outcome = setup.proxy.stop();
    let client = async {
        let last = socket.next().await;
        assert!(last.done() && last.error().contains("stopping"), "{last:?}");
        assert_eq!(socket.close_code().await, Some(1000));
        let (_, rest) = text(http_watch).await;
        assert_eq!(rest, "", "a clean end between two events");
    };
    let (outcome, ()) = tokio::join!(outcome, client);
    assert_eq!(outcome, Outcome::Clean);
}

#[tokio::test]
async fn a_call_in_flight_is_answered_before_the_end() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let log = "/api/v1/namespaces/a/pods/x/log";
    socket
        .send(json!({"id": "slow", "method": "GET", "path": "/api/v1/pods?hang=true"}))
        .await;
    eventually("it is in flight", || setup.api.seen().len() == 1).await;
    setup.proxy.supervisor.drain("test");
    socket.get("late", log).await;
    let late = socket.next().await;
    assert_eq!((late.id(), late.status(), late.done()), ("late", 503, true));
    assert_eq!(late.0["headers"]["Retry-After"], "1");
    // It never ends by itself; at the deadline the connection goes.
    assert_eq!(
        soon("the proxy ends", setup.proxy.supervisor.finish()).await,
        Outcome::Clean
    );
}
