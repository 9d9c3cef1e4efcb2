//! What a spec may ask for beside forwards: limits, sessions side by side, another way of trusting the same server.

use std::time::Duration;

use proto::v1::SessionState;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::world::*;

#[tokio::test]
async fn the_bandwidth_of_a_forward_is_kept_each_way_and_leaves_the_others_alone() {
    const RATE: u64 = 1024 * 1024;
    const BYTES: usize = 2 * 1024 * 1024;
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (slow, fast) = (free_port().await, free_port().await);
    let mut wanted = spec(
        &chisel.url(),
        &[("slow", slow, "k8s-proxy"), ("fast", fast, "k8s-proxy")],
    );
    wanted.forwards[0].bytes_per_second_in = RATE;
    world.core.send(wanted);
    world.until_listening(2).await;
    let round = async |port: u16| {
        let begin = Instant::now();
        let mut tcp = user(port).await;
        let (mut read, mut write) = tcp.split();
        let (sent, mut back) = (vec![3; BYTES], vec![0; BYTES]);
        let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        written.unwrap();
        got.unwrap();
        begin.elapsed()
    };
    // Two connections pay into one bucket: 4 MiB at 1 MiB a second, less the burst.
    let (one, two, free) = tokio::join!(round(slow), round(slow), round(fast));
    let took = one.max(two);
    println!("4 MiB at 1 MiB/s in {took:?}, 2 MiB without a limit in {free:?}");
    assert!(took > Duration::from_millis(3500), "{took:?}");
    assert!(free < took);
    world.core.change(|spec| {
        spec.forwards[0].bytes_per_second_in = 0;
        spec.forwards[0].bytes_per_second_out = RATE;
    });
    world
        .until("the other limit", |report| report.applied_revision == 2)
        .await;
    let took = round(slow).await;
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert_eq!(chisel.sessions(), 1, "limits change without a new session");
}

#[tokio::test]
async fn a_forward_has_its_own_limit_of_connections() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (few, many) = (free_port().await, free_port().await);
    let mut wanted = spec(
        &chisel.url(),
        &[("few", few, "k8s-proxy"), ("many", many, "k8s-proxy")],
    );
    wanted.forwards[0].max_connections = 1;
    world.core.send(wanted);
    world.until_listening(2).await;
    let mut held = user(few).await;
    echo(&mut held, "the only one").await;
    assert!(until_closed(&mut user(few).await).await.is_empty());
    echo(&mut user(many).await, "others have room").await;
    let line = "{forward=\"few\",result=\"limit\"} 1";
    assert!(world.get("/metrics").await.1.contains(line));
    eventually("the reason in the server's log", || async {
        chisel
            .log()
            .contains("1 connections of this forward are open")
            .then_some(())
    })
    .await;
    drop(held);
    eventually("room again", || echoes(few)).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_closed_when_the_spec_says_so() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (short, long) = (free_port().await, free_port().await);
    let forwards = [("short", short, "k8s-proxy"), ("long", long, "k8s-proxy")];
    let mut wanted = spec(&chisel.url(), &forwards);
    wanted.forwards[0].idle_timeout_ms = 1000;
    world.core.send(wanted);
    world.until_listening(2).await;
    let (mut idle, mut other) = (user(short).await, user(long).await);
    echo(&mut idle, "a word").await;
    echo(&mut other, "a word").await;
    let begin = Instant::now();
    until_closed(&mut idle).await;
    assert!(
        begin.elapsed() > Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    echo(&mut other, "another word").await;
    let report = world.report().await;
    assert_eq!(row(&report, "short").idle_closed_total, 1);
    assert_eq!(row(&report, "long").idle_closed_total, 0);
}

