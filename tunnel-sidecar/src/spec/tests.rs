use super::*;
use runtime::secret::ExposeSecret as _;

/// A fingerprint in the form a chisel server prints.
const SHA256: &str = "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU=";

fn places() -> Places {
    Places {
        kubernetes_api: "127.0.0.1:8443".parse().unwrap(),
        k8s_proxy: "127.0.0.1:8001".parse().unwrap(),
        agent_http: "127.0.0.1:8080".parse().unwrap(),
        host_ip: None,
        apiserver: None,
    }
}

fn forward(name: &str, port: u32, target: &str) -> proto::v1::Forward {
    proto::v1::Forward {
        name: name.to_owned(),
        remote_host: String::new(),
        remote_port: port,
        target: target.to_owned(),
        ..proto::v1::Forward::default()
    }
}

fn spec(server: &str) -> TunnelSpec {
    TunnelSpec {
        enabled: true,
        server: server.to_owned(),
        credentials: "user:canary:with:colons".to_owned(),
        forwards: vec![
            forward("kubernetes-api", 8000, "kubernetes-api"),
            forward("bad", 0, "k8s-proxy"),
        ],
        ..TunnelSpec::default()
    }
}

fn look(spec: &TunnelSpec) -> Desired {
    read(spec, &places(), &Never::new([]), |_| false)
}

fn tunnel(spec: &TunnelSpec) -> Tunnel {
    let desired = look(spec);
    let Desired::Tunnel(tunnel) = desired else {
        panic!("no tunnel: {desired:?}")
    };
    *tunnel
}

#[test]
fn one_bad_forward_is_refused_by_name_and_the_rest_stands() {
    let tunnel = tunnel(&spec("wss://t.example.com"));
    assert!(tunnel.forwards[0].way.is_ok());
    assert!(tunnel.forwards[1].way.as_ref().unwrap_err().contains("port 0"));
    assert_eq!(
        (tunnel.link.user.as_str(), tunnel.link.password.expose_secret()),
        ("user", "canary:with:colons")
    );
    assert_eq!(
        tunnel.liveness,
        Liveness {
            interval: PING_INTERVAL,
            timeout: PING_TIMEOUT
        }
    );
    assert_eq!(tunnel.inactivity, None);
}

#[test]
fn off_and_empty_are_idle_with_a_reason() {
    let off = TunnelSpec {
        enabled: false,
        reason: "the control plane says IDLE".to_owned(),
        ..spec("wss://t")
    };
    assert_eq!(
        look(&off),
        Desired::Idle {
            reason: "the control plane says IDLE".to_owned()
        }
    );
    let empty = TunnelSpec {
        forwards: Vec::new(),
        ..spec("wss://t")
    };
    assert!(matches!(look(&empty), Desired::Idle { .. }));
}

#[test]
fn a_link_that_proves_nothing_is_refused_with_the_setting_to_change() {
    let refused = |spec: &TunnelSpec| {
        let desired = look(spec);
        let Desired::Refused { reason, .. } = desired else {
            panic!("not refused: {desired:?}")
        };
        reason
    };
    let plain = spec("ws://t.example.com");
    assert!(refused(&plain).contains("tunnel.allow_insecure: true"));
    let short = TunnelSpec {
        fingerprint: "aa:bb:cc:dd".to_owned(),
        ..plain.clone()
    };
    assert!(refused(&short).contains("SHA-256"));
    let unreadable = TunnelSpec {
        fingerprint: "nonsense".to_owned(),
        ..plain.clone()
    };
    assert!(refused(&unreadable).starts_with("tunnel.fingerprint:"));
    for accepted in [
        TunnelSpec {
            fingerprint: SHA256.to_owned(),
            ..plain.clone()
        },
        TunnelSpec {
            allow_insecure: true,
            ..plain
        },
        spec("ws://127.0.0.1:9"),
        spec("https://t.example.com"),
    ] {
        tunnel(&accepted);
    }
}

#[test]
fn the_password_is_in_no_text() {
    let desired = look(&spec("wss://t.example.com"));
    assert!(!format!("{desired:?}").contains("canary"));
    let Desired::Refused { reason, server } = look(&spec("wss://user:canary@t.example.com")) else {
        panic!("user info in the address must be refused");
    };
    assert!(!reason.contains("canary") && !server.contains("canary"));
}

#[test]
fn equal_content_is_equal_and_another_password_is_not() {
    let first = tunnel(&spec("wss://t.example.com"));
    assert_eq!(first, tunnel(&spec("wss://t.example.com")));
    let rotated = TunnelSpec {
        credentials: "user:other".to_owned(),
        ..spec("wss://t.example.com")
    };
    assert_ne!(first, tunnel(&rotated));
}

