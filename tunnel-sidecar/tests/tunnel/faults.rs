//! What networks and servers do.

use std::time::Duration;

use proto::v1::{ConditionStatus, SessionState};
use tokio::net::TcpListener;

use crate::world::*;

#[tokio::test]
async fn a_killed_server_is_found_again_with_all_forwards_on_one_session() {
    let Some(mut chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let ports = [free_port().await, free_port().await, free_port().await];
    let forwards = [
        ("a", ports[0], "k8s-proxy"),
        ("b", ports[1], "k8s-proxy"),
        ("c", ports[2], "k8s-proxy"),
    ];
    let mut wanted = spec(&chisel.url(), &forwards);
    wanted.fingerprint = chisel.fingerprint();
    world.core.send(wanted);
    world.until_listening(3).await;
    let mut held = user(ports[0]).await;
    echo(&mut held, "before").await;
    chisel.kill().await;
    let report = world
        .until("the loss", |report| session(report) != SessionState::Connected)
        .await;
    assert!(!report.ready);
    until_closed(&mut held).await;
    chisel.restart().await;
    world.until_listening(3).await;
    for port in ports {
        echo(&mut user(port).await, "after").await;
    }
    assert_eq!(chisel.sessions(), 2, "one before, one after");
    assert!(
        world
            .get("/metrics")
            .await
            .1
            .contains("pipeops_tunnel_session_ends_total{cause=\"closed\"}")
    );
}

#[tokio::test]
async fn a_black_hole_is_found_by_the_deadline_of_a_ping() {
    for fault in [Fault::BlackHole, Fault::Deaf] {
        let Some(chisel) = Chisel::start().await else {
            return;
        };
        let relay = Relay::start(chisel.address()).await;
        let target = Target::echo().await;
        let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
        let port = free_port().await;
        world.core.send(spec(&relay.url(), &[("a", port, "k8s-proxy")]));
        world.until_listening(1).await;
        relay.set(fault);
        let report = world
            .until("the dead link", |report| {
                session(report) != SessionState::Connected
            })
            .await;
        let reason = &report.status.as_ref().unwrap().reason;
        assert!(reason.contains("did not answer a ping"), "{reason}");
        assert!(!report.ready);
        relay.cut();
        relay.set(Fault::None);
        world.until_listening(1).await;
        eventually("bytes", || echoes(port)).await;
    }
}

/// The server holds the old listeners until it notices that their session is dead; the new session must not lose its
/// forwards because of it, and must have all of them again in the end.
#[tokio::test]
async fn ports_that_the_old_session_still_holds_are_taken_as_soon_as_they_are_free() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let relay = Relay::start(chisel.address()).await;
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let ports = [free_port().await, free_port().await];
    world.core.send(spec(
        &relay.url(),
        &[("a", ports[0], "k8s-proxy"), ("b", ports[1], "k8s-proxy")],
    ));
    world.until_listening(2).await;
    // Another way to the same server, past the relay whose connection the server believes to be alive.
    relay.set(Fault::BlackHole);
    let url = chisel.url();
    world.core.change(|spec| spec.server = url);
    let report = world
        .until("the ports to be refused", |report| {
            let forwards = &report.status.as_ref().unwrap().forwards;
            forwards
                .iter()
                .all(|forward| forward.reason.contains("cannot listen"))
        })
        .await;
    assert!(!report.ready);
    relay.cut();
    world.until_listening(2).await;
    for port in ports {
        eventually("bytes", || echoes(port)).await;
    }
    // The server frees the ports one after the other, so they may come back as two sessions.
    assert!(chisel.sessions() <= 3);
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_at_each_step() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let world = World::start_with(&[], |config| {
        config.timing.handshake_step = Some(Duration::from_millis(200));
    })
    .await;
    world
        .core
        .send(spec(&format!("ws://{silent}"), &[("a", 1, "k8s-proxy")]));
    let report = world
        .until("the silence to be named", |report| {
            condition(report, "Tunnel").1.contains("did not finish the")
        })
        .await;
    assert_eq!(condition(&report, "Tunnel").0, ConditionStatus::False);
    assert!(
        world
            .get("/metrics")
            .await
            .1
            .contains("{cause=\"handshake_timeout\"}")
    );
}

#[tokio::test]
async fn http_answers_other_than_101_are_read() {
    for (answer, sentence) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "not a chisel server",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
            "not available",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                tokio::io::AsyncReadExt::read(&mut tcp, &mut request).await.ok();
                tokio::io::AsyncWriteExt::write_all(&mut tcp, answer.as_bytes())
                    .await
                    .ok();
            }
        });
        let world = World::start(&[]).await;
        world
            .core
            .send(spec(&format!("ws://{address}"), &[("a", 1, "k8s-proxy")]));
        let report = world
            .until(sentence, |report| {
                condition(report, "Tunnel").1.contains(sentence)
            })
            .await;
        if answer.contains("Retry-After") {
            let next = std::time::SystemTime::try_from(report.status.unwrap().next_retry.unwrap()).unwrap();
            let wait = next
                .duration_since(std::time::SystemTime::now())
                .unwrap_or_default();
            assert!(
                wait > Duration::from_secs(1),
                "Retry-After is a lower bound: {wait:?}"
            );
        }
        server.abort();
    }
}

#[tokio::test]
async fn silence_closes_the_tunnel_when_the_spec_says_so_and_somebody_opens_it_again() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let mut wanted = spec(&chisel.url(), &[("a", port, "k8s-proxy")]);
    wanted.inactivity_timeout_ms = 1500;
    world.core.send(wanted);
    world.until_listening(1).await;
    let report = world
        .until("it to close", |report| session(report) == SessionState::Idle)
        .await;
    let (status, why) = condition(&report, "Tunnel");
    assert!(
        status == ConditionStatus::NotApplicable && why.contains("nothing moved"),
        "{why}"
    );
    world.core.change(|_| {});
    world.until_listening(1).await;
    echo(&mut user(port).await, "awake").await;
}

/// The answer to a ping queues behind bulk data; a link that carries bytes is not dead.
#[tokio::test]
async fn a_slow_link_under_load_is_not_taken_for_a_dead_one() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let relay = Relay::start(chisel.address()).await;
    let (target, _) = Target::counter().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let mut wanted = spec(&relay.url(), &[("a", port, "k8s-proxy")]);
    wanted.ping_timeout_ms = 1000;
    world.core.send(wanted);
    world.until_listening(1).await;
    relay.set(Fault::Slow);
    let load = tokio::spawn(async move {
        let push = (0..2).map(|_| async {
            let mut tcp = user(port).await;
            tokio::io::AsyncWriteExt::write_all(&mut tcp, &vec![7; 2 * 1024 * 1024])
                .await
                .unwrap();
            tcp
        });
        futures_util::future::join_all(push).await
    });
    let report = world
        .until("an answer later than the deadline", |report| {
            report.status.as_ref().unwrap().round_trip_us > 1_200_000
        })
        .await;
    assert_eq!(session(&report), SessionState::Connected);
    load.await.unwrap();
    assert_eq!(chisel.sessions(), 1, "the session lived through it");
}
