//! Roles, tokens, versions and drain over a real socket.

use std::time::Duration;

use axum::{Router, response::IntoResponse as _, routing::post};
use tokio::net::TcpListener;
use tonic::{Code, Status, body::Body, service::Routes};
use tower::{Service as _, ServiceExt as _};

use super::{Access, LocalChannel, Role, channel, serve};
use crate::{
    build::{BuildInfo, build_info},
    secret::TokenFile,
    supervise::{Outcome, Supervisor},
};

const ALLOWED: &[&str] = &["/test.Things/Get", "/test.All/*"];

struct Setup {
    dir: tempfile::TempDir,
    address: String,
    supervisor: Supervisor,
}

impl Setup {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let supervisor = Supervisor::new(Duration::from_secs(5));
        let fine =
            || async { ([("content-type", "application/grpc"), ("grpc-status", "0")], "").into_response() };
        let mut router = Router::new();
        for path in ["/test.Things/Get", "/test.Things/Set", "/test.All/Any"] {
            router = router.route(path, post(fine));
        }
        let access = Access::new().allow(Role::Tunnel, TokenFile::new(dir.path().join("tunnel")), ALLOWED);
        let descriptors = tonic_health::pb::FILE_DESCRIPTOR_SET;
        let served = serve(
            listener,
            build_info("test"),
            access,
            descriptors,
            Routes::from(router),
            supervisor.clone(),
        );
        supervisor.spawn_critical("grpc", served);
        Self {
            dir,
            address,
            supervisor,
        }
    }

    fn token(&self, name: &str) -> TokenFile {
        TokenFile::new(self.dir.path().join(name))
    }
}

async fn call(channel: &mut LocalChannel, method: &str) -> Result<(), Status> {
    let request = http::Request::post(method)
        .header("content-type", "application/grpc")
        .body(Body::empty());
    let response = channel
        .ready()
        .await
        .unwrap()
        .call(request.unwrap())
        .await
        .unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        Some(_) | None => Ok(()),
    }
}

#[tokio::test]
async fn a_role_reaches_its_methods_and_no_others() {
    let setup = Setup::start().await;
    let file = setup.token("tunnel");
    let mut client = channel(&setup.address, file.clone(), build_info("test")).unwrap();
    assert_eq!(
        call(&mut client, "/test.Things/Get").await.unwrap_err().code(),
        Code::Unavailable,
        "no token yet"
    );
    file.create_once(0o600).unwrap();
    call(&mut client, "/test.Things/Get").await.unwrap();
    call(&mut client, "/test.All/Any").await.unwrap();
    assert_eq!(
        call(&mut client, "/test.Things/Set").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let other = setup.token("other");
    other.create_once(0o600).unwrap();
    let mut stranger = channel(&setup.address, other, build_info("test")).unwrap();
    assert_eq!(
        call(&mut stranger, "/test.Things/Get").await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn another_version_is_refused_with_a_sentence() {
    let setup = Setup::start().await;
    let file = setup.token("tunnel");
    file.create_once(0o600).unwrap();
    let newer = BuildInfo {
        version: "99.0.0",
        ..build_info("test")
    };
    let refused = call(
        &mut channel(&setup.address, file, newer).unwrap(),
        "/test.Things/Get",
    )
    .await
    .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("99.0.0"), "{}", refused.message());
}

#[tokio::test]
async fn health_is_open_and_the_drain_ends_the_server() {
    let setup = Setup::start().await;
    let endpoint = tonic::transport::Endpoint::from_shared(setup.address.clone()).unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    let request = tonic_health::pb::HealthCheckRequest::default();
    assert_eq!(
        health.check(request).await.unwrap().into_inner().status,
        1,
        "SERVING"
    );
    setup.supervisor.drain("test");
    assert_eq!(setup.supervisor.finish().await, Outcome::Clean);
}
