//! Bytes through forwards.

use proto::v1::{ConditionStatus, ForwardState, SessionState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::*;

/// More than the server's window of 2 MiB, so that credit is needed.
const LARGE: usize = 5 * 1024 * 1024 + 17;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn three_forwards_on_one_connection_carry_bytes_and_are_counted() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let relay = Relay::start(chisel.address()).await;
    let (first, second) = (Target::echo().await, Target::echo().await);
    let world = World::start(&[
        ("PIPEOPS_TARGET_KUBERNETES_API", first.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", second.address()),
    ])
    .await;
    let third = Target::echo().await;
    let ports = [free_port().await, free_port().await, free_port().await];
    let literal = third.address();
    let mut wanted = spec(
        &relay.url(),
        &[
            ("api", ports[0], "kubernetes-api"),
            ("http", ports[1], "agent-http"),
            ("own", ports[2], &literal),
        ],
    );
    wanted.allowed_targets = vec![literal.clone()];
    wanted.fingerprint = chisel.fingerprint();
    assert_eq!(world.get("/readyz").await.0, 503, "no spec yet");
    world.core.send(wanted);
    world.until_listening(3).await;
    for port in ports {
        let mut tcp = user(port).await;
        echo(&mut tcp, "through the tunnel and back").await;
    }
    assert_eq!(
        (chisel.sessions(), relay.accepted()),
        (1, 1),
        "one connection for all"
    );

    let report = world.until("ping and counts", |report| {
        let status = report.status.as_ref().unwrap();
        status.round_trip_us > 0
            && status
                .forwards
                .iter()
                .all(|forward| forward.connections_open == 0)
    });
    let report = report.await;
    let status = report.status.as_ref().unwrap();
    assert_eq!(
        (status.state(), status.fingerprint.clone()),
        (SessionState::Connected, chisel.fingerprint())
    );
    assert!(
        status.algorithms.contains("mlkem768x25519"),
        "{}",
        status.algorithms
    );
    let own = row(&report, "own");
    assert_eq!((own.bytes_in, own.bytes_out, own.connections_total), (27, 27, 1));
    assert_eq!(
        (own.dials.as_str(), own.state()),
        (literal.as_str(), ForwardState::Listening)
    );
    assert!(report.ready);
    let (status, why) = condition(&report, "Tunnel");
    assert!(
        status == ConditionStatus::True && why.contains("3 of 3 forwards") && why.contains("proven by ping"),
        "{why}"
    );
    assert!(world.get("/readyz").await.1.contains("proven by ping"));
    let metrics = world.get("/metrics").await.1;
    for line in [
        "pipeops_tunnel_bytes_total{direction=\"in\",forward=\"own\"} 27",
        "pipeops_tunnel_connections_total{forward=\"api\",result=\"accepted\"} 1",
        "pipeops_tunnel_forwards_listening 3",
        "pipeops_tunnel_sessions_open 1",
        "pipeops_tunnel_target_dial_seconds_count{forward=\"http\"} 1",
        "pipeops_tunnel_handshake_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn over_tls_with_a_ca_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let args = [
        "--tls-cert".to_owned(),
        cert.display().to_string(),
        "--tls-key".to_owned(),
        key.display().to_string(),
    ];
    let Some(chisel) = Chisel::start_with(&args).await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let url = format!("wss://localhost:{}", chisel.address().port());
    world.core.send(spec(&url, &[("proxy", port, "k8s-proxy")]));
    world
        .until("the unknown CA to be named", |report| {
            let why = condition(report, "Tunnel").1;
            why.contains("TLS handshake with localhost failed") && why.contains("CA file")
        })
        .await;
    world.core.change(|spec| spec.ca_pem = made.cert.pem().into());
    world.until_listening(1).await;
    echo(&mut user(port).await, "inside TLS").await;
}

#[tokio::test]
async fn large_transfers_arrive_whole_both_ways() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let sent = noise(LARGE);
    let (talker, (counter, mut counted)) = (Target::talker(sent.clone()).await, Target::counter().await);
    let world = World::start(&[
        ("PIPEOPS_TARGET_K8S_PROXY", talker.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", counter.address()),
    ])
    .await;
    let (out, into) = (free_port().await, free_port().await);
    world.core.send(spec(
        &chisel.url(),
        &[("out", out, "k8s-proxy"), ("in", into, "agent-http")],
    ));
    world.until_listening(2).await;

    let got = until_closed(&mut user(out).await).await;
    assert!(
        got == sent,
        "{} of {} bytes, or other ones",
        got.len(),
        sent.len()
    );

    let mut tcp = user(into).await;
    tcp.write_all(&sent).await.unwrap();
    drop(tcp);
    let whole = counted.wait_for(|count| *count == Some(LARGE));
    tokio::time::timeout(PATIENCE, whole)
        .await
        .expect("every byte at the target")
        .unwrap();
    assert_eq!(row(&world.report().await, "in").bytes_in, LARGE as u64);
}

/// The Go server ends both ways when one ends, so an answer to a half-closed question cannot arrive; everything that was sent before does.
#[tokio::test]
async fn a_half_close_loses_the_answer_and_nothing_that_was_sent() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (counter, mut counted) = Target::counter().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", counter.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut tcp = user(port).await;
    tcp.write_all(&noise(LARGE)).await.unwrap();
    tcp.shutdown().await.unwrap();
    let whole = counted.wait_for(|count| *count == Some(LARGE));
    if tokio::time::timeout(PATIENCE, whole).await.is_err() {
        let report = world.report().await;
        panic!(
            "not every byte, and then the end, at the target: {:?}, {:?}",
            *counted.borrow(),
            row(&report, "a")
        );
    }
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
    end.expect("the user's connection ends").ok();
    assert!(answer.is_empty());
    assert_eq!(chisel.sessions(), 1);
}

