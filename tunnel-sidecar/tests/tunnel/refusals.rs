//! What is refused: by the server, by the owner's rules, by us, by a target.

use std::time::Duration;

use proto::v1::{ConditionStatus, ForwardState, SessionState};
use tokio::net::TcpListener;
use tunnel_sidecar::timing::Timing;

use crate::world::*;

#[tokio::test]
async fn a_wrong_password_is_said_tried_rarely_and_cured_by_the_next_spec() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
    let world = World::start_with(&env, |config| config.timing = Timing::default()).await;
    let port = free_port().await;
    let mut wrong = spec(&chisel.url(), &[("a", port, "k8s-proxy")]);
    wrong.credentials = "agent:canary-password".to_owned();
    world.core.send(wrong);
    let report = world
        .until("the refused credentials to be named", |report| {
            let (status, why) = condition(report, "Tunnel");
            status == ConditionStatus::False && why.contains("refused the credentials of user \"agent\"")
        })
        .await;
    assert!(
        !format!("{report:?}").contains("canary"),
        "a password in a report"
    );
    assert!(!world.get("/metrics").await.1.contains("canary"));
    let report = world
        .until("a wait", |report| session(report) == SessionState::Backoff)
        .await;
    let next = std::time::SystemTime::try_from(report.status.unwrap().next_retry.unwrap()).unwrap();
    let wait = next
        .duration_since(std::time::SystemTime::now())
        .unwrap_or_default();
    assert!(
        wait > Duration::from_secs(10) && wait <= Duration::from_secs(300),
        "tried again in {wait:?}"
    );

    // New credentials do not wait for that.
    world
        .core
        .change(|spec| spec.credentials = Chisel::CREDENTIALS.to_owned());
    world.until_listening(1).await;
    echo(&mut user(port).await, "welcome").await;
}

#[tokio::test]
async fn another_key_than_the_pinned_one_is_refused_and_named() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let mut wrong = spec(&chisel.url(), &[("a", port, "k8s-proxy")]);
    wrong.fingerprint = "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU=".to_owned();
    world.core.send(wrong);
    let shown = chisel.fingerprint();
    let report = world
        .until("the other key to be named", |report| {
            condition(report, "FingerprintChanged").0 == ConditionStatus::True
        })
        .await;
    assert!(condition(&report, "FingerprintChanged").1.contains(&shown));
    assert!(!report.ready);
    world.core.change(|spec| spec.fingerprint = shown);
    let report = world.until_listening(1).await;
    assert_eq!(
        condition(&report, "FingerprintChanged").0,
        ConditionStatus::NotApplicable
    );
}

#[tokio::test]
async fn a_key_that_changes_after_the_first_use_is_refused_until_somebody_pins_it() {
    let Some(mut chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let first = chisel.fingerprint();
    let known = std::fs::read_to_string(world.dir.path().join("private/known-servers.json")).unwrap();
    assert!(known.contains(&first));

    chisel.restart_with_new_key().await;
    let report = world
        .until("the new key to be refused", |report| {
            condition(report, "FingerprintChanged").0 == ConditionStatus::True
        })
        .await;
    let why = condition(&report, "Tunnel").1;
    assert!(
        why.contains(&first) && why.contains(&chisel.fingerprint()) && why.contains("tunnel.fingerprint"),
        "{why}"
    );
    assert_eq!(
        chisel.log().matches("SSH connected").count(),
        1,
        "no session with the new key"
    );
    let new = chisel.fingerprint();
    world.core.change(|spec| spec.fingerprint = new);
    world.until_listening(1).await;
    echo(&mut user(port).await, "trusted again").await;
}

#[tokio::test]
async fn a_taken_port_fails_alone_and_wins_when_it_is_free() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (bad, a, b) = (
        taken.local_addr().unwrap().port(),
        free_port().await,
        free_port().await,
    );
    world.core.send(spec(
        &chisel.url(),
        &[
            ("a", a, "k8s-proxy"),
            ("bad", bad, "k8s-proxy"),
            ("b", b, "k8s-proxy"),
        ],
    ));
    let report = world.until_listening(2).await;
    let mut held = user(a).await;
    echo(&mut held, "the others go on").await;
    let report = if row(&report, "bad").state() == ForwardState::Failed {
        report
    } else {
        world
            .until("the bad one to be named", |report| {
                row(report, "bad").state() == ForwardState::Failed
            })
            .await
    };
    assert!(
        row(&report, "bad").reason.contains("cannot listen"),
        "{}",
        row(&report, "bad").reason
    );
    assert!(!report.ready && condition(&report, "Tunnel").1.contains("bad"));

    drop(taken);
    world.until_listening(3).await;
    echo(&mut user(bad).await, "free at last").await;
    echo(&mut held, "undisturbed").await;
}

#[tokio::test]
async fn a_port_that_the_rules_deny_fails_alone() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (a, denied) = (free_port().await, free_port().await);
    chisel.set_user(Chisel::CREDENTIALS, &format!(":{a}$")).await;
    world.core.send(spec(
        &chisel.url(),
        &[("denied", denied, "k8s-proxy"), ("a", a, "k8s-proxy")],
    ));
    world.until_listening(1).await;
    let report = world
        .until("the denial", |report| {
            row(report, "denied").state() == ForwardState::Failed
        })
        .await;
    assert!(row(&report, "denied").reason.contains("denied"));
    chisel.set_user(Chisel::CREDENTIALS, ".*").await;
    world.until_listening(2).await;
}

