//! Whose credential goes upstream, and what the sibling may touch.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Setup, Socket, request, text};

#[tokio::test]
async fn the_callers_own_credential_is_never_replaced_by_ours() {
    let setup = Setup::start().await;
    let address = setup.proxy.addresses.door_http;
    let mut socket = Socket::connect(address, "/ws/k8s", "caller-token").await;
    for name in ["Authorization", "authorization", "AUTHORIZATION"] {
        socket
            .send(
                json!({"id": "a", "method": "GET", "path": "/api/v1/pods", "headers": {name: "Bearer USER"}}),
            )
            .await;
        assert_eq!(
            socket.next().await.json()["headers"]["authorization"],
            "Bearer USER"
        );
    }
    socket.send(json!({"id": "a", "method": "GET", "path": "/api/v1/pods", "headers": {"Authorization": ["Bearer USER"]}})).await;
    assert_eq!(
        socket.next().await.json()["headers"]["authorization"],
        "Bearer USER"
    );
    let before = setup.api.seen().len();
    socket.get("none", "/api/v1/pods").await;
    assert_eq!(socket.next().await.status(), 401);
    assert_eq!(
        setup.api.seen().len(),
        before,
        "without a credential nothing is sent"
    );

    let mut ask = request(Method::GET, "/api/v1/pods", "USER");
    ask.headers_mut()
        .insert("x-pipeops-token", "caller-token".parse().unwrap());
    let seen: Value = serde_json::from_str(&text(setup.proxy.send(ask).await).await.1).unwrap();
    assert_eq!(seen["headers"]["authorization"], "Bearer USER");
    assert!(seen["headers"].get("x-pipeops-token").is_none());
    assert_eq!(
        setup.proxy.get("/api/v1/pods", "caller-token").await.0.as_u16(),
        401
    );
}

#[tokio::test]
async fn nothing_a_caller_says_makes_it_somebody_else() {
    let setup = Setup::start().await;
    let mut socket = setup.socket().await;
    let headers = json!({
        "Authorization": "Bearer stolen", "Impersonate-User": "admin", "impersonate_group": "system:masters",
        "X-Remote-User": "admin", "X_Remote_Group": "system:masters", "Connection": "authorization, x-kept",
        "X-Kept": "no", "Accept": "application/json",
    });
    socket
        .send(json!({"id": "a", "method": "GET", "path": "/api/v1/pods", "headers": headers}))
        .await;
    let seen = socket.next().await.json()["headers"].clone();
    assert_eq!(seen["authorization"], "Bearer own-token");
    let mut names: Vec<_> = seen.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "authorization", "host"]);
    socket
        .send(
            json!({"id": "b", "method": "GET", "path": "/api/v1/pods", "headers": {"Pipeops-User": "alice"}}),
        )
        .await;
    assert_eq!(
        socket.next().await.status(),
        403,
        "this door speaks for nobody else"
    );
}

#[tokio::test]
async fn a_person_is_impersonated_only_if_the_owner_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, "impersonate: {users: [alice], groups: [dev]}").unwrap();
    let flags = ["--policy-file", policy.to_str().unwrap()];
    let setup = Setup::with(crate::support::Api::start().await, &flags).await;
    let mut socket = Socket::connect(
        setup.proxy.addresses.door_http,
        "/ws/control-plane",
        "person-token",
    )
    .await;
    for (user, groups, status) in [
        ("alice", "dev", 200),
        ("bob", "dev", 403),
        ("alice", "ops", 403),
        ("system:admin", "", 403),
        ("", "", 400),
    ] {
        let headers = json!({"Pipeops-User": user, "Pipeops-Groups": groups, "Authorization": "Bearer x"});
        socket
            .send(json!({"id": "a", "method": "GET", "path": "/api/v1/pods", "headers": headers}))
            .await;
        let answer = socket.next().await;
        assert_eq!(answer.status(), status, "{user} {groups}: {}", answer.error());
        if status == 200 {
            let seen = answer.json()["headers"].clone();
            assert_eq!(
                (
                    seen["impersonate-user"].as_str(),
                    seen["impersonate-group"].as_str()
                ),
                (Some("alice"), Some("dev"))
            );
            assert_eq!(seen["authorization"], "Bearer own-token");
        }
    }
    socket.get("nobody", "/api/v1/pods").await;
    assert_eq!(socket.next().await.status(), 401);
    assert_eq!(setup.api.seen().len(), 1);
}

#[tokio::test]
async fn agent_core_reaches_its_own_objects_and_nothing_else() {
    let setup = Setup::start().await;
    let edge = setup.proxy.edge_token();
    for (method, path, status) in [
        ("GET", "/api/v1/namespaces/pipeops/secrets/state", 200),
        ("PUT", "/api/v1/namespaces/pipeops/secrets/state", 200),
        (
            "PATCH",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/lease",
            200,
        ),
        ("GET", "/api/k8s/api/v1/namespaces/pipeops/pods/pod", 200),
        ("GET", "/api/v1/pods?limit=1", 200),
        ("GET", "/version", 200),
        ("POST", "/api/v1/namespaces/pipeops/events", 200),
        ("DELETE", "/api/v1/namespaces/pipeops/secrets/state", 403),
        ("GET", "/api/v1/namespaces/pipeops/secrets/other", 403),
        ("GET", "/api/v1/namespaces/pipeops/secrets", 403),
        ("GET", "/api/v1/namespaces/other/secrets/state", 403),
        ("GET", "/api/v1/pods", 403),
        ("GET", "/api/v1/pods?limit=1&watch=true", 403),
        ("POST", "/api/v1/namespaces/pipeops/configmaps", 403),
    ] {
        let answer = setup
            .proxy
            .send(request(method.parse().unwrap(), path, &edge))
            .await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
    }
    let refused = Socket::try_connect(setup.proxy.addresses.door_http, "/ws/k8s", &edge).await;
    assert_eq!(refused.err().unwrap().as_u16(), 401, "a socket is not for it");
}

#[tokio::test]
async fn agent_core_reads_its_state_before_there_is_a_spec() {
    let api = crate::support::Api::start().await;
    runtime::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "edge").unwrap();
    let proxy = crate::support::Proxy::start(&api, "127.0.0.1:1", dir, &[]).await;
    let (status, _) = proxy
        .get("/api/v1/namespaces/pipeops/secrets/pipeops-agent-state", "edge")
        .await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!(
        proxy.get("/api/v1/pods", "door-token").await.0.as_u16(),
        503,
        "nobody else is known yet, and no token is wrong"
    );
}
