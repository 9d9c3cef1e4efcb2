//! Everything around the sidecar, and the sidecar itself.

mod chisel;
mod core;
mod datagrams;
mod flow;
mod netns;
mod proxy;
mod relay;
mod targets;

use std::{net::SocketAddr, path::Path, time::Duration};

use proto::v1::{ForwardState, SessionState, TunnelReport, TunnelSpec, tunnel_client::TunnelClient};
use runtime::{
    backoff::Policy,
    local::{LocalChannel, channel, streams::Pace},
    secret::TokenFile,
    supervise::{Outcome, Supervisor},
    telemetry::Telemetry,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Instant, sleep},
};
use tunnel_sidecar::{App, BUILD, Config, config::Flags, timing::Timing};

pub(crate) use self::{
    chisel::{Chisel, binary as chisel_binary},
    core::Core,
    datagrams::UdpTarget,
    flow::{Flow, Seen},
    netns::Netns,
    proxy::{Front, ProxyDouble},
    relay::{Fault, Relay},
    targets::Target,
};

/// Longest wait for what takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pings as they are in these tests, so that dead links are found while somebody watches.
pub(crate) const PING: Duration = Duration::from_millis(200);

/// The token both sides of the edge read.
const EDGE_TOKEN: &str = "edge-token-of-the-tests";

/// Waits until `condition` gives a value.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A sidecar with its agent-core.
pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) supervisor: Supervisor,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) dir: TempDir,
    pub(crate) client: TunnelClient<LocalChannel>,
    /// The sidecar, when it runs as a process of its own.
    pub(crate) child: Option<Child>,
}

/// Durations short enough for tests, in the proportions of the real ones.
pub(crate) fn timing() -> Timing {
    let policy = |min, max| Policy {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
        stable: Duration::from_millis(500),
    };
    Timing {
        retry: policy(20, 200),
        port_taken: policy(20, 200),
        slow_least: Duration::from_millis(400),
        slow: policy(50, 100),
        core: Pace {
            retry: policy(20, 200),
            report: Duration::from_secs(1),
        },
        coalesce: Duration::from_millis(5),
        ..Timing::default()
    }
}

