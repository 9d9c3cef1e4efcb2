//! A page with a known token, asked without a socket.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]
#![allow(dead_code, reason = "each test file uses its own part")]

use axum::Router;
use axum::body::Body;
use dashboard::{Action, Feed, Page, Sessions, Snapshot, feed, router};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) struct Fixture {
    pub(crate) feed: Feed,
    pub(crate) sessions: Sessions,
    pub(crate) app: Router,
}

pub(crate) fn fixture() -> Fixture {
    let (feed, snapshots) = feed(Snapshot::default());
    let page = Page::new(snapshots, |token| token == TOKEN)
        .allow_hosts(["pipeops-agent.ns.svc".to_owned()])
        .action(Action::Heartbeat, || async {
            Ok("accepted, Bearer abc".to_owned())
        })
        .action(Action::Reregister, || async {
            Err("the control plane does not answer".to_owned())
        });
    Fixture {
        feed,
        sessions: page.sessions(),
        app: router(page),
    }
}

impl Fixture {
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.app.clone().oneshot(request).await.unwrap()
    }

    /// Signs in and returns the `Cookie` value.
    pub(crate) async fn cookie(&self) -> String {
        let response = self.send(sign_in(TOKEN)).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let set = response.headers()["set-cookie"].to_str().unwrap();
        set.split(';').next().unwrap().to_owned()
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:8080");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).unwrap()
}

pub(crate) fn sign_in(token: &str) -> Request<Body> {
    let mut request = request(
        "POST",
        "/dashboard/session",
        &[("content-type", "application/json")],
    );
    *request.body_mut() = Body::from(format!(r#"{{"token":"{token}"}}"#));
    request
}

pub(crate) async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
