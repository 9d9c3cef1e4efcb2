//! Everything that can be made to go wrong does, and ends when it should.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use super::{super::*, *};
use crate::wait::{eventually, patience};

/// Long enough for an answer that would come, had it not been stopped.
const SHORT: Duration = Duration::from_millis(200);
const WATCH: &str = "/api/v1/namespaces/shop/configmaps?watch=true&resourceVersion=";

fn touch(simulation: &Simulation, text: &str) {
    simulation
        .merge(
            "configmaps",
            "shop",
            "web-config",
            &json!({"data": {"text": text}}),
        )
        .unwrap();
}

fn watch_path(simulation: &Simulation) -> String {
    format!("{WATCH}{}", simulation.revision())
}

#[tokio::test]
async fn a_cut_leaves_half_an_event() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    touch(&simulation, "whole");
    watch.expect("MODIFIED", "web-config").await.unwrap();
    simulation
        .faults()
        .add(Fault::new(FaultKind::Cut).verb("watch").times(1));
    touch(&simulation, "half");
    let error = timeout(patience(), watch.event())
        .await
        .expect("the cut is seen")
        .expect_err("no whole event");
    assert!(!format!("{error:#}").is_empty());
    // The next connection is whole again.
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    touch(&simulation, "after");
    watch.expect("MODIFIED", "web-config").await.unwrap();
}

#[tokio::test]
async fn a_cut_sends_half_of_the_bytes_on_http_1() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let simulation = start(SimulationConfig {
        tls: false,
        ..SimulationConfig::default()
    })
    .await;
    simulation.faults().add(Fault::new(FaultKind::Cut).times(1));
    let mut tcp = tokio::net::TcpStream::connect(simulation.address())
        .await
        .unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {}\r\n\r\n",
        watch_path(&simulation),
        simulation.admin_token()
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    eventually("the watch", async || {
        (simulation.requests().open_watches() == 1).then_some(())
    })
    .await;
    touch(&simulation, "half");
    let mut text = Vec::new();
    // A reset after the bytes is as good as an end.
    let _ = timeout(patience(), tcp.read_to_end(&mut text))
        .await
        .expect("the cut is seen");
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("{\"type\":\"MODIFIED\"") && !text.contains("}\n"),
        "{text}"
    );
    eventually("the watch to be gone", async || {
        (simulation.requests().open_watches() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cut_body_is_incomplete() {
    let simulation = start(SimulationConfig::default()).await;
    simulation
        .faults()
        .add(Fault::new(FaultKind::Cut).path("/nodes").times(1));
    let client = admin(&simulation);
    assert!(
        timeout(patience(), client.get("/api/v1/nodes"))
            .await
            .unwrap()
            .is_err()
    );
    assert_eq!(get(&client, "/api/v1/nodes").await.0, 200);
}

#[tokio::test]
async fn stalled_requests_wait_and_stalled_streams_catch_up() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    let stall = simulation.faults().add(Fault::new(FaultKind::StallStreams));
    touch(&simulation, "1");
    touch(&simulation, "2");
    assert!(timeout(SHORT, watch.event()).await.is_err(), "nothing comes");
    simulation.faults().remove(stall);
    for text in ["1", "2"] {
        assert_eq!(
            watch.expect("MODIFIED", "web-config").await.unwrap()["data"]["text"],
            text
        );
    }
    simulation
        .faults()
        .add(Fault::new(FaultKind::StallRequests).path("/nodes"));
    assert!(
        timeout(SHORT, client.get("/api/v1/nodes")).await.is_err(),
        "no answer"
    );
    assert_eq!(
        get(&client, "/api/v1/services").await.0,
        200,
        "others are answered"
    );
    simulation.faults().clear();
    assert_eq!(get(&client, "/api/v1/nodes").await.0, 200);
}

#[tokio::test]
async fn stalled_connections_are_accepted_and_silent() {
    let simulation = start(SimulationConfig::default()).await;
    simulation.faults().add(Fault::new(FaultKind::StallConnections));
    assert!(timeout(SHORT, admin(&simulation).get("/version")).await.is_err());
    simulation.faults().clear();
    assert_eq!(get(&admin(&simulation), "/version").await.0, 200);
}

#[tokio::test]
async fn refusals_on_demand() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    simulation.faults().add(
        Fault::new(FaultKind::Fail {
            status: 429,
            retry_after: Some(3),
        })
        .times(2)
        .path("/pods"),
    );
    for _ in 0..2 {
        let answer = client.get("/api/v1/pods").await.unwrap();
        assert_eq!(
            (answer.code, answer.headers["retry-after"].to_str().unwrap()),
            (429, "3")
        );
        assert_eq!(answer.value["reason"], "TooManyRequests");
    }
    assert_eq!(get(&client, "/api/v1/pods").await.0, 200);
    simulation.faults().add(
        Fault::new(FaultKind::Fail {
            status: 503,
            retry_after: None,
        })
        .verb("create"),
    );
    let body = json!({"metadata": {"name": "x"}});
    let answer = client
        .post("/api/v1/namespaces/shop/configmaps", &body)
        .await
        .unwrap();
    assert_eq!(
        (answer.code, &answer.value["reason"]),
        (503, &json!("ServiceUnavailable"))
    );
    assert!(simulation.get("configmaps", "shop", "x").is_none());
}

#[tokio::test]
async fn gone_on_demand() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    simulation.faults().add(Fault::new(FaultKind::Gone).times(1));
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    let event = watch.event().await.unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert!(watch.event().await.unwrap().is_none());
    simulation.faults().add(Fault::new(FaultKind::Gone).times(1));
    let exact = format!("/api/v1/pods?resourceVersion={}", simulation.revision());
    assert_eq!(get(&client, &exact).await.0, 410);
    assert_eq!(get(&client, &exact).await.0, 200);
    // A compaction does the same to every older position.
    let path = watch_path(&simulation);
    touch(&simulation, "x");
    simulation.compact();
    let event = client.open(&path).await.unwrap().event().await.unwrap().unwrap();
    assert_eq!(event["object"]["reason"], "Expired");
}

