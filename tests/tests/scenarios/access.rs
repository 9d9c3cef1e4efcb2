//! Who may call what: grpcurl as a person uses it, and tunnel-sidecar with everything that it can read.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use harness::{
    control_plane::Call,
    lab::{Cluster, Lab, TOKEN},
    peers,
    pod::Part,
};
use prost::Message as _;
use tokio::process::Command;

async fn grpcurl(args: &[&str]) -> Result<Output> {
    let binary = peers::path("grpcurl")?;
    Command::new(binary)
        .arg("-plaintext")
        .args(args)
        .output()
        .await
        .context("running grpcurl")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// `list` and `describe` need no token; a call without one is UNAUTHENTICATED, with the wrong role
/// PERMISSION_DENIED, and with what `<binary> token` prints it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_on_every_port() -> Result<()> {
    let (lab, _) = Lab::running(Cluster::simulated().await?).await?;
    let calls = [
        (Part::Core, "Core", "GetAgent"),
        (Part::Tunnel, "Tunnel", "GetTunnel"),
        (Part::Proxy, "Proxy", "GetProxy"),
    ];
    for (part, service, method) in calls {
        let address = lab.pod.ports.of(part).1.to_string();
        let listed = said(&grpcurl(&[&address, "list"]).await?);
        let service = format!("pipeops.agent.v1.{service}");
        for expected in [
            service.as_str(),
            "pipeops.agent.v1.Process",
            "grpc.health.v1.Health",
        ] {
            ensure!(
                listed.contains(expected),
                "{expected} is not listed by {}: {listed}",
                part.name()
            );
        }
        let described = said(&grpcurl(&[&address, "describe", &service]).await?);
        ensure!(described.contains(method), "{described}");
        let health = said(&grpcurl(&[&address, "grpc.health.v1.Health/Check"]).await?);
        ensure!(health.contains("SERVING"), "{health}");

        let call = format!("{service}/{method}");
        let none = said(&grpcurl(&[&address, &call]).await?);
        ensure!(none.contains("Unauthenticated"), "without a token: {none}");
        let edge = if part == Part::Proxy {
            "edge-proxy"
        } else {
            "edge-tunnel"
        };
        let edge = std::fs::read_to_string(lab.pod.dir().join(edge).join("token"))?;
        let header = format!("authorization: Bearer {edge}");
        let method_of_others = format!("{service}/{method}");
        if part == Part::Core {
            let wrong = said(&grpcurl(&["-H", &header, &address, &method_of_others]).await?);
            ensure!(wrong.contains("PermissionDenied"), "wrong role: {wrong}");
        }
        let mut launch = lab.pod.launch(part);
        launch.args = vec!["token".to_owned()];
        launch.dir = lab.dir().join(format!("token-of-{}", part.name()));
        let mut printing = launch.start()?;
        ensure!(printing.ended().await?.success(), "{}", printing.log());
        let printed = printing.log().trim().to_owned();
        ensure!(printed == lab.pod.operator_token(part)?);
        let header = format!("authorization: Bearer {printed}");
        let fine = grpcurl(&["-H", &header, &address, &call]).await?;
        ensure!(fine.status.success(), "{}", said(&fine));
        println!("{call}: {} bytes for the operator", fine.stdout.len());
    }
    Ok(())
}

