//! What the server does, and who stands before it.

use std::{path::PathBuf, process::Stdio, time::Duration};

use proto::v1::{ConditionStatus, ForwardState};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, sleep},
};
use tunnel_sidecar::timing::Timing;

use super::{Row, next_try, not_connected, one_forward, one_forward_with, said};
use crate::world::*;

const SECOND: Duration = Duration::from_secs(1);

pub(crate) async fn killed_with_the_same_key() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
    // The delays between tries as they are outside of tests.
    let world = World::start_with(&env, |config| config.timing = Timing::default()).await;
    let port = free_port().await;
    let mut wanted = spec(&chisel.url(), &[("a", port, "k8s-proxy")]);
    wanted.fingerprint = chisel.fingerprint();
    world.core.send(wanted);
    world.until_listening(1).await;
    let flow = Flow::start(([127, 0, 0, 1], port).into()).await;
    // Only a real session starts the series of delays anew.
    sleep(Duration::from_millis(5500)).await;
    chisel.kill().await;
    let begin = Instant::now();
    let (found, why) = said(&world, begin, "the loss", not_connected).await;
    chisel.restart().await;
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new(format!("connections end at once; {why}"))
            .found(found, SECOND)
            .back(good - healed, 2 * SECOND)
            .with(&flow),
    )
}

pub(crate) async fn killed_with_a_new_key() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let (world, address) = one_forward(&chisel.url(), &target).await;
    let flow = Flow::start(address).await;
    chisel.restart_with_new_key().await;
    let begin = Instant::now();
    let (found, why) = said(&world, begin, "the new key to be refused", |report| {
        condition(report, "FingerprintChanged").0 == ConditionStatus::True
    })
    .await;
    assert!(
        !world.report().await.ready && why.contains("no credentials were sent"),
        "{why}"
    );
    assert_eq!(chisel.sessions(), 1, "no session with the new key");
    let new = chisel.fingerprint();
    world.core.change(|spec| spec.fingerprint = new);
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new("refused, and said so, until somebody pins the new key; no password left")
            .found(found, 2 * SECOND)
            .back(good - healed, 2 * SECOND)
            .with(&flow),
    )
}

pub(crate) async fn another_password() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let (world, address) = one_forward(&chisel.url(), &target).await;
    let flow = Flow::start(address).await;
    chisel.set_user("agent:rotated", ".*").await;
    let changed = Instant::now();
    flow.good_after(changed).await;
    chisel.restart().await;
    let begin = Instant::now();
    let (found, why) = said(&world, begin, "the refusal", |report| {
        condition(report, "Tunnel").1.contains("refused the credentials") && next_try(report).is_some()
    })
    .await;
    assert!(!why.contains("correct"), "a password in a condition");
    world
        .core
        .change(|spec| spec.credentials = "agent:rotated".to_owned());
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new("the open session goes on; the next is refused, tried slowly; new credentials need no wait")
            .found(found, 2 * SECOND)
            .back(good - healed, 2 * SECOND)
            .with(&flow),
    )
}

/// Two forwards; something happens to the second only.
async fn two_forwards(chisel: &Chisel, target: &Target) -> (World, [u16; 2]) {
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let ports = [free_port().await, free_port().await];
    world.core.send(spec(
        &chisel.url(),
        &[("good", ports[0], "k8s-proxy"), ("bad", ports[1], "k8s-proxy")],
    ));
    world.until_listening(2).await;
    (world, ports)
}

async fn bad_one_fails(world: &World, begin: Instant) -> (Duration, String) {
    let report = world
        .until("the bad one to be named", |report| {
            row(report, "bad").state() == ForwardState::Failed
                && row(report, "good").state() == ForwardState::Listening
        })
        .await;
    (begin.elapsed(), row(&report, "bad").reason.clone())
}

pub(crate) async fn other_rules() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let (world, ports) = two_forwards(&chisel, &target).await;
    let flow = Flow::start(([127, 0, 0, 1], ports[0]).into()).await;
    chisel
        .set_user(Chisel::CREDENTIALS, &format!(":{}$", ports[0]))
        .await;
    chisel.restart().await;
    let begin = Instant::now();
    let (found, why) = bad_one_fails(&world, begin).await;
    assert!(why.contains("denied"), "{why}");
    chisel.set_user(Chisel::CREDENTIALS, ".*").await;
    let healed = Instant::now();
    world.until_listening(2).await;
    Some(
        Row::new(format!("only that forward waits, tried slowly; {why}"))
            .found(found, 2 * SECOND)
            .back(healed.elapsed(), 2 * SECOND)
            .with(&flow),
    )
}

