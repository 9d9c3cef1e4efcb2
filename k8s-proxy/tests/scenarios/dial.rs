//! Doors that are dialled out.

use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::handshake::server::{ErrorResponse, Request, Response},
};

use crate::support::{Setup, Socket, dialled, eventually, soon, spec};

struct ControlPlane {
    listener: TcpListener,
}

impl ControlPlane {
    async fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    fn url(&self) -> String {
        format!("ws://{}/agents/proxy", self.listener.local_addr().unwrap())
    }

    async fn accept(&self) -> Socket {
        let (tcp, _) = soon("the proxy dials", self.listener.accept()).await.unwrap();
        Socket::over(handshake(tcp).await)
    }
}

async fn handshake(tcp: TcpStream) -> WebSocketStream<TcpStream> {
    #[expect(clippy::result_large_err, reason = "the signature of the library's callback")]
    fn check(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        let expected =
            request.headers()["authorization"] == "Bearer session" && request.uri().path() == "/agents/proxy";
        if expected {
            Ok(response)
        } else {
            Err(ErrorResponse::new(None))
        }
    }
    soon("the handshake", accept_hdr_async(tcp, check)).await.unwrap()
}

#[tokio::test]
async fn a_dialled_door_serves_frames_and_comes_back() {
    let setup = Setup::start().await;
    let plane = ControlPlane::start().await;
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![dialled(&plane.url())],
        ..spec(2)
    });
    for round in 0..3 {
        let mut socket = plane.accept().await;
        socket.get("a", "/api/v1/pods").await;
        assert_eq!(socket.next().await.status(), 200, "round {round}");
        socket.watch("w", json!({"resourceVersion": "5"})).await;
        let stream = setup.api.stream().await;
        drop(socket);
        stream.closed().await;
    }
    let door = |setup: &Setup| {
        let status = setup.core.last_report().unwrap().status.unwrap();
        status.doors.into_iter().find(|door| door.name == "dial:cp")
    };
    let _open = plane.accept().await;
    eventually("the door is reported open", || {
        door(&setup).is_some_and(|door| door.open && door.connects_total == 4)
    })
    .await;
}

#[tokio::test]
async fn equal_content_touches_no_connection_and_a_removed_door_is_closed() {
    let setup = Setup::start().await;
    let plane = ControlPlane::start().await;
    let with_door = |revision| proto::v1::ProxySpec {
        dial: vec![dialled(&plane.url())],
        ..spec(revision)
    };
    setup.core.give(with_door(2));
    let mut socket = plane.accept().await;
    socket.watch("w", json!({"resourceVersion": "5"})).await;
    let stream = setup.api.stream().await;
    assert!(!socket.next().await.chunk());
    setup.core.give(proto::v1::ProxySpec {
        reason: "said again".to_owned(),
        ..with_door(3)
    });
    eventually("the spec is in force", || {
        setup.core.last_report().unwrap().applied_revision == 3
    })
    .await;
    stream.event("ADDED", "6").await;
    assert_eq!(socket.next().await.version(), "6");
    setup.core.give(spec(4));
    assert_eq!(socket.close_code().await, Some(1000));
    stream.closed().await;
    eventually("the door is forgotten", || {
        setup
            .core
            .last_report()
            .unwrap()
            .status
            .unwrap()
            .doors
            .iter()
            .all(|door| door.name != "dial:cp")
    })
    .await;
}

#[tokio::test]
async fn a_door_that_cannot_be_dialled_says_why() {
    let setup = Setup::start().await;
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![dialled("ws://cp.example/x")],
        ..spec(2)
    });
    eventually("it is reported", || !setup.core.last_report().unwrap().ready).await;
    let report = setup.core.last_report().unwrap();
    let doors = report
        .conditions
        .iter()
        .find(|condition| condition.name == "Doors")
        .unwrap();
    assert!(
        doors.reason.contains("dial:cp") && doors.reason.contains("clear"),
        "{}",
        doors.reason
    );
    assert!(
        !format!("{report:?}").contains("session"),
        "the bearer is told nobody"
    );
}

#[tokio::test]
async fn a_link_that_died_in_silence_is_found() {
    let setup = Setup::start().await;
    let plane = ControlPlane::start().await;
    setup.core.give(proto::v1::ProxySpec {
        dial: vec![dialled(&plane.url())],
        ..spec(2)
    });
    // Held open and never read: no ping is answered.
    let silent = plane.accept().await;
    let again = tokio::time::timeout(Duration::from_secs(120), plane.listener.accept()).await;
    assert!(again.is_ok(), "the proxy dials again");
    drop(silent);
}
