use super::*;
use crate::wait::eventually;

#[tokio::test]
async fn a_refusal_strikes_as_often_as_asked_with_its_retry_after() {
    let control_plane = plain().await;
    control_plane.refuse(
        Route::Register,
        Answer::status(503).retry_after(2),
        Times::Count(2),
    );
    let url = format!("{}/api/v1/clusters/agent/register", control_plane.api_url());
    for _ in 0..2 {
        let response = client()
            .post(&url)
            .bearer_auth(TOKEN)
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &"2".parse().unwrap())
        );
    }
    assert_eq!(register(&control_plane, json!({ "agent_id": "a" })).await.0, 201);
    let statuses: Vec<_> = control_plane
        .attempts()
        .iter()
        .map(|attempt| attempt.status)
        .collect();
    assert_eq!(statuses, [503, 503, 201]);
}

#[tokio::test]
async fn a_hung_request_goes_on_when_the_faults_are_cleared() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    control_plane.hang(Route::Heartbeat, Times::Always);
    let label = "POST /api/v1/clusters/agent/{id}/heartbeat";
    let there = async || {
        control_plane
            .requests()
            .get(label)
            .filter(|count| count.total == 1)
            .cloned()
    };
    let look = async {
        let (count, _) = eventually("the hung request to be counted", there).await;
        assert_eq!(
            get(&control_plane, "/health").await.0,
            200,
            "other requests are answered"
        );
        assert!(count.by_status.is_empty());
        control_plane.clear_faults();
    };
    let (hung, ()) = tokio::join!(beat(&control_plane, &id), look);
    assert_eq!(hung.0, 200);
}

#[tokio::test]
async fn down_takes_the_port_and_the_links_away_and_up_brings_the_same_port_back() {
    let control_plane = plain().await;
    let (id, mut peer, link) = Peer::linked(&control_plane).await;
    control_plane.down().await;
    assert!(TcpStream::connect(control_plane.api_address()).await.is_err());
    assert_eq!(peer.next().await, None);
    assert!(link.closed().await.contains("down"));
    control_plane.up().await.unwrap();
    assert_eq!(beat(&control_plane, &id).await.0, 200);
}

#[tokio::test]
async fn a_redeploy_cuts_links_and_keeps_clusters() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    control_plane.redeploy();
    assert_eq!(peer.next().await, None);
    assert!(control_plane.links(&id).is_empty());
    assert_eq!(beat(&control_plane, &id).await.0, 200);
}

#[tokio::test]
async fn a_forgotten_cluster_loses_its_link_and_its_proxy_token() {
    let control_plane = plain().await;
    let (id, url, token) = registered(&control_plane).await;
    let mut peer = Peer::dial(&url, &token).await.unwrap();
    control_plane.wait_link(&id).await;
    control_plane.forget(&id).unwrap();
    assert_eq!(peer.next().await, None);
    assert!(Peer::dial(&url, &token).await.is_err());
    assert!(control_plane.forget(&id).is_err());
}

#[tokio::test]
async fn when_it_is_dropped_its_ports_are_free() {
    let control_plane = plain().await;
    let (api, front) = (
        control_plane.api_address(),
        control_plane.front_address().unwrap(),
    );
    let (_, mut peer, _) = Peer::linked(&control_plane).await;
    drop(control_plane);
    assert_eq!(peer.next().await, None);
    for address in [api, front] {
        eventually("the port to be free", async || {
            TcpStream::connect(address).await.err()
        })
        .await;
    }
}
