//! Desired state down, observed state up, and who may call what.

use std::time::Duration;

use proto::v1::{
    GetAgentRequest, GetBuildRequest, HeartbeatRequest, Phase, ProxyReport, ReregisterRequest, TunnelReport,
    WatchSpecRequest, core_client::CoreClient, process_client::ProcessClient,
    siblings_client::SiblingsClient,
};
use runtime::{
    build::build_info,
    local::{LocalChannel, channel},
    secret::TokenFile,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::{
    agent::{Agent, eventually},
    control_plane::{ControlPlane, Say},
};

fn dial(agent: &Agent, token: std::path::PathBuf) -> LocalChannel {
    channel(
        &format!("http://{}", agent.grpc),
        TokenFile::new(token),
        build_info("test"),
    )
    .unwrap()
}

fn tunnel(agent: &Agent) -> SiblingsClient<LocalChannel> {
    SiblingsClient::new(dial(agent, agent.edge("tunnel")))
}

fn proxy(agent: &Agent) -> SiblingsClient<LocalChannel> {
    SiblingsClient::new(dial(agent, agent.edge("proxy")))
}

fn operator(agent: &Agent) -> CoreClient<LocalChannel> {
    CoreClient::new(dial(agent, agent.dir.join("private/operator-token")))
}

fn watch() -> WatchSpecRequest {
    WatchSpecRequest {
        instance_id: "test".to_owned(),
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    message
        .expect("a message in time")
        .unwrap()
        .expect("an open stream")
}

fn report(instance: &str, sequence: u64, ready: bool) -> TunnelReport {
    TunnelReport {
        instance_id: instance.to_owned(),
        sequence,
        ready,
        ..TunnelReport::default()
    }
}

#[tokio::test]
async fn the_tunnel_hears_nothing_before_something_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    cp.say_register([Say::Status(503, json!({})), Say::Status(503, json!({}))]);
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let mut specs = tunnel(&agent)
        .watch_tunnel_spec(watch())
        .await
        .unwrap()
        .into_inner();
    cp.registration(3).await;
    let silent = tokio::time::timeout(Duration::from_millis(50), specs.message()).await;
    assert!(silent.is_err(), "unknown is not empty");

    // The documented path answers 404; the older one speaks the older words.
    cp.script().older_tunnel = Some(
        json!({ "status": "REQUIRED", "tunnel_server_addr": "wss://t.example",
        "credentials": "dTpw", "forwards": [{ "name": "k8s-api", "remote_port": 8000 }] }),
    );
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-1" }))]);
    let first = next(&mut specs).await;
    assert!(first.enabled && first.revision == 1 && !first.epoch.is_empty());
    assert_eq!(
        (first.server.as_str(), first.credentials.as_str()),
        ("wss://t.example", "u:p")
    );
    assert_eq!(
        (first.forwards[0].name.as_str(), first.forwards[0].remote_port),
        ("kubernetes-api", 8000)
    );
    let polls = cp.script().polls.len();
    eventually("more polls", async || {
        (cp.script().polls.len() > polls + 3).then_some(())
    })
    .await;
    let remembered = cp.script().polls[polls..]
        .iter()
        .all(|poll| poll.starts_with("/api/agents/"));
    assert!(remembered, "the path that answered is remembered");

    cp.script().older_tunnel = Some(json!({ "status": "IDLE" }));
    let second = next(&mut specs).await;
    assert_eq!(
        (second.epoch, second.revision, second.enabled),
        (first.epoch, 2, false)
    );
    assert!(second.reason.contains("IDLE"));
    // A new stream begins with the current decision.
    let mut again = tunnel(&agent)
        .watch_tunnel_spec(watch())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut again).await.revision, 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_decision_outlives_the_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let forwards = json!([{ "name": "agent-http", "remote_port": 9 }]);
    cp.script().tunnel =
        Some(json!({ "status": "ready", "tunnel_url": "ws://127.0.0.1:1", "forwards": forwards }));
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let mut specs = tunnel(&agent)
        .watch_tunnel_spec(watch())
        .await
        .unwrap()
        .into_inner();
    assert!(next(&mut specs).await.enabled);
    cp.script().tunnel = None;
    let polls = cp.script().polls.len();
    eventually("more polls", async || {
        (cp.script().polls.len() > polls + 4).then_some(())
    })
    .await;
    let silent = tokio::time::timeout(Duration::from_millis(50), specs.message()).await;
    assert!(
        silent.is_err(),
        "404 from a control plane that is replaced takes no tunnel down"
    );
    agent.stop().await;
}

