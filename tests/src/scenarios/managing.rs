//! What a person far away does: kubectl through the front, bytes through the forwards, one trace.

use super::observer::{front_client, through_forward};
use crate::{
    control_plane::ControlPlaneConfig,
    lab::{Cluster, Lab, TOKEN},
    otlp::{Receiver, Span},
    pod::Part,
    wait::eventually,
};
use anyhow::{Context as _, Result, ensure};

/// `kubectl get`, `apply`, `get -w` and `delete` through the front, and a byte through each forward.
///
/// # Errors
/// When one of them fails.
pub async fn from_far_away(cluster: Cluster) -> Result<()> {
    let (lab, id) = Lab::running(cluster).await?;
    let namespaces = lab.kubectl(&id, &["get", "namespaces", "-o", "name"]).await?;
    ensure!(namespaces.contains("namespace/default"), "{namespaces}");
    let file = lab.dir().join("settings.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: far-away, namespace: default}\ndata: {a: '1'}\n",
    )?;
    let path = file.display().to_string();
    lab.kubectl(&id, &["apply", "--validate=false", "-f", &path])
        .await?;
    let get = [
        "get",
        "configmap",
        "far-away",
        "-n",
        "default",
        "-o",
        "jsonpath={.data.a}",
    ];
    ensure!(lab.kubectl(&id, &get).await? == "1");
    let watch = [
        "get",
        "configmaps",
        "-n",
        "default",
        "-w",
        "-o",
        "name",
        "--request-timeout=5s",
    ];
    let watched = lab
        .kubectl(&id, &watch)
        .await
        .unwrap_or_else(|error| error.to_string());
    ensure!(watched.contains("configmap/far-away"), "{watched}");
    lab.kubectl(&id, &["delete", "configmap", "far-away", "-n", "default"])
        .await?;
    ensure!(lab.kubectl(&id, &get).await.is_err(), "deleted means gone");
    for forward in ["kubernetes-api", "k8s-proxy", "agent-http"] {
        let (text, took) = eventually(forward, || async {
            through_forward(&lab.control_plane, &id, forward).await.ok()
        })
        .await;
        ensure!(!text.is_empty());
        println!("forward {forward}: a byte there and back after {took:?}");
    }
    let beat = lab.control_plane.wait_heartbeats(&id, 1).await;
    ensure!(beat.body["status"] == "active", "{}", beat.body);
    let (counted, _) = eventually("node and pod counts in a heartbeat", || async {
        let beat = lab.control_plane.heartbeats(&id).pop()?;
        beat.body["metadata"]["k8s_nodes"]
            .as_u64()
            .filter(|nodes| *nodes > 0)
    })
    .await;
    println!("heartbeats tell of {counted} nodes");
    if let Ok(simulation) = lab.cluster.simulation() {
        let full = simulation.requests().find(|request| {
            request.path == "/api/v1/pods"
                && request.verb == "list"
                && request.user.contains("admin")
                && !request.query.contains("limit=1")
                && request
                    .header("user-agent")
                    .is_some_and(|agent| agent.contains("agent-core"))
        });
        ensure!(full.is_empty(), "a full pod list was asked for: {full:?}");
    }
    Ok(())
}

/// One trace: a request at the front with `traceparent` yields spans of k8s-proxy that join the caller's trace, and
/// the apiserver receives the header.
///
/// # Errors
/// When a span is missing.
pub async fn one_trace(cluster: Cluster) -> Result<()> {
    one_trace_of(cluster, &Receiver::start().await?, &["k8s-proxy"]).await
}

/// The same with a receiver that others send to as well: each of these services has a span in the caller's trace.
///
/// # Errors
/// When a span is missing.
pub async fn one_trace_of(cluster: Cluster, receiver: &Receiver, services: &[&str]) -> Result<()> {
    let endpoint = receiver.endpoint();
    let mut lab = Lab::with(cluster, ControlPlaneConfig::new(TOKEN), |pod| {
        pod.env(Part::Proxy, "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    })
    .await?;
    let id = lab.start().await?;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let url = format!(
        "{}/api/v1/namespaces/default/configmaps",
        lab.control_plane.front_url(&id)
    );
    let request = front_client(&lab.control_plane)?
        .get(url)
        .bearer_auth(lab.control_plane.front_token())
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    ensure!(request.send().await?.status().is_success());
    let (spans, took) = eventually("spans that join the trace", || async {
        let of = |spans: &[Span], service: &str| spans.iter().any(|span| span.service == service);
        Some(receiver.trace(trace)).filter(|spans| services.iter().all(|service| of(spans, service)))
    })
    .await;
    let names: Vec<_> = spans
        .iter()
        .map(|span| format!("{}: {}", span.service, span.name))
        .collect();
    println!("trace {trace}: {names:?} after {took:?}");
    if let Ok(simulation) = lab.cluster.simulation() {
        let received = simulation
            .requests()
            .find(|request| request.path.ends_with("/configmaps"));
        let header = received
            .last()
            .and_then(|request| request.header("traceparent"))
            .context("no traceparent")?;
        ensure!(header.contains(trace), "the apiserver received {header}");
        let parent = header.split('-').nth(2).unwrap_or_default();
        ensure!(
            spans.iter().any(|span| span.span_id == parent),
            "{header} names no span of ours: {spans:?}"
        );
    }
    Ok(())
}

/// The spans of tunnel-sidecar: one for the session it opens, and one for a user's connection with what became of it.
///
/// # Errors
/// When one is missing or does not say it.
pub async fn spans_of_the_tunnel(cluster: Cluster) -> Result<()> {
    let receiver = Receiver::start().await?;
    let endpoint = receiver.endpoint();
    let mut lab = Lab::with(cluster, ControlPlaneConfig::new(TOKEN), |pod| {
        pod.env(Part::Tunnel, "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    })
    .await?;
    let id = lab.start().await?;
    through_forward(&lab.control_plane, &id, "agent-http").await?;
    let attribute = |span: &Span, key: &str| {
        let found = span.attributes.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let ((connect, connection), took) = eventually("the spans of session and connection", async || {
        let spans = receiver.spans();
        let named = |name: &str| {
            let ours = spans.iter().filter(|span| span.service == "tunnel-sidecar");
            ours.filter(|span| span.name == name).cloned().collect::<Vec<_>>()
        };
        let carried = named("connection").into_iter().find(|span| {
            attribute(span, "forward") == "agent-http" && attribute(span, "result") == "accepted"
        });
        Some((named("connect").pop()?, carried?))
    })
    .await;
    let says = |span: &Span, keys: &[&str]| {
        let words: Vec<_> = keys
            .iter()
            .map(|key| format!("{key}={}", attribute(span, key)))
            .collect();
        ensure!(words.iter().all(|word| !word.ends_with('=')), "{words:?}");
        println!("{} after {took:?}: {}", span.name, words.join(" "));
        Ok(())
    };
    says(&connect, &["server", "lane"])?;
    says(
        &connection,
        &[
            "forward",
            "dials",
            "id",
            "session",
            "result",
            "bytes_in",
            "bytes_out",
        ],
    )?;
    let dialled = attribute(&connection, "dials").parse::<std::net::SocketAddr>();
    ensure!(dialled.is_ok(), "agent-http is dialled at its address");
    let bytes = |key| attribute(&connection, key).parse::<u64>();
    ensure!(bytes("bytes_in")? > 0 && bytes("bytes_out")? > 0);
    ensure!(
        connection.parent_id.is_empty(),
        "a connection is a trace of its own"
    );
    Ok(())
}