pub(crate) async fn a_port_is_taken() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let (world, ports) = two_forwards(&chisel, &target).await;
    let flow = Flow::start(([127, 0, 0, 1], ports[0]).into()).await;
    chisel.kill().await;
    let taken = eventually("the port", || async {
        TcpListener::bind(("127.0.0.1", ports[1])).await.ok()
    })
    .await;
    chisel.restart().await;
    let begin = Instant::now();
    let (found, why) = bad_one_fails(&world, begin).await;
    assert!(why.contains("cannot listen"), "{why}");
    let ended = flow.seen().ended;
    drop(taken);
    let healed = Instant::now();
    world.until_listening(2).await;
    let back = healed.elapsed();
    flow.good_after(Instant::now()).await;
    assert_eq!(flow.seen().ended, ended, "the other forward is not disturbed");
    Some(
        Row::new(format!("only that forward waits; {why}"))
            .found(found, 2 * SECOND)
            .back(back, 2 * SECOND)
            .with(&flow),
    )
}

/// The process dies and the server does not learn of it, because its machine died or the network between.
pub(crate) async fn the_old_listener_is_still_bound() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let relay = Relay::start(chisel.address()).await;
    let target = Target::echo().await;
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
    let mut old = World::spawn(&[], &env).await;
    let port = free_port().await;
    old.core.send(spec(&relay.url(), &[("a", port, "k8s-proxy")]));
    old.until_listening(1).await;
    relay.set(Fault::BlackHole);
    old.child.as_mut().unwrap().kill().await.unwrap();
    let new = World::start_with(&env, |config| config.timing = Timing::default()).await;
    let begin = Instant::now();
    new.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    let report = new
        .until("the port to be refused", |report| {
            let forwards = &report.status.as_ref().unwrap().forwards;
            forwards.iter().any(|row| row.reason.contains("cannot listen"))
        })
        .await;
    let (found, why) = (begin.elapsed(), row(&report, "a").reason.clone());
    // Long enough for the delays between tries to have grown to their most.
    sleep(4 * SECOND).await;
    relay.cut();
    let healed = Instant::now();
    new.until_listening(1).await;
    let back = healed.elapsed();
    let flow = Flow::start(([127, 0, 0, 1], port).into()).await;
    Some(
        Row::new(format!("refused until the server lets go; {why}"))
            .found(found, 2 * SECOND)
            .back(back, 2 * SECOND)
            .with(&flow),
    )
}

pub(crate) async fn agent_core_is_away() -> Option<Row> {
    let mut chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let (mut world, address) = one_forward(&chisel.url(), &target).await;
    let flow = Flow::start(address).await;
    world.core.kill();
    let begin = Instant::now();
    let report = world
        .until("the loss", |report| condition(report, "Spec").1.contains("away"))
        .await;
    let found = begin.elapsed();
    assert!(report.ready);
    sleep(6 * SECOND).await;
    assert_eq!(flow.seen().ended, 0, "nothing happens to users");
    // A new session needs no agent-core either.
    chisel.restart().await;
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    let ended = flow.seen().ended;
    world.core.restart().await;
    world
        .core
        .reported(|report| report.applied_epoch == "after first")
        .await;
    flow.good_after(Instant::now()).await;
    assert_eq!(flow.seen().ended, ended, "its return touches no connection");
    Some(
        Row::new("nothing for 6 s (1/100 of 10 min), nor at its return; between, the server was killed")
            .found(found, 2 * SECOND)
            .back(good - healed, 2 * SECOND)
            .with(&flow),
    )
}

/// Names as one process sees them: an `/etc/hosts` of its own.
pub(crate) struct Hosts {
    dir: TempDir,
}

impl Hosts {
    /// `None` only when somebody said that root may be missing.
    pub(crate) fn new() -> Option<Self> {
        let net = Netns::make()?;
        drop(net);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), "").unwrap();
        Some(Self { dir })
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    /// From here on `name` is `address`. Written in place, because the file is mounted.
    pub(crate) fn say(&self, name: &str, address: &str) {
        std::fs::write(self.file(), format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
    }

    pub(crate) fn prefix(&self) -> Vec<String> {
        let mount = format!(
            "mount --bind {} /etc/hosts && exec \"$0\" \"$@\"",
            self.file().display()
        );
        ["unshare", "--mount", "sh", "-c", &mount]
            .map(str::to_owned)
            .into()
    }
}

