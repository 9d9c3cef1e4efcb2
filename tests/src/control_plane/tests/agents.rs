use super::*;

#[tokio::test]
async fn an_agent_registers_and_keeps_its_cluster() {
    let control_plane = plain().await;
    let (status, first) = register(
        &control_plane,
        json!({ "agent_id": "a", "name": "lab", "region": "eu" }),
    )
    .await;
    assert_eq!(status, 201);
    let id = first["cluster_id"].as_str().unwrap();
    assert_eq!(
        (&first["cluster"]["uuid"], &first["data"]["cluster_id"]),
        (&json!(id), &json!(id))
    );
    assert_eq!(
        (&first["cluster"]["region"], first["workspace_id"].is_u64()),
        (&json!("eu"), true)
    );
    let (status, again) = register(&control_plane, json!({ "agent_id": "a", "name": "new name" })).await;
    assert_eq!(
        (status, &again["cluster_id"], &again["name"]),
        (200, &json!(id), &json!("new name"))
    );
    assert_eq!(
        (&first["proxy_token"], &first["proxy_url"]),
        (&again["proxy_token"], &again["proxy_url"])
    );
    let (_, other) = register(&control_plane, json!({ "agent_id": "b", "cluster_id": "c-7" })).await;
    assert_eq!(other["cluster_id"], "c-7");
    assert_eq!(control_plane.clusters().len(), 2);
    assert_eq!(control_plane.registrations(id).len(), 2);
}

#[tokio::test]
async fn a_second_registration_may_be_a_conflict_that_carries_the_cluster() {
    let control_plane = start(|config| config.known_agent = KnownAgent::Conflict).await;
    let (_, first) = register(&control_plane, json!({ "agent_id": "a" })).await;
    let (status, again) = register(&control_plane, json!({ "agent_id": "a" })).await;
    assert_eq!((status, &again["cluster_id"]), (409, &first["cluster_id"]));
}

#[tokio::test]
async fn without_the_token_nothing_is_told_or_kept() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    let paths = [
        ("POST", "/api/v1/clusters/agent/register".to_owned()),
        ("POST", format!("/api/v1/clusters/agent/{id}/heartbeat")),
        ("GET", "/api/v1/tunnel/status?agent_id=a".to_owned()),
        ("GET", "/api/agents/a/tunnel/status".to_owned()),
        ("GET", format!("/api/v1/clusters/agent/{id}/proxy")),
    ];
    for (method, path) in paths {
        for token in ["", "wrong", "agents-tokeX"] {
            let url = format!("{}{path}", control_plane.api_url());
            let request = client()
                .request(method.parse().unwrap(), &url)
                .bearer_auth(token)
                .json(&json!({}));
            assert_eq!(
                request.send().await.unwrap().status().as_u16(),
                401,
                "{method} {path} with {token:?}"
            );
        }
    }
    assert_eq!(control_plane.clusters().len(), 1);
    assert!(control_plane.heartbeats(&id).is_empty());
    assert_eq!(
        control_plane
            .attempts()
            .iter()
            .filter(|attempt| attempt.status == 401)
            .count(),
        3
    );
}

#[tokio::test]
async fn bad_bodies_are_refused_and_the_next_good_one_is_taken() {
    let control_plane = plain().await;
    assert_eq!(register(&control_plane, json!({ "name": "nobody" })).await.0, 400);
    assert_eq!(register(&control_plane, json!([1])).await.0, 400);
    let url = format!("{}/api/v1/clusters/agent/register", control_plane.api_url());
    let response = client()
        .post(url)
        .bearer_auth(TOKEN)
        .body("{")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 400);
    assert_eq!(register(&control_plane, json!({ "agent_id": "a" })).await.0, 201);
    assert_eq!(control_plane.attempts().len(), 4);
}

#[tokio::test]
async fn heartbeats_are_kept_until_the_cluster_is_forgotten() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    assert_eq!(
        beat(&control_plane, "unknown").await,
        (404, json!({"success": false, "error": "cluster not registered"}))
    );
    assert_eq!(beat(&control_plane, &id).await.0, 200);
    assert_eq!(control_plane.heartbeats(&id)[0].body["status"], "healthy");
    control_plane.forget(&id).unwrap();
    assert_eq!(beat(&control_plane, &id).await.0, 404);
    let (status, back) = register(&control_plane, json!({ "agent_id": "a", "cluster_id": id })).await;
    assert_eq!((status, &back["cluster_id"]), (201, &json!(id)));
    assert_eq!(beat(&control_plane, &id).await.0, 200);
    let counts = &control_plane.requests()["POST /api/v1/clusters/agent/{id}/heartbeat"];
    assert_eq!(
        (counts.total, counts.by_status[&404], counts.by_status[&200]),
        (4, 2, 2)
    );
}

#[tokio::test]
async fn waiting_for_heartbeats_counts_new_ones_only() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    beat(&control_plane, &id).await;
    let waiting = control_plane.wait_heartbeats(&id, 2);
    let beating = async {
        beat(&control_plane, &id).await;
        beat(&control_plane, &id).await;
    };
    tokio::join!(waiting, beating);
    assert_eq!(control_plane.heartbeats(&id).len(), 3);
}

#[tokio::test]
async fn the_offered_paths_of_the_tunnels_status_are_a_setting() {
    for (api, seeds, older) in [
        (TunnelApi::Seeds, 200, 404),
        (TunnelApi::Older, 404, 200),
        (TunnelApi::Both, 200, 200),
    ] {
        let control_plane = start(|config| config.tunnel_api = api).await;
        registered(&control_plane).await;
        assert_eq!(
            get(&control_plane, "/api/v1/tunnel/status?agent_id=a").await.0,
            seeds,
            "{api:?}"
        );
        assert_eq!(
            get(&control_plane, "/api/agents/a/tunnel/status").await.0,
            older,
            "{api:?}"
        );
    }
}

#[tokio::test]
async fn without_chisel_the_tunnel_is_idle() {
    let control_plane = plain().await;
    registered(&control_plane).await;
    let (_, status) = get(&control_plane, "/api/agents/a/tunnel/status").await;
    assert_eq!(
        status,
        json!({ "status": "IDLE", "forwards": [], "poll_frequency": 5 })
    );
    assert_eq!(
        get(&control_plane, "/api/agents/stranger/tunnel/status").await.0,
        404
    );
}

#[tokio::test]
async fn over_tls_the_authority_is_needed_and_enough() {
    let control_plane = start(|config| config.tls = true).await;
    let url = format!("{}/health", control_plane.api_url());
    assert!(url.starts_with("https://"));
    assert!(client().get(&url).send().await.is_err());
    assert_eq!(
        trusting(&control_plane)
            .get(&url)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16(),
        200
    );
}

#[tokio::test]
async fn a_rotated_token_replaces_the_old_one() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    control_plane.set_token("another");
    let url = format!("{}/api/v1/clusters/agent/{id}/heartbeat", control_plane.api_url());
    let old = client()
        .post(url)
        .bearer_auth(TOKEN)
        .json(&json!({}))
        .send()
        .await
        .unwrap();
    assert_eq!(old.status().as_u16(), 401);
    assert_eq!(beat(&control_plane, &id).await.0, 200);
}
