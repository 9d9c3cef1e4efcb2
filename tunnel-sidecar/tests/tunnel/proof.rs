//! Bytes that the server side sends through each forward and back.

use std::time::Duration;

use proto::v1::ConditionStatus;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::world::*;

const NONCE: &str = "00112233445566778899aabbccddeeff";

/// Says on the door that a probe of `forward` comes.
async fn announce(echo: u16, forward: &str, every: u32) -> String {
    let mut door = BufReader::new(user(echo).await);
    let line = format!("probe {forward} {NONCE} {every}\n");
    door.write_all(line.as_bytes()).await.unwrap();
    let mut answer = String::new();
    door.read_line(&mut answer).await.unwrap();
    answer
}

/// The probe itself.
async fn probe(port: u16) {
    let mut through = user(port).await;
    through.write_all(NONCE.as_bytes()).await.unwrap();
    let mut both = [0; 64];
    through.read_exact(&mut both).await.unwrap();
    assert_eq!(&both[..32], NONCE.as_bytes());
    through.write_all(&both[32..]).await.unwrap();
    assert!(until_closed(&mut through).await.is_empty());
}

struct Scene {
    chisel: Chisel,
    target: Target,
    world: World,
    ports: [u16; 2],
    echo: u16,
}

async fn scene() -> Option<Scene> {
    let chisel = Chisel::start().await?;
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let (ports, echo) = ([free_port().await, free_port().await], free_port().await);
    let forwards = [("a", ports[0], "k8s-proxy"), ("b", ports[1], "k8s-proxy")];
    let mut wanted = spec(&chisel.url(), &forwards);
    wanted.echo_remote_port = echo.into();
    world.core.send(wanted);
    world.until_listening(2).await;
    Some(Scene {
        chisel,
        target,
        world,
        ports,
        echo,
    })
}

#[tokio::test]
async fn a_probe_proves_its_forward_and_is_no_connection() {
    let Some(scene) = scene().await else { return };
    let world = &scene.world;
    let report = world
        .until("a ping", |report| {
            condition(report, "Tunnel").1.contains("proven by ping")
        })
        .await;
    assert_eq!(
        row(&report, "a").proof_round_trip_us,
        0,
        "a ping proves no forward"
    );
    assert_eq!(announce(scene.echo, "a", 60_000).await, "armed\n");
    probe(scene.ports[0]).await;
    let report = world
        .until("the proof", |report| row(report, "a").proof_round_trip_us > 0)
        .await;
    let (status, why) = condition(&report, "Tunnel");
    assert!(
        status == ConditionStatus::True
            && why.contains("through 1 of 2")
            && why.contains("the rest proven by ping"),
        "{why}"
    );
    assert_eq!(announce(scene.echo, "b", 60_000).await, "armed\n");
    probe(scene.ports[1]).await;
    let report = world
        .until("both", |report| {
            condition(report, "Tunnel").1.contains("through 2 of 2")
        })
        .await;
    println!("{}", condition(&report, "Tunnel").1);
    let a = row(&report, "a");
    assert_eq!(
        (a.connections_total, a.bytes_in, scene.chisel.sessions()),
        (0, 0, 1)
    );
    assert!(a.last_proof.is_some() && a.proof_age_ms < 60_000);
    assert!(
        world
            .get("/readyz")
            .await
            .1
            .contains("proven by bytes there and back")
    );
    let metrics = world.get("/metrics").await.1;
    for line in [
        "pipeops_tunnel_proof_age_seconds{forward=\"a\"} ",
        "pipeops_tunnel_proof_round_trip_seconds_count{forward=\"b\"} 1",
    ] {
        assert!(
            metrics.contains(line) && !metrics.contains(&format!("{line}-1")),
            "{metrics}"
        );
    }
    scene.target.until_open(0).await;
    assert!(
        announce(scene.echo, "nobody", 1000)
            .await
            .contains("no such forward")
    );
}

#[tokio::test]
async fn users_who_come_while_a_probe_is_expected_get_what_they_always_get() {
    let Some(scene) = scene().await else { return };
    assert_eq!(announce(scene.echo, "a", 60_000).await, "armed\n");
    // One who speaks first, one who speaks late, one with the first bytes of the nonce, and then the probe.
    let (mut talks, mut waits, mut alike) = (
        user(scene.ports[0]).await,
        user(scene.ports[0]).await,
        user(scene.ports[0]).await,
    );
    echo(&mut talks, "hello").await;
    alike.write_all(&NONCE.as_bytes()[..5]).await.unwrap();
    probe(scene.ports[0]).await;
    let mut back = [0; 5];
    tokio::time::timeout(PATIENCE, alike.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, NONCE.as_bytes()[..5]);
    echo(&mut waits, "at last").await;
    echo(&mut talks, "still").await;
    let report = scene.world.report().await;
    assert_eq!(row(&report, "a").connections_open, 3);
    assert!(row(&report, "a").proof_round_trip_us > 0);
}

