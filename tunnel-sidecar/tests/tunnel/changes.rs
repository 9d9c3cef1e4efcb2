//! What changes while it runs: forwards, credentials, agent-core.

use proto::v1::{ConditionStatus, SessionState};

use crate::world::*;

#[tokio::test]
async fn a_forward_is_added_and_removed_without_disturbing_the_others() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (a, b) = (free_port().await, free_port().await);
    world.core.send(spec(&chisel.url(), &[("a", a, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut held = user(a).await;
    echo(&mut held, "before").await;

    world
        .core
        .change(|spec| spec.forwards.push(forward("b", b, "k8s-proxy")));
    world.until_listening(2).await;
    let mut other = user(b).await;
    echo(&mut other, "the new one").await;
    echo(&mut held, "while b came").await;

    world
        .core
        .change(|spec| spec.forwards.retain(|forward| forward.name == "a"));
    assert!(
        until_closed(&mut other).await.is_empty(),
        "what a removed forward carried ends"
    );
    eventually("the port of b to be free", || async {
        tokio::net::TcpListener::bind(("127.0.0.1", b)).await.ok()
    })
    .await;
    echo(&mut held, "after b went").await;
}

#[tokio::test]
async fn a_removed_forward_of_a_shared_session_is_refused_at_once_and_unbound_when_nobody_is_disturbed() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (a, b) = (free_port().await, free_port().await);
    world.core.send(spec(
        &chisel.url(),
        &[("a", a, "k8s-proxy"), ("b", b, "k8s-proxy")],
    ));
    world.until_listening(2).await;
    let mut held = user(a).await;
    echo(&mut held, "held").await;
    world
        .core
        .change(|spec| spec.forwards.retain(|forward| forward.name == "a"));
    world
        .until("b to be gone", |report| {
            report.status.as_ref().unwrap().forwards.len() == 1
        })
        .await;
    assert!(until_closed(&mut user(b).await).await.is_empty());
    echo(&mut held, "undisturbed").await;
    assert_eq!(chisel.sessions(), 1);
    drop(held);
    eventually("the port of b to be free", || async {
        tokio::net::TcpListener::bind(("127.0.0.1", b)).await.ok()
    })
    .await;
    eventually("a to be back", || echoes(a)).await;
}

#[tokio::test]
async fn another_target_needs_no_new_session() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (old, new) = (Target::echo().await, Target::talker(b"new".to_vec()).await);
    let world = World::start(&[
        ("PIPEOPS_TARGET_K8S_PROXY", old.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", new.address()),
    ])
    .await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    world
        .core
        .change(|spec| spec.forwards[0].target = "agent-http".to_owned());
    eventually("the new target to answer", || async {
        (until_closed(&mut user(port).await).await == b"new").then_some(())
    })
    .await;
    assert_eq!(chisel.sessions(), 1);
}

#[tokio::test]
async fn credentials_change_while_it_runs() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    chisel.set_user("agent:rotated", ".*").await;
    eventually("the old session to go on", || echoes(port)).await;
    world
        .core
        .change(|spec| spec.credentials = "agent:rotated".to_owned());
    world
        .until("a session with the new password", |_| chisel.sessions() == 2)
        .await;
    world.until_listening(1).await;
    eventually("bytes", || echoes(port)).await;
}

#[tokio::test]
async fn equal_content_touches_no_connection() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut held = user(port).await;
    echo(&mut held, "before").await;
    world.core.change(|_| {});
    world
        .until("the revision to be applied", |report| {
            report.applied_revision == 2
        })
        .await;
    echo(&mut held, "after").await;
    assert_eq!(chisel.sessions(), 1);
}

#[tokio::test]
async fn off_is_a_decision_with_a_reason_and_on_again_works() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    world.core.change(|spec| {
        spec.enabled = false;
        spec.reason = "the control plane says IDLE".to_owned();
    });
    let report = world
        .until("idle", |report| session(report) == SessionState::Idle)
        .await;
    assert_eq!(
        condition(&report, "Tunnel"),
        (ConditionStatus::NotApplicable, "the control plane says IDLE")
    );
    assert!(report.ready, "off on purpose is ready");
    eventually("the port to be free", || async {
        tokio::net::TcpListener::bind(("127.0.0.1", port)).await.ok()
    })
    .await;
    world.core.change(|spec| spec.enabled = true);
    world.until_listening(1).await;
    echo(&mut user(port).await, "on again").await;
}

#[tokio::test]
async fn without_agent_core_it_lives_is_not_ready_and_says_why() {
    let mut world = World::start(&[]).await;
    world.core.kill();
    let report = world.report().await;
    let (status, why) = condition(&report, "Spec");
    assert!(
        status == ConditionStatus::False && why.starts_with("waiting for agent-core"),
        "{why}"
    );
    assert_eq!(world.get("/livez").await.0, 200);
    let (status, body) = world.get("/readyz").await;
    assert!(status == 503 && body.contains("waiting for agent-core"), "{body}");
}

#[tokio::test]
async fn without_agent_core_the_last_spec_is_kept_for_ever() {
    let Some(mut chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let mut world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.core.reported(|report| listening(report) == ["a"]).await;
    let mut held = user(port).await;
    echo(&mut held, "before").await;

    world.core.kill();
    let report = world
        .until("the loss to be noticed", |report| {
            condition(report, "Spec").1.contains("away")
        })
        .await;
    assert!(report.ready, "agent-core's absence is not ours");
    echo(&mut held, "core is away").await;
    // Even a new session needs no agent-core.
    chisel.restart().await;
    until_closed(&mut held).await;
    eventually("the forward to be back", || echoes(port)).await;

    let mut held = user(port).await;
    echo(&mut held, "before core is back").await;
    let (sessions, streams) = (chisel.sessions(), world.core.report_streams());
    world.core.restart().await;
    let report = world
        .core
        .reported(|report| report.applied_epoch == "after first")
        .await;
    assert_eq!(listening(&report), ["a"]);
    assert!(world.core.report_streams() > streams);
    echo(&mut held, "the same spec in another epoch touches nothing").await;
    assert_eq!(chisel.sessions(), sessions);
}

#[tokio::test]
async fn reports_come_at_the_interval_and_on_change() {
    let world = World::start(&[]).await;
    let first = world.core.reported(|_| true).await;
    assert_eq!(first.build.as_ref().unwrap().name, "tunnel-sidecar");
    let later = world
        .core
        .reported(|report| report.sequence > first.sequence + 1)
        .await;
    assert_eq!(later.instance_id, first.instance_id);
    world.core.send(proto::v1::TunnelSpec {
        reason: "off".to_owned(),
        ..Default::default()
    });
    let applied = world.core.reported(|report| report.applied_revision == 1).await;
    assert!(applied.ready);
}

#[tokio::test]
async fn the_token_of_the_edge_may_come_later() {
    let mut token = None;
    let world = World::start_with(&[], |config| {
        let file = config.common.edge_dir.join("token");
        token = Some((file.clone(), std::fs::read(&file).unwrap()));
        std::fs::remove_file(file).unwrap();
    })
    .await;
    world.core.send(proto::v1::TunnelSpec {
        reason: "off".to_owned(),
        ..Default::default()
    });
    world
        .until("the missing token to be named", |report| {
            condition(report, "Spec").1.contains("waiting for token")
        })
        .await;
    let (file, bytes) = token.unwrap();
    std::fs::write(file, bytes).unwrap();
    world
        .core
        .reported(|report| report.ready && report.applied_revision == 1)
        .await;
}
