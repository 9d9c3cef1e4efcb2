//! The real apiserver under our front: its initial events, its restart, its spans.

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use harness::{
    cluster::RealCluster,
    control_plane::Call,
    lab::{Cluster, Lab},
    otlp::Receiver,
    scenarios::{managing, observer::front_client},
    wait::patience,
};
use serde_json::Value;

use crate::informer::Informer;

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn lab() -> Result<(RealCluster, Lab, String)> {
    let cluster = RealCluster::running().await?;
    let (lab, id) = Lab::running(Cluster::Real(cluster.kubeconfig()?)).await?;
    Ok((cluster, lab, id))
}

async fn create(cluster: &RealCluster, name: &str) -> Result<()> {
    cluster
        .kubectl(&["create", "configmap", name, "-n", "default"])
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initial_events_end_with_their_bookmark_through_the_front() -> Result<()> {
    let (cluster, lab, id) = lab().await?;
    create(&cluster, "there-before").await?;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let url = format!("{}{CONFIGMAPS}?{query}", lab.control_plane.front_url(&id));
    let request = front_client(&lab.control_plane)?
        .get(url)
        .bearer_auth(lab.control_plane.front_token());
    let response = request.send().await?;
    ensure!(
        response.status().is_success(),
        "the watch was refused: {}",
        response.status()
    );
    let mut body = response.bytes_stream();
    let (mut buffer, mut added) = (Vec::new(), Vec::new());
    let bookmark = async {
        loop {
            let chunk = body.next().await.context("the watch ended")??;
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                let metadata = &event["object"]["metadata"];
                if event["type"] == "BOOKMARK" {
                    return anyhow::Ok(metadata["annotations"]["k8s.io/initial-events-end"].clone());
                }
                added.push(metadata["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    };
    let mark = tokio::time::timeout(patience(), bookmark).await??;
    ensure!(
        mark == "true",
        "the first bookmark does not end the initial events: {mark}"
    );
    added.sort();
    ensure!(
        added == ["kube-root-ca.crt", "there-before"],
        "before the bookmark came {added:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_informer_sees_each_change_once_across_restarts_of_the_apiserver() -> Result<()> {
    let (cluster, lab, id) = lab().await?;
    let informer = Informer::start(&lab.control_plane, &id).await?;
    let link = lab.control_plane.wait_link(&id).await;
    for signal in ["KILL", "TERM"] {
        let name = |step: &str| format!("restart-{}-{step}", signal.to_lowercase());
        create(&cluster, &name("before")).await?;
        informer.knows(&name("before")).await;
        let before = informer.seen();
        cluster.restart_apiserver(&["--signal", signal]).await?;
        create(&cluster, &name("after")).await?;
        informer.knows(&name("after")).await;
        let seen = informer.seen();
        let (gone, ended) = (seen.gone - before.gone, seen.ended - before.ended);
        println!("apiserver ended by {signal}: each change once, {gone} honest 410, {ended} clean ends");
        ensure!(gone <= 1, "more than one 410 for one restart: {seen:?}");
    }
    let seen = informer.seen();
    ensure!(
        seen.added.values().all(|times| *times == 1),
        "seen more than once: {seen:?}"
    );
    let still = lab.control_plane.wait_link(&id).await;
    ensure!(
        link.id() == still.id(),
        "the control plane's link has nothing to do with the apiserver"
    );
    let version = still.request(&Call::get("/version")).await?;
    ensure!(version.status == 200, "{version:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_apiserver_joins_the_callers_trace() -> Result<()> {
    let cluster = RealCluster::running().await?;
    let receiver = Receiver::start_on(cluster.host_address()?).await?;
    cluster
        .restart_apiserver(&["--otlp", &receiver.address().to_string()])
        .await?;
    let kubeconfig = cluster.kubeconfig()?;
    let joined =
        managing::one_trace_of(Cluster::Real(kubeconfig), &receiver, &["k8s-proxy", "apiserver"]).await;
    cluster.restart_apiserver(&["--otlp", "off"]).await?;
    joined
}
