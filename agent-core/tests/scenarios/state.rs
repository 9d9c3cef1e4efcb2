//! The identity in a cluster: Secret, copy, and what happens when neither can be read.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::json;

use crate::{
    agent::{Agent, eventually},
    control_plane::{ControlPlane, Say},
    door::{Cluster, Door},
};

fn empty() -> Cluster {
    Cluster {
        secret: Some(BTreeMap::new()),
        ..Cluster::default()
    }
}

fn known() -> Cluster {
    let pairs = [
        ("agent_id", "agent-kept"),
        ("cluster_id", "uuid-kept"),
        ("note", "the owner's"),
    ];
    let secret = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    Cluster {
        secret: Some(secret),
        ..Cluster::default()
    }
}

async fn start(dir: &std::path::Path, cp: &ControlPlane, door: &str) -> Agent {
    let in_cluster = [
        ("PIPEOPS_KUBERNETES_IN_CLUSTER", "true"),
        ("PIPEOPS_KUBERNETES_DOOR", door),
        ("PIPEOPS_POD_NAME", "pod-1"),
        ("PIPEOPS_POD_NAMESPACE", "ns"),
        ("PIPEOPS_POD_UID", "uid-1"),
    ];
    Agent::start(dir, &cp.url(), &in_cluster).await
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn the_id_is_kept_before_anybody_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(empty()).await);
    door.cluster().conflicts = 2;
    let witness = door.clone();
    cp.script().witness = Some(Box::new(move || json!(witness.secret("agent_id"))));
    let answer = json!({ "cluster_id": "uuid-1", "proxy_url": "wss://cp/proxy", "proxy_token": "session" });
    cp.say_register([Say::Ok(answer)]);
    let agent = start(dir.path(), &cp, &door.url()).await;
    let registration = cp.registration(1).await;
    assert_eq!(cp.script().witnessed, [registration["agent_id"].clone()]);
    eventually("the Secret is complete", async || {
        (door.secret("cluster_id").as_deref() == Some("uuid-1")).then_some(())
    })
    .await;
    assert_eq!(door.secret("proxy_token").as_deref(), Some("session"));
    let edge = std::fs::read_to_string(agent.edge("proxy")).unwrap();
    assert!(
        door.cluster()
            .tokens
            .iter()
            .all(|token| *token == format!("Bearer {edge}"))
    );
    let copy = std::fs::read_to_string(dir.path().join("private/agent-state.yaml")).unwrap();
    assert!(copy.contains("uuid-1"), "{copy}");
    eventually("an event", async || {
        door.cluster().events.first().map(|event| event["reason"].clone())
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_new_pod_goes_on_as_the_same_agent_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(known()).await);
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-kept" }))]);
    let agent = start(dir.path(), &cp, &door.url()).await;
    let (cluster, beat) = cp.beats(2).await;
    assert_eq!(
        (cluster.as_str(), &beat["agent_id"]),
        ("uuid-kept", &json!("agent-kept"))
    );
    // Nothing was registered by this version yet; the control plane hears of the same cluster again.
    assert_eq!(cp.registration(1).await["cluster_id"], "uuid-kept");
    eventually("what was registered is kept", async || {
        door.secret("registration")
    })
    .await;
    assert_eq!(door.secret("agent_id").as_deref(), Some("agent-kept"));
    assert_eq!(door.secret("cluster_id").as_deref(), Some("uuid-kept"));
    assert_eq!(
        door.secret("note").as_deref(),
        Some("the owner's"),
        "foreign names stay"
    );
    agent.stop().await;
}

#[tokio::test]
async fn with_neither_secret_nor_copy_nothing_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-kept" }))]);
    let address = nobody().await;
    let agent = start(dir.path(), &cp, &format!("http://{address}")).await;
    agent.readyz(&["not ready", "state: k8s-proxy unreachable"]).await;
    assert_eq!(agent.get("/livez").await.0, 200);
    let door = Door::start_at(address, known()).await;
    let (cluster, beat) = cp.beats(1).await;
    assert_eq!(
        (cluster.as_str(), &beat["agent_id"]),
        ("uuid-kept", &json!("agent-kept"))
    );
    assert!(
        cp.script()
            .registrations
            .iter()
            .all(|body| body["agent_id"] == "agent-kept"),
        "no fresh one"
    );
    drop(door);
    agent.stop().await;
}

#[tokio::test]
async fn a_refusal_is_not_a_fresh_install() {
    for answer in [
        (403, "Forbidden"),
        (401, "Unauthorized"),
        (404, "page not found"),
        (503, "Unavailable"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (cp, door) = (ControlPlane::start().await, Door::start(known()).await);
        cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-kept" }))]);
        door.cluster().secret_status = Some(answer);
        let agent = start(dir.path(), &cp, &door.url()).await;
        agent.readyz(&["not ready", "False         State: state:"]).await;
        eventually("several tries", async || {
            (door.cluster().tokens.len() >= 3).then_some(())
        })
        .await;
        assert!(
            cp.script().registrations.is_empty() && cp.script().beats.is_empty(),
            "{answer:?}"
        );
        door.cluster().secret_status = None;
        assert_eq!(cp.beats(1).await.0, "uuid-kept");
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_restart_without_k8s_proxy_goes_on_from_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(empty()).await);
    let agent = start(dir.path(), &cp, &door.url()).await;
    let (_, first) = cp.beats(1).await;
    eventually("the copy is complete", async || {
        let copy = std::fs::read_to_string(dir.path().join("private/agent-state.yaml")).unwrap_or_default();
        (copy.contains("uuid-1") && !copy.contains("unsaved")).then_some(())
    })
    .await;
    agent.stop().await;
    let address = door.address;
    let kept = door.cluster().secret.clone();
    door.stop();
    let agent = start(dir.path(), &cp, &format!("http://{address}")).await;
    let (cluster, beat) = cp.beats(2).await;
    assert_eq!(
        (cluster.as_str(), &beat["agent_id"]),
        ("uuid-1", &first["agent_id"])
    );
    assert_eq!(cp.script().registrations.len(), 1);
    // What is learnt meanwhile reaches the Secret when the door is back.
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-2" }))]);
    cp.say_beat([
        Say::Status(404, json!({ "error": "cluster not found" })),
        Say::Ok(json!({})),
    ]);
    cp.registration(2).await;
    let door = eventually("the port is free", async || {
        tokio::net::TcpListener::bind(address).await.ok()?;
        Some(
            Door::start_at(
                address,
                Cluster {
                    secret: kept.clone(),
                    ..Cluster::default()
                },
            )
            .await,
        )
    })
    .await;
    eventually("the Secret catches up", async || {
        (door.secret("cluster_id").as_deref() == Some("uuid-2")).then_some(())
    })
    .await;
    assert_eq!(door.secret("agent_id").as_deref(), first["agent_id"].as_str());
    agent.stop().await;
}