/// The places of named targets: variables of the sidecar.
pub(crate) type Env<'a> = &'a [(&'a str, String)];

impl World {
    /// Starts a sidecar whose named targets are where `env` says.
    pub(crate) async fn start(env: Env<'_>) -> Self {
        Self::start_with(env, |_| {}).await
    }

    /// The same, with settings that no flag changes.
    pub(crate) async fn start_with(env: Env<'_>, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let core = Core::start(EDGE_TOKEN).await;
        let mut config = settings(dir.path(), core.address(), env);
        config.timing = timing();
        change(&mut config);
        let supervisor = Supervisor::new(config.common.drain_timeout);
        let bound = App::bind(config, &Telemetry::disabled()).await.unwrap();
        let (http, grpc) = (bound.http_address(), bound.grpc_address());
        bound.run(&supervisor).unwrap();
        let operator = TokenFile::new(dir.path().join("private/operator-token"));
        let client = TunnelClient::new(channel(&format!("http://{grpc}"), operator, BUILD).unwrap());
        Self {
            core,
            supervisor,
            http,
            grpc,
            dir,
            client,
            child: None,
        }
    }

    /// Starts the sidecar as a process of its own, by a command that `prefix` puts somewhere.
    pub(crate) async fn spawn(prefix: &[String], env: Env<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let core = Core::start(EDGE_TOKEN).await;
        std::fs::create_dir_all(dir.path().join("edge")).unwrap();
        std::fs::write(dir.path().join("edge/token"), EDGE_TOKEN).unwrap();
        let program = env!("CARGO_BIN_EXE_tunnel-sidecar").to_owned();
        let mut words = prefix.iter().chain([&program]);
        let addresses = dir.path().join("addresses.json");
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(words.next().unwrap())
            .args(words)
            .env("PIPEOPS_PRIVATE_DIR", dir.path().join("private"))
            .env("PIPEOPS_EDGE_DIR", dir.path().join("edge"))
            .env("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0")
            .env("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0")
            .env("PIPEOPS_CORE_ADDRESS", format!("http://{}", core.address()))
            .env("PIPEOPS_ADDRESSES_FILE", &addresses)
            .env("PIPEOPS_DRAIN_TIMEOUT", "20s")
            .envs(env.iter().cloned())
            .stdin(std::process::Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let bound: serde_json::Value = eventually("the sidecar to bind", || async {
            serde_json::from_slice(&std::fs::read(&addresses).ok()?).ok()
        })
        .await;
        let address = |name: &str| bound[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        let (http, grpc) = (address("http"), address("grpc"));
        let operator = TokenFile::new(dir.path().join("private/operator-token"));
        let client = TunnelClient::new(channel(&format!("http://{grpc}"), operator, BUILD).unwrap());
        Self {
            core,
            supervisor: Supervisor::new(Duration::from_secs(1)),
            http,
            grpc,
            dir,
            client,
            child: Some(child),
        }
    }

    /// What the process has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Resident memory of the process, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.child.as_ref().unwrap().id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// What the sidecar says of itself.
    pub(crate) async fn report(&self) -> TunnelReport {
        self.client
            .clone()
            .get_tunnel(proto::v1::GetTunnelRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Waits until a report is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&TunnelReport) -> bool) -> TunnelReport {
        let start = Instant::now();
        loop {
            let report = self.report().await;
            if wanted(&report) {
                return report;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited in vain for: {what}\n{report:#?}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every forward of the spec listens.
    pub(crate) async fn until_listening(&self, count: usize) -> TunnelReport {
        self.until("all forwards to listen", |report| {
            listening(report).len() == count
        })
        .await
    }

    /// `GET path` on the port for probes.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        get(self.http, path).await
    }

    /// Begins the drain and waits for the end.
    pub(crate) async fn finish(&self) -> Outcome {
        self.supervisor.drain("the test ends");
        self.supervisor.finish().await
    }
}

/// Settings of a sidecar whose every file is under `dir`.
pub(crate) fn settings(dir: &Path, core: SocketAddr, env: Env<'_>) -> Config {
    let edge = dir.join("edge");
    std::fs::create_dir_all(&edge).unwrap();
    std::fs::write(edge.join("token"), EDGE_TOKEN).unwrap();
    let own = [
        ("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0".to_owned()),
        ("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("PIPEOPS_PRIVATE_DIR", dir.join("private").display().to_string()),
        ("PIPEOPS_EDGE_DIR", edge.display().to_string()),
        ("PIPEOPS_CORE_ADDRESS", format!("http://{core}")),
        ("PIPEOPS_DRAIN_TIMEOUT", "20s".to_owned()),
    ];
    let all = own.into_iter().chain(env.iter().cloned());
    Config::read(&Flags::default(), &runtime::config::Env::from_pairs(all)).unwrap()
}

/// A plain HTTP request.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    (status, body)
}

/// A spec for `server` with the given forwards (name, port, target), which pings often.
pub(crate) fn spec(server: &str, forwards: &[(&str, u16, &str)]) -> TunnelSpec {
    let millis = u32::try_from(PING.as_millis()).unwrap();
    TunnelSpec {
        enabled: true,
        server: server.to_owned(),
        credentials: Chisel::CREDENTIALS.to_owned(),
        forwards: forwards
            .iter()
            .map(|(name, port, target)| forward(name, *port, target))
            .collect(),
        ping_interval_ms: millis,
        ping_timeout_ms: millis * 10,
        ..TunnelSpec::default()
    }
}

pub(crate) fn forward(name: &str, port: u16, target: &str) -> proto::v1::Forward {
    proto::v1::Forward {
        name: name.to_owned(),
        remote_host: "127.0.0.1".to_owned(),
        remote_port: port.into(),
        target: target.to_owned(),
        ..proto::v1::Forward::default()
    }
}

/// Names of the forwards the server listens for.
pub(crate) fn listening(report: &TunnelReport) -> Vec<&str> {
    let forwards = &report.status.as_ref().unwrap().forwards;
    let listening = forwards
        .iter()
        .filter(|forward| forward.state() == ForwardState::Listening);
    listening.map(|forward| forward.name.as_str()).collect()
}

/// The status of one forward.
pub(crate) fn row<'a>(report: &'a TunnelReport, name: &str) -> &'a proto::v1::ForwardStatus {
    report
        .status
        .as_ref()
        .unwrap()
        .forwards
        .iter()
        .find(|forward| forward.name == name)
        .unwrap()
}

/// The state of the session.
pub(crate) fn session(report: &TunnelReport) -> SessionState {
    report.status.as_ref().unwrap().state()
}

/// Status and reason of a condition.
pub(crate) fn condition<'a>(report: &'a TunnelReport, name: &str) -> (proto::v1::ConditionStatus, &'a str) {
    let found = report
        .conditions
        .iter()
        .find(|condition| condition.name == name)
        .unwrap();
    (found.status(), &found.reason)
}

/// A connection of a user to a port of the server.
pub(crate) async fn user(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

/// Sends a text and expects it back.
pub(crate) async fn echo(tcp: &mut TcpStream, text: &str) {
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, tcp.read_exact(&mut back))
        .await
        .expect("an echo")
        .unwrap();
    assert_eq!(back, text.as_bytes());
}

/// Whether a user gets an echo from `port` at this moment.
pub(crate) async fn echoes(port: u16) -> Option<()> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    tcp.write_all(b"?").await.ok()?;
    let mut back = [0];
    let read = tokio::time::timeout(Duration::from_secs(2), tcp.read_exact(&mut back)).await;
    read.ok()?.ok().map(|_| ())
}

/// Waits for the server to close a connection, and returns what it sent before.
pub(crate) async fn until_closed(tcp: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut all))
        .await
        .expect("the connection to be closed");
    // A reset is an end as well.
    read.map(|_| ())
        .or_else(|error| {
            if error.kind() == std::io::ErrorKind::ConnectionReset {
                Ok(())
            } else {
                Err(error)
            }
        })
        .unwrap();
    all
}
