//! Many watches on one WebSocket: cancelled, stalled, beside heartbeats and bad frames.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    control_plane::{Call, ControlPlaneConfig, ResponseStream, Tap},
    lab::{Cluster, Lab, TOKEN, kubectl},
    wait::eventually,
};

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const EVENTS: usize = 10;

/// 200 watches on one WebSocket, 10 of them cancelled, one reader stalled: the others see every event once and in
/// order, heartbeats keep their pace, and after CANCEL nothing more arrives (R4, R5, R6, R10).
///
/// # Errors
/// When a watch misses something.
pub async fn two_hundred(cluster: Cluster) -> Result<()> {
    let (lab, id) = over_frames(cluster).await?;
    let link = lab.control_plane.wait_link(&id).await;
    let mut streams = Vec::new();
    for number in 0..200 {
        let stream = link.stream(&Call::get(PATH).query("watch", "true")).await?;
        ensure!(
            stream.status() == 200,
            "watch {number}: status {}",
            stream.status()
        );
        streams.push(stream);
    }
    let stalled = streams.pop().context("the stalled one")?;
    let mut tap = link.tap();
    let mut cancelled = Vec::new();
    for stream in streams.drain(..10) {
        let number = stream.stream_id().to_owned();
        stream.cancel().await?;
        cancelled.push(number);
    }
    let readers: JoinSet<Result<Vec<String>>> = streams.into_iter().map(read_names).collect();
    for number in 0..EVENTS {
        let (truth, name) = (lab.kubeconfig.clone(), format!("many-{number}"));
        tokio::task::spawn_blocking(move || {
            kubectl(&truth, &["create", "configmap", &name, "-n", "default"])
        })
        .await??;
    }
    lab.control_plane.wait_heartbeats(&id, 2).await;
    let expected: Vec<String> = (0..EVENTS).map(|number| format!("many-{number}")).collect();
    let all = tokio::time::timeout(crate::wait::patience(), readers.join_all()).await?;
    ensure!(all.len() == 189, "189 readers, not {}", all.len());
    for names in all {
        let names = names?;
        ensure!(names == expected, "a watch saw {names:?}");
    }
    let mut frames = 0;
    while let Ok(Some(text)) = tokio::time::timeout(std::time::Duration::from_millis(200), tap.next()).await {
        frames += 1;
        let frame: Value = serde_json::from_str(&text)?;
        let cancelled = cancelled
            .iter()
            .any(|number| frame["stream_id"] == number.as_str());
        ensure!(!cancelled || frame["done"] == true, "after CANCEL came {text}");
    }
    ensure!(frames > 189, "the tap saw {frames} frames");
    drop(stalled);
    if let Ok(simulation) = lab.cluster.simulation() {
        eventually("the cancelled calls to be closed at the apiserver", || async {
            (simulation.requests().open_watches() <= 189).then_some(())
        })
        .await;
    }
    println!(
        "200 watches on one WebSocket: {} events each, {frames} frames, heartbeats in pace",
        EVENTS
    );
    Ok(())
}

