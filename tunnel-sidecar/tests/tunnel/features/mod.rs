//! Every feature of a chisel client, ours beside the Go client, against the real Go server.
//!
//! ```text
//!   row: remotes, server flags, how the server is reached ─┬─► the Go client ─► what a user sees
//!                                                          └─► the sidecar  ─► what a user sees
//! ```
//!
//! Where the two differ, the row says why ours is better. [`links`] holds the rows about TLS, proxies and headers,
//! [`limits`] what the Go client has no counterpart for.

mod go;
mod limits;
mod links;
mod users;

use std::{collections::BTreeMap, fmt::Write as _};

use proto::v1::TunnelSpec;

pub(crate) use self::{
    go::GoClient,
    users::{Seen, datagrams_come_back, socks_connects, tcp_comes_back},
};
use super::world::{Chisel, Target, UdpTarget, World, eventually, free_port, row, spec};

/// What a user does.
#[derive(Clone, Copy, Debug)]
enum User {
    /// Sends bytes to the listener and wants them back.
    Tcp,
    /// Several send datagrams and want their own back, and nobody else's.
    Udp,
    /// Asks for a datagram of so many bytes.
    LargeAnswer(usize),
    /// Asks a SOCKS server for the echo: by address, by IPv6 address, and by name.
    Socks,
    /// Nothing; what the client says is what counts.
    Nobody,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As wanted.
    Works,
    /// The answer has so many bytes.
    Bytes(usize),
    /// It does not, and the client says so.
    Says(&'static str),
}

/// One feature.
struct Row {
    name: &'static str,
    /// `{p}` is the listener's port, `{tcp}`, `{tcp6}`, `{udp}`, `{large}` those of targets.
    remotes: &'static [&'static str],
    server: &'static [&'static str],
    user: User,
    go: Outcome,
    ours: Outcome,
    /// Why ours differs.
    note: &'static str,
}

