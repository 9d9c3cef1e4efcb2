use super::*;
use crate::wait::eventually;

#[tokio::test]
async fn only_the_proxys_own_token_opens_a_link() {
    let control_plane = plain().await;
    let (_, url, token) = registered(&control_plane).await;
    assert!(Peer::dial(&url, TOKEN).await.is_err());
    assert!(Peer::dial(&url, &token).await.is_ok());
    let response = client()
        .get(url.replace("ws://", "http://"))
        .bearer_auth(&token)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 426);
}

#[tokio::test]
async fn calls_are_answered_each_by_its_own_frame_whatever_the_order() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let (pods, nodes) = (
        Call::get("/api/v1/pods").query("limit", "1"),
        Call::get("/api/v1/nodes"),
    );
    let script = async {
        let (first, second) = (peer.next().await.unwrap(), peer.next().await.unwrap());
        for request in [&second, &first] {
            peer.answer(request, 200, &format!("{:?}", request["path"])).await;
        }
        (first, second)
    };
    let (pods, nodes, (first, _)) = tokio::join!(link.request(&pods), link.request(&nodes), script);
    assert_eq!(pods.unwrap().body, "String(\"/api/v1/pods\")");
    assert_eq!(nodes.unwrap().body, "String(\"/api/v1/nodes\")");
    assert_eq!(
        (&first["query"], &first["stream"]),
        (&json!({ "limit": ["1"] }), &json!(false))
    );
    assert_eq!(link.open_streams(), 0);
}

#[tokio::test]
async fn a_stream_brings_its_pieces_in_order_and_its_end() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        for number in 0..500 {
            peer.chunk(&request, &format!("{number},")).await;
        }
        peer.done(&request, "").await;
    };
    let call = Call::get("/api/v1/pods").query("watch", "true");
    let (stream, ()) = tokio::join!(link.stream(&call), script);
    let stream = stream.unwrap();
    assert_eq!(
        (stream.status(), stream.stream_id()),
        (200, format!("{}-stream", stream.id()).as_str())
    );
    let want: String = (0..500).map(|number| format!("{number},")).collect();
    assert_eq!(stream.collect().await.unwrap(), want);
}

