use super::*;

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