#[tokio::test]
async fn slow_and_late() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let whole = client.get("/api/v1/pods").await.unwrap().bytes;
    simulation.faults().add(
        Fault::new(FaultKind::Slow {
            bytes_per_second: 20_000,
        })
        .times(1),
    );
    simulation
        .faults()
        .add(Fault::new(FaultKind::Delay { millis: 30 }).times(1));
    let start = tokio::time::Instant::now();
    assert_eq!(
        client.get("/api/v1/pods").await.unwrap().bytes,
        whole,
        "slow, and complete"
    );
    let least = Duration::from_millis(30) + Duration::from_secs_f64(whole.len() as f64 / 20_000.0);
    assert!(
        start.elapsed() >= least,
        "{:?} is faster than asked",
        start.elapsed()
    );
}

#[tokio::test]
async fn down_and_up_on_the_same_port() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    simulation.down().await;
    assert!(
        timeout(patience(), watch.event()).await.unwrap().is_err(),
        "open watches break"
    );
    assert!(
        client
            .get("/version")
            .await
            .unwrap_err()
            .downcast_ref::<reqwest::Error>()
            .unwrap()
            .is_connect()
    );
    let address = simulation.address();
    simulation.up().await.unwrap();
    assert_eq!(simulation.address(), address);
    eventually("it to answer again", async || client.get("/version").await.ok()).await;
}

#[tokio::test]
async fn connections_cut_and_watches_ended() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    simulation.end_watches();
    assert!(watch.event().await.unwrap().is_none(), "a clean end");
    let mut watch = client.open(&watch_path(&simulation)).await.unwrap();
    assert_eq!(simulation.requests().open_watches(), 1);
    simulation.cut_connections();
    assert!(
        timeout(patience(), watch.event()).await.unwrap().is_err(),
        "no clean end"
    );
    eventually("the count to fall", async || {
        (simulation.requests().open_watches() == 0).then_some(())
    })
    .await;
    eventually("an answer", async || client.get("/version").await.ok()).await;
}