#[tokio::test]
async fn the_proxy_learns_digests_names_and_where_to_dial() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let answer =
        json!({ "cluster_id": "uuid-1", "proxy_url": "ws://127.0.0.1:1/proxy", "proxy_token": "session" });
    cp.say_register([Say::Ok(answer)]);
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_POD_NAME", "pod-1")]).await;
    let mut specs = proxy(&agent)
        .watch_proxy_spec(watch())
        .await
        .unwrap()
        .into_inner();
    let spec = loop {
        let spec = next(&mut specs).await;
        assert_eq!(spec.state_secret, "pipeops-agent-state");
        if !spec.dial.is_empty() {
            break spec;
        }
    };
    assert_eq!(spec.dial[0].bearer, "session");
    assert_eq!(
        spec.accept[0].sha256.as_ref(),
        runtime::secret::sha256(b"cp-token")
    );
    assert_eq!(spec.pod_name, "pod-1");
    assert!(
        !format!("{spec:?}").contains("cp-token"),
        "the control-plane token is never handed over"
    );
    eventually("the session is kept", async || {
        crate::agent::state(dir.path())
            .contains_key("proxy_token")
            .then_some(())
    })
    .await;
    agent.stop().await;
    // A restart with the control plane down still knows where to dial.
    cp.stop();
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let mut specs = proxy(&agent)
        .watch_proxy_spec(watch())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut specs).await.dial[0].bearer, "session");
    agent.stop().await;
}

#[tokio::test]
async fn the_newest_report_stream_wins_and_silence_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_REPORT_TIMEOUT", "300ms")]).await;
    let (older, queue) = mpsc::channel(4);
    let mut client = tunnel(&agent);
    let mut old_acks = client
        .report_tunnel(ReceiverStream::new(queue))
        .await
        .unwrap()
        .into_inner();
    older.send(report("one", 7, true)).await.unwrap();
    assert_eq!(next(&mut old_acks).await.sequence, 7);
    cp.beat_with("the sidecar is known", |beat| {
        beat["agent"]["containers"][1]["ready"] == true
    })
    .await;

    let (newer, queue) = mpsc::channel(4);
    let mut new_acks = client
        .report_tunnel(ReceiverStream::new(queue))
        .await
        .unwrap()
        .into_inner();
    newer.send(report("two", 1, true)).await.unwrap();
    assert_eq!(next(&mut new_acks).await.sequence, 1);
    assert_eq!(old_acks.message().await.unwrap_err().code(), Code::Aborted);

    let silent = cp
        .beat_with("the sidecar is unknown", |beat| {
            beat["agent"]["containers"][1]["known"] == false
        })
        .await;
    let container = &silent["agent"]["containers"][1];
    assert!(
        container["unknown_since"].is_string()
            && container["reason"].as_str().unwrap().contains("unknown since")
    );
    let known = operator(&agent)
        .get_agent(GetAgentRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (known.containers[1].known, known.containers[1].instances_seen),
        (false, 2)
    );
    newer.send(report("two", 2, true)).await.unwrap();
    cp.beat_with("it is known again", |beat| {
        beat["agent"]["containers"][1]["known"] == true
    })
    .await;
    drop(newer);
    drop(new_acks);
    cp.beat_with("its end is told", |beat| {
        beat["agent"]["containers"][1]["known"] == false
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn each_token_opens_its_own_methods_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(1).await;
    let denied = tunnel(&agent).watch_proxy_spec(watch()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = proxy(&agent).watch_tunnel_spec(watch()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let mut as_tunnel = CoreClient::new(dial(&agent, agent.edge("tunnel")));
    let denied = as_tunnel.get_agent(GetAgentRequest {}).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    std::fs::write(dir.path().join("wrong"), "not-a-token").unwrap();
    let mut stranger = CoreClient::new(dial(&agent, dir.path().join("wrong")));
    assert_eq!(
        stranger.get_agent(GetAgentRequest {}).await.unwrap_err().code(),
        Code::Unauthenticated
    );

    let state = operator(&agent)
        .get_agent(GetAgentRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (state.phase(), state.cluster_uuid.as_str()),
        (Phase::Active, "uuid-1")
    );
    assert_eq!((state.nodes, state.pods), (-1, -1));
    let beat = operator(&agent)
        .heartbeat(HeartbeatRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(beat.accepted && beat.http_status == 200);
    let again = operator(&agent)
        .reregister(ReregisterRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.cluster_uuid, "uuid-1");
    assert_eq!(cp.registration(2).await["cluster_id"], "uuid-1");
    let mut process = ProcessClient::new(dial(&agent, agent.dir.join("private/operator-token")));
    assert_eq!(
        process
            .get_build(GetBuildRequest {})
            .await
            .unwrap()
            .into_inner()
            .name,
        "agent-core"
    );
    agent.stop().await;
}

#[tokio::test]
async fn it_leaves_after_its_siblings_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(1).await;
    let (reports, queue) = mpsc::channel(4);
    let mut client = proxy(&agent);
    let mut acks = client
        .report_proxy(ReceiverStream::new(queue))
        .await
        .unwrap()
        .into_inner();
    let report = |draining| ProxyReport {
        instance_id: "p".to_owned(),
        draining,
        ..ProxyReport::default()
    };
    reports.send(report(false)).await.unwrap();
    next(&mut acks).await;
    agent.supervisor.drain("test");
    // A sibling that drains too says so, and goes on reporting until it is done.
    reports.send(report(true)).await.unwrap();
    next(&mut acks).await;
    cp.beat_with("the drain is told", |beat| {
        beat["agent"]["draining"] == true && beat["status"] == "active"
    })
    .await;
    cp.beats(3).await;
    assert!(
        cp.script()
            .beats
            .iter()
            .all(|(_, beat)| beat["status"] == "active")
    );
    drop(reports);
    drop(acks);
    agent.supervisor.finish().await;
    assert_eq!(cp.script().beats.last().unwrap().1["status"], "disconnected");
}
