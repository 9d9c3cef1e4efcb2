use super::*;
use crate::wait::eventually;

async fn order(control_plane: &ControlPlane, order: Value) -> u16 {
    post(control_plane, "/faults", order).await.0
}

#[tokio::test]
async fn it_answers_what_it_was_told_without_the_secrets_in_it() {
    let control_plane = plain().await;
    let body = json!({ "agent_id": "a", "name": "lab", "k8s_service_token": "canary" });
    let (_, answer) = register(&control_plane, body).await;
    let id = answer["cluster_id"].as_str().unwrap();
    for _ in 0..3 {
        beat(&control_plane, id).await;
    }
    let (_, clusters) = get(&control_plane, "/clusters").await;
    assert_eq!(
        (&clusters[0]["cluster_id"], &clusters[0]["heartbeats"]),
        (&json!(id), &json!(3))
    );
    let (_, beats) = get(&control_plane, &format!("/clusters/{id}/heartbeats?limit=2")).await;
    assert_eq!(
        (beats.as_array().unwrap().len(), &beats[0]["body"]["status"]),
        (2, &json!("healthy"))
    );
    let (_, calls) = get(&control_plane, &format!("/clusters/{id}/registrations")).await;
    assert!(!calls.to_string().contains("canary"), "{calls}");
    assert_eq!(calls[0]["body"]["name"], "lab");
    assert_eq!(
        control_plane.registrations(id)[0].body["k8s_service_token"],
        "canary"
    );
    let (_, tunnel) = get(&control_plane, &format!("/clusters/{id}/tunnel")).await;
    assert_eq!(tunnel["server"], Value::Null);
    let (_, requests) = get(&control_plane, "/requests").await;
    assert_eq!(
        requests["POST /api/v1/clusters/agent/register"],
        json!({ "total": 1, "by_status": { "201": 1 } })
    );
    for path in [
        "",
        "/heartbeats",
        "/registrations",
        "/tunnel",
        "/links",
        "/kubeconfig",
    ] {
        assert_eq!(
            get(&control_plane, &format!("/clusters/nobody{path}")).await.0,
            404,
            "{path}"
        );
    }
}

#[tokio::test]
async fn links_are_listed_while_they_are_open() {
    let control_plane = plain().await;
    let (id, peer, _) = Peer::linked(&control_plane).await;
    let path = format!("/clusters/{id}/links");
    let (_, links) = get(&control_plane, &path).await;
    assert_eq!(
        (&links[0]["direction"], &links[0]["open_streams"]),
        (&json!("from-proxy"), &json!(0))
    );
    drop(peer);
    eventually("the link to go", async || {
        (get(&control_plane, &path).await.1 == json!([])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn faults_are_ordered_over_http_too() {
    let control_plane = plain().await;
    let (id, mut peer, link) = Peer::linked(&control_plane).await;
    let refuse = json!({ "refuse": { "route": "heartbeat", "status": 500, "retry_after": 1, "times": 1 } });
    assert_eq!(order(&control_plane, refuse).await, 200);
    assert_eq!(get(&control_plane, "/faults").await.1[0]["refuse"]["status"], 500);
    assert_eq!(
        (
            beat(&control_plane, &id).await.0,
            beat(&control_plane, &id).await.0
        ),
        (500, 200)
    );
    assert_eq!(
        order(&control_plane, json!({ "hang": { "route": "any" } })).await,
        200
    );
    assert_eq!(order(&control_plane, json!({ "clear": true })).await, 200);
    assert_eq!(
        order(
            &control_plane,
            json!({ "stall_links": { "cluster": id, "on": true } })
        )
        .await,
        200
    );
    assert!(link.view().stalled);
    assert_eq!(order(&control_plane, json!({ "close_links": id })).await, 200);
    assert_eq!(peer.next().await, None);
    assert_eq!(order(&control_plane, json!({ "forget": id })).await, 200);
    assert_eq!(order(&control_plane, json!({ "forget": id })).await, 409);
    assert_eq!(
        order(&control_plane, json!({ "chisel": "kill" })).await,
        409,
        "there is none"
    );
    assert_eq!(order(&control_plane, json!({ "unknown": true })).await, 400);
    assert_eq!(order(&control_plane, json!({ "redeploy": true })).await, 200);
}

#[tokio::test]
async fn down_over_http_comes_back_by_itself() {
    let control_plane = plain().await;
    assert_eq!(
        order(&control_plane, json!({ "down": { "seconds": 1 } })).await,
        200
    );
    let address = control_plane.api_address();
    eventually("the port to go", async || TcpStream::connect(address).await.err()).await;
    eventually("the port to come back", async || {
        TcpStream::connect(address).await.ok()
    })
    .await;
    assert_eq!(get(&control_plane, "/health").await.0, 200);
}

#[tokio::test]
async fn from_elsewhere_the_admin_token_is_needed() {
    // Without a door the router sees no loopback peer, so the peer is set by hand.
    use tower::ServiceExt;
    let control_plane = plain().await;
    let ask = async |token: &str| {
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let request = http::Request::get("/clusters")
            .header("authorization", format!("Bearer {token}"))
            .extension(axum::extract::ConnectInfo(peer))
            .body(axum::body::Body::empty());
        super::super::people::router(&control_plane.state)
            .oneshot(request.unwrap())
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(
        (ask("wrong").await, ask(control_plane.admin_token()).await),
        (401, 200)
    );
}