#[tokio::test]
async fn bytes_that_were_announced_and_do_not_arrive_make_the_tunnel_false() {
    let Some(scene) = scene().await else { return };
    for _ in 0..3 {
        eventually("the door to expect another", || async {
            (announce(scene.echo, "a", 1000).await == "armed\n").then_some(())
        })
        .await;
    }
    let report = scene
        .world
        .until("the broken forward", |report| !report.ready)
        .await;
    let (status, why) = condition(&report, "Tunnel");
    assert!(
        status == ConditionStatus::False && why.contains("do not arrive: a"),
        "{why}"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(announce(scene.echo, "a", 1000).await, "armed\n");
    probe(scene.ports[0]).await;
    scene.world.until("good again", |report| report.ready).await;
}

#[tokio::test]
async fn probes_keep_no_idle_tunnel_open() {
    let Some(scene) = scene().await else { return };
    scene.world.core.change(|spec| spec.inactivity_timeout_ms = 1500);
    let (echo, port) = (scene.echo, scene.ports[0]);
    let proving = tokio::spawn(async move {
        loop {
            let Ok(door) = TcpStream::connect(("127.0.0.1", echo)).await else {
                return;
            };
            drop(door);
            if announce(echo, "a", 500).await == "armed\n" {
                probe(port).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let report = scene
        .world
        .until("it to close", |report| report.status.as_ref().unwrap().asleep)
        .await;
    assert!(condition(&report, "Tunnel").1.contains("nothing moved"));
    proving.abort();
    scene.world.core.change(|spec| spec.demand = 1);
    scene.world.until_listening(2).await;
}

/// Reversed SOCKS and datagrams are proven as well: the listener, the session and the channel are those of their users.
#[tokio::test]
async fn reversed_socks_and_datagrams_are_proven_too() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (tcp, udp) = (Target::echo().await, UdpTarget::echo().await);
    let world = World::start(&[]).await;
    let (socks, datagrams, door) = (free_port().await, free_port().await, free_port().await);
    let mut wanted = spec(&chisel.url(), &[]);
    wanted.remotes = vec![
        format!("R:127.0.0.1:{socks}:socks"),
        format!("R:127.0.0.1:{datagrams}:127.0.0.1:{}/udp", udp.port()),
    ];
    wanted.socks_targets = vec![format!("127.0.0.1:{}", tcp.port())];
    wanted.echo_remote_port = door.into();
    world.core.send(wanted);
    let report = world.until_listening(2).await;
    let names: Vec<_> = listening(&report).into_iter().map(str::to_owned).collect();
    let (of_socks, of_datagrams) = (&names[0], &names[1]);

    assert_eq!(announce(door, of_socks, 60_000).await, "armed\n");
    // A user beside the probe is served.
    let greeting = async {
        let mut someone = user(socks).await;
        someone.write_all(&[5, 1, 0]).await.unwrap();
        let mut answer = [0; 2];
        someone.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [5, 0]);
    };
    tokio::join!(greeting, probe(socks));

    assert_eq!(announce(door, of_datagrams, 60_000).await, "armed\n");
    let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    peer.connect(("127.0.0.1", datagrams)).await.unwrap();
    peer.send(NONCE.as_bytes()).await.unwrap();
    let mut both = [0; 100];
    let size = tokio::time::timeout(PATIENCE, peer.recv(&mut both))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((size, &both[..32]), (64, NONCE.as_bytes()));
    peer.send(&both[32..64]).await.unwrap();

    let report = world
        .until("both", |report| {
            condition(report, "Tunnel").1.contains("through 2 of 2")
        })
        .await;
    println!("{}", condition(&report, "Tunnel").1);
    let datagrams = row(&report, of_datagrams);
    assert_eq!(
        (datagrams.connections_total, datagrams.bytes_in),
        (0, 0),
        "no probe reaches a target"
    );
    assert!(datagrams.proof_round_trip_us > 0 && row(&report, of_socks).proof_round_trip_us > 0);
    drop(tcp);
}