#[test]
fn the_number_of_forwards_is_bounded() {
    let many = (1..=300)
        .map(|port| forward(&format!("f{port}"), port, "k8s-proxy"))
        .collect();
    let tunnel = tunnel(&TunnelSpec {
        forwards: many,
        ..spec("wss://t.example.com")
    });
    assert_eq!(
        tunnel
            .forwards
            .iter()
            .filter(|forward| forward.way.is_ok())
            .count(),
        MAX_FORWARDS
    );
}

#[test]
fn remotes_in_chisels_spelling_stand_beside_the_named_ones() {
    let spec = TunnelSpec {
        remotes: [
            "R:2222:db.shop:22",
            "R:53:10.96.0.10:53/udp",
            "3000:db.example:5432",
            "R:0",
            "R:7071:localhost:7071",
            "8001:a:1",
            "7070:a:1",
            "R:1080:socks",
            "R:8000:other:80",
        ]
        .map(str::to_owned)
        .into(),
        ..spec("wss://t.example.com")
    };
    let tunnel = tunnel(&spec);
    let said: Vec<_> = tunnel
        .forwards
        .iter()
        .map(|forward| match &forward.way {
            Ok(way) => format!("{}: {}", forward.name, way.dials()),
            Err(why) => format!("{} ({}): {why}", forward.name, forward.target),
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    kubernetes-api: 127.0.0.1:8443
    bad (k8s-proxy): remote port 0 is refused: the server would pick a port and tell nobody which; name one
    remote-2222: db.shop:22
    remote-53-udp: 10.96.0.10:53
    local-3000: db.example:5432, by the server
    R:0 (R:0): tunnel.remotes: "R:0" names port 0: the server would pick a port and tell nobody which; name one
    remote-7071 (R:7071:localhost:7071): 127.0.0.1:7071 is a control port of this pod and is never dialled through a tunnel
    local-8001 (8001:a:1): port 8001 belongs to the agent itself, so no forward can listen on it here
    local-7070 (7070:a:1): port 7070 belongs to the agent itself, so no forward can listen on it here
    remote-1080 (R:1080:socks): SOCKS is off: list where its users may go in tunnel.socks_targets, for example *.svc.cluster.local:443
    remote-8000 (R:8000:other:80): port 8000 is taken by forward "kubernetes-api"
    "#);
    let alone = TunnelSpec {
        forwards: Vec::new(),
        ..spec
    };
    assert!(
        matches!(look(&alone), Desired::Tunnel(_)),
        "remotes alone are something to do"
    );
}

#[test]
fn a_named_forward_may_carry_datagrams_or_users_of_socks() {
    let with = |protocol: &str, target: &str| {
        let spec = TunnelSpec {
            forwards: vec![proto::v1::Forward {
                protocol: protocol.to_owned(),
                ..forward("a", 1, target)
            }],
            socks_targets: vec!["*:443".to_owned()],
            allowed_targets: vec!["dns:53".to_owned()],
            ..spec("wss://t")
        };
        tunnel(&spec).forwards.remove(0).way.map(|way| way.listen.shape)
    };
    assert_eq!(with("udp", "dns:53"), Ok(Shape::Udp));
    assert_eq!(with("tcp", "dns:53"), Ok(Shape::Tcp));
    assert_eq!(with("", "socks"), Ok(Shape::Socks));
    assert!(with("udp", "other:53").unwrap_err().contains("allow-list"));
    assert!(with("UDP", "dns:53").unwrap_err().contains("lower case"));
}

#[test]
fn what_proves_nothing_gets_no_credentials() {
    let refused = |change: &dyn Fn(&mut TunnelSpec)| {
        let mut spec = spec("wss://t.example.com");
        change(&mut spec);
        match look(&spec) {
            Desired::Refused { reason, .. } => Some(reason),
            Desired::Tunnel(_) | Desired::Idle { .. } => None,
        }
    };
    assert_eq!(refused(&|_| {}), None);
    let any = |spec: &mut TunnelSpec| spec.tls_skip_verify_i_know_it_is_insecure = true;
    let why = refused(&any).unwrap();
    assert!(
        why.contains("tunnel.ca_file") && why.contains("tunnel.fingerprint"),
        "{why}"
    );
    assert_eq!(
        refused(&|spec| {
            any(spec);
            spec.fingerprint = SHA256.to_owned();
        }),
        None
    );
    // This machine's address means another machine when a proxy elsewhere dials it.
    let here = |spec: &mut TunnelSpec| spec.server = "ws://127.0.0.1:1".to_owned();
    assert_eq!(refused(&here), None);
    let why = refused(&|spec| {
        here(spec);
        spec.proxy = "http://u:canary@proxy.example:3128".to_owned();
    });
    assert!(why.is_some_and(|why| !why.contains("canary")));
    assert_eq!(
        refused(&|spec| {
            here(spec);
            spec.proxy = "http://127.0.0.1:3128".to_owned();
        }),
        None
    );
    let why = refused(&|spec| spec.proxy = "https://u:canary@proxy".to_owned()).unwrap();
    assert!(why.contains("tunnel.proxy") && !why.contains("canary"), "{why}");
}