#[tokio::test]
async fn a_client_that_leaves_closes_its_watch() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let watch = client.open(&watch_path(&simulation)).await.unwrap();
    assert_eq!(simulation.requests().open_watches(), 1);
    drop(watch);
    eventually("the end", async || {
        (simulation.requests().open_watches() == 0).then_some(())
    })
    .await;
    let watches = simulation.requests().find(|request| request.verb == "watch");
    assert!(watches[0].ended);
}

#[tokio::test]
async fn bookmarks_on_demand_and_a_slow_watch_ends() {
    let simulation = start(SimulationConfig {
        watch_cache: 8,
        ..SimulationConfig::default()
    })
    .await;
    let client = admin(&simulation);
    let path = format!("{}&allowWatchBookmarks=true", watch_path(&simulation));
    let mut watch = client.open(&path).await.unwrap();
    simulation.bookmark_now();
    let event = watch.event().await.unwrap().unwrap();
    assert_eq!(
        event["object"]["metadata"]["resourceVersion"],
        simulation.revision().to_string()
    );
    // More happens than is remembered while nothing is sent: the watch ends cleanly, its position is gone.
    simulation.faults().add(Fault::new(FaultKind::StallStreams));
    touch(&simulation, "0");
    assert!(timeout(SHORT, watch.event()).await.is_err());
    for number in 1..30 {
        touch(&simulation, &number.to_string());
    }
    simulation.faults().clear();
    assert_eq!(
        watch.expect("MODIFIED", "web-config").await.unwrap()["data"]["text"],
        "0"
    );
    assert!(watch.event().await.unwrap().is_none());
    let event = client.open(&path).await.unwrap().event().await.unwrap().unwrap();
    assert_eq!(event["object"]["code"], 410);
}

#[tokio::test]
async fn only_a_hundred_streams_on_one_connection() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let mut watches = Vec::new();
    for _ in 0..100 {
        watches.push(client.open(&watch_path(&simulation)).await.unwrap());
    }
    assert_eq!(simulation.connections(), 1);
    assert!(
        timeout(SHORT, client.get("/version")).await.is_err(),
        "the next one waits"
    );
    watches.pop();
    timeout(patience(), client.get("/version"))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn people_make_trouble_over_http() {
    let simulation = start(SimulationConfig::default()).await;
    let client = admin(&simulation);
    let post = async |path: &str, body: Value| client.post(path, &body).await.unwrap();
    let made = post(
        "/_sim/faults",
        json!({"kind": "fail", "status": 500, "path": "/nodes"}),
    )
    .await;
    let id = made.expect(200).unwrap()["id"].clone();
    assert_eq!(get(&client, "/api/v1/nodes").await.0, 500);
    assert_eq!(get(&client, "/_sim/faults").await.1[0]["kind"], "fail");
    client
        .delete(&format!("/_sim/faults/{id}"))
        .await
        .unwrap()
        .expect(200)
        .unwrap();
    assert_eq!(get(&client, "/api/v1/nodes").await.0, 200);
    assert_eq!(post("/_sim/faults", json!({"kind": "nonsense"})).await.code, 400);
    let before = simulation.revision();
    post("/_sim/step?n=3", json!({})).await.expect(200).unwrap();
    assert!(simulation.revision() > before);
    post("/_sim/faults", json!({"kind": "compact"}))
        .await
        .expect(200)
        .unwrap();
    assert_eq!(get(&client, "/_sim/state").await.1["remembered_changes"], 0);
    let request = client
        .request(Method::POST, "/_sim/faults")
        .body(json!({"kind": "down", "millis": 50}).to_string());
    let _ = ContractClient::send(request).await;
    eventually("down", async || client.get("/version").await.err()).await;
    eventually("up again", async || client.get("/version").await.ok()).await;
}