pub(crate) async fn it_moves() -> Option<Row> {
    let mut chisel = Chisel::start_at([127, 0, 0, 2].into(), Vec::new(), &[]).await?;
    let hosts = Hosts::new()?;
    hosts.say("tunnel.test", "127.0.0.2");
    let target = Target::echo().await;
    let world = World::spawn(&hosts.prefix(), &[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let server = format!("ws://tunnel.test:{}", chisel.address().port());
    let mut wanted = spec(&server, &[("a", port, "k8s-proxy")]);
    wanted.fingerprint = chisel.fingerprint();
    world.core.send(wanted);
    world.until_listening(1).await;
    let flow = Flow::start(([127, 0, 0, 1], port).into()).await;
    chisel.kill().await;
    let begin = Instant::now();
    let (found, _) = said(&world, begin, "the loss", not_connected).await;
    chisel.move_to([127, 0, 0, 3].into()).await;
    hosts.say("tunnel.test", "127.0.0.3");
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new("resolved anew at each try: back at the new address, with the pinned key")
            .found(found, SECOND)
            .back(good - healed, 2 * SECOND)
            .with(&flow),
    )
}

pub(crate) async fn it_never_answers() -> Option<Row> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let world = World::start_with(&[], |config| config.timing.handshake_step = Some(SECOND / 2)).await;
    let begin = Instant::now();
    world
        .core
        .send(spec(&format!("ws://{silent}"), &[("a", 1, "k8s-proxy")]));
    let (found, why) = said(&world, begin, "the silence to be named", |report| {
        condition(report, "Tunnel").1.contains("did not finish the")
    })
    .await;
    Some(Row::new(format!("patience 0.5 s here, 20 s by default; {why}")).found(found, SECOND))
}

pub(crate) async fn not_found() -> Option<Row> {
    answers(
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "not a chisel server",
        true,
    )
    .await
}

pub(crate) async fn bad_gateway() -> Option<Row> {
    answers(
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "not available",
        false,
    )
    .await
}

pub(crate) async fn redirect() -> Option<Row> {
    let answer = "HTTP/1.1 301 Moved\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n";
    answers(answer, "HTTP 301: not a chisel server at this URL", true).await
}

async fn answers(answer: &'static str, sentence: &str, slow: bool) -> Option<Row> {
    let chisel = Chisel::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            if tcp.read(&mut request).await.is_ok_and(|read| read > 0) {
                tcp.write_all(answer.as_bytes()).await.ok();
                // Closed with unread bytes in it, a socket is reset, and the answer may go with it.
                tcp.shutdown().await.ok();
                while tcp.read(&mut request).await.is_ok_and(|read| read > 0) {}
            }
        }
    });
    let target = Target::echo().await;
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
    let world = World::start_with(&env, |config| config.timing = Timing::default()).await;
    let port = free_port().await;
    let begin = Instant::now();
    world
        .core
        .send(spec(&format!("ws://{address}"), &[("a", port, "k8s-proxy")]));
    let report = world
        .until(sentence, |report| {
            condition(report, "Tunnel").1.contains(sentence) && next_try(report).is_some()
        })
        .await;
    let (found, why) = (begin.elapsed(), condition(&report, "Tunnel").1.to_owned());
    let wait = next_try(&report).unwrap_or_default();
    assert_eq!(wait > 10 * SECOND, slow, "the next try is in {wait:?}");
    server.abort();
    let url = chisel.url();
    world.core.change(|spec| spec.server = url);
    let healed = Instant::now();
    world.until_listening(1).await;
    Some(
        Row::new(format!("next try in {} s; {why}", wait.as_secs()))
            .found(found, SECOND)
            .back(healed.elapsed(), 2 * SECOND),
    )
}

/// A balancer that ends what was silent for a second: with pings at 0.2 s it never sees silence; with pings rarer
/// than that, each end is found at once.
pub(crate) async fn behind_a_balancer() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let file = dir.path().join("haproxy.cfg");
    let config = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 1s\n timeout server 1s\n timeout tunnel 1s\n\
         listen tunnel\n bind 127.0.0.1:{port}\n server chisel {}\n",
        chisel.address()
    );
    std::fs::write(&file, config).unwrap();
    let mut balancer = match tokio::process::Command::new("haproxy")
        .args(["-db", "-f"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            let allowed = std::env::var("ALLOW_MISSING_PEERS").is_ok_and(|value| value == "1");
            assert!(
                allowed,
                "no haproxy ({error}): run tests/peers/debian, or set ALLOW_MISSING_PEERS=1"
            );
            return None;
        }
    };
    let target = Target::echo().await;
    let (world, address) = one_forward_with(&format!("ws://127.0.0.1:{port}"), &target, |spec| {
        spec.ping_interval_ms = 200;
    })
    .await;
    sleep(4 * SECOND).await;
    assert_eq!(chisel.sessions(), 1, "pings keep it open");
    world
        .core
        .change(|spec| (spec.ping_interval_ms, spec.ping_timeout_ms) = (60_000, 60_000));
    let begin = Instant::now();
    eventually("the balancer to drop it and a new session", || async {
        (chisel.sessions() > 1).then_some(())
    })
    .await;
    let found = begin.elapsed();
    world
        .core
        .change(|spec| (spec.ping_interval_ms, spec.ping_timeout_ms) = (200, 2000));
    let flow = Flow::start(address).await;
    let row = Row::new(
        "pings (5 s by default) keep it open for 4 idle timeouts; without them each drop is found at once",
    )
    .found(found, 3 * SECOND)
    .with(&flow);
    balancer.kill().await.unwrap();
    Some(row)
}