#[tokio::test]
async fn a_server_without_reverse_forwards_is_named() {
    let Some(binary) = chisel_binary() else { return };
    let port = free_port().await;
    let mut child = tokio::process::Command::new(binary)
        .args(["server", "--host", "127.0.0.1", "--port", &port.to_string()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let world = World::start(&[]).await;
    world.core.send(spec(
        &format!("ws://127.0.0.1:{port}"),
        &[("a", free_port().await, "k8s-proxy")],
    ));
    world
        .until("the refusal", |report| {
            condition(report, "Tunnel").1.contains("not enabled on server")
        })
        .await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_target_that_refuses_is_a_refused_connection_for_the_user() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let nobody = free_port().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", format!("127.0.0.1:{nobody}"))]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    assert!(until_closed(&mut user(port).await).await.is_empty());
    let report = world.report().await;
    assert_eq!(
        (
            row(&report, "a").dial_failures_total,
            row(&report, "a").connections_total
        ),
        (1, 0)
    );
    eventually("the reason in the server's log", || async {
        chisel
            .log()
            .contains(&format!("cannot connect to 127.0.0.1:{nobody}"))
            .then_some(())
    })
    .await;
    assert_eq!(session(&report), SessionState::Connected);
}

#[tokio::test]
async fn control_ports_are_never_reached_whatever_the_spec_says() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let echo_target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", echo_target.address())]).await;
    let (own, core) = (world.grpc.port(), world.core.address().port());
    let (good, odd) = (free_port().await, free_port().await);
    let written: Vec<String> = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
        .iter()
        .flat_map(|host| [own, core, 7070, 7072, 8081].map(|port| format!("{host}:{port}")))
        .chain(["169.254.169.254:80".to_owned(), "[fd00:ec2::254]:80".to_owned()])
        .collect();
    // Only the resolver sees an address in this one, so it is found at the dial.
    let late = format!("127.1:{own}");
    let mut ports = Vec::new();
    for _ in &written {
        ports.push(free_port().await);
    }
    let names: Vec<String> = (0..written.len()).map(|index| format!("bad-{index}")).collect();
    let mut forwards = vec![("good", good, "k8s-proxy"), ("odd", odd, late.as_str())];
    for ((name, port), target) in names.iter().zip(&ports).zip(&written) {
        forwards.push((name, *port, target));
    }
    let mut wanted = spec(&chisel.url(), &forwards);
    wanted.allowed_targets = written.iter().cloned().chain([late.clone()]).collect();
    world.core.send(wanted);
    let report = world.until_listening(2).await;
    for name in &names {
        assert_eq!(
            row(&report, name).state(),
            ForwardState::Refused,
            "{name} {}",
            row(&report, name).target
        );
        assert!(
            row(&report, name).reason.contains("never dialled"),
            "{}",
            row(&report, name).reason
        );
    }
    assert!(until_closed(&mut user(odd).await).await.is_empty());
    let report = world.report().await;
    assert_eq!(
        (
            row(&report, "odd").dial_failures_total,
            row(&report, "odd").connections_total
        ),
        (1, 0)
    );
    assert!(
        world
            .get("/metrics")
            .await
            .1
            .contains("{forward=\"odd\",result=\"forbidden\"} 1")
    );
    echo(&mut user(good).await, "the rest works").await;
}

#[tokio::test]
async fn a_spec_that_cannot_be_carried_out_says_what_to_change() {
    let world = World::start(&[]).await;
    for (server, sentence) in [
        ("ws://tunnel.example.com", "tunnel.allow_insecure: true"),
        ("ftp://tunnel.example.com", "scheme \"ftp\""),
        (
            "https://user:canary@tunnel.example.com",
            "give them as credentials",
        ),
        ("", "the tunnel server is not set"),
    ] {
        world.core.send(spec(server, &[("a", 1, "k8s-proxy")]));
        let report = world
            .until(sentence, |report| {
                let (status, why) = condition(report, "Tunnel");
                status == ConditionStatus::False && why.contains(sentence)
            })
            .await;
        assert!(!format!("{report:?}").contains("canary"));
    }
    world
        .core
        .send(spec("ws://127.0.0.1:9", &[("zero", 0, "k8s-proxy")]));
    world
        .until("port 0", |report| {
            condition(report, "Tunnel").1.contains("remote port 0 is refused")
        })
        .await;
}

#[tokio::test]
async fn more_connections_than_the_limit_are_refused_and_counted() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
    let world = World::start_with(&env, |config| config.max_connections = 2).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let (mut first, mut second) = (user(port).await, user(port).await);
    echo(&mut first, "one").await;
    echo(&mut second, "two").await;
    assert!(until_closed(&mut user(port).await).await.is_empty());
    assert!(
        world
            .get("/metrics")
            .await
            .1
            .contains("{forward=\"a\",result=\"limit\"} 1")
    );
    drop(first);
    target.until_open(1).await;
    eventually("room for another", || echoes(port)).await;
    tokio::time::timeout(Duration::from_secs(30), echo(&mut second, "still there"))
        .await
        .unwrap();
}