async fn read_names(mut stream: ResponseStream) -> Result<Vec<String>> {
    let mut names = Vec::new();
    while names.len() < EVENTS {
        let chunk = stream.next().await.context("the watch ended")??;
        for line in chunk.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).context("each frame is a whole event")?;
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
            if event["type"] == "ADDED" && name.starts_with("many-") {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// The next frame that is none of the watch beside it.
async fn answer_beside(watch: &ResponseStream, tap: &mut Tap) -> Result<Value> {
    loop {
        let frame: Value = serde_json::from_str(&tap.next().await.context("the link ended")?)?;
        if frame["stream_id"] != watch.stream_id() {
            return Ok(frame);
        }
    }
}

/// Every kind of bad frame is answered with an error, and everything else on the socket lives on.
///
/// # Errors
/// When something else breaks.
pub async fn bad_frames(cluster: Cluster) -> Result<()> {
    let (lab, id) = over_frames(cluster).await?;
    let link = lab.control_plane.wait_link(&id).await;
    let mut watch = link.stream(&Call::get(PATH).query("watch", "true")).await?;
    let get = |path: &str| format!(r#"{{"id":"bad","method":"GET","path":{}}}"#, Value::from(path));
    let mut cases: BTreeMap<&str, String> = BTreeMap::from([
        ("not JSON", "{nonsense".to_owned()),
        ("not an object", "[1,2]".to_owned()),
        ("no id", r#"{"method":"GET","path":"/version"}"#.to_owned()),
        (
            "unknown method",
            r#"{"id":"bad","method":"BREW","path":"/version"}"#.to_owned(),
        ),
        (
            "body is not base64",
            r#"{"id":"bad","method":"POST","path":"/api/v1/namespaces","body":"***"}"#.to_owned(),
        ),
        (
            "cancel of nothing",
            r#"{"id":"bad","method":"CANCEL","stream_id":"no-such-stream"}"#.to_owned(),
        ),
    ]);
    for (what, path) in [
        ("relative path", "api/v1"),
        ("dot dot", "/api/../etc"),
        ("encoded dot", "/api/%2e%2e/secrets"),
        ("double slash", "//evil/api"),
        ("at sign", "/api@evil.example/"),
        ("line break", "/api/v1\r\nX-Evil: 1"),
        ("absolute URL", "https://evil.example/api"),
    ] {
        cases.insert(what, get(path));
    }
    for (what, frame) in &cases {
        let mut tap = link.tap();
        link.send_text(frame).await?;
        let answer = tokio::time::timeout(crate::wait::patience(), answer_beside(&watch, &mut tap))
            .await
            .context(*what)?
            .context(*what)?;
        ensure!(
            !answer["error"].as_str().unwrap_or_default().is_empty(),
            "{what}: no error in {answer}"
        );
        ensure!(
            !frame.contains("\"bad\"") || answer["id"] == "bad",
            "{what}: the id is missing in {answer}"
        );
        let fine = link.request(&Call::get("/version")).await?;
        ensure!(fine.status == 200, "after {what}: {fine:?}");
    }
    let truth = lab.kubeconfig.clone();
    let create = ["create", "configmap", "after-bad-frames", "-n", "default"];
    tokio::task::spawn_blocking(move || kubectl(&truth, &create)).await??;
    let (_, took) = eventually_event(&mut watch, "after-bad-frames").await?;
    println!(
        "{} bad frames answered; the watch beside them went on ({took:?})",
        cases.len()
    );

    let large = format!(
        r#"{{"id":"large","method":"GET","path":"/version","pad":"{}"}}"#,
        "x".repeat(2 << 20)
    );
    link.send_text(&large).await.ok();
    let why = tokio::time::timeout(crate::wait::patience(), link.closed()).await?;
    ensure!(
        why.contains("1009"),
        "a frame over the limit closes with 1009, not: {why}"
    );
    lab.control_plane.wait_link(&id).await;
    Ok(())
}

async fn eventually_event(stream: &mut ResponseStream, name: &str) -> Result<((), std::time::Duration)> {
    let start = tokio::time::Instant::now();
    loop {
        let chunk = tokio::time::timeout(crate::wait::patience(), stream.next())
            .await?
            .context("ended")??;
        if String::from_utf8_lossy(&chunk).contains(name) {
            return Ok(((), start.elapsed()));
        }
    }
}

/// A lab whose link speaks frames: what is looked at here is their own.
async fn over_frames(cluster: Cluster) -> Result<(Lab, String)> {
    let mut config = ControlPlaneConfig::new(TOKEN);
    config.link.http2 = false;
    let mut lab = Lab::with(cluster, config, |pod| pod).await?;
    let id = lab.start().await?;
    Ok((lab, id))
}
