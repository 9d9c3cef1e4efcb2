//! The proxy in this process, between a scripted apiserver and a scripted agent-core.

pub(crate) mod api;
pub(crate) mod core;
pub(crate) mod link;
pub(crate) mod socket;

use std::{future::Future, path::Path, time::Duration};

use bytes::Bytes;
use clap::Parser as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_proxy::{Addresses, App, Args, Config};
use proto::v1::{AcceptedToken, CredentialMode, DialedDoor, ProxySpec};
use runtime::{
    build::build_info,
    config::Env,
    local::{self, LocalChannel},
    secret,
    supervise::{Outcome, Supervisor},
    telemetry::Telemetry,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

pub(crate) use api::{Api, Stream, Tunnel, event};
pub(crate) use core::Core;
pub(crate) use link::Link;
pub(crate) use socket::Socket;

/// Longest wait for anything; nothing is proved by its length.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for something that has to happen.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) struct Setup {
    pub(crate) api: Api,
    pub(crate) core: Core,
    pub(crate) proxy: Proxy,
}

pub(crate) struct Proxy {
    pub(crate) addresses: Addresses,
    pub(crate) supervisor: Supervisor,
    pub(crate) certificate: String,
    pub(crate) dir: TempDir,
}

impl Setup {
    /// A proxy whose door opens for `door-token` (mode agent).
    pub(crate) async fn start() -> Self {
        Self::with(Api::start().await, &[]).await
    }

    pub(crate) async fn with(api: Api, flags: &[&str]) -> Self {
        runtime::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let core = Core::start(dir.path()).await;
        let proxy = Proxy::start(&api, &core.address.to_string(), dir, flags).await;
        core.give(spec(1));
        let setup = Self { api, core, proxy };
        eventually("the spec is in force", || {
            setup
                .core
                .last_report()
                .is_some_and(|report| report.applied_revision == 1)
        })
        .await;
        setup
    }

    pub(crate) async fn socket(&self) -> Socket {
        Socket::connect(self.proxy.addresses.door_http, "/ws/k8s", "door-token").await
    }
}

impl Proxy {
    pub(crate) async fn start(api: &Api, core: &str, dir: TempDir, flags: &[&str]) -> Self {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (core, private, edge) = (format!("http://{core}"), path("private"), path(""));
        std::fs::write(dir.path().join("kube-token"), "own-token").unwrap();
        let mut args = vec![
            "k8s-proxy",
            "--http-listen",
            "127.0.0.1:0",
            "--grpc-listen",
            "127.0.0.1:0",
        ];
        args.extend([
            "--door-http",
            "127.0.0.1:0",
            "--door-https",
            "127.0.0.1:0",
            "--audit",
            "off",
        ]);
        let url = api.url();
        args.extend([
            "--core-address",
            &core,
            "--private-dir",
            &private,
            "--edge-dir",
            &edge,
            "--kube-api",
            &url,
        ]);
        args.extend(flags);
        let ca = path("ca.crt");
        let mut env = vec![
            ("PIPEOPS_KUBE_TOKEN_FILE", path("kube-token")),
            ("PIPEOPS_POD_NAMESPACE", "pipeops".to_owned()),
        ];
        if let Some(pem) = &api.ca_pem {
            std::fs::write(&ca, pem).unwrap();
            env.push(("PIPEOPS_KUBE_CA_FILE", ca));
        }
        let config = Config::read(&Args::try_parse_from(args).unwrap().flags, &Env::from_pairs(env)).unwrap();
        let bound = App::bind(config, &Telemetry::disabled()).await.unwrap();
        let (addresses, certificate) = (bound.addresses(), bound.certificate_pem().to_owned());
        let supervisor = Supervisor::new(Duration::from_secs(5));
        bound.run(&supervisor).unwrap();
        Self {
            addresses,
            supervisor,
            certificate,
            dir,
        }
    }

    /// gRPC with the token of agent-core or of the operator.
    pub(crate) fn grpc(&self, token: &Path) -> LocalChannel {
        let address = format!("http://{}", self.addresses.grpc);
        local::channel(
            &address,
            secret::TokenFile::new(self.dir.path().join(token)),
            build_info("k8s-proxy"),
        )
        .unwrap()
    }

    pub(crate) fn edge_token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("token"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// One request on a connection of its own, answered but not read.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let tcp = TcpStream::connect(self.addresses.door_http).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .unwrap();
        tokio::spawn(connection);
        soon("an answer", sender.send_request(request)).await.unwrap()
    }

    /// GET with a bearer, read to its end.
    pub(crate) async fn get(&self, path: &str, token: &str) -> (StatusCode, String) {
        text(self.send(request(Method::GET, path, token)).await).await
    }

    /// Drains and waits for the end.
    pub(crate) async fn stop(&self) -> Outcome {
        self.supervisor.drain("test");
        soon("the proxy ends", self.supervisor.finish()).await
    }
}

pub(crate) fn request(method: Method, path: &str, token: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "proxy")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .unwrap()
}

pub(crate) async fn text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = soon("a body", response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub(crate) fn accepted(token: &str, mode: CredentialMode) -> AcceptedToken {
    AcceptedToken {
        sha256: secret::sha256(token.as_bytes()).to_vec().into(),
        name: format!("holder-of-{token}"),
        mode: mode.into(),
        groups: vec![],
    }
}

/// What agent-core hands out unless a test says otherwise.
pub(crate) fn spec(revision: u64) -> ProxySpec {
    ProxySpec {
        epoch: "epoch".to_owned(),
        revision,
        reason: "test".to_owned(),
        accept: vec![
            accepted("door-token", CredentialMode::Agent),
            accepted("caller-token", CredentialMode::Caller),
            accepted("person-token", CredentialMode::Impersonate),
        ],
        dial: vec![],
        namespace: "pipeops".to_owned(),
        state_secret: "state".to_owned(),
        lease: "lease".to_owned(),
        pod_name: "pod".to_owned(),
        ..ProxySpec::default()
    }
}

pub(crate) fn dialled(url: &str) -> DialedDoor {
    DialedDoor {
        url: url.to_owned(),
        bearer: "session".to_owned(),
        mode: CredentialMode::Agent.into(),
        name: "cp".to_owned(),
        ..DialedDoor::default()
    }
}
