//! What lies between.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};

use super::{Row, not_connected, one_forward, one_forward_with, said};
use crate::world::*;

/// A tenth of the defaults, so a tenth of the promise: dead links are found within ten seconds.
const TENTH: u32 = 500;
const PROMISE: Duration = Duration::from_secs(1);
/// A tenth of 30 s.
const HOLE: Duration = Duration::from_secs(3);

pub(crate) async fn black_hole() -> Option<Row> {
    hole(Fault::BlackHole).await
}

pub(crate) async fn deaf() -> Option<Row> {
    hole(Fault::Deaf).await
}

/// Bytes of the user go on arriving here, as they would through a proxy of which one half is broken. They are a sign of
/// life, so six deadlines pass: 35 s by default.
pub(crate) async fn mute() -> Option<Row> {
    hole_of(Fault::Mute, Duration::from_millis(3500)).await
}

async fn hole(fault: Fault) -> Option<Row> {
    hole_of(fault, PROMISE).await
}

async fn hole_of(fault: Fault, promise: Duration) -> Option<Row> {
    let chisel = Chisel::start().await?;
    let relay = Relay::start(chisel.address()).await;
    let target = Target::echo().await;
    let (world, address) = one_forward_with(&relay.url(), &target, |spec| {
        (spec.ping_interval_ms, spec.ping_timeout_ms) = (TENTH, TENTH);
    })
    .await;
    let flow = Flow::start(address).await;
    relay.set(fault);
    let begin = Instant::now();
    let (found, why) = said(&world, begin, "the hole", not_connected).await;
    assert!(why.contains("did not answer a ping within"), "{why}");
    sleep(HOLE.saturating_sub(begin.elapsed())).await;
    relay.set(Fault::None);
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new(format!("pings 1/10 of the default; {why}"))
            .found(found, promise)
            .back(good - healed, Duration::from_secs(2))
            .with(&flow),
    )
}

pub(crate) async fn reset_in_mid_packet() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let relay = Relay::start(chisel.address()).await;
    let target = Target::echo().await;
    let (world, address) = one_forward(&relay.url(), &target).await;
    let flow = Flow::start(address).await;
    let before = relay.accepted();
    relay.set(Fault::Reset);
    let begin = Instant::now();
    eventually("a new connection", || async {
        (relay.accepted() > before).then_some(())
    })
    .await;
    let found = begin.elapsed();
    relay.set(Fault::None);
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    let reason = world.report().await.status.unwrap().reason;
    Some(
        Row::new(format!("connections end at once; {reason}"))
            .found(found, Duration::from_secs(1))
            .back(good - healed, Duration::from_secs(2))
            .with(&flow),
    )
}

/// A server in a network of its own, and a forward that listens there.
async fn far_away(
    relay_delay: Duration,
) -> Option<(Netns, Chisel, Relay, Target, World, std::net::SocketAddr)> {
    let net = Netns::make()?;
    let chisel = Chisel::start_at(net.address().into(), net.prefix(), &[]).await?;
    let relay = Relay::start_delayed(chisel.address(), relay_delay).await;
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let mut wanted = spec(&relay.url(), &[("a", port, "k8s-proxy")]);
    wanted.forwards[0].remote_host = String::new();
    world.core.send(wanted);
    world.until_listening(1).await;
    let address = (net.address(), port).into();
    Some((net, chisel, relay, target, world, address))
}

pub(crate) async fn reset_by_a_filter() -> Option<Row> {
    let (net, chisel, _relay, _target, world, address) = far_away(Duration::ZERO).await?;
    let flow = Flow::start(address).await;
    let rule = format!(
        "INPUT -p tcp --dport {} -j REJECT --reject-with tcp-reset",
        chisel.address().port()
    );
    let begin = Instant::now();
    net.inside(&format!("iptables -I {rule}"));
    let (found, _) = said(&world, begin, "the reset", not_connected).await;
    sleep(Duration::from_secs(1)).await;
    net.inside(&format!("iptables -D {rule}"));
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    let reason = world.report().await.status.unwrap().reason;
    Some(
        Row::new(format!("refused for 1 s; {reason}"))
            .found(found, Duration::from_secs(1))
            .back(good - healed, Duration::from_secs(2))
            .with(&flow),
    )
}

/// Packets of the sidecar vanish and the server's do not: its acknowledgements are missing soon, so it falls silent.
pub(crate) async fn dropped_by_a_filter() -> Option<Row> {
    let (net, chisel, _relay, _target, world, address) = far_away(Duration::ZERO).await?;
    world
        .core
        .change(|spec| (spec.ping_interval_ms, spec.ping_timeout_ms) = (TENTH, TENTH));
    let flow = Flow::start(address).await;
    let rule = format!("INPUT -p tcp --dport {} -j DROP", chisel.address().port());
    let begin = Instant::now();
    net.inside(&format!("iptables -I {rule}"));
    let (found, why) = said(&world, begin, "the hole", not_connected).await;
    sleep(HOLE.saturating_sub(begin.elapsed())).await;
    net.inside(&format!("iptables -D {rule}"));
    let healed = Instant::now();
    let good = flow.good_after(healed).await;
    Some(
        Row::new(format!("pings 1/10 of the default; {why}"))
            .found(found, PROMISE)
            // The kernel repeats what was lost ever more rarely, which nobody above it can hurry.
            .back(good - healed, Duration::from_secs(6))
            .with(&flow),
    )
}

/// The delay is the relay's and the loss the packet filter's, one after the other on the way: there is no link that
/// has both.
pub(crate) async fn loss() -> Option<Row> {
    let (net, chisel, relay, _target, world, address) = far_away(Duration::from_millis(50)).await?;
    let port = chisel.address().port();
    for (chain, flag) in [("INPUT", "--dport"), ("OUTPUT", "--sport")] {
        net.inside(&format!(
            "iptables -A {chain} -p tcp {flag} {port} -m statistic --mode random --probability 0.01 -j DROP"
        ));
    }
    let flow = Flow::start(address).await;
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    const BULK: usize = 8 * 1024 * 1024;
    let begin = Instant::now();
    let (mut read, mut write) = tcp.split();
    let sent: Vec<u8> = (0..BULK)
        .map(|index| (index ^ (index >> 8)).to_le_bytes()[0])
        .collect();
    let mut back = vec![0; BULK];
    let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
    written.unwrap();
    got.unwrap();
    assert!(back == sent, "other bytes came back");
    let rate = 2.0 * 8.0 / begin.elapsed().as_secs_f64();
    let report = world.report().await;
    assert_eq!(
        (chisel.sessions(), relay.accepted()),
        (1, 1),
        "the session lives through it"
    );
    let trip = report.status.unwrap().round_trip_us / 1000;
    let dropped = net.dropped();
    assert!(trip >= 100 && dropped > 0, "{trip} ms, {dropped} packets dropped");
    Some(
        Row::new(format!(
            "slower: 16 MiB at {rate:.1} MiB/s, ping {trip} ms, {dropped} packets dropped; no session lost"
        ))
        .with(&flow),
    )
}