#[tokio::test]
async fn a_stalled_target_costs_its_own_channel_only() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (stalled, busy) = (Target::stalled().await, Target::echo().await);
    let world = World::start(&[
        ("PIPEOPS_TARGET_K8S_PROXY", stalled.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", busy.address()),
    ])
    .await;
    let (stuck, free) = (free_port().await, free_port().await);
    world.core.send(spec(
        &chisel.url(),
        &[("stuck", stuck, "k8s-proxy"), ("free", free, "agent-http")],
    ));
    world.until_listening(2).await;

    // Pushed until nothing more goes: every buffer and window on the way to the stalled target is full.
    let mut pushers = Vec::new();
    for _ in 0..3 {
        let mut tcp = user(stuck).await;
        let chunk = noise(256 * 1024);
        loop {
            let pushed =
                tokio::time::timeout(std::time::Duration::from_millis(500), tcp.write_all(&chunk)).await;
            match pushed {
                Ok(written) => written.unwrap(),
                Err(_full) => break,
            }
        }
        pushers.push(tcp);
    }
    let mut tcp = user(free).await;
    for _ in 0..50 {
        echo(&mut tcp, "beside a full pipe").await;
    }
    let report = world.report().await;
    assert_eq!(
        session(&report),
        SessionState::Connected,
        "pings are answered all the while"
    );
    assert_eq!(row(&report, "stuck").connections_open, 3);
    assert_eq!(chisel.sessions(), 1);
}

#[tokio::test]
async fn two_forwards_to_one_target_are_told_apart() {
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
    echo(&mut user(b).await, "only b").await;
    let report = world.report().await;
    assert_eq!(
        (
            row(&report, "a").connections_total,
            row(&report, "b").connections_total
        ),
        (0, 1)
    );
}

#[tokio::test]
async fn a_user_that_leaves_and_a_target_that_leaves_end_both_sides() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (target, talker) = (Target::echo().await, Target::talker(b"bye".to_vec()).await);
    let world = World::start(&[
        ("PIPEOPS_TARGET_K8S_PROXY", target.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", talker.address()),
    ])
    .await;
    let (port, leaves) = (free_port().await, free_port().await);
    world.core.send(spec(
        &chisel.url(),
        &[("a", port, "k8s-proxy"), ("b", leaves, "agent-http")],
    ));
    world.until_listening(2).await;
    let mut tcp = user(port).await;
    echo(&mut tcp, "hello").await;
    target.until_open(1).await;
    drop(tcp);
    target.until_open(0).await;
    assert_eq!(until_closed(&mut user(leaves).await).await, b"bye");
    world
        .until("no connection left", |report| {
            report
                .status
                .as_ref()
                .unwrap()
                .forwards
                .iter()
                .all(|forward| forward.connections_open == 0)
        })
        .await;
    let mut rest = Vec::new();
    let mut tcp = user(port).await;
    echo(&mut tcp, "the session lives on").await;
    tcp.shutdown().await.unwrap();
    tcp.read_to_end(&mut rest).await.ok();
    assert_eq!(chisel.sessions(), 1);
}

#[tokio::test]
async fn a_thousand_connections_come_and_go_and_leave_nothing() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut tcp = user(port).await;
        echo(&mut tcp, "i").await;
        idle.push(tcp);
    }
    for _ in 0..18 {
        let batch = (0..50).map(|_| async {
            let mut tcp = user(port).await;
            echo(&mut tcp, "hello and goodbye").await;
        });
        futures_util::future::join_all(batch).await;
    }
    let open = world
        .until("the busy ones to be gone", |report| {
            row(report, "a").connections_open == 100
        })
        .await;
    assert_eq!(row(&open, "a").connections_total, 1000);
    for tcp in &mut idle {
        echo(tcp, "still here").await;
    }
    drop(idle);
    let report = world
        .until("all to be gone", |report| row(report, "a").connections_open == 0)
        .await;
    assert_eq!(row(&report, "a").bytes_in, 900 * 17 + 100 * 11);
    assert_eq!(row(&report, "a").bytes_out, row(&report, "a").bytes_in);
    target.until_open(0).await;
    assert_eq!(chisel.sessions(), 1);
}
