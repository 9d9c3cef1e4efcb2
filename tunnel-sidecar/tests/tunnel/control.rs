//! Sight and control over gRPC, and who may use them.

use proto::v1::{
    CloseConnectionRequest, GetTunnelRequest, ListConnectionsRequest, ReconnectRequest, WatchTunnelRequest,
    tunnel_client::TunnelClient,
};
use runtime::{
    local::{LocalChannel, channel},
    secret::TokenFile,
    supervise::Outcome,
};
use tokio::io::AsyncWriteExt as _;
use tonic::Code;
use tunnel_sidecar::BUILD;

use crate::world::*;

#[tokio::test]
async fn connections_are_listed_and_closed() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    // One after the other, because the server opens channels of users that come together in any order.
    let mut first = user(port).await;
    echo(&mut first, "12345").await;
    let mut second = user(port).await;
    echo(&mut second, "123").await;
    let mut client = world.client.clone();
    let list = client
        .list_connections(ListConnectionsRequest {})
        .await
        .unwrap()
        .into_inner()
        .connections;
    let seen: Vec<_> = list
        .iter()
        .map(|open| (open.forward.as_str(), open.bytes_in, open.bytes_out))
        .collect();
    assert_eq!(seen, [("a", 5, 5), ("a", 3, 3)]);
    assert_eq!(list[0].target, target.address());
    assert!(list[0].age_ms >= list[0].idle_ms && list[0].age_ms >= list[1].age_ms);
    assert!(
        list.iter()
            .all(|open| open.session == list[0].session && open.session > 0)
    );
    client
        .close_connection(CloseConnectionRequest { id: list[0].id })
        .await
        .unwrap();
    until_closed(&mut first).await;
    echo(&mut second, "the other one lives").await;
    let unknown = client
        .close_connection(CloseConnectionRequest { id: 4711 })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn reconnect_opens_a_new_session_and_the_watch_tells() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut client = world.client.clone();
    let mut watch = client
        .watch_tunnel(WatchTunnelRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listening(&watch.message().await.unwrap().unwrap()), ["a"]);
    client
        .reconnect(ReconnectRequest {
            reason: "because".to_owned(),
        })
        .await
        .unwrap();
    loop {
        let report = tokio::time::timeout(PATIENCE, watch.message())
            .await
            .expect("news")
            .unwrap()
            .unwrap();
        if report.status.as_ref().unwrap().connects_total == 2 && listening(&report) == ["a"] {
            break;
        }
    }
    eventually("bytes", || echoes(port)).await;
}

#[tokio::test]
async fn only_those_with_a_token_are_heard() {
    let world = World::start(&[]).await;
    let address = format!("http://{}", world.grpc);
    let call = async |token: &str| {
        let file = world.dir.path().join("shown");
        std::fs::write(&file, token).unwrap();
        let client: LocalChannel = channel(&address, TokenFile::new(file), BUILD).unwrap();
        TunnelClient::new(client)
            .get_tunnel(GetTunnelRequest {})
            .await
            .map(|_| ())
            .map_err(|status| status.code())
    };
    let edge = std::fs::read_to_string(world.dir.path().join("edge/token")).unwrap();
    let operator = std::fs::read_to_string(world.dir.path().join("private/operator-token")).unwrap();
    assert_eq!(call(&edge).await, Ok(()));
    assert_eq!(call(&operator).await, Ok(()));
    assert_eq!(call("guess").await, Err(Code::Unauthenticated));
}

#[tokio::test]
async fn a_drain_is_asked_for_over_grpc() {
    let world = World::start(&[]).await;
    let operator = TokenFile::new(world.dir.path().join("private/operator-token"));
    let channel = channel(&format!("http://{}", world.grpc), operator, BUILD).unwrap();
    let request = proto::v1::DrainRequest {
        reason: "a person says so".to_owned(),
    };
    proto::v1::process_client::ProcessClient::new(channel)
        .drain(request)
        .await
        .unwrap();
    let ended = tokio::time::timeout(PATIENCE, world.supervisor.finish());
    assert_eq!(ended.await.expect("the end"), Outcome::Clean);
}

#[tokio::test]
async fn a_drain_lets_open_connections_finish_and_takes_no_new_ones() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::echo().await;
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
    world.until_listening(1).await;
    let mut held = user(port).await;
    echo(&mut held, "before").await;
    world.supervisor.drain("the test says so");
    let supervisor = world.supervisor.clone();
    let finished = tokio::spawn(async move { supervisor.finish().await });
    assert!(
        until_closed(&mut user(port).await).await.is_empty(),
        "no new connections"
    );
    echo(&mut held, "the open one goes on").await;
    let report = world
        .core
        .reported(|report| condition(report, "Tunnel").1.contains("shutting down"))
        .await;
    assert!(!report.ready);
    assert!(!finished.is_finished());
    held.shutdown().await.unwrap();
    drop(held);
    let outcome = tokio::time::timeout(PATIENCE, finished)
        .await
        .expect("the end")
        .unwrap();
    assert_eq!(outcome, Outcome::Clean);
    eventually("the server to see the goodbye", || async {
        chisel.log().contains("SSH disconnected").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_drain_without_connections_ends_at_once_and_the_deadline_cuts_the_rest() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let target = Target::stalled().await;
    for connections in [0, 1] {
        let env = [("PIPEOPS_TARGET_K8S_PROXY", target.address())];
        let world = World::start_with(&env, |config| {
            config.common.drain_timeout =
                std::time::Duration::from_secs(if connections == 0 { 600 } else { 1 });
        })
        .await;
        let port = free_port().await;
        world.core.send(spec(&chisel.url(), &[("a", port, "k8s-proxy")]));
        world.until_listening(1).await;
        let mut held = Vec::new();
        for _ in 0..connections {
            held.push(user(port).await);
        }
        target.until_open(connections).await;
        let outcome = tokio::time::timeout(PATIENCE, world.finish())
            .await
            .expect("the end");
        assert_eq!(outcome, Outcome::Clean);
        for mut tcp in held {
            until_closed(&mut tcp).await;
        }
    }
}