#[tokio::test]
async fn forwards_are_spread_over_sessions_side_by_side_and_each_session_comes_back_by_itself() {
    let Some(mut chisel) = Chisel::start().await else {
        return;
    };
    let relay = Relay::start(chisel.address()).await;
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let mut ports = Vec::new();
    for _ in 0..5 {
        ports.push(free_port().await);
    }
    let names = ["a", "b", "c", "d", "e"];
    let forwards: Vec<_> = names
        .iter()
        .zip(&ports)
        .map(|(name, port)| (*name, *port, "k8s-proxy"))
        .collect();
    let mut wanted = spec(&relay.url(), &forwards);
    wanted.sessions = 3;
    world.core.send(wanted);
    let report = world.until_listening(5).await;
    let sessions = &report.status.as_ref().unwrap().sessions;
    assert_eq!((sessions.len(), relay.accepted()), (3, 3), "{sessions:#?}");
    for port in &ports {
        echo(&mut user(*port).await, "through its own session").await;
    }
    let report = world
        .until("a ping on each session", |report| {
            let sessions = &report.status.as_ref().unwrap().sessions;
            sessions
                .iter()
                .all(|session| session.round_trip_us > 0 && session.handshake_us > 0)
        })
        .await;
    let carriers: std::collections::BTreeSet<u64> =
        names.iter().map(|name| row(&report, name).session).collect();
    assert_eq!(carriers.len(), 3);
    let metrics = world.get("/metrics").await.1;
    assert_eq!(
        metrics
            .matches("pipeops_tunnel_session_handshake_seconds_count")
            .count(),
        3,
        "{metrics}"
    );
    chisel.restart().await;
    let report = world
        .until("three sessions again", |report| {
            let sessions = &report.status.as_ref().unwrap().sessions;
            listening(report).len() == 5
                && report.status.as_ref().unwrap().connects_total >= 6
                && sessions
                    .iter()
                    .all(|session| session.state() == SessionState::Connected)
        })
        .await;
    assert_eq!(report.status.unwrap().sessions.len(), 3);
    world.core.change(|spec| spec.sessions = 1);
    world
        .until("one session", |report| {
            listening(report).len() == 5 && report.status.as_ref().unwrap().sessions.len() == 1
        })
        .await;
    for port in &ports {
        eventually("bytes", || echoes(*port)).await;
    }
}

/// A forward remote has no listener at the server, so its channels ride on all sessions there are, and a session that goes takes its own with it.
#[tokio::test]
async fn channels_to_the_server_are_spread_over_the_sessions() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (a, b, ours) = (free_port().await, free_port().await, free_port().await);
    let mut wanted = spec(&chisel.url(), &[("a", a, "k8s-proxy"), ("b", b, "k8s-proxy")]);
    wanted.remotes = vec![format!("{ours}:127.0.0.1:{}", target.port())];
    wanted.sessions = 3;
    world.core.send(wanted);
    let report = world.until_listening(3).await;
    assert_eq!(report.status.unwrap().sessions.len(), 3);
    let mut users = Vec::new();
    for _ in 0..9 {
        let mut one = user(ours).await;
        echo(&mut one, "over one of three").await;
        users.push(one);
    }
    let carried = async || {
        let request = proto::v1::ListConnectionsRequest {};
        let answer = world.client.clone().list_connections(request).await.unwrap();
        let mut by_session = std::collections::BTreeMap::<u64, usize>::new();
        for open in answer.into_inner().connections {
            *by_session.entry(open.session).or_default() += 1;
        }
        by_session
    };
    let spread = carried().await;
    assert_eq!(
        spread.values().copied().collect::<Vec<_>>(),
        [3, 3, 3],
        "{spread:?}"
    );
    // A forward that goes does not take along what rides on its session.
    world
        .core
        .change(|spec| spec.forwards.retain(|forward| forward.name != "b"));
    world.until_listening(2).await;
    for one in &mut users {
        echo(one, "still").await;
    }
    assert_eq!(carried().await, spread);
    // When they have ended, its session does, too.
    users.clear();
    world
        .until("the session of b to end", |report| {
            report.status.as_ref().unwrap().sessions.len() == 2
        })
        .await;
    echo(&mut user(ours).await, "over one of two").await;
}

#[tokio::test]
async fn pinning_the_key_that_is_shown_disturbs_no_connection_and_another_pin_ends_them() {
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
    let shown = chisel.fingerprint();
    world.core.change(|spec| spec.fingerprint = shown);
    world
        .until("the pin", |report| report.applied_revision == 2)
        .await;
    echo(&mut held, "after").await;
    assert_eq!(chisel.sessions(), 1);
    world
        .core
        .change(|spec| spec.fingerprint = "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU=".to_owned());
    until_closed(&mut held).await;
    let report = world
        .until("the refusal", |report| {
            condition(report, "FingerprintChanged").0 == proto::v1::ConditionStatus::True
        })
        .await;
    assert!(!report.ready);
}

#[tokio::test]
async fn server_and_target_may_be_at_ipv6_addresses() {
    let Some(chisel) = Chisel::start_at(std::net::Ipv6Addr::LOCALHOST.into(), Vec::new(), &[]).await else {
        return;
    };
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let world = World::start(&[]).await;
    let port = free_port().await;
    let mut wanted = spec(&chisel.url(), &[("six", port, &target)]);
    wanted.allowed_targets = vec![target.clone()];
    wanted.forwards[0].remote_host = "::1".to_owned();
    world.core.send(wanted);
    world.until_listening(1).await;
    let mut tcp = tokio::net::TcpStream::connect(("::1", port)).await.unwrap();
    let (mut here, _) = tokio::time::timeout(PATIENCE, listener.accept())
        .await
        .expect("a dial")
        .unwrap();
    here.write_all(b"six").await.unwrap();
    drop(here);
    assert_eq!(until_closed(&mut tcp).await, b"six");
}