/// With every file that tunnel-sidecar can read, no method outside its list and nothing of the Kubernetes API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnel_sidecar_reaches_nothing_else() -> Result<()> {
    let (lab, _) = Lab::running(Cluster::simulated().await?).await?;
    let simulation = lab.cluster.simulation()?;
    let mut secrets = Vec::new();
    for folder in ["edge-tunnel", "private-tunnel"] {
        for entry in std::fs::read_dir(lab.pod.dir().join(folder))? {
            secrets.push(std::fs::read_to_string(entry?.path())?.trim().to_owned());
        }
    }
    ensure!(secrets.len() >= 2, "found {} readable files", secrets.len());
    let allowed = [
        "/pipeops.agent.v1.Siblings/WatchTunnelSpec",
        "/pipeops.agent.v1.Siblings/ReportTunnel",
    ];
    let descriptors = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)?;
    let mut tried = 0;
    for secret in &secrets {
        for part in [Part::Core, Part::Proxy] {
            let endpoint = format!("http://{}", lab.pod.ports.of(part).1);
            let channel = tonic::transport::Endpoint::from_shared(endpoint)?
                .connect()
                .await?;
            for (package, service, method) in methods(&descriptors) {
                let path = format!("/{package}.{service}/{method}");
                if allowed.contains(&path.as_str()) && part == Part::Core {
                    continue;
                }
                let code = call(channel.clone(), &path, secret).await?;
                use tonic::Code::{PermissionDenied, Unauthenticated};
                ensure!(
                    [PermissionDenied, Unauthenticated].contains(&code),
                    "{} answered {code:?} to {path}",
                    part.name()
                );
                tried += 1;
            }
        }
    }
    ensure!(tried > 40, "only {tried} calls were tried");

    simulation.requests().clear();
    let client = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .build()?;
    let doors = [
        format!("http://{}", lab.pod.ports.door_http),
        format!("https://{}", lab.pod.ports.door_https),
        format!("http://{}", lab.pod.ports.core_http),
    ];
    for secret in secrets.iter().map(String::as_str).chain(["", "x"]) {
        for door in &doors {
            for path in [
                "/api/v1/secrets",
                "/api/k8s/api/v1/namespaces",
                "/apis",
                "/version",
            ] {
                if path == "/version" && door.ends_with(&lab.pod.ports.core_http.port().to_string()) {
                    continue;
                }
                let answer = client
                    .get(format!("{door}{path}"))
                    .bearer_auth(secret)
                    .send()
                    .await?;
                let status = answer.status().as_u16();
                ensure!(
                    [401, 403, 404].contains(&status),
                    "{door}{path} answered {status}"
                );
            }
        }
    }
    let leaked = simulation
        .requests()
        .find(|request| request.path.contains("secrets") && request.verb == "list");
    ensure!(leaked.is_empty(), "the apiserver was asked: {leaked:?}");
    println!("{tried} gRPC calls and every door refused");
    Ok(())
}

fn methods(set: &prost_types::FileDescriptorSet) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                all.push((
                    file.package().to_owned(),
                    service.name().to_owned(),
                    method.name().to_owned(),
                ));
            }
        }
    }
    all
}

async fn call(channel: tonic::transport::Channel, path: &str, token: &str) -> Result<tonic::Code> {
    use tower::{Service as _, ServiceExt as _};
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("authorization", format!("Bearer {token}"))
        .body(tonic::body::Body::empty())?;
    let mut channel = channel;
    let response = channel.ready().await?.call(request).await?;
    let status = tonic::Status::from_header_map(response.headers());
    Ok(status.map_or(tonic::Code::Ok, |status| status.code()))
}

/// The control plane's token opens the doors of the seeds, and is a person's key to nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seeds_bearer_opens_the_seeds_urls() -> Result<()> {
    let (lab, id) = Lab::running(Cluster::simulated().await?).await?;
    let base = format!("http://{}", lab.pod.ports.core_http);
    let client = reqwest::Client::new();
    let through_core = client
        .get(format!("{base}/api/k8s/version"))
        .bearer_auth(TOKEN)
        .send()
        .await?;
    ensure!(
        through_core.status() == 200,
        "relay of agent-core: {}",
        through_core.status()
    );
    let none = client.get(format!("{base}/api/k8s/version")).send().await?;
    ensure!(none.status() == 401, "without a token: {}", none.status());
    let link = lab.control_plane.dial_forward(&id, "agent-http").await?;
    ensure!(
        link.request(&Call::get("/version")).await?.status == 200,
        "frames through the tunnel and agent-core"
    );
    let link = lab.control_plane.dial_forward(&id, "k8s-proxy").await?;
    ensure!(
        link.request(&Call::get("/version")).await?.status == 200,
        "frames through the tunnel"
    );
    let status = client
        .get(format!("{base}/api/agent/status"))
        .bearer_auth(TOKEN)
        .send()
        .await?;
    ensure!(status.status() == 200, "/api/agent/status: {}", status.status());
    Ok(())
}
