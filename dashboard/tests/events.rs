//! The event stream: at once, on change, not too often, and when it ends.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod common;

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use common::{Fixture, TOKEN, fixture, request, text};
use dashboard::{Phase, Snapshot};
use futures_util::StreamExt;
use http::{Response, StatusCode};
use tokio::time::{Instant, timeout};

fn reason(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.agent.reason = text.into();
    snapshot
}

async fn open(page: &Fixture, cookie: &str) -> Response<Body> {
    page.send(request("GET", "/dashboard/api/events", &[("cookie", cookie)]))
        .await
}

async fn events(page: &Fixture) -> BodyDataStream {
    let cookie = page.cookie().await;
    open(page, &cookie).await.into_body().into_data_stream()
}

async fn next(stream: &mut BodyDataStream) -> Option<String> {
    let chunk = stream.next().await?.unwrap();
    Some(String::from_utf8(chunk.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_whole_snapshot_comes_at_once_and_again_on_change() {
    let page = fixture();
    let mut stream = events(&page).await;
    let first = next(&mut stream).await.unwrap();
    assert!(first.starts_with("event: snapshot\ndata: {\"now\":"), "{first}");
    assert!(first.contains(r#""phase":"loading""#), "{first}");
    page.feed.publish(reason("because"));
    assert!(next(&mut stream).await.unwrap().contains("because"));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_is_two_events_a_second_and_ends_with_the_newest() {
    let page = fixture();
    let mut stream = events(&page).await;
    next(&mut stream).await.unwrap();
    let start = Instant::now();
    for number in 0..100 {
        page.feed.publish(reason(&format!("change {number}")));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(next(&mut stream).await.unwrap().contains("change 99"));
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert!(
        timeout(Duration::from_secs(10), stream.next()).await.is_err(),
        "nothing more to say"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    let page = fixture();
    let mut stream = events(&page).await;
    next(&mut stream).await.unwrap();
    let start = Instant::now();
    assert!(next(&mut stream).await.unwrap().starts_with(':'));
    assert!(start.elapsed() >= Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_with_the_drain_so_that_a_stop_is_not_held_up() {
    let page = fixture();
    let mut stream = events(&page).await;
    next(&mut stream).await.unwrap();
    let mut draining = Snapshot::default();
    draining.agent.phase = Phase::Draining;
    page.feed.publish(draining);
    assert!(next(&mut stream).await.unwrap().contains(r#""phase":"draining""#));
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_with_the_feed() {
    let Fixture { feed, app, .. } = fixture();
    let bearer = format!("Bearer {TOKEN}");
    let ask = request("GET", "/dashboard/api/events", &[("authorization", &bearer)]);
    let response = tower::ServiceExt::oneshot(app, ask).await.unwrap();
    let mut stream = response.into_body().into_data_stream();
    next(&mut stream).await.unwrap();
    drop(feed);
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test(start_paused = true)]
async fn signing_out_ends_its_own_streams_only() {
    let page = fixture();
    let (mine, other) = (page.cookie().await, page.cookie().await);
    let mut my_stream = open(&page, &mine).await.into_body().into_data_stream();
    let mut other_stream = open(&page, &other).await.into_body().into_data_stream();
    next(&mut my_stream).await.unwrap();
    next(&mut other_stream).await.unwrap();
    page.send(request(
        "DELETE",
        "/dashboard/session",
        &[("cookie", &mine), ("x-pipeops-csrf", "1")],
    ))
    .await;
    assert_eq!(next(&mut my_stream).await, None);
    page.feed.publish(reason("still here"));
    assert!(next(&mut other_stream).await.unwrap().contains("still here"));
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_when_the_session_runs_out() {
    let page = fixture();
    let mut stream = events(&page).await;
    let start = Instant::now();
    while next(&mut stream).await.is_some() {}
    assert_eq!(start.elapsed().as_secs(), 8 * 3600);
}

#[tokio::test]
async fn the_number_of_open_pages_is_bounded() {
    let page = fixture();
    let cookie = page.cookie().await;
    let mut open_pages = Vec::new();
    for _ in 0..32 {
        open_pages.push(open(&page, &cookie).await);
    }
    let refused = open(&page, &cookie).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(refused).await.contains("too many pages"));
    open_pages.clear();
    assert_eq!(open(&page, &cookie).await.status(), StatusCode::OK);
}
