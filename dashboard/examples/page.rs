//! Serves the page with a moving snapshot, for looking at it and for `web/browser-test.mjs`.
//!
//! Prints its address on the first line. Lines on its input: `kill <container>`, `start <container>`.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example to be read and typed at"
)]

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dashboard::{
    Action, Agent, At, Condition, Container, Door, Forward, ForwardState, Heartbeat, OpenStream, Page, Phase,
    Proxy, SessionState, Snapshot, Status, Tunnel, feed, router,
};

const NAMES: [&str; 3] = ["agent-core", "tunnel-sidecar", "k8s-proxy"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let dead = Arc::new(Mutex::new(BTreeMap::new()));
    let (feed, snapshots) = feed(Snapshot::default());
    let page = Page::new(snapshots, |token| token == "example-token")
        .action(Action::Heartbeat, || async { Ok("accepted in 12 ms".to_owned()) })
        .action(Action::Reconnect, || async {
            Err("the tunnel is up; nothing to do".to_owned())
        });
    // A port may be given, to stand in for an agent that restarts.
    let port = std::env::args()
        .nth(1)
        .and_then(|port| port.parse().ok())
        .unwrap_or(0_u16);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}/dashboard token: example-token", listener.local_addr()?);

    let commands = Arc::clone(&dead);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let mut dead = commands.lock().unwrap_or_else(PoisonError::into_inner);
            match line.split_once(' ') {
                Some(("kill", name)) => dead.insert(name.to_owned(), SystemTime::now().into()),
                Some(("start", name)) => dead.remove(name),
                Some(_) | None => None,
            };
        }
    });
    tokio::spawn(async move {
        let started = SystemTime::now();
        for tick in 0.. {
            let dead = dead.lock().unwrap_or_else(PoisonError::into_inner).clone();
            feed.publish(snapshot(started, tick, &dead));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    });
    axum::serve(listener, router(page)).await
}

fn snapshot(started: SystemTime, tick: u64, dead: &BTreeMap<String, At>) -> Snapshot {
    let now = At::from(SystemTime::now());
    let container = |name: &str| {
        let unknown_since = dead.get(name).copied();
        let known = unknown_since.is_none();
        let condition = |name: &str, status| Condition {
            name: name.into(),
            status,
            reason: "as the example says".into(),
            since: At::from(started),
        };
        Container {
            name: name.into(),
            known,
            unknown_since,
            last_report: unknown_since.or(Some(now)),
            ready: known,
            conditions: vec![
                condition("Serving", Status::True),
                condition("Standby", Status::NotApplicable),
            ],
            instances_seen: 1,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    };
    let beat = |back: u64| {
        let number = 60 + tick / 20 - back;
        let accepted = !number.is_multiple_of(13);
        Heartbeat {
            at: At(At::from(started).0 + number * 5000 - 300_000),
            accepted,
            status: if accepted { 200 } else { 0 },
            ms: u32::try_from(12 + number * 7 % 40).unwrap_or(0),
            error: if accepted {
                "".into()
            } else {
                "timed out after 5 s".into()
            },
        }
    };
    let forward = |name: &str, port, target: &str, dials: &str| Forward {
        name: name.into(),
        remote_port: port,
        target: target.into(),
        dials: dials.into(),
        state: ForwardState::Listening,
        connections_open: tick % 4,
        connections_total: tick,
        bytes_in: tick * 1400,
        bytes_out: tick * 65_000,
        ..Forward::default()
    };
    let door = |name: &str, address: &str| Door {
        name: name.into(),
        address: address.into(),
        open: true,
        since: Some(started.into()),
        ..Door::default()
    };
    Snapshot {
        agent: Agent {
            id: "agent-9f31c2aa07d15e44".into(),
            cluster_uuid: "5b1f6c0e-6f0a-4d55-9a57-1c1a1c7c2f10".into(),
            cluster_name: "warehouse-7".into(),
            phase: Phase::Active,
            reason: "the last heartbeat was accepted".into(),
            control_plane: "https://api.pipeops.sh".into(),
            started: started.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            nodes: Some(3),
            pods: Some(41),
            kubernetes_version: "v1.34.2".into(),
        },
        containers: NAMES.map(container).into(),
        heartbeats: (0..60).rev().map(beat).collect(),
        tunnel: Tunnel {
            state: SessionState::Connected,
            server: "wss://tunnel.pipeops.sh".into(),
            connected_since: Some(started.into()),
            round_trip_us: Some(18_400 + tick % 900),
            connects: 1,
            forwards: vec![
                forward("kubernetes-api", 16443, "kubernetes-api", "127.0.0.1:8443"),
                forward("k8s-proxy", 18001, "k8s-proxy", "127.0.0.1:8001"),
                Forward {
                    state: ForwardState::Refused,
                    reason: "kubelet metrics are off (tunnel.kubeletMetrics)".into(),
                    ..forward("kubelet-metrics", 20250, "kubelet-metrics", "")
                },
            ],
            ..Tunnel::default()
        },
        proxy: Proxy {
            doors: vec![door("http", "127.0.0.1:8001"), door("https", "127.0.0.1:8443")],
            streams_open: 3,
            watches_open: 2,
            requests: tick * 3,
            refused: 1,
            certificate_sha256: "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab".into(),
            upstream: "https://10.96.0.1".into(),
            ..Proxy::default()
        },
        streams: vec![OpenStream {
            id: 7,
            door: "http".into(),
            user: "control-plane".into(),
            method: "GET".into(),
            path: "/api/v1/pods".into(),
            watch: true,
            opened: Some(started.into()),
            events: tick,
            bytes: tick * 900,
            rewatches: 1,
        }],
    }
}
