//! What a forward leads to.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::Row;
use crate::world::*;

const SECOND: Duration = Duration::from_secs(1);

/// A forward to an address, with a short patience for its dial.
async fn forward_to(server: &str, target: String) -> (World, std::net::SocketAddr) {
    let env = [("PIPEOPS_TARGET_K8S_PROXY", target)];
    let world = World::start_with(&env, |config| config.timing.target = SECOND / 2).await;
    let port = free_port().await;
    world.core.send(spec(server, &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    (world, ([127, 0, 0, 1], port).into())
}

/// How long a user waits for the end of a connection that leads nowhere.
async fn turned_away(address: std::net::SocketAddr) -> Duration {
    let begin = Instant::now();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    assert!(until_closed(&mut tcp).await.is_empty());
    begin.elapsed()
}

pub(crate) async fn down() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let nobody = free_port().await;
    let (world, address) = forward_to(&chisel.url(), format!("127.0.0.1:{nobody}")).await;
    let found = turned_away(address).await;
    let why = "connection refused";
    eventually("the reason at the server", || async {
        chisel.log().to_lowercase().contains(why).then_some(())
    })
    .await;
    assert_eq!(row(&world.report().await, "a").dial_failures_total, 1);
    let listener = TcpListener::bind(("127.0.0.1", nobody)).await.unwrap();
    let echo = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    let healed = Instant::now();
    let flow = Flow::start(address).await;
    let back = healed.elapsed();
    echo.abort();
    Some(
        Row::new(format!(
            "closed at once; the server is told \"{why}\"; others untouched"
        ))
        .found(found, SECOND)
        .back(back, SECOND)
        .with(&flow),
    )
}

pub(crate) async fn silent() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let silent = listener.local_addr().unwrap();
    // Nobody accepts: when the queue is full, the kernel drops what asks for more.
    let mut queued = Vec::new();
    while let Ok(tcp) = timeout(SECOND / 4, TcpStream::connect(silent)).await {
        queued.push(tcp.unwrap());
        assert!(queued.len() < 100, "the queue never fills");
    }
    let (_world, address) = forward_to(&chisel.url(), silent.to_string()).await;
    let found = turned_away(address).await;
    eventually("the reason at the server", || async {
        chisel.log().contains("did not answer within 500ms").then_some(())
    })
    .await;
    Some(
        Row::new("closed after the dial's patience (0.5 s here, 10 s by default), with the reason")
            .found(found, SECOND),
    )
}

pub(crate) async fn slow() -> Option<Row> {
    let chisel = Chisel::start().await?;
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
    let flow = Flow::start(([127, 0, 0, 1], free).into()).await;
    let mut tcp = user(stuck).await;
    let chunk = vec![1; 256 * 1024];
    while timeout(SECOND / 2, tcp.write_all(&chunk)).await.is_ok() {}
    let full = Instant::now();
    flow.good_after(full).await;
    sleep(SECOND).await;
    let gap = flow.seen().gap;
    assert!(flow.seen().ended == 0 && chisel.sessions() == 1);
    Some(
        Row::new(format!(
            "that one waits; a user of another forward beside it sees a gap of {gap:?} at most"
        ))
        .with(&flow),
    )
}

pub(crate) async fn resets() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reset = tokio::spawn(async move {
        let mut first = true;
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let resets = std::mem::take(&mut first);
            tokio::spawn(async move {
                if resets {
                    let mut some = [0; 100];
                    tcp.read_exact(&mut some).await.ok();
                    tcp.write_all(&some[..50]).await.ok();
                    tcp.set_zero_linger().ok();
                    return;
                }
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    let (_world, port) = forward_to(&chisel.url(), address.to_string()).await;
    let mut tcp = TcpStream::connect(port).await.unwrap();
    let begin = Instant::now();
    tcp.write_all(&[7; 100]).await.unwrap();
    let got = until_closed(&mut tcp).await.len();
    let found = begin.elapsed();
    assert!(got <= 50);
    let healed = Instant::now();
    let flow = Flow::start(port).await;
    let back = healed.elapsed();
    reset.abort();
    Some(
        Row::new(format!(
            "the connection ends, {got} of 50 bytes came before; the next one works"
        ))
        .found(found, SECOND)
        .back(back, SECOND)
        .with(&flow),
    )
}

pub(crate) async fn moves() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let hosts = super::server::Hosts::new()?;
    // The same port at two addresses of the loopback.
    let (port, old, new) = loop {
        let port = free_port().await;
        let bind = async |host: [u8; 4]| TcpListener::bind((std::net::IpAddr::from(host), port)).await;
        if let (Ok(old), Ok(new)) = (bind([127, 0, 0, 2]).await, bind([127, 0, 0, 3]).await) {
            break (port, old, new);
        }
    };
    hosts.say("db.test", "127.0.0.2");
    let target = format!("db.test:{port}");
    let world = World::spawn(&hosts.prefix(), &[]).await;
    let listens = free_port().await;
    let mut wanted = spec(&chisel.url(), &[("db", listens, &target)]);
    wanted.allowed_targets = vec![target];
    world.core.send(wanted);
    world.until_listening(1).await;
    let word = async |listener: &TcpListener, what: &[u8]| {
        let mut tcp = user(listens).await;
        let (mut here, _) = timeout(PATIENCE, listener.accept())
            .await
            .expect("a dial")
            .unwrap();
        here.write_all(what).await.unwrap();
        drop(here);
        assert_eq!(until_closed(&mut tcp).await, what);
    };
    word(&old, b"old").await;
    hosts.say("db.test", "127.0.0.3");
    let moved = Instant::now();
    word(&new, b"new").await;
    let back = moved.elapsed();
    hosts.say("db.test", "169.254.169.254");
    assert!(until_closed(&mut user(listens).await).await.is_empty());
    assert!(row(&world.report().await, "db").dial_failures_total == 1);
    Some(
        Row::new("the next connection goes to the new address; an address of the never-list is refused")
            .back(back, SECOND),
    )
}

pub(crate) async fn no_descriptor_left() -> Option<Row> {
    let chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let prefix = ["prlimit", "--nofile=48:48"].map(str::to_owned);
    let world = World::spawn(&prefix, &[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let flow = Flow::start(([127, 0, 0, 1], port).into()).await;
    let mut held = Vec::new();
    let begin = Instant::now();
    let refused = loop {
        assert!(held.len() < 100, "the limit is never reached");
        let mut tcp = user(port).await;
        tcp.write_all(b"?").await.unwrap();
        let mut back = [0];
        match timeout(PATIENCE, tcp.read(&mut back))
            .await
            .expect("an end or an echo")
        {
            Ok(1) => held.push(tcp),
            Ok(_) | Err(_) => break begin.elapsed(),
        }
    };
    eventually("the reason at the server", || async {
        chisel.log().contains("no file descriptor left").then_some(())
    })
    .await;
    let open = held.len();
    held.truncate(open / 2);
    let healed = Instant::now();
    eventually("room", || echoes(port)).await;
    let back = healed.elapsed();
    assert_eq!(chisel.sessions(), 1, "the session lives through it");
    let (_, metrics) = world.get("/metrics").await;
    assert!(metrics.contains("result=\"exhausted\""), "{metrics}");
    Some(
        Row::new(format!(
            "{open} connections fit, the next is refused with the reason; session, probes and gRPC go on"
        ))
        .found(refused, Duration::from_secs(5))
        .back(back, SECOND)
        .with(&flow),
    )
}