const ROWS: [Row; 18] = [
    Row {
        name: "reverse TCP",
        remotes: &["R:127.0.0.1:{p}:127.0.0.1:{tcp}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse TCP, target by name, any address of the server",
        remotes: &["R:{p}:localhost:{tcp}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse TCP, IPv6 target in brackets",
        remotes: &["R:{p}:[::1]:{tcp6}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse TCP, IPv6 at both ends, /tcp",
        remotes: &["R:[::]:{p}:[::1]:{tcp6}/tcp"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse UDP",
        remotes: &["R:127.0.0.1:{p}:127.0.0.1:{udp}/udp"],
        server: &[],
        user: User::Udp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse UDP, answer of 20000 bytes",
        remotes: &["R:127.0.0.1:{p}:127.0.0.1:{large}/udp"],
        server: &[],
        user: User::LargeAnswer(20_000),
        go: Outcome::Bytes(9012),
        ours: Outcome::Works,
        note: "the Go client cuts answers at 9012 bytes, ours passes whatever a datagram can hold",
    },
    Row {
        name: "reverse UDP and TCP on one port, side by side",
        remotes: &[
            "R:127.0.0.1:{p}:127.0.0.1:{udp}/udp",
            "R:127.0.0.1:{p}:127.0.0.1:{tcp}",
        ],
        server: &[],
        user: User::Udp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse SOCKS",
        remotes: &["R:127.0.0.1:{p}:socks"],
        server: &[],
        user: User::Socks,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "reverse SOCKS, port alone",
        remotes: &["R:{p}:socks"],
        server: &[],
        user: User::Socks,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "forward TCP",
        remotes: &["127.0.0.1:{p}:127.0.0.1:{tcp}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "forward TCP, target by name, default address",
        remotes: &["{p}:localhost:{tcp}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "the Go client listens on every address then, ours on the loopback",
    },
    Row {
        name: "forward TCP, IPv6 at both ends",
        remotes: &["[::]:{p}:[::1]:{tcp6}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "forward UDP",
        remotes: &["127.0.0.1:{p}:127.0.0.1:{udp}/udp"],
        server: &[],
        user: User::Udp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "forward SOCKS, served by the server",
        remotes: &["127.0.0.1:{p}:socks"],
        server: &["--socks5"],
        user: User::Socks,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "forward and reverse in one session",
        remotes: &["R:127.0.0.1:{q}:127.0.0.1:{tcp}", "127.0.0.1:{p}:127.0.0.1:{q}"],
        server: &[],
        user: User::Tcp,
        go: Outcome::Works,
        ours: Outcome::Works,
        note: "",
    },
    Row {
        name: "port 0",
        remotes: &["R:0:127.0.0.1:{tcp}"],
        server: &[],
        user: User::Nobody,
        go: Outcome::Says("Server cannot listen on R:0:"),
        ours: Outcome::Says("names port 0: the server would pick a port and tell nobody which; name one"),
        note: "refused with a sentence before anything is asked of the server",
    },
    Row {
        name: "/TCP in upper case",
        remotes: &["R:{p}:127.0.0.1:{tcp}/TCP"],
        server: &[],
        user: User::Nobody,
        go: Outcome::Says("Server cannot listen on R:"),
        ours: Outcome::Says("protocols are written in lower case"),
        note: "says what is wrong instead of blaming the port",
    },
    Row {
        name: "stdio",
        remotes: &["stdio:127.0.0.1:{tcp}"],
        server: &[],
        user: User::Nobody,
        go: Outcome::Says("Connected"),
        ours: Outcome::Says("is for a person at a terminal and not for an agent"),
        note: "an agent has no terminal, so it is refused with a sentence",
    },
];

/// The targets of all rows.
struct Targets {
    tcp: Target,
    tcp6: Target,
    udp: UdpTarget,
    large: UdpTarget,
}

impl Targets {
    async fn start() -> Self {
        Self {
            tcp: Target::echo().await,
            tcp6: Target::echo_at("[::1]:0").await,
            udp: UdpTarget::echo().await,
            large: UdpTarget::talker(20_000).await,
        }
    }

    fn ports(&self) -> BTreeMap<&'static str, u16> {
        [
            ("{tcp}", self.tcp.port()),
            ("{tcp6}", self.tcp6.port()),
            ("{udp}", self.udp.port()),
            ("{large}", self.large.port()),
        ]
        .into()
    }
}

fn filled(texts: &[&str], ports: &BTreeMap<&'static str, u16>) -> Vec<String> {
    let fill = |text: &&str| {
        ports.iter().fold((*text).to_owned(), |text, (name, port)| {
            text.replace(name, &port.to_string())
        })
    };
    texts.iter().map(fill).collect()
}

/// What a user sees at `port`, once it is as good as it gets.
async fn look(user: User, port: u16, ports: &BTreeMap<&'static str, u16>) -> Seen {
    match user {
        User::Tcp => eventually("bytes to come back", || tcp_comes_back(port)).await,
        User::Udp => eventually("datagrams to come back", || datagrams_come_back(port)).await,
        User::LargeAnswer(_) => eventually("a large answer", || users::answer_of(port)).await,
        User::Socks => {
            eventually("SOCKS to connect", || {
                socks_connects(port, ports["{tcp}"], ports["{tcp6}"])
            })
            .await
        }
        User::Nobody => Seen::Works,
    }
}

fn outcome(user: User, seen: Seen) -> Outcome {
    match (user, seen) {
        (User::LargeAnswer(wanted), Seen::Bytes(count)) if wanted == count => Outcome::Works,
        (_, Seen::Bytes(count)) => Outcome::Bytes(count),
        (_, Seen::Works) => Outcome::Works,
    }
}

#[tokio::test]
async fn each_remote_does_what_the_go_client_does() {
    let targets = Targets::start().await;
    let mut table = String::new();
    let mut checked = 0;
    for feature in &ROWS {
        let flags: Vec<String> = feature.server.iter().map(|flag| (*flag).to_owned()).collect();
        let Some(chisel) = Chisel::start_with(&flags).await else {
            return;
        };
        let mut ports = targets.ports();
        for name in ["{p}", "{q}"] {
            ports.insert(name, free_port().await);
        }
        let remotes = filled(feature.remotes, &ports);
        let port = ports["{p}"];

        let go = GoClient::start(&chisel.url().replace("ws://", "http://"), &[], &remotes);
        let seen = match feature.go {
            Outcome::Says(text) => go.says(text).await,
            Outcome::Works | Outcome::Bytes(_) => {
                outcome(feature.user, look(feature.user, port, &ports).await)
            }
        };
        assert_eq!(seen, feature.go, "{}: the Go client\n{}", feature.name, go.log());
        drop(go);
        chisel.until_free(port).await;

        let world = World::start(&[]).await;
        world.core.send(TunnelSpec {
            remotes: remotes.clone(),
            socks_targets: vec![
                "127.0.0.1:*".to_owned(),
                "[::1]:*".to_owned(),
                "localhost:*".to_owned(),
            ],
            ..spec(&chisel.url(), &[])
        });
        let seen = match feature.ours {
            Outcome::Says(text) => says(&world, text).await,
            Outcome::Works | Outcome::Bytes(_) => {
                outcome(feature.user, look(feature.user, port, &ports).await)
            }
        };
        assert_eq!(
            seen,
            feature.ours,
            "{}: ours\n{:#?}",
            feature.name,
            world.report().await
        );
        assert!(
            feature.go == feature.ours || !feature.note.is_empty(),
            "{}: say why",
            feature.name
        );
        world.supervisor.drain("the row is done");
        checked += 1;
        writeln!(
            table,
            "{:55} Go {:?}, ours {:?} {}",
            feature.name, feature.go, feature.ours, feature.note
        )
        .unwrap();
    }
    println!("{table}");
    assert_eq!(checked, ROWS.len());
    assert!(checked > 10, "the table is not empty");
}

/// Waits until the first forward of the sidecar is refused with a text.
async fn says(world: &World, text: &'static str) -> Outcome {
    world
        .until(text, |report| {
            let status = report.status.as_ref().unwrap();
            status
                .forwards
                .iter()
                .any(|forward| forward.reason.contains(text))
        })
        .await;
    Outcome::Says(text)
}

#[tokio::test]
async fn what_is_listened_for_is_shown() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let (udp, tcp) = (UdpTarget::echo().await, Target::echo().await);
    let (far, near) = (free_port().await, free_port().await);
    let world = World::start(&[]).await;
    world.core.send(TunnelSpec {
        remotes: vec![
            format!("R:127.0.0.1:{far}:127.0.0.1:{}/udp", udp.port()),
            format!("{near}:127.0.0.1:{}", tcp.port()),
        ],
        ..spec(&chisel.url(), &[])
    });
    let report = world.until_listening(2).await;
    let name = format!("remote-127.0.0.1-{far}-udp");
    let udp_row = row(&report, &name);
    assert_eq!(udp_row.kind(), proto::v1::ForwardKind::ReverseUdp);
    assert_eq!(udp_row.listens, format!("127.0.0.1:{far}"));
    let local = format!("local-{near}");
    let tcp_row = row(&report, &local);
    assert_eq!(tcp_row.kind(), proto::v1::ForwardKind::LocalTcp);
    assert_eq!(tcp_row.dials, format!("127.0.0.1:{}, by the server", tcp.port()));
    eventually("datagrams", || datagrams_come_back(far)).await;
    eventually("bytes", || tcp_comes_back(near)).await;
    let report = world
        .until("both to be counted", |report| {
            row(report, &name).bytes_out > 0 && row(report, &local).bytes_out > 0
        })
        .await;
    assert!(
        row(&report, &name).connections_total >= 3,
        "each peer is one: {report:#?}"
    );
    // Peers that say no more hold the drain up for two seconds, and not up to its deadline of 20 s.
    let start = tokio::time::Instant::now();
    assert_eq!(world.finish().await, runtime::supervise::Outcome::Clean);
    let took = start.elapsed();
    println!("drained in {took:?} with silent peers of UDP");
    assert!(took < std::time::Duration::from_secs(18), "{took:?}");
}
