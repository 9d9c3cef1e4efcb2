//! Nothing secret can be represented: no field is made for it, and texts lose what looks like it.

use dashboard::{
    Agent, Condition, Container, Door, Forward, Heartbeat, Line, OpenStream, Proxy, Snapshot, Tunnel, feed,
};
use serde_json::Value;

const CANARY: &str = "CANARY";

/// Every way in which a secret has been seen to end up in a text.
fn leak() -> Line {
    Line::from(
        "wss://user:CANARY@host/x?token=CANARY&x=1 Authorization: Bearer CANARY Basic CANARY eyJCANARY.CANARY.CANARY \
         password=CANARY;x client_secret=CANARY",
    )
}

#[test]
fn a_secret_in_any_text_does_not_reach_the_page() {
    let snapshot = Snapshot {
        agent: Agent {
            id: leak(),
            cluster_uuid: leak(),
            cluster_name: leak(),
            reason: leak(),
            control_plane: leak(),
            version: leak(),
            kubernetes_version: leak(),
            ..Agent::default()
        },
        containers: vec![Container {
            name: leak(),
            version: leak(),
            conditions: vec![Condition {
                name: leak(),
                reason: leak(),
                ..Condition::default()
            }],
            ..Container::default()
        }],
        heartbeats: vec![Heartbeat {
            error: leak(),
            ..Heartbeat::default()
        }],
        tunnel: Tunnel {
            reason: leak(),
            server: leak(),
            fingerprint: leak(),
            forwards: vec![Forward {
                name: leak(),
                target: leak(),
                dials: leak(),
                reason: leak(),
                ..Forward::default()
            }],
            ..Tunnel::default()
        },
        proxy: Proxy {
            doors: vec![Door {
                name: leak(),
                address: leak(),
                reason: leak(),
                ..Door::default()
            }],
            certificate_sha256: leak(),
            upstream: leak(),
            ..Proxy::default()
        },
        streams: vec![OpenStream {
            door: leak(),
            user: leak(),
            method: leak(),
            path: leak(),
            ..OpenStream::default()
        }],
    };
    let shown = serde_json::to_string(&snapshot).unwrap();
    assert!(shown.contains("***@host"), "{shown}");
    assert!(!shown.contains(CANARY), "{shown}");
    let (_feed, snapshots) = feed(snapshot);
    assert!(!format!("{snapshots:?}").contains(CANARY));
}

#[test]
fn no_field_is_made_for_a_secret() {
    let snapshot = Snapshot {
        containers: vec![Container {
            conditions: vec![Condition::default()],
            ..Container::default()
        }],
        heartbeats: vec![Heartbeat::default()],
        tunnel: Tunnel {
            forwards: vec![Forward::default()],
            ..Tunnel::default()
        },
        proxy: Proxy {
            doors: vec![Door::default()],
            ..Proxy::default()
        },
        streams: vec![OpenStream::default()],
        ..Snapshot::default()
    };
    let mut names = Vec::new();
    collect(&serde_json::to_value(&snapshot).unwrap(), &mut names);
    assert!(
        names.len() > 70,
        "every kind of row is looked at: {}",
        names.len()
    );
    for name in names {
        for word in [
            "token",
            "secret",
            "password",
            "credential",
            "bearer",
            "cookie",
            "key",
            "header",
            "body",
            "query",
        ] {
            assert!(!name.contains(word), "{name}");
        }
    }
}

fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.push(name.clone());
                collect(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
