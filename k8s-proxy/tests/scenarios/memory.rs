//! What the program itself holds in memory: with thousands of watches open, and after they have closed.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Api, Core, eventually, soon, spec};

/// Enough to see what one costs and whether it comes back; the bench opens ten thousand.
const WATCHES: usize = 2_000;
/// The door allows 250 on one connection.
const PER_CONNECTION: usize = 200;

/// The program, ended with its handle.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Program {
    /// Kilobytes that no file holds: what it has allocated, stacks and relocated data.
    fn anonymous_kb(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }
}

async fn connect(address: &str) -> SendRequest<Empty<Bytes>> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn memory_of_many_watches_is_small_and_given_back() {
    runtime::tls::install_provider();
    let (api, dir) = (Api::start_tls().await, tempfile::tempdir().unwrap());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let core = Core::start(dir.path()).await;
    std::fs::write(path("kube-token"), "own-token").unwrap();
    std::fs::write(path("ca.crt"), api.ca_pem.as_ref().unwrap()).unwrap();
    let core_address = format!("http://{}", core.address);
    let (private, edge, file, url) = (path("private"), path(""), path("addresses.json"), api.url());
    let mut command = Command::new(env!("CARGO_BIN_EXE_k8s-proxy"));
    for (flag, value) in [
        ("--http-listen", "127.0.0.1:0"),
        ("--grpc-listen", "127.0.0.1:0"),
        ("--door-http", "127.0.0.1:0"),
        ("--door-https", "127.0.0.1:0"),
        ("--audit", "off"),
        ("--log-level", "warn"),
        ("--core-address", &core_address),
        ("--private-dir", &private),
        ("--edge-dir", &edge),
        ("--kube-api", &url),
        ("--addresses-file", &file),
    ] {
        command.args([flag, value]);
    }
    let program = command
        .env("PIPEOPS_KUBE_TOKEN_FILE", path("kube-token"))
        .env("PIPEOPS_KUBE_CA_FILE", path("ca.crt"))
        .stdout(Stdio::null())
        .spawn()
        .map(Program)
        .unwrap();
    core.give(spec(1));
    eventually("the spec is in force", || {
        core.last_report()
            .is_some_and(|report| report.applied_revision == 1)
    })
    .await;
    let addresses: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let door = addresses["door_http"].as_str().unwrap().to_owned();
    let idle = program.anonymous_kb();
    let mut open = Vec::new();
    let mut sender = connect(&door).await;
    for number in 0..WATCHES {
        if number % PER_CONNECTION == 0 {
            sender = connect(&door).await;
        }
        let request = Request::get(format!("http://{door}/api/v1/pods?watch=true&resourceVersion=5"))
            .header("authorization", "Bearer door-token")
            .body(Empty::new())
            .unwrap();
        let answer = soon("a watch opens", sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        open.push((answer, api.stream().await));
    }
    let busy = program.anonymous_kb();
    let each = (busy - idle) as f64 / WATCHES as f64;
    drop((open, sender));
    let mut after = busy;
    // Connections to the apiserver without a watch go within fifteen seconds.
    let given_back = tokio::time::timeout(Duration::from_secs(60), async {
        while after > idle + (busy - idle) / 2 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            after = program.anonymous_kb();
        }
    })
    .await;
    println!(
        "allocated: {idle} kB idle, {busy} kB with {WATCHES} idle watches ({each:.1} kB each), {after} kB after they closed"
    );
    assert!(each < 40.0, "{each:.1} kB for each watch");
    assert!(given_back.is_ok(), "{after} kB are still held");
}