#[tokio::test]
async fn cancel_is_sent_with_both_ids_and_waits_for_the_last_frame() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let call = Call::get("/api/v1/pods").query("watch", "true");
    let begin = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        request
    };
    let (stream, request) = tokio::join!(link.stream(&call), begin);
    let script = async {
        peer.chunk(&request, "on its way").await;
        let cancel = peer.next().await.unwrap();
        assert_eq!(
            (&cancel["method"], &cancel["id"]),
            (&json!("CANCEL"), &request["id"])
        );
        assert_eq!(
            cancel["stream_id"],
            format!("{}-stream", request["id"].as_str().unwrap())
        );
        peer.done(&request, "").await;
        peer.chunk(&request, "too late").await;
    };
    let (end, ()) = tokio::join!(stream.unwrap().cancel(), script);
    assert_eq!(
        end.unwrap(),
        End {
            late_chunks: 1,
            error: String::new()
        }
    );
    eventually("the late frame to be noticed", async || {
        (link.stray() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dropped_stream_is_cancelled() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let call = Call::get("/api/v1/pods").query("watch", "true");
    let begin = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        request
    };
    let (stream, request) = tokio::join!(link.stream(&call), begin);
    drop(stream);
    let cancel = peer.next().await.unwrap();
    assert_eq!(
        (&cancel["method"], &cancel["id"]),
        (&json!("CANCEL"), &request["id"])
    );
    assert_eq!(link.open_streams(), 1, "until its last frame");
    peer.done(&request, "").await;
    eventually("the stream to be over", async || {
        (link.open_streams() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stalls_costs_its_own_stream_only() {
    let control_plane = start(|config| config.link.queue_bytes = 256 * 1024).await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let call = Call::get("/api/v1/pods").query("watch", "true");
    let begin = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        request
    };
    let (stalled, flood) = tokio::join!(link.stream(&call), begin);
    let mut stalled = stalled.unwrap();
    let piece = "x".repeat(4 * 1024);
    let script = async {
        for _ in 0..200 {
            peer.chunk(&flood, &piece).await;
        }
        let cancel = peer.next().await.unwrap();
        assert_eq!(
            (&cancel["method"], &cancel["id"]),
            (&json!("CANCEL"), &flood["id"])
        );
        peer.done(&flood, "").await;
        let request = peer.next().await.unwrap();
        peer.answer(&request, 200, "{}").await;
    };
    let nodes = Call::get("/api/v1/nodes");
    let other = async {
        eventually("the stalled stream to be ended", async || {
            (link.open_streams() == 0).then_some(())
        })
        .await;
        link.request(&nodes).await
    };
    let (other, ()) = tokio::join!(other, script);
    assert_eq!(other.unwrap().status, 200);
    let end = loop {
        match stalled.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert_eq!(end, Some(Err(LinkError::Overflow)));
}

#[tokio::test]
async fn when_the_link_breaks_every_call_hears_it_once() {
    let control_plane = plain().await;
    let (id, mut peer, link) = Peer::linked(&control_plane).await;
    let watch = Call::get("/api/v1/pods").query("watch", "true");
    let begin = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
    };
    let (stream, ()) = tokio::join!(link.stream(&watch), begin);
    let mut stream = stream.unwrap();
    let plain = Call::get("/api/v1/nodes");
    let break_it = async {
        peer.next().await.unwrap();
        drop(peer);
    };
    let (plain, ()) = tokio::join!(link.request(&plain), break_it);
    assert!(matches!(plain, Err(LinkError::Lost(_))), "{plain:?}");
    assert!(matches!(stream.next().await, Some(Err(LinkError::Lost(_)))));
    assert!(stream.next().await.is_none());
    assert!(control_plane.links(&id).is_empty());
    assert!(matches!(
        link.request(&Call::get("/")).await,
        Err(LinkError::Lost(_))
    ));
}

#[tokio::test]
async fn bad_frames_of_the_proxy_are_counted_and_end_nothing_else() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let mut tap = link.tap();
    peer.socket.send(Message::text("no json")).await.unwrap();
    peer.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    peer.send(json!({ "id": "nobody", "chunk": true })).await;
    let script = async {
        let request = peer.next().await.unwrap();
        peer.send(json!({ "id": request["id"], "status_code": 200, "body": "***" }))
            .await;
    };
    let call = Call::get("/x");
    let (broken, ()) = tokio::join!(link.request(&call), script);
    assert_eq!(
        (broken.unwrap().status, link.view().bad_frames_in, link.stray()),
        (502, 3, 1)
    );
    assert_eq!(tap.next().await.as_deref(), Some("no json"));
}

#[tokio::test]
async fn pings_of_the_protocol_go_both_ways() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let script = async {
        assert_eq!(peer.next().await.unwrap(), json!({ "type": "ping" }));
        peer.send(json!({ "type": "pong" })).await;
        peer.send(json!({ "type": "ping" })).await;
        assert_eq!(peer.next().await.unwrap(), json!({ "type": "pong" }));
    };
    let (pong, ()) = tokio::join!(link.ping(), script);
    pong.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_into_a_frame_or_takes_too_long_fails_alone() {
    let control_plane = start(|config| config.link.call_timeout = SOON).await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let large = Call::new("POST", "/api/v1/pods").body(vec![0; 1024 * 1024]);
    assert_eq!(link.request(&large).await, Err(LinkError::TooLarge(1024 * 1024)));
    assert_eq!(link.open_streams(), 0);
    assert_eq!(link.request(&Call::get("/slow")).await, Err(LinkError::Timeout));
    let request = peer.next().await.unwrap();
    let cancel = peer.next().await.unwrap();
    assert_eq!(
        (&cancel["method"], &cancel["id"]),
        (&json!("CANCEL"), &request["id"])
    );
}

#[tokio::test]
async fn a_stalled_link_fills_the_proxys_side_and_goes_on_afterwards() {
    let control_plane = plain().await;
    let (id, mut peer, link) = Peer::linked(&control_plane).await;
    control_plane.stall_links(&id, true);
    let piece =
        Message::text(json!({ "id": "nobody", "chunk": true, "body": "A".repeat(1 << 20) }).to_string());
    let fill = async {
        let mut sent = 0_u64;
        while let Ok(done) = tokio::time::timeout(SOON, peer.socket.send(piece.clone())).await {
            done.unwrap();
            sent += 1;
        }
        sent
    };
    let sent = fill.await;
    assert!(link.stray() <= 1, "at most the message that was being read");
    control_plane.stall_links(&id, false);
    peer.socket.flush().await.unwrap();
    eventually("the rest to be read", async || {
        (link.stray() >= sent).then_some(())
    })
    .await;
    assert!(link.is_open());
}

#[tokio::test]
async fn it_dials_a_served_socket_with_the_token_of_the_agents() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = links_url(listener.local_addr().unwrap());
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut bearer = None;
        #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
        let check = |request: &http::Request<()>, response: http::Response<()>| {
            bearer = request.headers().get("authorization").cloned();
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(tcp, check).await.unwrap();
        (socket, bearer)
    };
    let (link, (socket, bearer)) = tokio::join!(control_plane.dial(&id, &url, TOKEN), serve);
    let link = link.unwrap();
    assert_eq!(bearer.unwrap(), "Bearer agents-token");
    assert_eq!(link.direction(), Direction::ToProxy);
    drop(socket);
    link.closed().await;
    assert!(
        control_plane
            .dial(&id, &url.replace("ws:", "wss:"), TOKEN)
            .await
            .is_err()
    );
}

fn links_url(address: SocketAddr) -> String {
    super::super::links::forward_url(address)
}

#[tokio::test]
async fn closing_in_order_says_so_to_the_proxy() {
    let control_plane = plain().await;
    let (_, mut peer, link) = Peer::linked(&control_plane).await;
    let close = async {
        loop {
            if let Some(Ok(Message::Close(frame))) = peer.socket.next().await {
                break frame.unwrap().code;
            }
        }
    };
    let ((), code) = tokio::join!(link.close(1001), close);
    assert_eq!((u16::from(code), link.is_open()), (1001, false));
}

#[tokio::test]
async fn over_tls_the_proxys_own_client_trusts_the_authority_and_hears_when_to_come_again() {
    use runtime::websocket::{Connect, ConnectError, connect};
    let control_plane = start(|config| config.tls = true).await;
    let url = format!("{}/api/v1/clusters/agent/register", control_plane.api_url());
    let register = trusting(&control_plane)
        .post(url)
        .bearer_auth(TOKEN)
        .json(&json!({ "agent_id": "a" }));
    let answer: Value = register.send().await.unwrap().json().await.unwrap();
    let url: url::Url = answer["proxy_url"].as_str().unwrap().parse().unwrap();
    assert_eq!(url.scheme(), "wss");
    let bearer = answer["proxy_token"].as_str().unwrap().into();
    let dial = async |roots: Option<&[u8]>| {
        let tls = runtime::tls::client_config(roots, &[]).unwrap();
        let (bearer, timeout) = (Some(&bearer), patience());
        connect(Connect {
            url: &url,
            bearer,
            subprotocol: None,
            tls,
            timeout,
            max_message: 1024,
        })
        .await
    };
    assert!(
        matches!(dial(None).await, Err(ConnectError::Tls(_))),
        "nobody knows this authority"
    );
    control_plane.refuse(
        Route::ProxyDial,
        Answer::status(503).retry_after(7),
        Times::Count(1),
    );
    match dial(Some(control_plane.ca_pem().as_bytes())).await {
        Err(ConnectError::Refused {
            status, retry_after, ..
        }) => {
            assert_eq!(
                (status.as_u16(), retry_after),
                (503, Some(Duration::from_secs(7)))
            );
        }
        other => panic!("{other:?}"),
    }
    let _socket = dial(Some(control_plane.ca_pem().as_bytes())).await.unwrap();
    control_plane
        .wait_link(answer["cluster_id"].as_str().unwrap())
        .await;
}
